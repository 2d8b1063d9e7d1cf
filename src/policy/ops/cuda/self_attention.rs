//! The attention block with its norm, rotations and residual as one operation. Keeps queries, keys, values and what
//! attention gives out in the weights' type, and recomputes the rest in the backward pass.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use super::array::{Array, At, Values, operand};
use super::attention::{self, fits};
use super::elementwise::{Norm, Rope};
use super::kernels;
use super::layer::{Factors, Low, converted};
use super::layers::Layers;
use super::{device, not_here, plain, takes};
use crate::policy::ops::SelfAttention;
use crate::policy::ops::attention::Shapes;

pub fn self_attention(x: &Tensor, block: &SelfAttention) -> crate::Result<Tensor> {
    let dim = block.query.weight.out_features() / block.heads;
    let specs = [block.query, block.key, block.value, block.output];
    let layers = if takes(x) && fits(dim) { Layers::new(x, &specs)? } else { None };
    let Some((layers, flat)) = layers else { return plain::self_attention(x, block) };
    let norm = |weight: &Tensor| Norm { weight: weight.detach(), bias: None, eps: block.eps };
    let op = FusedSelfAttention {
        norm: norm(block.norm),
        keep: x.track_op() || flat.track_op(),
        layers,
        head_norms: block.head_norms.map(|(q, k)| [norm(q), norm(k)]),
        rope: Rope { table: block.rope.clone(), style: block.style },
        shapes: Shapes {
            starts: block.starts.to_vec(),
            heads: block.heads,
            kv_heads: block.kv_heads,
            dim,
            scale: block.scale,
            window: usize::MAX,
        },
        kept: OnceLock::new(),
    };
    Ok(x.contiguous()?.apply_op2(&flat, op)?)
}

const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;
const OUTPUT: usize = 3;

struct FusedSelfAttention {
    norm: Norm,
    layers: Layers, // query, key, value, output
    head_norms: Option<[Norm; 2]>,
    rope: Rope,
    shapes: Shapes,
    keep: bool,
    kept: OnceLock<Kept>,
}

struct Kept {
    qkv: [Array; 3],
    /// Queries and keys before their norms.
    raw: Option<[Array; 2]>,
    mixed: Array,
    sums: Array,
    low: [Low; 4],
}

impl FusedSelfAttention {
    fn heads(&self, layer: usize) -> usize {
        if layer == QUERY { self.shapes.heads } else { self.shapes.kv_heads }
    }

    /// Queries, keys or values of normed rows, before head norms and rotation, in f32.
    fn project(&self, gpu: &CudaDevice, i: usize, (normed, n): (At, usize), factors: &Factors) -> Result<(Array, Low)> {
        let out = Array::new(gpu, DType::F32, n * self.layers.layers[i].out())?;
        let low = self.layers.layers[i].forward(gpu, normed, n, factors, out.all(), false)?;
        Ok((out, low))
    }

    /// Queries or keys after head norm and rotation; and before, if they have a norm and a backward pass may follow.
    /// They are rounded once, after both.
    fn arrange(&self, gpu: &CudaDevice, i: usize, mut heads: Array, n: usize) -> Result<(Array, Option<Array>)> {
        let (rows, count) = (n * self.heads(i), n * self.heads(i) * self.shapes.dim);
        let mut raw = None;
        if let Some(norms) = &self.head_norms {
            if self.keep {
                raw = Some(converted(gpu, heads.all(), count, self.layers.dtype)?);
            }
            let normed = Array::new(gpu, DType::F32, count)?;
            norms[i].with(|w| kernels::norm(gpu, heads.all(), w, normed.all(), rows))?;
            heads = normed;
        }
        Ok((self.turn(gpu, i, &heads, n, 1.0, self.layers.dtype)?, raw))
    }

    fn turn(&self, gpu: &CudaDevice, i: usize, heads: &Array, n: usize, sign: f32, dtype: DType) -> Result<Array> {
        let shape = (n, self.heads(i), self.shapes.dim);
        let to = Array::new(gpu, dtype, shape.0 * shape.1 * shape.2)?;
        self.rope.with(|angles| kernels::rope(gpu, heads.all(), to.all(), angles, shape, sign))?;
        Ok(to)
    }
}

impl CustomOp2 for FusedSelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, f: &CudaStorage, lf: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, dtype, (n, width)) = (x.device(), self.layers.dtype, lx.shape().dims2()?);
        let x = operand(self.name(), x, lx)?;
        let factors = self.layers.factors(gpu, operand(self.name(), f, lf)?)?;
        let normed = Array::new(gpu, dtype, n * width)?;
        self.norm.with(|w| kernels::norm(gpu, x, w, normed.all(), n))?;
        let project = |i| self.project(gpu, i, (normed.all(), n), &factors);
        let ((q, low_q), (k, low_k), (v, low_v)) = (project(QUERY)?, project(KEY)?, project(VALUE)?);
        drop(normed);
        let v = converted(gpu, v.all(), n * self.shapes.kv_heads * self.shapes.dim, dtype)?;
        let ((q, raw_q), (k, raw_k)) = (self.arrange(gpu, QUERY, q, n)?, self.arrange(gpu, KEY, k, n)?);
        let (mixed, sums) = attention::forward(gpu, &self.shapes, [q.all(), k.all(), v.all()])?;
        let y = converted(gpu, x, n * width, DType::F32)?;
        let low_output = self.layers.layers[OUTPUT].forward(gpu, mixed.all(), n, &factors, y.all(), true)?;
        if self.keep {
            let (low, raw) = ([low_q, low_k, low_v, low_output], raw_q.zip(raw_k).map(|(q, k)| [q, k]));
            self.kept.set(Kept { qkv: [q, k, v], raw, mixed, sums, low }).ok();
        }
        Ok((y.into_storage(), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, f: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else { bail!("{}: nothing was kept for this pass", self.name()) };
        let (gpu, dtype, (n, width), dy) = (device(x)?, self.layers.dtype, x.dims2()?, dy.contiguous()?);
        let (xs, dys) = (Values::of(x)?, Values::of(&dy)?);
        let factors = self.layers.factors(gpu, Values::of(f)?.at()?)?;
        let grads = self.layers.zero_grads(gpu)?;

        let slopes = converted(gpu, dys.at()?, n * width, dtype)?;
        let count = n * self.shapes.heads * self.shapes.dim;
        let exact = Array::new(gpu, DType::F32, count)?;
        let (input, to) = ((kept.mixed.all(), &kept.low[OUTPUT]), Some((exact.all(), false)));
        self.layers.layers[OUTPUT].backward(gpu, input, (slopes.all(), n), (&factors, grads.all()), to)?;
        drop(slopes);
        let qkv = [kept.qkv[0].all(), kept.qkv[1].all(), kept.qkv[2].all()];
        let out = (kept.mixed.all(), kept.sums.all());
        let dmixed = converted(gpu, exact.all(), count, dtype)?;
        let mut dqkv = attention::backward(gpu, &self.shapes, qkv, out, (dmixed.all(), exact.all()))?;
        drop((dmixed, exact));
        for i in [QUERY, KEY] {
            dqkv[i] = match (&self.head_norms, &kept.raw) {
                (Some(norms), Some(raw)) => {
                    let slopes = self.turn(gpu, i, &dqkv[i], n, -1.0, DType::F32)?;
                    let rows = n * self.heads(i);
                    let to = Array::new(gpu, dtype, rows * self.shapes.dim)?;
                    norms[i]
                        .with(|w| kernels::norm_slopes(gpu, raw[i].all(), w, slopes.all(), None, to.all(), rows))?;
                    to
                }
                _ => self.turn(gpu, i, &dqkv[i], n, -1.0, dtype)?,
            };
        }

        let (normed, dn) = (Array::new(gpu, dtype, n * width)?, Array::new(gpu, DType::F32, n * width)?);
        let dx = Array::new(gpu, DType::F32, n * width)?;
        self.norm.with(|w| kernels::norm(gpu, xs.at()?, w, normed.all(), n))?;
        for i in [QUERY, KEY, VALUE] {
            let (input, to) = ((normed.all(), &kept.low[i]), Some((dn.all(), i != QUERY)));
            self.layers.layers[i].backward(gpu, input, (dqkv[i].all(), n), (&factors, grads.all()), to)?;
        }
        let more = Some(dys.at()?);
        self.norm.with(|w| kernels::norm_slopes(gpu, xs.at()?, w, dn.all(), more, dx.all(), n))?;
        Ok((Some(dx.into_tensor(x.shape())), Some(grads.into_tensor(f.shape()))))
    }
}
