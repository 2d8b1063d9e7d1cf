//! A frozen linear layer with its low-rank update, as steps of a larger operation; see [`crate::policy::ops::linear`]
//! for the formulas. Products are of the weights' type with sums in f32; the frozen weight never gets a gradient.

use std::sync::Arc;

use candle_core::cuda_backend::CudaDevice;
use candle_core::{DType, Result, Tensor};

use super::array::{Array, At, Values};
use super::kernels;
use super::product::{Matrix, product};
use super::weight::Weight;
use crate::policy::ops::layers::Slot;

/// The constant part of a layer.
#[derive(Clone)]
pub struct Layer {
    pub weight: Arc<Weight>,
    /// `[out]`, f32.
    pub bias: Option<Tensor>,
    /// Where its factors are in the flat tensor.
    pub slot: Option<Slot>,
}

/// The flat tensor of factors in the type of the products, and its gradient.
pub struct Factors {
    flat: Array,
}

impl Factors {
    /// From `count` values of f32.
    pub fn new(gpu: &CudaDevice, flat: At, count: usize, dtype: DType) -> Result<Self> {
        Ok(Self { flat: converted(gpu, flat, count, dtype)? })
    }
}

/// A copy in another number format, or the same.
pub fn converted(gpu: &CudaDevice, x: At, count: usize, dtype: DType) -> Result<Array> {
    let to = Array::new(gpu, dtype, count)?;
    match x.dtype == dtype {
        true => kernels::copy(gpu, x, to.all(), count)?,
        false => kernels::cast(gpu, x, to.all(), count)?,
    }
    Ok(to)
}

/// What the forward pass of a layer leaves for the backward pass: `u [n, rank]`.
pub type Low = Option<Array>;

impl Layer {
    pub fn out(&self) -> usize {
        self.weight.rows
    }

    fn inp(&self) -> usize {
        self.weight.cols
    }

    /// `A [rank, in]` and `B [out, rank]`, at their places in `flat`, whatever its type.
    fn pair<'a>(&self, slot: Slot, flat: At<'a>) -> (Matrix<'a>, Matrix<'a>) {
        let rank = (slot.b - slot.a) / self.inp().max(1);
        let (a, b) = (flat.plus(slot.a), flat.plus(slot.b));
        (Matrix::new(a, rank, self.inp()), Matrix::new(b, self.out(), rank))
    }

    /// `y = x Wᵀ + bias + u Bᵀ`, `[n, out]` in f32 or the products' type; or plus what `y` holds. `x [n, in]` is of the
    /// products' type.
    pub fn forward(&self, gpu: &CudaDevice, x: At, n: usize, factors: &Factors, y: At, add: bool) -> Result<Low> {
        let (input, output) = (Matrix::new(x, n, self.inp()), Matrix::new(y, n, self.out()));
        if let Some(bias) = &self.bias {
            kernels::bias(gpu, y, Values::of(bias)?.at()?, n, self.out(), add)?;
        }
        let add = add || self.bias.is_some();
        self.weight.panels(gpu, |first, rows| {
            product(gpu, input, rows.transposed(), 1.0, add, output.columns(first, rows.rows()))
        })?;
        let Some(slot) = self.slot else { return Ok(None) };
        let (a, b) = self.pair(slot, factors.flat.all());
        let low = Array::new(gpu, x.dtype, n * a.rows())?;
        let u = Matrix::new(low.all(), n, a.rows());
        product(gpu, input, a.transposed(), slot.scale, false, u)?;
        product(gpu, u, b.transposed(), 1.0, true, output)?;
        Ok(Some(low))
    }

    /// Writes the factors' gradients to their places in `grads`, f32, and the input's to `dx` in f32 or the products'
    /// type, or adds that. `x`, `dy [n, out]` and `low` are of the products' type.
    pub fn backward(
        &self,
        gpu: &CudaDevice,
        (x, low): (At, &Low),
        (dy, n): (At, usize),
        (factors, grads): (&Factors, At),
        dx: Option<(At, bool)>,
    ) -> Result<()> {
        let (input, slopes) = (Matrix::new(x, n, self.inp()), Matrix::new(dy, n, self.out()));
        let to = dx.map(|(dx, add)| (Matrix::new(dx, n, self.inp()), add));
        if let Some((to, mut add)) = to {
            self.weight.panels(gpu, |first, rows| {
                let add = std::mem::replace(&mut add, true);
                product(gpu, slopes.columns(first, rows.rows()), rows, 1.0, add, to)
            })?;
        }
        let (Some(slot), Some(low)) = (self.slot, low) else { return Ok(()) };
        let (a, b) = self.pair(slot, factors.flat.all());
        let (da, db) = self.pair(slot, grads);
        let dlow = Array::new(gpu, dy.dtype, n * a.rows())?;
        let (u, v) = (Matrix::new(low.all(), n, a.rows()), Matrix::new(dlow.all(), n, a.rows()));
        product(gpu, slopes, b, slot.scale, false, v)?;
        product(gpu, slopes.transposed(), u, 1.0, false, db)?;
        product(gpu, v.transposed(), input, 1.0, false, da)?;
        match to {
            Some((to, _)) => product(gpu, v, a, 1.0, true, to),
            None => Ok(()),
        }
    }
}
