//! Masked whitening of advantages. Padding never enters the mean or the variance.

use candle_core::Tensor;

use super::{mask_weight, masked_mean, same_shape, scalar};
use crate::error::Result;

/// `(x − mean) / sqrt(var + 1e-8)` over the mask, unbiased variance, docs/APA.md eq. 5; same shape, 0 off the mask.
///
/// A single token has no variance: it whitens to 0.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn whiten(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    same_shape("x", x, mask)?;
    let weight = mask_weight(mask)?;
    let centred = x.broadcast_sub(&masked_mean(x, mask)?)?.mul(mask)?;
    let squares = scalar(&centred.sqr()?.sum_all()?)?;
    let variance = if weight > 1.0 { squares / (weight - 1.0) } else { 0.0 };
    Ok((centred / (variance + 1e-8).sqrt())?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn padding_changes_nothing_and_comes_out_as_zero() {
        let dev = &Device::Cpu;
        let x = Tensor::new(&[3.0f64, -1.0, 4.0, 1.0e6], dev).unwrap();
        let mask = Tensor::new(&[1.0f64, 1.0, 1.0, 0.0], dev).unwrap();
        let out = whiten(&x, &mask).unwrap().to_vec1::<f64>().unwrap();
        let std = (((1.0f64).powi(2) + 3.0f64.powi(2) + 2.0f64.powi(2)) / 2.0 + 1e-8).sqrt();
        let expected = [1.0 / std, -3.0 / std, 2.0 / std, 0.0];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{out:?} is not {expected:?}");
    }

    #[test]
    fn one_token_whitens_to_zero() {
        let x = Tensor::new(&[3.0f32], &Device::Cpu).unwrap();
        assert_eq!(whiten(&x, &x.ones_like().unwrap()).unwrap().to_vec1::<f32>().unwrap(), [0.0]);
    }
}
