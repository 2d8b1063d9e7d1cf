//! The frozen linear layer with its low-rank update as an operation of its own: f32 in and out, products of the
//! weight's type.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use super::array::{Array, Values, operand};
use super::layer::{Low, converted};
use super::layers::Layers;
use super::{device, not_here, plain, takes};
use crate::policy::ops::{Adapted, Frozen, LoraPair};

pub fn linear(x: &Tensor, w: &Frozen, bias: Option<&Tensor>, lora: Option<LoraPair>) -> crate::Result<Tensor> {
    let layer = if takes(x) { Layers::new(x, &[Adapted { weight: w, bias, lora }])? } else { None };
    let Some((layers, flat)) = layer else { return plain::linear(x, w, bias, lora) };
    Ok(x.contiguous()?.apply_op2(&flat, Linear { layers, low: OnceLock::new() })?)
}

struct Linear {
    layers: Layers,
    low: OnceLock<Low>,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, f: &CudaStorage, lf: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, layer, (n, inp)) = (x.device(), &self.layers.layers[0], lx.shape().dims2()?);
        let factors = self.layers.factors(gpu, operand(self.name(), f, lf)?)?;
        let x = converted(gpu, operand(self.name(), x, lx)?, n * inp, self.layers.dtype)?;
        let y = Array::new(gpu, DType::F32, n * layer.out())?;
        self.low.set(layer.forward(gpu, x.all(), n, &factors, y.all(), false)?).ok();
        Ok((y.into_storage(), Shape::from((n, layer.out()))))
    }

    fn bwd(&self, x: &Tensor, f: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(low) = self.low.get() else { bail!("{}: nothing was kept for this pass", self.name()) };
        let (gpu, layer, dy, n) = (device(x)?, &self.layers.layers[0], dy.contiguous()?, x.dim(0)?);
        let factors = self.layers.factors(gpu, Values::of(f)?.at()?)?;
        let same = |t: &Tensor| converted(gpu, Values::of(t)?.at()?, t.elem_count(), self.layers.dtype);
        let (input, slopes) = (same(x)?, same(&dy)?);
        let (grads, dx) = (self.layers.zero_grads(gpu)?, Array::new(gpu, DType::F32, x.elem_count())?);
        let to = x.track_op().then(|| (dx.all(), false));
        layer.backward(gpu, (input.all(), low), (slopes.all(), n), (&factors, grads.all()), to)?;
        let dx = x.track_op().then(|| dx.into_tensor(x.shape()));
        Ok((dx, Some(grads.into_tensor(f.shape()))))
    }
}
