//! Log-probabilities and entropies of tokens straight from hidden rows. Never holds `[tokens, vocabulary]`: logits
//! exist for one block of rows and words at a time. The gradient's only large part, the mean of the head's rows under
//! each distribution, is accumulated in the same sweep, so the backward pass needs no product.

use super::accumulate::{Begin, Run};
use super::cpu::{Values, exp, result, rows, slice, sum, tensor};
use super::frozen::{Frozen, check_tokens};
use super::matrix::{Mat, Right, product};
use super::{cpu, plain};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// `log softmax(h Wᵀ / T)[target]` per row, nats. Differentiable in `hidden [M, E]`; `head` is `[V, E]`.
///
/// Errors if a target is not below V or a temperature is not positive and finite.
pub fn token_logprobs(hidden: &Tensor, head: &Frozen, targets: &[u32], temperatures: &[f32]) -> crate::Result<Tensor> {
    let m = check_head("token_logprobs", hidden, head, temperatures)?;
    if targets.len() != m {
        return Err(Error::train(format!("token_logprobs: {} targets for {m} rows", targets.len())));
    }
    check_tokens("token_logprobs", targets, head.out_features())?;
    if m == 0 {
        return Ok(Tensor::zeros(0, DType::F32, hidden.device())?);
    }
    match head.fused(hidden) {
        Some(weight) => {
            Ok(hidden.contiguous()?.apply_op1(head_of(head, weight, targets, temperatures, hidden.track_op()))?)
        }
        None => plain::token_logprobs(hidden, head, targets, temperatures),
    }
}

/// Entropy of `softmax(h Wᵀ / T)` per row, nats. Not differentiable.
pub fn token_entropy(hidden: &Tensor, head: &Frozen, temperatures: &[f32]) -> crate::Result<Tensor> {
    if check_head("token_entropy", hidden, head, temperatures)? == 0 {
        return Ok(Tensor::zeros(0, DType::F32, hidden.device())?);
    }
    let hidden = hidden.detach().contiguous()?;
    match head.fused(&hidden) {
        Some(weight) => {
            let (_, entropy) = head_of(head, weight, &[], temperatures, false).measure(&cpu::Values::of(&hidden)?);
            Ok(cpu::tensor(entropy, temperatures.len())?)
        }
        None => plain::token_entropy(&hidden, head, temperatures),
    }
}

/// [`token_logprobs`] and [`token_entropy`] from one product with the head. Not differentiable.
pub fn token_logprobs_and_entropy(
    hidden: &Tensor,
    head: &Frozen,
    targets: &[u32],
    temperatures: &[f32],
) -> crate::Result<(Tensor, Tensor)> {
    let hidden = hidden.detach().contiguous()?;
    let checked = check_head("token_logprobs_and_entropy", &hidden, head, temperatures)?;
    match head.fused(&hidden) {
        Some(weight) if checked > 0 && targets.len() == checked => {
            check_tokens("token_logprobs_and_entropy", targets, head.out_features())?;
            let values = cpu::Values::of(&hidden)?;
            let (logprobs, entropy) = head_of(head, weight, targets, temperatures, false).measure(&values);
            Ok((cpu::tensor(logprobs, checked)?, cpu::tensor(entropy, checked)?))
        }
        _ => Ok((token_logprobs(&hidden, head, targets, temperatures)?, token_entropy(&hidden, head, temperatures)?)),
    }
}

/// KL(p‖q) per row over the whole vocabulary, nats: p is `softmax(h Wᵀ / T)` of `hidden [M, E]`, q that of `other [M,
/// E]`. Not differentiable.
pub fn token_kl(hidden: &Tensor, other: &Tensor, head: &Frozen, temperatures: &[f32]) -> crate::Result<Tensor> {
    let m = check_head("token_kl", hidden, head, temperatures)?;
    check_head("token_kl", other, head, temperatures)?;
    if m == 0 {
        return Ok(Tensor::zeros(0, DType::F32, hidden.device())?);
    }
    let (hidden, other) = (hidden.detach().contiguous()?, other.detach().contiguous()?);
    match head.fused(&hidden).filter(|_| cpu::takes(&other)) {
        Some(weight) => {
            let (p, q) = (cpu::Values::of(&hidden)?, cpu::Values::of(&other)?);
            Ok(cpu::tensor(head_of(head, weight, &[], temperatures, false).divergence(&p, &q), m)?)
        }
        None => plain::token_kl(&hidden, &other, head, temperatures),
    }
}

fn head_of(head: &Frozen, weight: &Arc<Mat>, targets: &[u32], temperatures: &[f32], keep: bool) -> Head {
    Head {
        weight: weight.clone(),
        bias: head.bias().cloned(),
        targets: targets.to_vec(),
        inverse_temperatures: temperatures.iter().map(|t| 1.0 / t).collect(),
        keep,
        mean_words: OnceLock::new(),
    }
}

fn check_head(op: &str, hidden: &Tensor, head: &Frozen, temperatures: &[f32]) -> crate::Result<usize> {
    let (v, e) = (head.out_features(), head.in_features());
    let m = match hidden.dims() {
        &[m, w] if w == e => m,
        dims => return Err(Error::train(format!("{op}: hidden is {dims:?}, the head [{v}, {e}] expects [M, {e}]"))),
    };
    if temperatures.len() != m {
        return Err(Error::train(format!("{op}: {} temperatures for {m} rows", temperatures.len())));
    }
    match temperatures.iter().find(|t| !(t.is_finite() && **t > 0.0)) {
        Some(t) => Err(Error::train(format!("{op}: temperature {t}, expected a positive number"))),
        None => Ok(m),
    }
}

/// Rows of the head (words of the vocabulary) per block.
const WORDS: usize = 512;

/// The head, with the target and temperature of each row.
pub struct Head {
    pub weight: Arc<Mat>, // [V, E]
    /// Added to the logits, `[V]`.
    pub bias: Option<Arc<[f32]>>,
    pub targets: Vec<u32>,
    pub inverse_temperatures: Vec<f32>,
    /// Whether a backward pass may follow.
    pub keep: bool,
    /// The head's rows averaged under each row's distribution, `[rows, E]`.
    pub mean_words: OnceLock<Vec<f32>>,
}

/// Sums of one row over the words of the vocabulary so far.
struct Running {
    max: f32,
    /// Sum of `exp(l − max)`.
    sum: f32,
    /// Sum of `exp(l − max) · (l − max)`.
    moment: f32,
}

impl Running {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, moment: 0.0 };

    /// Adds logits. Returns the factor by which the earlier sums were rescaled because the largest logit changed.
    fn add(&mut self, logits: &[f32], moment: bool) -> f32 {
        let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| if l > m { l } else { m });
        let new = self.max.max(max);
        let mut factor = 1.0;
        if self.sum > 0.0 {
            let shift = self.max - new;
            factor = exp(shift);
            self.moment = factor * (self.moment + shift * self.sum);
            self.sum *= factor;
        }
        self.max = new;
        self.sum += sum(logits.len(), |i| exp(logits[i] - new));
        if moment {
            self.moment += sum(logits.len(), |i| exp(logits[i] - new) * (logits[i] - new));
        }
        factor
    }
}

impl Head {
    /// Rows per task: enough tasks for every core, and enough rows to make packing the head worthwhile.
    fn block(&self) -> usize {
        (self.inverse_temperatures.len().div_ceil(8)).clamp(28, 168)
    }

    /// Logits of `rows` rows over `words` words from `first` on, divided by the temperatures.
    fn logits(&self, hidden: &Mat, inverse: &[f32], first: usize, words: usize, to: &mut Vec<f32>) {
        to.resize(hidden.rows() * words, 0.0);
        let part = self.weight.part(first, words, self.weight.cols());
        product(hidden.all(), &[Right::Transposed(part)], Begin::Zero, to, Run::Here);
        for (row, inverse) in to.chunks_exact_mut(words).zip(inverse) {
            if let Some(bias) = &self.bias {
                row.iter_mut().zip(&bias[first..]).for_each(|(l, b)| *l += b);
            }
            row.iter_mut().for_each(|l| *l *= inverse);
        }
    }

    fn words(&self) -> impl Iterator<Item = (usize, usize)> {
        let v = self.weight.rows();
        (0..v).step_by(WORDS).map(move |first| (first, WORDS.min(v - first)))
    }

    /// Calls `f(index of the first row, hidden rows, their inverse temperatures, their results)` in parallel, and
    /// collects the results in order.
    fn by_rows<T: Send>(
        &self,
        hidden: &[f32],
        out: &mut [f32],
        f: impl Fn(usize, Mat, &[f32], &mut [f32]) -> T + Sync,
    ) -> Vec<T> {
        let (block, e) = (self.block(), self.weight.cols());
        let task = |(i, out): (usize, &mut [f32])| {
            let (first, rows) = (i * block, out.len());
            let hidden = Mat::new(self.weight.precision(), &hidden[first * e..][..rows * e], e);
            f(first, hidden, &self.inverse_temperatures[first..][..rows], out)
        };
        out.par_chunks_mut(block).enumerate().with_max_len(1).map(task).collect()
    }

    /// Log-probabilities and, if kept, the means of the head's rows.
    fn forward(&self, hidden: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut out = vec![0f32; self.inverse_temperatures.len()];
        let means = self.by_rows(hidden, &mut out, |at, hidden, inverse, out| {
            let e = self.weight.cols();
            let mut logits = Vec::new();
            let mut means = vec![0f32; if self.keep { out.len() * e } else { 0 }];
            let mut running: Vec<Running> = out.iter().map(|_| Running::EMPTY).collect();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut logits);
                for (r, row) in logits.chunks_exact_mut(words).enumerate() {
                    let target = self.targets[at + r] as usize;
                    if (first..first + words).contains(&target) {
                        out[r] = row[target - first];
                    }
                    let factor = running[r].add(row, false);
                    if self.keep {
                        let max = running[r].max;
                        row.iter_mut().for_each(|l| *l = exp(*l - max));
                        if factor != 1.0 {
                            means[r * e..][..e].iter_mut().for_each(|m| *m *= factor);
                        }
                    }
                }
                if self.keep {
                    let weights = Mat::new(self.weight.precision(), &logits, words);
                    let part = Right::Straight(self.weight.part(first, words, e));
                    product(weights.all(), &[part], Begin::Add, &mut means, Run::Here);
                }
            }
            for (r, (out, running)) in out.iter_mut().zip(&running).enumerate() {
                *out -= running.max + running.sum.ln();
                if self.keep {
                    means[r * e..][..e].iter_mut().for_each(|m| *m /= running.sum);
                }
            }
            means
        });
        (out, means.concat())
    }

    /// Log-probabilities and entropies, nats; the former are meaningful only if there are targets.
    pub fn measure(&self, hidden: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut logprobs = vec![0f32; self.inverse_temperatures.len()];
        let entropies = self.by_rows(hidden, &mut logprobs, |at, hidden, inverse, out| {
            let mut logits = Vec::new();
            let mut running: Vec<Running> = out.iter().map(|_| Running::EMPTY).collect();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut logits);
                for (r, (row, running)) in logits.chunks_exact(words).zip(&mut running).enumerate() {
                    let target = self.targets.get(at + r).and_then(|t| (*t as usize).checked_sub(first));
                    if let Some(logit) = target.and_then(|place| row.get(place)) {
                        out[r] = *logit;
                    }
                    running.add(row, true);
                }
            }
            let finish = |(out, running): (&mut f32, Running)| {
                *out -= running.max + running.sum.ln();
                running.sum.ln() - running.moment / running.sum
            };
            out.iter_mut().zip(running).map(finish).collect::<Vec<f32>>()
        });
        (logprobs, entropies.concat())
    }

    /// KL(p‖q) per row, nats, where p is the distribution of `hidden` and q that of `other`. Summed over the whole
    /// vocabulary, so it is exact, and never negative except for rounding.
    pub fn divergence(&self, hidden: &[f32], other: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; self.inverse_temperatures.len()];
        let e = self.weight.cols();
        self.by_rows(hidden, &mut out, |at, hidden, inverse, out| {
            let other = Mat::new(self.weight.precision(), &other[at * e..][..out.len() * e], e);
            let (mut p, mut q) = (Vec::new(), Vec::new());
            // Per row: both sums, and the sum of exp(p − max) · (p − q).
            let mut running: Vec<(Running, Running, f32)> =
                out.iter().map(|_| (Running::EMPTY, Running::EMPTY, 0.0)).collect();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut p);
                self.logits(&other, inverse, first, words, &mut q);
                let rows = p.chunks_exact(words).zip(q.chunks_exact(words)).zip(&mut running);
                for ((p, q), (of_p, of_q, cross)) in rows {
                    *cross *= of_p.add(p, false);
                    of_q.add(q, false);
                    let max = of_p.max;
                    *cross += sum(words, |i| exp(p[i] - max) * (p[i] - q[i]));
                }
            }
            for (out, (p, q, cross)) in out.iter_mut().zip(&running) {
                *out = cross / p.sum - (p.max + p.sum.ln()) + (q.max + q.sum.ln());
            }
        });
        out
    }

    /// d log-probability / d hidden = (the target's row of the head − their mean) / temperature.
    fn backward(&self, gradient: &[f32], means: &[f32]) -> Vec<f32> {
        let e = self.weight.cols();
        let mut out = vec![0f32; means.len()];
        rows(&mut out, e, |first, part| {
            for (i, out) in part.chunks_exact_mut(e).enumerate() {
                let r = first + i;
                let factor = gradient[r] * self.inverse_temperatures[r];
                self.weight.read_row(self.targets[r] as usize, out);
                out.iter_mut().zip(&means[r * e..]).for_each(|(o, m)| *o = factor * (*o - m));
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
        let (logprobs, means) = self.forward(slice(self.name(), hidden, l)?);
        if self.keep {
            self.mean_words.set(means).ok();
        }
        let shape = Shape::from(logprobs.len());
        result(logprobs, &shape)
    }

    fn bwd(&self, hidden: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let Some(means) = self.mean_words.get() else { bail!("{}: nothing was kept for this pass", self.name()) };
        tensor(self.backward(&Values::of(&gradient)?, means), hidden.shape()).map(Some)
    }
}
