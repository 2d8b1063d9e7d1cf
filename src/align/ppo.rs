//! Proximal policy optimization: the clipped ratio loss and the KL penalty in its rewards. Holds no state.

use candle_core::Tensor;

use super::{masked_mean, same_shapes, scalar};
use crate::error::Result;

/// A clipped loss, and how often the clipped side was taken.
pub struct Clipped {
    /// Scalar, differentiable.
    pub loss: Tensor,
    /// Fraction of mask tokens, in [0, 1].
    pub clip_fraction: f64,
}

/// PPO loss `mean(max(−A ρ, −A clip(ρ, 1−ε, 1+ε)))`, ρ = exp(logprobs − behavior_logprobs), docs/APA.md eq. 9. All of
/// one shape. Gradients flow to `logprobs` alone.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn ppo_loss(
    logprobs: &Tensor,
    behavior_logprobs: &Tensor,
    advantages: &Tensor,
    mask: &Tensor,
    clip_range: f64,
) -> Result<Clipped> {
    same_shapes(&[("logprobs", logprobs), ("behavior_logprobs", behavior_logprobs), ("advantages", advantages)], mask)?;
    let ratio = (logprobs - behavior_logprobs.detach())?.exp()?;
    let minus_advantages = advantages.detach().neg()?;
    let plain = ratio.mul(&minus_advantages)?;
    let clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)?.mul(&minus_advantages)?;
    larger(&plain, &clipped, mask)
}

/// PPO's per-token part of the reward, `−β (behavior_logprobs − ref_logprobs)`, zero off the mask. All of one shape,
/// nats.
///
/// # Errors
/// `Arg` if shapes differ.
pub fn kl_penalty(behavior_logprobs: &Tensor, ref_logprobs: &Tensor, mask: &Tensor, kl_coef: f64) -> Result<Tensor> {
    same_shapes(&[("behavior_logprobs", behavior_logprobs), ("ref_logprobs", ref_logprobs)], mask)?;
    Ok(((behavior_logprobs - ref_logprobs)?.mul(mask)? * -kl_coef)?)
}

/// Masked mean of the elementwise maximum. Where both are equal the gradient is shared, and both sides' gradients
/// agree.
pub(super) fn larger(plain: &Tensor, clipped: &Tensor, mask: &Tensor) -> Result<Clipped> {
    let loss = masked_mean(&plain.maximum(clipped)?, mask)?;
    let taken = clipped.detach().gt(&plain.detach())?.to_dtype(mask.dtype())?;
    Ok(Clipped { loss, clip_fraction: scalar(&masked_mean(&taken, mask)?)? })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_ratio_outside_the_range_gets_no_gradient_only_where_it_would_gain() {
        let dev = &Device::Cpu;
        // Ratios e^0.5 and e^-0.5, once with each sign of the advantage.
        let logprobs = Var::new(&[-0.5f64, -0.5, -1.5, -1.5], dev).unwrap();
        let behavior = Tensor::new(&[-1.0f64, -1.0, -1.0, -1.0], dev).unwrap();
        let advantages = Tensor::new(&[1.0f64, -1.0, 1.0, -1.0], dev).unwrap();
        let mask = advantages.ones_like().unwrap();
        let out = ppo_loss(logprobs.as_tensor(), &behavior, &advantages, &mask, 0.2).unwrap();
        let grad = out.loss.backward().unwrap().remove(logprobs.as_tensor()).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(out.clip_fraction, 0.5);
        assert_eq!([grad[0], grad[3]], [0.0, 0.0]);
        assert!((grad[1] - 0.5f64.exp() / 4.0).abs() < 1e-12);
        assert!((grad[2] + (-0.5f64).exp() / 4.0).abs() < 1e-12);
    }
}
