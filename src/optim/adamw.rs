//! AdamW with accessible state, so that a checkpoint holds all of it. Never decides whether a step is taken.

use candle_core::{Tensor, Var};

use crate::error::{Error, Result};
use crate::policy::ops::{AdamWStep, adamw};

/// Keeps the denominator away from zero; PyTorch's default.
pub const EPSILON: f64 = 1e-8;

/// First and second moment of one variable's gradient, in its shape.
#[derive(Clone)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Tensor,
    /// Running mean of its square.
    pub second: Tensor,
}

/// Adam with decoupled weight decay, Loshchilov and Hutter, arXiv 1711.05101. A clone shares the moments' memory:
/// updates make new ones.
#[derive(Clone)]
pub struct AdamW {
    /// Updates done, for the bias correction.
    pub updates: u64,
    /// One for each variable, in the network's order.
    pub moments: Vec<Moments>,
}

/// The parameters of an update, which may change from one to the next.
#[derive(Clone, Copy)]
pub struct AdamWConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Decoupled: the weights shrink by lr times this.
    pub weight_decay: f64,
}

impl AdamW {
    /// Moments of zero for these variables.
    ///
    /// # Errors
    /// `Train` or `NoMem` if tensors can't be made.
    pub fn new(vars: &[Var]) -> Result<Self> {
        let zero = |var: &Var| -> Result<Moments> {
            let zeros = var.as_detached_tensor().zeros_like()?;
            Ok(Moments { first: zeros.clone(), second: zeros })
        };
        Ok(Self { updates: 0, moments: vars.iter().map(zero).collect::<Result<_>>()? })
    }

    /// Updates `vars` in place with `grads` (same order and shapes, already clipped by `grad_scale`).
    ///
    /// # Errors
    /// `Train` if their numbers differ or a product fails.
    pub fn update(&mut self, vars: &[Var], grads: &[Tensor], grad_scale: f64, config: AdamWConfig) -> Result<()> {
        if vars.len() != self.moments.len() || grads.len() != vars.len() {
            let counts = (vars.len(), grads.len(), self.moments.len());
            return Err(Error::train(format!(
                "{} variables, {} gradients and {} moments do not fit",
                counts.0, counts.1, counts.2
            )));
        }
        self.updates += 1;
        let [beta1, beta2] = config.betas;
        let correction1 = 1.0 - beta1.powf(self.updates as f64);
        let correction2 = 1.0 - beta2.powf(self.updates as f64);
        let step = AdamWStep {
            grad_scale,
            lr: config.lr,
            betas: config.betas,
            corrections: [correction1, correction2],
            weight_decay: config.weight_decay,
            epsilon: EPSILON,
        };
        for ((var, grad), moments) in vars.iter().zip(grads).zip(&mut self.moments) {
            [moments.first, moments.second] = adamw(var, grad, [&moments.first, &moments.second], &step)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Against the recurrence of the paper in f64, and the first step's known size lr.
    #[test]
    fn three_updates_follow_the_paper() {
        let config = AdamWConfig { lr: 0.1, betas: [0.9, 0.95], weight_decay: 0.01 };
        let var = Var::new(&[1.0f64, -2.0], &Device::Cpu).unwrap();
        let mut adamw = AdamW::new(std::slice::from_ref(&var)).unwrap();
        let (mut p, mut m, mut v) = ([1.0f64, -2.0], [0.0; 2], [0.0; 2]);
        for t in 1..=3 {
            let g = [0.5 * t as f64, -3.0];
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.95 * v[i] + 0.05 * g[i] * g[i];
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.95f64.powi(t)));
                p[i] = p[i] * (1.0 - 0.1 * 0.01) - 0.1 * mh / (vh.sqrt() + 1e-8);
            }
            // Passed in doubled and halved by the scale, as clipping does.
            let grad = Tensor::new(&[2.0 * g[0], 2.0 * g[1]], &Device::Cpu).unwrap();
            adamw.update(std::slice::from_ref(&var), &[grad], 0.5, config).unwrap();
            let got = var.to_vec1::<f64>().unwrap();
            assert!((got[0] - p[0]).abs() < 1e-12 && (got[1] - p[1]).abs() < 1e-12, "{got:?} is not {p:?}");
            if t == 1 {
                assert!((got[0] - (1.0 - 0.001 - 0.1)).abs() < 1e-6);
            }
        }
    }
}
