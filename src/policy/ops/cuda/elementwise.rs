//! Norms, rotation and activations as operations of their own.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::array::{Array, Values, operand};
use super::kernels::{self, Angles, NormWeights};
use super::{device, not_here, plain, takes};
use crate::policy::ops::{RopeStyle, RopeTable};

pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> crate::Result<Tensor> {
    if !takes(x) {
        return plain::rms_norm(x, weight, eps);
    }
    Ok(x.contiguous()?.apply_op1(Norm { weight: weight.detach(), bias: None, eps })?)
}

pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> crate::Result<Tensor> {
    if !takes(x) {
        return plain::layer_norm(x, weight, bias, eps);
    }
    Ok(x.contiguous()?.apply_op1(Norm { weight: weight.detach(), bias: Some(bias.detach()), eps })?)
}

pub fn rope(x: &Tensor, table: &RopeTable, style: RopeStyle) -> crate::Result<Tensor> {
    if !takes(x) {
        return plain::rope(x, table, style);
    }
    Ok(x.contiguous()?.apply_op1(Rope { table: table.clone(), style })?)
}

pub fn swiglu(gate: &Tensor, up: &Tensor) -> crate::Result<Tensor> {
    if !takes(gate) {
        return plain::swiglu(gate, up);
    }
    Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu)?)
}

pub fn gelu(x: &Tensor) -> crate::Result<Tensor> {
    if !takes(x) {
        return plain::gelu(x);
    }
    Ok(x.contiguous()?.apply_op1(Gelu)?)
}

/// A norm with its frozen weights; LayerNorm where there is a bias.
pub struct Norm {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub eps: f32,
}

impl Norm {
    /// Calls `f` with the weights' places.
    pub fn with<R>(&self, f: impl FnOnce(NormWeights) -> Result<R>) -> Result<R> {
        let weight = Values::of(&self.weight)?;
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let bias = bias.as_ref().map(Values::at).transpose()?;
        f(NormWeights { weight: weight.at()?, bias, width: self.weight.elem_count(), eps: self.eps })
    }
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, count, at) = (x.device(), l.shape().elem_count(), operand(self.name(), x, l)?);
        let y = Array::new(gpu, at.dtype, count)?;
        self.with(|w| kernels::norm(gpu, at, w, y.all(), count / w.width))?;
        Ok((y.into_storage(), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (gpu, dy, count) = (device(x)?, dy.contiguous()?, x.elem_count());
        let dx = Array::new(gpu, x.dtype(), count)?;
        let (xs, dys) = (Values::of(x)?, Values::of(&dy)?);
        let (xs, dys) = (xs.at()?, dys.at()?);
        self.with(|w| kernels::norm_slopes(gpu, xs, w, dys, None, dx.all(), count / w.width))?;
        Ok(Some(dx.into_tensor(x.shape())))
    }
}

/// The angles of the tokens.
pub struct Rope {
    pub table: RopeTable,
    pub style: RopeStyle,
}

impl Rope {
    /// Calls `f` with the angles' places.
    pub fn with<R>(&self, f: impl FnOnce(Angles) -> Result<R>) -> Result<R> {
        let (cos, sin) = (Values::of(&self.table.cos)?, Values::of(&self.table.sin)?);
        f(Angles { cos: cos.at()?, sin: sin.at()?, half: self.table.cos.dim(1)?, style: self.style })
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, at) = (x.device(), operand(self.name(), x, l)?);
        let y = Array::new(gpu, at.dtype, l.shape().elem_count())?;
        self.with(|angles| kernels::rope(gpu, at, y.all(), angles, l.shape().dims3()?, 1.0))?;
        Ok((y.into_storage(), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (gpu, dy) = (device(x)?, dy.contiguous()?);
        let dx = Array::new(gpu, dy.dtype(), dy.elem_count())?;
        let slopes = Values::of(&dy)?;
        let slopes = slopes.at()?;
        self.with(|angles| kernels::rope(gpu, slopes, dx.all(), angles, x.dims3()?, -1.0))?;
        Ok(Some(dx.into_tensor(x.shape())))
    }
}

/// `silu(gate) · up`.
struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, g: &CudaStorage, lg: &Layout, u: &CudaStorage, lu: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, count) = (g.device(), lg.shape().elem_count());
        let (g, u) = (operand(self.name(), g, lg)?, operand(self.name(), u, lu)?);
        let y = Array::new(gpu, g.dtype, count)?;
        kernels::swiglu(gpu, g, u, y.all(), count)?;
        Ok((y.into_storage(), lg.shape().clone()))
    }

    fn bwd(&self, g: &Tensor, u: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gpu, dy, count) = (device(g)?, dy.contiguous()?, g.elem_count());
        let (dg, du) = (Array::new(gpu, g.dtype(), count)?, Array::new(gpu, g.dtype(), count)?);
        let (gs, us, dys) = (Values::of(g)?, Values::of(u)?, Values::of(&dy)?);
        kernels::swiglu_slopes(gpu, (gs.at()?, us.at()?), dys.at()?, (dg.all(), du.all()), count)?;
        Ok((Some(dg.into_tensor(g.shape())), Some(du.into_tensor(u.shape()))))
    }
}

/// GELU by tanh.
struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, count, at) = (x.device(), l.shape().elem_count(), operand(self.name(), x, l)?);
        let y = Array::new(gpu, at.dtype, count)?;
        kernels::gelu(gpu, at, y.all(), count)?;
        Ok((y.into_storage(), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (gpu, dy, count) = (device(x)?, dy.contiguous()?, x.elem_count());
        let dx = Array::new(gpu, x.dtype(), count)?;
        let (xs, dys) = (Values::of(x)?, Values::of(&dy)?);
        kernels::gelu_slopes(gpu, xs.at()?, dys.at()?, dx.all(), count)?;
        Ok(Some(dx.into_tensor(x.shape())))
    }
}
