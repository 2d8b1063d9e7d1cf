//! The advantage-weighted regression loss. Has no reference term, so it never limits drift.

use candle_core::Tensor;

use super::{masked_mean, same_shapes};
use crate::error::Result;

/// AWR loss `mean(−logprobs · exp(A/λ))`, docs/APA.md eq. 8. All of one shape; scalar. Gradients flow to `logprobs`
/// alone.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn awr_loss(logprobs: &Tensor, advantages: &Tensor, mask: &Tensor, lambda: f64) -> Result<Tensor> {
    same_shapes(&[("logprobs", logprobs), ("advantages", advantages)], mask)?;
    let weights = (advantages.detach() / lambda)?.exp()?;
    masked_mean(&logprobs.mul(&weights)?.neg()?, mask)
}
