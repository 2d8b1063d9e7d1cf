//! The alignment mathematics as pure functions on tensors: no I/O, no clock, no randomness of its own.
//!
//! Losses and estimators are elementwise, so they take tensors of any shape: `[batch, time]` with padding on the right,
//! or response tokens laid end to end, `[tokens]`. `mask` has that shape and float dtype: 1 on a response token, 0 on
//! padding (any non-negative weights work: every mean is `sum(mask * x) / sum(mask)`). Only GAE and what
//! sums over a response need `[batch, time]`. Formulas and sources: docs/APA.md.

mod apa;
mod awr;
mod baseline;
mod exact;
mod gae;
mod kl;
mod ppo;
mod reward_scale;
mod rloo;
mod value;
mod whiten;

pub use apa::{apa_loss, apa_response_loss};
pub use awr::awr_loss;
pub use baseline::{Baseline, CriticTrust};
pub use gae::{gae, terminal_rewards};
pub use kl::{KlController, kl_k1, kl_k3, sum_per_response};
pub use ppo::{Clipped, kl_penalty, ppo_loss};
pub use reward_scale::RewardScale;
pub use rloo::leave_one_out;
pub use value::{clipped_value_loss, explained_variance, value_loss};
pub use whiten::whiten;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// Mean of `x` over `mask`, a scalar. Differentiable in `x`.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn masked_mean(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    same_shape("x", x, mask)?;
    let weight = mask_weight(mask)?;
    Ok((x.mul(mask)?.sum_all()? / weight)?)
}

/// Sum of the mask, positive.
fn mask_weight(mask: &Tensor) -> Result<f64> {
    let weight = scalar(&mask.sum_all()?)?;
    if weight > 0.0 && weight.is_finite() {
        return Ok(weight);
    }
    Err(Error::arg(format!("the mask of shape {:?} has weight {weight}, a positive one is expected", mask.dims())))
}

/// A scalar tensor's value.
pub(crate) fn scalar(x: &Tensor) -> Result<f64> {
    Ok(x.to_dtype(DType::F64)?.to_scalar()?)
}

fn same_shape(name: &str, x: &Tensor, mask: &Tensor) -> Result<()> {
    if x.dims() == mask.dims() {
        return Ok(());
    }
    Err(Error::arg(format!("{name} has shape {:?}, the mask's {:?} is expected", x.dims(), mask.dims())))
}

fn same_shapes(tensors: &[(&str, &Tensor)], mask: &Tensor) -> Result<()> {
    tensors.iter().try_for_each(|(name, x)| same_shape(name, x, mask))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::error::Code;

    #[test]
    fn an_empty_mask_is_an_error_in_every_mean() {
        let x = Tensor::new(&[0.5f32, -1.0], &Device::Cpu).unwrap();
        let none = x.zeros_like().unwrap();
        let results = [
            masked_mean(&x, &none),
            whiten(&x, &none),
            apa_loss(&x, &x, &x, &none, 0.1),
            awr_loss(&x, &x, &none, 1.0),
            ppo_loss(&x, &x, &x, &none, 0.2).map(|c| c.loss),
            value_loss(&x, &x, &none),
            clipped_value_loss(&x, &x, &x, &none, 0.2).map(|c| c.loss),
        ];
        for result in results {
            assert_eq!(result.unwrap_err().code(), Code::Arg);
        }
        assert_eq!(explained_variance(&x, &x, &none).unwrap_err().code(), Code::Arg);
    }

    #[test]
    fn a_shape_that_differs_from_the_mask_is_named() {
        let x = Tensor::new(&[0.5f32, -1.0], &Device::Cpu).unwrap();
        let mask = Tensor::new(&[1f32, 1.0, 1.0], &Device::Cpu).unwrap();
        let e = apa_loss(&mask, &x, &mask, &mask, 0.1).unwrap_err();
        assert_eq!(e.message(), "ref_logprobs has shape [2], the mask's [3] is expected");
        assert!(gae(&x, &x, &x, 1.0, 0.95).unwrap_err().message().contains("[batch, time]"));
    }
}
