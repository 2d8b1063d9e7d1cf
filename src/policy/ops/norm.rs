//! RMSNorm and LayerNorm over the last dimension. Their frozen weights never get a gradient.

use super::cpu::{Values, result, rows, slice, tensor};
use super::frozen::frozen_values;
use super::vectors::{map, sum};
use super::{cpu, elsewhere};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension. The weight is frozen.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> crate::Result<Tensor> {
    check("rms_norm", x, weight)?;
    if !cpu::takes(x) {
        return elsewhere::rms_norm(x, weight, eps);
    }
    Ok(x.contiguous()?.apply_op1(Norm { weight: frozen_values(weight)?, bias: None, eps })?)
}

/// `(x − mean) / sqrt(var + eps) · weight + bias` over the last dimension. Weight and bias are frozen.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> crate::Result<Tensor> {
    check("layer_norm", x, weight)?;
    check("layer_norm bias", x, bias)?;
    if !cpu::takes(x) {
        return elsewhere::layer_norm(x, weight, bias, eps);
    }
    let (weight, bias) = (frozen_values(weight)?, Some(frozen_values(bias)?));
    Ok(x.contiguous()?.apply_op1(Norm { weight, bias, eps })?)
}

pub(super) fn check(op: &str, x: &Tensor, weight: &Tensor) -> crate::Result<()> {
    match (x.dims().last(), weight.dims()) {
        (Some(width), [w]) if width == w && *w > 0 => Ok(()),
        (_, w) => Err(Error::train(format!("{op}: x is {:?}, weight {w:?}, expected the width of x", x.dims()))),
    }
}

/// A norm with its frozen weight; LayerNorm also subtracts the mean.
pub struct Norm {
    pub weight: Vec<f32>,
    /// LayerNorm's bias; if there is one, the mean is subtracted too.
    pub bias: Option<Vec<f32>>,
    pub eps: f32,
}

impl Norm {
    /// The mean that is subtracted (0 for RMSNorm) and 1 / root of a row.
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = if self.bias.is_some() { sum([x], |[x]| x) / n } else { 0.0 };
        let square = sum([x], |[x]| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (square + self.eps).sqrt())
    }

    /// Normalizes one row.
    pub fn row(&self, x: &[f32], y: &mut [f32]) {
        let (mean, inverse) = self.statistics(x);
        map(y, [x, &self.weight], |_, [x, w]| (x - mean) * inverse * w);
        if let Some(bias) = &self.bias {
            map(y, [bias], |y, [b]| y + b);
        }
    }

    /// The gradient of one row's input from that of its output.
    pub fn row_backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (n, w) = (x.len() as f32, self.weight.as_slice());
        let (mean, inverse) = self.statistics(x);
        let along = sum([x, dy, w], |[x, dy, w]| dy * w * (x - mean)) * inverse * inverse / n;
        let shared = if self.bias.is_some() { sum([dy, w], |[dy, w]| dy * w) / n } else { 0.0 };
        map(dx, [x, dy, w], |_, [x, dy, w]| inverse * (dy * w - shared - (x - mean) * along));
    }

    /// `dx = residual + ` the gradient of the input, row by row.
    pub fn add_backward(&self, x: &[f32], dy: &[f32], residual: &[f32], dx: &mut [f32]) {
        let width = self.weight.len();
        let inputs = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(residual.chunks_exact(width));
        for (dx, ((x, dy), residual)) in dx.chunks_exact_mut(width).zip(inputs) {
            self.row_backward(x, dy, dx);
            map(dx, [residual], |d, [r]| d + r);
        }
    }
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width) = (slice(self.name(), x, l)?, self.weight.len());
        let mut y = vec![0f32; x.len()];
        rows(&mut y, width, |first, part| {
            for (y, x) in part.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width)) {
                self.row(x, y);
            }
        });
        result(y, l.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (xs, dys, width) = (Values::of(x)?, Values::of(&dy)?, self.weight.len());
        let (xs, dys): (&[f32], &[f32]) = (&xs, &dys);
        let mut dx = vec![0f32; xs.len()];
        rows(&mut dx, width, |first, part| {
            let at = first * width;
            let inputs = xs[at..].chunks_exact(width).zip(dys[at..].chunks_exact(width));
            for (dx, (x, dy)) in part.chunks_exact_mut(width).zip(inputs) {
                self.row_backward(x, dy, dx);
            }
        });
        tensor(dx, x.shape()).map(Some)
    }
}
