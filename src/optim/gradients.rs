//! Gradients of one optimizer step, summed over its micro-batches. Never decides whether the step is taken.

use candle_core::{DType, Tensor, Var};

use super::{AdamW, AdamWConfig};
use crate::error::{Error, Result};

/// A sum of gradients: one tensor per variable, in their order.
#[derive(Default)]
pub struct Gradients {
    sums: Vec<Tensor>,
}

impl Gradients {
    /// Adds the gradient of a loss, a scalar.
    ///
    /// # Errors
    /// `Train` if a variable is not part of its graph.
    pub fn add(&mut self, vars: &[Var], loss: &Tensor) -> Result<()> {
        let mut store = loss.backward()?;
        let mut fresh = Vec::with_capacity(vars.len());
        for (i, var) in vars.iter().enumerate() {
            // A variable without a gradient would silently never learn.
            let grad = store.remove(var).ok_or_else(|| Error::train(format!("no gradient reaches variable {i}")))?;
            fresh.push(match self.sums.get(i) {
                Some(sum) => (sum + grad)?,
                None => grad,
            });
        }
        self.sums = fresh;
        Ok(())
    }

    /// Clips to `clip_norm`, updates the variables, and returns the norm before clipping. If that is not finite,
    /// variables and moments are left as they are.
    ///
    /// # Errors
    /// As [`AdamW::update`].
    pub fn apply(self, optimizer: &mut AdamW, vars: &[Var], clip_norm: f64, config: AdamWConfig) -> Result<f64> {
        let norm = self.norm()?;
        if norm.is_finite() {
            let scale = if norm > clip_norm { clip_norm / norm } else { 1.0 };
            optimizer.update(vars, &self.sums, scale, config)?;
        }
        Ok(norm)
    }

    fn norm(&self) -> Result<f64> {
        norm(self.sums.iter())
    }
}

/// Euclidean norm of all tensors together. Not finite if any of their values isn't.
///
/// # Errors
/// `Train` if there are none, or the device fails.
pub fn norm<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let squares = tensors.map(|g| g.sqr()?.sum_all()).collect::<candle_core::Result<Vec<_>>>()?;
    // One transfer from the device for all of them.
    let squares = Tensor::stack(&squares, 0)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(squares.iter().sum::<f64>().sqrt())
}
