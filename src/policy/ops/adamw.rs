//! An update of AdamW for one variable, in one pass over its values. Decides nothing, and keeps nothing.

use super::cpu::{Values, tensor};
use super::vectors::map_all;
use super::{cpu, elsewhere};
use crate::error::{Error, Result};
use candle_core::{Tensor, Var};
use rayon::prelude::*;

/// The numbers of an update, Loshchilov and Hutter, arXiv 1711.05101.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Multiplies gradients before anything else, as clipping does.
    pub grad_scale: f64,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// `1 - betaᵗ` of each, which correct moments that began at zero.
    pub corrections: [f64; 2],
    /// Decoupled: the weights shrink by lr times this.
    pub weight_decay: f64,
    /// Keeps the denominator away from zero.
    pub epsilon: f64,
}

impl AdamWStep {
    /// The factors of an update in f32: of the gradient, of the old moments, of the step, and of the weights.
    pub(super) fn factors(&self) -> [f32; 7] {
        let ([one, two], [first, second]) = (self.betas, self.corrections);
        let keep = 1.0 - self.lr * self.weight_decay;
        [self.grad_scale, one, two, self.lr / first, 1.0 / second, keep, self.epsilon].map(|x| x as f32)
    }
}

/// Values a task.
const TASK: usize = 1 << 14;

/// Changes a variable in place by its gradient and moments, all of one shape, and gives the moments that follow.
///
/// # Errors
/// `Train` if the shapes differ or the device fails.
pub fn adamw(var: &Var, grad: &Tensor, moments: [&Tensor; 2], step: &AdamWStep) -> Result<[Tensor; 2]> {
    if [grad, moments[0], moments[1]].iter().any(|t| t.shape() != var.shape() || t.dtype() != var.dtype()) {
        return Err(Error::train(format!(
            "adamw: a variable {:?}, a gradient {:?} and moments {:?} and {:?}, expected one shape",
            var.dims(),
            grad.dims(),
            moments[0].dims(),
            moments[1].dims()
        )));
    }
    if !cpu::takes(var) {
        return elsewhere::adamw(var, grad, moments, step);
    }
    let contiguous = |t: &Tensor| t.detach().contiguous();
    let (weights, grad) = (var.as_detached_tensor().contiguous()?, contiguous(grad)?);
    let (first, second) = (contiguous(moments[0])?, contiguous(moments[1])?);
    let copy = |t: &Tensor| Ok::<_, Error>(Values::of(t)?.to_vec());
    let (mut weights, mut first, mut second) = (copy(&weights)?, copy(&first)?, copy(&second)?);
    let grad = Values::of(&grad)?;
    let [scale, one, two, rate, correction, keep, epsilon] = step.factors();
    let values = weights.par_chunks_mut(TASK).zip(first.par_chunks_mut(TASK)).zip(second.par_chunks_mut(TASK));
    values.zip(grad.par_chunks(TASK)).for_each(|(((w, m), v), g)| {
        map_all([w, m, v], [g], |[w, m, v], [g]| {
            let g = g * scale;
            let (m, v) = (m * one + g * (1.0 - one), v * two + g * g * (1.0 - two));
            [w * keep - rate * m / ((v * correction).sqrt() + epsilon), m, v]
        });
    });
    var.set(&tensor(weights, var.shape())?)?;
    Ok([tensor(first, var.shape())?, tensor(second, var.shape())?])
}
