//! The gated feed-forward block with its norm and residual as one operation. Keeps gate and up in the weights' type,
//! and recomputes the rest in the backward pass.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use super::array::{Array, Values, operand};
use super::elementwise::Norm;
use super::kernels;
use super::layer::{Low, converted};
use super::layers::Layers;
use super::{device, not_here, plain, takes};
use crate::policy::ops::FeedForward;

pub fn feed_forward(x: &Tensor, block: &FeedForward) -> crate::Result<Tensor> {
    let layers = if takes(x) { Layers::new(x, &[block.gate, block.up, block.down])? } else { None };
    let Some((layers, flat)) = layers else { return plain::feed_forward(x, block) };
    let norm = Norm { weight: block.norm.detach(), bias: None, eps: block.eps };
    let keep = x.track_op() || flat.track_op();
    Ok(x.contiguous()?.apply_op2(&flat, FusedFeedForward { norm, layers, keep, kept: OnceLock::new() })?)
}

const GATE: usize = 0;
const UP: usize = 1;
const DOWN: usize = 2;

struct FusedFeedForward {
    norm: Norm,
    layers: Layers, // gate, up, down
    keep: bool,
    kept: OnceLock<Kept>,
}

struct Kept {
    gate: Array,
    up: Array,
    low: [Low; 3],
}

impl CustomOp2 for FusedFeedForward {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, f: &CudaStorage, lf: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, dtype, (n, width)) = (x.device(), self.layers.dtype, lx.shape().dims2()?);
        let x = operand(self.name(), x, lx)?;
        let factors = self.layers.factors(gpu, operand(self.name(), f, lf)?)?;
        let [gate, up, down] = [GATE, UP, DOWN].map(|i| &self.layers.layers[i]);
        let normed = Array::new(gpu, dtype, n * width)?;
        self.norm.with(|w| kernels::norm(gpu, x, w, normed.all(), n))?;
        let inner = n * gate.out();
        let (gates, ups) = (Array::new(gpu, dtype, inner)?, Array::new(gpu, dtype, inner)?);
        let low_gate = gate.forward(gpu, normed.all(), n, &factors, gates.all(), false)?;
        let low_up = up.forward(gpu, normed.all(), n, &factors, ups.all(), false)?;
        drop(normed);
        let gated = Array::new(gpu, dtype, inner)?;
        kernels::swiglu(gpu, gates.all(), ups.all(), gated.all(), inner)?;
        let y = converted(gpu, x, n * width, DType::F32)?;
        let low_down = down.forward(gpu, gated.all(), n, &factors, y.all(), true)?;
        if self.keep {
            self.kept.set(Kept { gate: gates, up: ups, low: [low_gate, low_up, low_down] }).ok();
        }
        Ok((y.into_storage(), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, f: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else { bail!("{}: nothing was kept for this pass", self.name()) };
        let (gpu, dtype, (n, width), dy) = (device(x)?, self.layers.dtype, x.dims2()?, dy.contiguous()?);
        let (xs, dys) = (Values::of(x)?, Values::of(&dy)?);
        let factors = self.layers.factors(gpu, Values::of(f)?.at()?)?;
        let [gate, up, down] = [GATE, UP, DOWN].map(|i| &self.layers.layers[i]);
        let (grads, inner) = (self.layers.zero_grads(gpu)?, n * gate.out());
        let new = |count: usize| Array::new(gpu, dtype, count);

        let slopes = converted(gpu, dys.at()?, n * width, dtype)?;
        let (gated, dgated) = (new(inner)?, new(inner)?);
        kernels::swiglu(gpu, kept.gate.all(), kept.up.all(), gated.all(), inner)?;
        let to = Some((dgated.all(), false));
        down.backward(gpu, (gated.all(), &kept.low[DOWN]), (slopes.all(), n), (&factors, grads.all()), to)?;
        drop(slopes);
        // Where gated values were is room for the gate's gradient.
        let (dgate, dup) = (gated, new(inner)?);
        let inputs = (kept.gate.all(), kept.up.all());
        kernels::swiglu_slopes(gpu, inputs, dgated.all(), (dgate.all(), dup.all()), inner)?;
        drop(dgated);

        let (normed, dn) = (new(n * width)?, Array::new(gpu, DType::F32, n * width)?);
        let dx = Array::new(gpu, DType::F32, n * width)?;
        self.norm.with(|w| kernels::norm(gpu, xs.at()?, w, normed.all(), n))?;
        for (layer, low, slopes, add) in [(gate, GATE, &dgate, false), (up, UP, &dup, true)] {
            let to = Some((dn.all(), add));
            layer.backward(gpu, (normed.all(), &kept.low[low]), (slopes.all(), n), (&factors, grads.all()), to)?;
        }
        let more = Some(dys.at()?);
        self.norm.with(|w| kernels::norm_slopes(gpu, xs.at()?, w, dn.all(), more, dx.all(), n))?;
        Ok((Some(dx.into_tensor(x.shape())), Some(grads.into_tensor(f.shape()))))
    }
}
