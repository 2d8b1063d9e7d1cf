//! Log-probabilities and entropies of tokens straight from hidden rows. Never holds `[tokens, vocabulary]`: logits live
//! for one block of rows and words at a time, and the backward pass makes them again.

use super::cpu::{Values, exp, result, slice, sum, tensor};
use super::matrix::{Begin, Mat, Right, Run, product};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Words a block has.
const WORDS: usize = 512;

/// The head, and what is asked of each row.
pub struct Head {
    pub weight: Arc<Mat>, // [V, E]
    pub targets: Vec<u32>,
    pub inverse_temperatures: Vec<f32>,
    /// Log of the sum of the exponentials, a row.
    pub log_sums: OnceLock<Vec<f32>>,
}

/// Of a block of rows: what the words so far add up to.
struct Running {
    max: f32,
    /// Sum of `exp(l − max)`.
    sum: f32,
    /// Sum of `exp(l − max) · (l − max)`.
    moment: f32,
}

impl Running {
    fn add(&mut self, logits: &[f32], moment: bool) {
        let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| if l > m { l } else { m });
        let new = self.max.max(max);
        if self.sum > 0.0 {
            let (shift, factor) = (self.max - new, exp(self.max - new));
            self.moment = factor * (self.moment + shift * self.sum);
            self.sum *= factor;
        }
        self.max = new;
        self.sum += sum(logits.len(), |i| exp(logits[i] - new));
        if moment {
            self.moment += sum(logits.len(), |i| exp(logits[i] - new) * (logits[i] - new));
        }
    }
}

impl Head {
    /// Rows that one task takes: enough tasks for every core, enough rows to pay for packing the head.
    fn block(&self) -> usize {
        (self.inverse_temperatures.len().div_ceil(8)).clamp(28, 168)
    }

    /// Logits of `rows` rows over `words` words from `first` on, divided by the temperatures.
    fn logits(&self, hidden: &Mat, inverse: &[f32], first: usize, words: usize, to: &mut Vec<f32>) {
        to.resize(hidden.rows() * words, 0.0);
        let part = self.weight.part(first, words, self.weight.cols());
        product(hidden.all(), &[Right::Transposed(part)], Begin::Zero, to, Run::Here);
        for (row, inverse) in to.chunks_exact_mut(words).zip(inverse) {
            row.iter_mut().for_each(|l| *l *= inverse);
        }
    }

    fn words(&self) -> impl Iterator<Item = (usize, usize)> {
        let v = self.weight.rows();
        (0..v).step_by(WORDS).map(move |first| (first, WORDS.min(v - first)))
    }

    /// Calls `f(index of the first row, hidden rows, their inverse temperatures, their results)` in parallel.
    fn by_rows<T: Send>(
        &self,
        hidden: &[f32],
        out: &mut [T],
        width: usize,
        f: impl Fn(usize, Mat, &[f32], &mut [T]) + Sync,
    ) {
        let (block, e) = (self.block(), self.weight.cols());
        out.par_chunks_mut(block * width).enumerate().with_max_len(1).for_each(|(i, out)| {
            let (first, rows) = (i * block, out.len() / width);
            let hidden = Mat::new(self.weight.precision(), &hidden[first * e..][..rows * e], e);
            f(first, hidden, &self.inverse_temperatures[first..][..rows], out);
        });
    }

    /// `(log-probability, log of the sum)` a row.
    fn forward(&self, hidden: &[f32]) -> Vec<(f32, f32)> {
        let mut out = vec![(0f32, 0f32); self.inverse_temperatures.len()];
        self.by_rows(hidden, &mut out, 1, |at, hidden, inverse, out| {
            let mut logits = Vec::new();
            let mut running: Vec<Running> =
                out.iter().map(|_| Running { max: f32::NEG_INFINITY, sum: 0.0, moment: 0.0 }).collect();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut logits);
                for (r, row) in logits.chunks_exact(words).enumerate() {
                    running[r].add(row, false);
                    let target = self.targets[at + r] as usize;
                    if (first..first + words).contains(&target) {
                        out[r].0 = row[target - first];
                    }
                }
            }
            for (out, running) in out.iter_mut().zip(running) {
                out.1 = running.max + running.sum.ln();
                out.0 -= out.1;
            }
        });
        out
    }

    /// Entropies, nats.
    pub fn entropy(&self, hidden: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; self.inverse_temperatures.len()];
        self.by_rows(hidden, &mut out, 1, |_, hidden, inverse, out| {
            let mut logits = Vec::new();
            let mut running: Vec<Running> =
                out.iter().map(|_| Running { max: f32::NEG_INFINITY, sum: 0.0, moment: 0.0 }).collect();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut logits);
                logits.chunks_exact(words).zip(&mut running).for_each(|(row, running)| running.add(row, true));
            }
            for (out, running) in out.iter_mut().zip(running) {
                *out = running.sum.ln() - running.moment / running.sum;
            }
        });
        out
    }

    fn backward(&self, hidden: &[f32], gradient: &[f32], log_sums: &[f32]) -> Vec<f32> {
        let e = self.weight.cols();
        let mut out = vec![0f32; hidden.len()];
        self.by_rows(hidden, &mut out, e, |at, hidden, inverse, out| {
            let mut logits = Vec::new();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut logits);
                // d logprob / d logit = (1 at the target) − p.
                for (r, row) in logits.chunks_exact_mut(words).enumerate() {
                    let (factor, log_sum) = (gradient[at + r] * inverse[r], log_sums[at + r]);
                    row.iter_mut().for_each(|l| *l = -factor * exp(*l - log_sum));
                    let target = self.targets[at + r] as usize;
                    if (first..first + words).contains(&target) {
                        row[target - first] += factor;
                    }
                }
                let slopes = Mat::new(self.weight.precision(), &logits, words);
                let begin = if first == 0 { Begin::Zero } else { Begin::Add };
                product(slopes.all(), &[Right::Straight(self.weight.part(first, words, e))], begin, out, Run::Here);
            }
        });
        out
    }
}

impl CustomOp1 for Head {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (logprobs, log_sums): (Vec<f32>, Vec<f32>) =
            self.forward(slice(self.name(), hidden, l)?).into_iter().unzip();
        self.log_sums.set(log_sums).ok();
        let shape = Shape::from(logprobs.len());
        result(logprobs, &shape)
    }

    fn bwd(&self, hidden: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let log_sums = self.log_sums.get().map_or(&[][..], Vec::as_slice);
        tensor(self.backward(&Values::of(hidden)?, &Values::of(&gradient)?, log_sums), hidden.shape()).map(Some)
    }
}
