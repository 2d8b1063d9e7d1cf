//! Estimators of the KL divergence to the initial model, valid on samples of the policy, and PPO's controller of its
//! penalty. Names tell the estimator; whether a figure is per token or per response is decided where it is averaged.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::same_shape;
use crate::error::{Error, Result};
use crate::types::Nats;

/// Estimator k1 of KL(π‖π_init) at each token, `d = logprobs − ref_logprobs`, same shape, nats. Unbiased, can be
/// negative.
///
/// # Errors
/// `Arg` if shapes differ.
pub fn kl_k1(logprobs: &Tensor, ref_logprobs: &Tensor) -> Result<Tensor> {
    same_shape("logprobs", logprobs, ref_logprobs)?;
    Ok((logprobs - ref_logprobs)?)
}

/// Estimator k3 at each token, `exp(−d) − 1 + d` with d as in [`kl_k1`], same shape, nats. Unbiased, never negative.
///
/// # Errors
/// `Arg` if shapes differ.
pub fn kl_k3(logprobs: &Tensor, ref_logprobs: &Tensor) -> Result<Tensor> {
    let d = kl_k1(logprobs, ref_logprobs)?;
    Ok(((d.neg()?.exp()? + &d)? - 1.0)?)
}

/// Sums a per-token figure over each response: `[batch, time]` with its mask to `[batch]`.
///
/// # Errors
/// `Arg` if shapes differ or are not `[batch, time]`.
pub fn sum_per_response(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    same_shape("x", x, mask)?;
    if x.rank() != 2 {
        return Err(Error::arg(format!("x has shape {:?}, [batch, time] is expected", x.dims())));
    }
    Ok(x.mul(mask)?.sum(1)?)
}

/// PPO's adaptive coefficient β of the KL penalty: it grows while the KL is above its target. docs/APA.md eq. 9.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlController {
    /// The current β.
    #[serde(with = "super::exact")]
    pub kl_coef: f64,
}

impl KlController {
    /// `β ← β · (1 + clip(KL/target − 1, −0.2, 0.2) · n / horizon)`, KL per response, n samples. A KL that is not
    /// finite changes nothing.
    pub fn update(&mut self, kl_per_response: Nats, target: Nats, samples: usize, horizon: f64) {
        let error = (kl_per_response.0 / target.0 - 1.0).clamp(-0.2, 0.2);
        let factor = 1.0 + error * samples as f64 / horizon;
        if factor.is_finite() && factor > 0.0 {
            self.kl_coef *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn k1_and_k3_agree_with_the_exact_kl_in_expectation() {
        let p = [0.5f64, 0.3, 0.2];
        let q = [0.2f64, 0.5, 0.3];
        let exact: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let log = |v: [f64; 3]| Tensor::new(v.map(f64::ln).as_slice(), &Device::Cpu).unwrap();
        for estimator in [kl_k1, kl_k3] {
            let per_token = estimator(&log(p), &log(q)).unwrap().to_vec1::<f64>().unwrap();
            let mean: f64 = per_token.iter().zip(p).map(|(k, p)| k * p).sum();
            assert!((mean - exact).abs() < 1e-12, "{mean} is not {exact}");
        }
    }

    #[test]
    fn the_sum_of_a_response_leaves_padding_out() {
        let x = Tensor::new(&[[1.0f32, 2.0, 50.0], [3.0, 4.0, 5.0]], &Device::Cpu).unwrap();
        let mask = Tensor::new(&[[1.0f32, 1.0, 0.0], [1.0, 1.0, 1.0]], &Device::Cpu).unwrap();
        assert_eq!(sum_per_response(&x, &mask).unwrap().to_vec1::<f32>().unwrap(), [3.0, 12.0]);
    }

    #[test]
    fn the_controller_grows_above_the_target_shrinks_below_and_is_clipped() {
        let after = |kl| {
            let mut c = KlController { kl_coef: 0.05 };
            c.update(Nats(kl), Nats(6.0), 100, 10_000.0);
            c.kl_coef
        };
        assert!((after(6.6) - 0.05 * 1.001).abs() < 1e-15);
        assert!((after(60.0) - 0.05 * 1.002).abs() < 1e-15);
        assert!((after(0.0) - 0.05 * 0.998).abs() < 1e-15);
        assert_eq!(after(f64::NAN), 0.05);
    }
}
