//! Causal attention with grouped heads over packed sequences. Never stores scores.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::array::{Array, At, Values, operand};
use super::tiles::{Sweep, Tiles};
use super::{device, not_here, plain, takes};
use crate::policy::ops::attention::Shapes;

/// Widest head.
const WIDEST: usize = 256;

/// Whether heads of that width are taken.
pub fn fits(dim: usize) -> bool {
    dim <= WIDEST
}

pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    starts: &[usize],
    scale: f32,
    window: Option<usize>,
) -> crate::Result<Tensor> {
    let (_, heads, dim) = q.dims3()?;
    if !takes(q) || !fits(dim) {
        return plain::attention(q, k, v, starts, scale, window);
    }
    let window = window.unwrap_or(usize::MAX).max(1);
    let shapes = Shapes { starts: starts.to_vec(), heads, kv_heads: k.dim(1)?, dim, scale, window };
    let op = Attention { shapes, sums: OnceLock::new() };
    Ok(q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)?)
}

fn tiles<'a>(gpu: &CudaDevice, shapes: &'a Shapes) -> Result<Tiles<'a>> {
    match Tiles::new(gpu, shapes)? {
        Some(tiles) => Ok(tiles),
        None => bail!("attention: heads of {} values, expected at most {WIDEST}", shapes.dim),
    }
}

/// What attention gives out, `[n, heads, dim]` in the type of the queries, and each query's log-sum, `[n, heads]`.
pub fn forward(gpu: &CudaDevice, shapes: &Shapes, [q, k, v]: [At; 3]) -> Result<(Array, Array)> {
    let (tiles, n) = (tiles(gpu, shapes)?, shapes.starts.last().copied().unwrap_or(0));
    let sums = Array::new(gpu, DType::F32, n * shapes.heads)?;
    let out = Array::new(gpu, q.dtype, n * shapes.heads * shapes.dim)?;
    tiles.log_sums(gpu, q, k, sums.all())?;
    tiles.sweep(gpu, Sweep::Out, [q, q, k, v], out.all(), sums.all(), None)?;
    Ok((out, sums))
}

/// Gradients of queries and keys, in f32, and of values, in their type; of what was given out the gradient comes in
/// that type and in f32.
pub fn backward(
    gpu: &CudaDevice,
    shapes: &Shapes,
    [q, k, v]: [At; 3],
    (out, sums): (At, At),
    (dout, exact): (At, At),
) -> Result<[Array; 3]> {
    let (tiles, n) = (tiles(gpu, shapes)?, shapes.starts.last().copied().unwrap_or(0));
    let deltas = Array::new(gpu, DType::F32, n * shapes.heads)?;
    tiles.deltas(gpu, out, exact, deltas.all())?;
    let new = |dtype, heads: usize| Array::new(gpu, dtype, n * heads * shapes.dim);
    let (dq, dk) = (new(DType::F32, shapes.heads)?, new(DType::F32, shapes.kv_heads)?);
    let dv = new(q.dtype, shapes.kv_heads)?;
    tiles.sweep(gpu, Sweep::Queries, [q, dout, k, v], dq.all(), sums, Some(deltas.all()))?;
    tiles.sweep(gpu, Sweep::Keys, [k, v, q, dout], dk.all(), sums, Some(deltas.all()))?;
    tiles.sweep(gpu, Sweep::Values, [k, k, q, dout], dv.all(), sums, None)?;
    Ok([dq, dk, dv])
}

struct Attention {
    shapes: Shapes,
    sums: OnceLock<Array>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        lq: &Layout,
        k: &CudaStorage,
        lk: &Layout,
        v: &CudaStorage,
        lv: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let op = self.name();
        let qkv = [operand(op, q, lq)?, operand(op, k, lk)?, operand(op, v, lv)?];
        let (out, sums) = forward(q.device(), &self.shapes, qkv)?;
        self.sums.set(sums).ok();
        Ok((out.into_storage(), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(sums) = self.sums.get() else { bail!("{}: nothing was kept for this pass", self.name()) };
        let dout = dout.contiguous()?;
        let (qs, ks, vs) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
        let (outs, douts) = (Values::of(out)?, Values::of(&dout)?);
        let qkv = [qs.at()?, ks.at()?, vs.at()?];
        let [dq, dk, dv] =
            backward(device(q)?, &self.shapes, qkv, (outs.at()?, sums.all()), (douts.at()?, douts.at()?))?;
        Ok((Some(dq.into_tensor(q.shape())), Some(dk.into_tensor(k.shape())), Some(dv.into_tensor(v.shape()))))
    }
}
