//! Log-probabilities, entropies and distances of tokens straight from hidden rows. Never holds `[tokens,
//! vocabulary]`: logits exist for one block of rows and words at a time. The gradient's only large part, the mean of
//! the head's rows under each distribution, is accumulated in the same sweep, so the backward pass needs no product.

use super::accumulate::{Begin, Run};
use super::cpu::{Values, exp, result, rows, slice, tensor};
use super::frozen::{Frozen, check_tokens};
use super::layers::task_rows;
use super::matrix::{Mat, Right, product};
use super::vectors::{map, max, sum};
use super::{cpu, elsewhere};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// `log softmax(h Wᵀ / T)[target]` per row, nats. Differentiable in `hidden [M, E]`; `head` is `[V, E]`.
///
/// Errors if a target is not below V or a temperature is not positive and finite.
pub fn token_logprobs(hidden: &Tensor, head: &Frozen, targets: &[u32], temperatures: &[f32]) -> crate::Result<Tensor> {
    if check_targets("token_logprobs", hidden, head, targets, temperatures)? == 0 {
        return Ok(Tensor::zeros(0, DType::F32, hidden.device())?);
    }
    match head.fused(hidden) {
        Some(weight) => {
            Ok(hidden.contiguous()?.apply_op1(head_of(head, weight, targets, temperatures, hidden.track_op()))?)
        }
        None => elsewhere::token_logprobs(hidden, head, targets, temperatures),
    }
}

/// The distributions `softmax(h Wᵀ / T)` of some rows. All `[M]`, in nats.
pub struct Distributions {
    /// Log-probabilities of the targets.
    pub logprobs: Tensor,
    /// Entropies over the whole vocabulary.
    pub entropy: Tensor,
    /// Those that they are compared with.
    pub others: Vec<Compared>,
}

/// Distributions that others are compared with. Both `[M]`, in nats.
pub struct Compared {
    /// Log-probabilities of the targets.
    pub logprobs: Tensor,
    /// KL to these, over the whole vocabulary.
    pub kl: Tensor,
}

/// The distributions of `hidden [M, E]`, compared with those of `others`, each `[M, E]`, in one sweep over the head,
/// `[V, E]`. Not differentiable.
///
/// Errors if a target is not below V or a temperature is not positive and finite.
pub fn token_distributions(
    hidden: &Tensor,
    others: &[&Tensor],
    head: &Frozen,
    targets: &[u32],
    temperatures: &[f32],
) -> crate::Result<Distributions> {
    const OP: &str = "token_distributions";
    let m = check_targets(OP, hidden, head, targets, temperatures)?;
    for other in others {
        check_head(OP, other, head, temperatures)?;
    }
    let flat = |x: &Tensor| x.detach().contiguous();
    let (hidden, others) = (flat(hidden)?, others.iter().map(|x| flat(x)).collect::<Result<Vec<_>>>()?);
    match head.fused(&hidden).filter(|_| m > 0 && others.iter().all(cpu::takes)) {
        Some(weight) => {
            let values = others.iter().map(Values::of).collect::<Result<Vec<_>>>()?;
            let others: Vec<&[f32]> = values.iter().map(|x| &**x).collect();
            let head = head_of(head, weight, targets, temperatures, false);
            let (logprobs, entropy, others) = head.distributions(&Values::of(&hidden)?, &others);
            let of = |values: Vec<f32>| cpu::tensor(values, m);
            let compared = |(logprobs, kl)| Ok(Compared { logprobs: of(logprobs)?, kl: of(kl)? });
            let others = others.into_iter().map(compared).collect::<Result<Vec<_>>>()?;
            Ok(Distributions { logprobs: of(logprobs)?, entropy: of(entropy)?, others })
        }
        None => elsewhere::token_distributions(&hidden, &others, head, targets, temperatures),
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

fn check_targets(
    op: &str,
    hidden: &Tensor,
    head: &Frozen,
    targets: &[u32],
    temperatures: &[f32],
) -> crate::Result<usize> {
    let m = check_head(op, hidden, head, temperatures)?;
    if targets.len() != m {
        return Err(Error::train(format!("{op}: {} targets for {m} rows", targets.len())));
    }
    check_tokens(op, targets, head.out_features())?;
    Ok(m)
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

/// Log-probabilities under distributions that others are compared with, and the KL to them, both per row.
type Distances = (Vec<f32>, Vec<f32>);

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

    /// Adds logits `l`, and writes `exp(l − max)` to `weights`. Returns the factor by which the earlier sums were
    /// rescaled because the largest logit changed.
    fn add(&mut self, logits: &[f32], weights: &mut [f32]) -> f32 {
        let new = self.max.max(max(logits));
        let mut factor = 1.0;
        if self.sum > 0.0 {
            let shift = self.max - new;
            factor = exp(shift);
            self.moment = factor * (self.moment + shift * self.sum);
            self.sum *= factor;
        }
        self.max = new;
        map(weights, [logits], |_, [l]| exp(l - new));
        self.sum += sum([&*weights], |[w]| w);
        self.moment += sum([&*weights, logits], |[w, l]| w * (l - new));
        factor
    }

    /// `log Σ exp(l)`.
    fn log_sum(&self) -> f32 {
        self.max + self.sum.ln()
    }

    fn entropy(&self) -> f32 {
        self.sum.ln() - self.moment / self.sum
    }
}

impl Head {
    /// Logits of `rows` rows over `words` words from `first` on, divided by the temperatures.
    fn logits(&self, hidden: &Mat, inverse: &[f32], first: usize, words: usize, to: &mut Vec<f32>) {
        to.resize(hidden.rows() * words, 0.0);
        let part = self.weight.part(first, words, self.weight.cols());
        product(hidden.all(), &[Right::Transposed(part)], Begin::Zero, to, Run::Here);
        for (row, inverse) in to.chunks_exact_mut(words).zip(inverse) {
            if let Some(bias) = &self.bias {
                map(row, [&bias[first..]], |l, [b]| l + b);
            }
            map(row, [], |l, []| l * inverse);
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
        let (block, e) = (task_rows(out.len()), self.weight.cols());
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
            let (mut logits, mut weights) = (Vec::new(), Vec::new());
            let mut means = vec![0f32; if self.keep { out.len() * e } else { 0 }];
            let mut running: Vec<Running> = out.iter().map(|_| Running::EMPTY).collect();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut logits);
                weights.resize(logits.len(), 0.0);
                let rows = logits.chunks_exact(words).zip(weights.chunks_exact_mut(words)).enumerate();
                for (r, (row, weights)) in rows {
                    let target = self.targets[at + r] as usize;
                    if (first..first + words).contains(&target) {
                        out[r] = row[target - first];
                    }
                    let factor = running[r].add(row, weights);
                    if self.keep && factor != 1.0 {
                        map(&mut means[r * e..][..e], [], |m, []| m * factor);
                    }
                }
                if self.keep {
                    let weights = Mat::new(self.weight.precision(), &weights, words);
                    let part = Right::Straight(self.weight.part(first, words, e));
                    product(weights.all(), &[part], Begin::Add, &mut means, Run::Here);
                }
            }
            for (r, (out, running)) in out.iter_mut().zip(&running).enumerate() {
                *out -= running.log_sum();
                if self.keep {
                    means[r * e..][..e].iter_mut().for_each(|m| *m /= running.sum);
                }
            }
            means
        });
        (out, means.concat())
    }

    /// Log-probabilities and entropies of `hidden`, and for each of `others` its log-probabilities and the KL to it,
    /// nats. KL is summed over the whole vocabulary, so it is exact, and never negative except for rounding.
    pub fn distributions(&self, hidden: &[f32], others: &[&[f32]]) -> (Vec<f32>, Vec<f32>, Vec<Distances>) {
        let mut logprobs = vec![0f32; self.inverse_temperatures.len()];
        let e = self.weight.cols();
        let parts = self.by_rows(hidden, &mut logprobs, |at, hidden, inverse, out| {
            let rows = out.len();
            let target = |r: usize, first: usize| (self.targets[at + r] as usize).checked_sub(first);
            let precision = self.weight.precision();
            let others: Vec<Mat> = others.iter().map(|x| Mat::new(precision, &x[at * e..][..rows * e], e)).collect();
            let (mut p, mut q, mut spare) = (Vec::new(), Vec::new(), vec![0f32; WORDS]);
            let mut weights = Vec::new();
            let empty = || (0..rows).map(|_| Running::EMPTY).collect::<Vec<_>>();
            let (mut own, mut factors) = (empty(), vec![1f32; rows]);
            // Of each other: sums, the target's logit, and the sum of exp(p − max) · (p − q).
            let mut sums: Vec<_> = others.iter().map(|_| (empty(), vec![0f32; rows], vec![0f32; rows])).collect();
            for (first, words) in self.words() {
                self.logits(&hidden, inverse, first, words, &mut p);
                weights.resize(p.len(), 0.0);
                for (r, (p, weights)) in p.chunks_exact(words).zip(weights.chunks_exact_mut(words)).enumerate() {
                    factors[r] = own[r].add(p, weights);
                    if let Some(logit) = target(r, first).and_then(|place| p.get(place)) {
                        out[r] = *logit;
                    }
                }
                for (other, (running, logits, cross)) in others.iter().zip(&mut sums) {
                    self.logits(other, inverse, first, words, &mut q);
                    let rows = p.chunks_exact(words).zip(weights.chunks_exact(words)).zip(q.chunks_exact(words));
                    for (r, ((p, weights), q)) in rows.enumerate() {
                        running[r].add(q, &mut spare[..words]);
                        if let Some(logit) = target(r, first).and_then(|place| q.get(place)) {
                            logits[r] = *logit;
                        }
                        cross[r] = cross[r] * factors[r] + sum([weights, p, q], |[w, p, q]| w * (p - q));
                    }
                }
            }
            out.iter_mut().zip(&own).for_each(|(out, own)| *out -= own.log_sum());
            let compared = sums.into_iter().map(|(running, mut logprobs, mut kl)| {
                for (r, (other, own)) in running.iter().zip(&own).enumerate() {
                    logprobs[r] -= other.log_sum();
                    kl[r] = kl[r] / own.sum - own.log_sum() + other.log_sum();
                }
                (logprobs, kl)
            });
            (own.iter().map(Running::entropy).collect::<Vec<f32>>(), compared.collect::<Vec<_>>())
        });
        let mut entropies = Vec::with_capacity(logprobs.len());
        let mut compared = vec![(Vec::new(), Vec::new()); others.len()];
        for (entropy, part) in parts {
            entropies.extend(entropy);
            for ((logprobs, kl), (more, far)) in compared.iter_mut().zip(part) {
                logprobs.extend(more);
                kl.extend(far);
            }
        }
        (logprobs, entropies, compared)
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
                map(out, [&means[r * e..]], |o, [m]| factor * (o - m));
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
