//! The critic's losses and its quality. The critic is its own network: nothing here sees the policy.

use candle_core::Tensor;

use super::ppo::{Clipped, larger};
use super::{masked_mean, same_shapes, scalar};
use crate::error::Result;

/// Below this, returns in standard deviations of the scores differ by rounding alone.
const LEAST_VARIANCE: f64 = 1e-12;

/// Value loss `0.5 · mean((V − R)²)`, docs/APA.md eq. 11. All of one shape; scalar. Gradients flow to `values` alone.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn value_loss(values: &Tensor, returns: &Tensor, mask: &Tensor) -> Result<Tensor> {
    same_shapes(&[("values", values), ("returns", returns)], mask)?;
    masked_mean(&((values - returns.detach())?.sqr()? * 0.5)?, mask)
}

/// PPO's value loss: V is also clipped to old V ± `clip_range`, and the larger square counts. All of one shape.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn clipped_value_loss(
    values: &Tensor,
    old_values: &Tensor,
    returns: &Tensor,
    mask: &Tensor,
    clip_range: f64,
) -> Result<Clipped> {
    same_shapes(&[("values", values), ("old_values", old_values), ("returns", returns)], mask)?;
    let old = old_values.detach();
    let near = (&old + (values - &old)?.clamp(-clip_range, clip_range)?)?;
    let half_square = |v: &Tensor| -> Result<Tensor> { Ok(((v - returns.detach())?.sqr()? * 0.5)?) };
    larger(&half_square(values)?, &half_square(&near)?, mask)
}

/// Fraction of the returns' variance that the values explain, `1 − var(R − V) / var(R)` over the mask: 1 is perfect, 0
/// is no better than a constant, below 0 is worse. 0 where the returns do not vary but for rounding.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn explained_variance(values: &Tensor, returns: &Tensor, mask: &Tensor) -> Result<f64> {
    same_shapes(&[("values", values), ("returns", returns)], mask)?;
    let variance = |x: &Tensor| -> Result<f64> {
        let centred = x.broadcast_sub(&masked_mean(x, mask)?)?;
        scalar(&masked_mean(&centred.sqr()?, mask)?)
    };
    let total = variance(returns)?;
    let left = variance(&(returns - values)?)?;
    Ok(if total > LEAST_VARIANCE { 1.0 - left / total } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn explained_variance_is_one_for_the_returns_and_zero_for_a_constant() {
        let returns = Tensor::new(&[1.0f64, 2.0, 4.0, 99.0], &Device::Cpu).unwrap();
        let mask = Tensor::new(&[1.0f64, 1.0, 1.0, 0.0], &Device::Cpu).unwrap();
        let constant = (returns.ones_like().unwrap() * 7.0).unwrap();
        assert_eq!(explained_variance(&returns, &returns, &mask).unwrap(), 1.0);
        assert!(explained_variance(&constant, &returns, &mask).unwrap().abs() < 1e-12);
        assert!(explained_variance(&returns.neg().unwrap(), &returns, &mask).unwrap() < -2.9);
        // A batch of one score, whose mean is off by a last bit.
        let same = Tensor::new(&[0.1f64, 0.1, 0.1 + 1e-16, 99.0], &Device::Cpu).unwrap();
        assert_eq!(explained_variance(&returns, &same, &mask).unwrap(), 0.0);
    }
}
