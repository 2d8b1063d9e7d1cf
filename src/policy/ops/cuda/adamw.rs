//! An update of AdamW for one variable.

use candle_core::{Tensor, Var};

use super::array::{Array, Values};
use super::{device, kernels, plain, takes};
use crate::policy::ops::AdamWStep;

pub fn adamw(var: &Var, grad: &Tensor, moments: [&Tensor; 2], step: &AdamWStep) -> crate::Result<[Tensor; 2]> {
    if !takes(var) || !var.is_contiguous() {
        return plain::adamw(var, grad, moments, step);
    }
    let (gpu, count, shape) = (device(var)?, var.elem_count(), var.shape());
    let (grad, first, second) = (grad.contiguous()?, moments[0].contiguous()?, moments[1].contiguous()?);
    let to = [Array::new(gpu, grad.dtype(), count)?, Array::new(gpu, grad.dtype(), count)?];
    let (weights, grads) = (Values::of(var)?, Values::of(&grad)?);
    let (firsts, seconds) = (Values::of(&first)?, Values::of(&second)?);
    let old = [firsts.at()?, seconds.at()?];
    kernels::adamw(gpu, weights.at()?, grads.at()?, old, [to[0].all(), to[1].all()], step.factors(), count)?;
    drop((weights, firsts, seconds));
    Ok(to.map(|moment| moment.into_tensor(shape)))
}
