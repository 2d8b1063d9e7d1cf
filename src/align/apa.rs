//! The APA loss: squared distance to the policy that the advantages ask for. Never touches the reference's weights.

use candle_core::Tensor;

use super::{masked_mean, same_shapes};
use crate::error::Result;

/// APA loss `mean((logprobs − A/λ − ref_logprobs)²)`, docs/APA.md; arXiv 2306.02231. Scalar.
///
/// All of one shape. The target policy is π_init · exp(A/λ), so `lambda` (positive) is the one knob for drift.
/// Gradients flow to `logprobs` alone.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn apa_loss(
    logprobs: &Tensor,
    ref_logprobs: &Tensor,
    advantages: &Tensor,
    mask: &Tensor,
    lambda: f64,
) -> Result<Tensor> {
    same_shapes(&[("logprobs", logprobs), ("ref_logprobs", ref_logprobs), ("advantages", advantages)], mask)?;
    let target = (ref_logprobs.detach() + (advantages.detach() / lambda)?)?;
    masked_mean(&(logprobs - target)?.sqr()?, mask)
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Tensor, Var};

    use super::*;

    fn log_softmax(logits: &Tensor) -> Tensor {
        let max = logits.max_keepdim(D::Minus1).unwrap();
        let shifted = logits.broadcast_sub(&max).unwrap();
        let norm = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
        shifted.broadcast_sub(&norm).unwrap()
    }

    /// On samples of the current policy, ∇L_apa = 2 (∇KL(π‖π_init) − (1/λ) · policy gradient). Every token is
    /// enumerated and weighted by its probability, so the expectation is exact.
    #[test]
    fn the_gradient_on_policy_is_that_of_kl_minus_reward_over_lambda() {
        let lambda = 0.3;
        let logits = Var::new(&[0.3f64, -1.2, 0.8, 0.05, -0.4, 1.7], &Device::Cpu).unwrap();
        let reference = log_softmax(&Tensor::new(&[0.1f64, 0.4, -0.9, 1.1, -0.2, 0.6], &Device::Cpu).unwrap());
        let advantages = Tensor::new(&[1.0f64, -0.5, 0.25, 2.0, -1.5, 0.1], &Device::Cpu).unwrap();

        let logprobs = log_softmax(logits.as_tensor());
        let probs = logprobs.exp().unwrap();
        let grad =
            |loss: Tensor| loss.backward().unwrap().remove(logits.as_tensor()).unwrap().to_vec1::<f64>().unwrap();

        let apa = grad(apa_loss(&logprobs, &reference, &advantages, &probs.detach(), lambda).unwrap());
        let kl = grad((&probs * (&logprobs - &reference).unwrap()).unwrap().sum_all().unwrap());
        let reward = grad((&probs * &advantages).unwrap().sum_all().unwrap());

        for ((apa, kl), reward) in apa.iter().zip(kl).zip(reward) {
            let expected = 2.0 * (kl - reward / lambda);
            assert!((apa - expected).abs() < 1e-12, "{apa} is not {expected}");
            assert!(apa.abs() > 1e-3, "the check would hold for nothing");
        }
    }

    #[test]
    fn the_minimum_is_the_reference_tilted_by_the_advantages() {
        let reference = Tensor::new(&[-1.0f64, -2.0], &Device::Cpu).unwrap();
        let advantages = Tensor::new(&[0.5f64, -0.25], &Device::Cpu).unwrap();
        let mask = reference.ones_like().unwrap();
        let target = Tensor::new(&[-1.0 + 5.0, -2.0 - 2.5f64], &Device::Cpu).unwrap();
        let at = |x: &Tensor| super::super::scalar(&apa_loss(x, &reference, &advantages, &mask, 0.1).unwrap()).unwrap();
        assert!(at(&target) < 1e-24);
        assert!((at(&reference) - (25.0 + 6.25) / 2.0).abs() < 1e-12);
    }
}
