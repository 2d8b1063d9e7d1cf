//! The attention block with its norm, rotations and residual as one operation. Keeps queries, keys, values and the
//! attention's output in the weights' precision, and recomputes the rest in the backward pass.

use super::accumulate::{Begin, Run};
use super::adapted::{self, Adapted};
use super::attention::{self, Shapes};
use super::cpu::{Values, result, slice, tensor};
use super::elsewhere;
use super::frozen::frozen_values;
use super::layers::{Layers, by_rows, task_rows};
use super::linear::Factors;
use super::matrix::Mat;
use super::norm::{self, Norm};
use super::rope::Rope;
use super::rope_table::{self, RopeStyle, RopeTable};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use std::sync::OnceLock;

/// RMSNorm, then causal self-attention with rotary positions, then the residual.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention<'a> {
    /// `[E]`, frozen.
    pub norm: &'a Tensor,
    /// Epsilon of all norms of the block.
    pub eps: f32,
    /// `[heads · dim, E]`.
    pub query: Adapted<'a>,
    /// `[kv_heads · dim, E]`.
    pub key: Adapted<'a>,
    /// `[kv_heads · dim, E]`.
    pub value: Adapted<'a>,
    /// `[E, heads · dim]`.
    pub output: Adapted<'a>,
    /// RMSNorm weights `[dim]` of query and key heads, applied before the rotation.
    pub head_norms: Option<(&'a Tensor, &'a Tensor)>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Rotary angles of the tokens.
    pub rope: &'a RopeTable,
    /// Which elements of a head rotate together.
    pub style: RopeStyle,
    /// Boundaries of the sequences, from 0 to N.
    pub starts: &'a [usize],
    /// Factor of the scores.
    pub scale: f32,
}

/// `x + output(attention(rope(query(n)), rope(key(n)), value(n)))` with `n = rms_norm(x)`, `[N, E]`: one operation that
/// keeps a third of its parts' memory.
///
/// When fused with bf16 weights, the products of scores and values have bf16 operands too.
pub fn self_attention(x: &Tensor, block: &SelfAttention) -> crate::Result<Tensor> {
    norm::check("self_attention", x, block.norm)?;
    let (n, out) = (x.dims()[0], block.query.weight.out_features());
    for layer in [&block.query, &block.key, &block.value] {
        adapted::check(x.dims(), layer)?;
    }
    adapted::check(&[n, out], &block.output)?;
    let (heads, kv_heads) = (block.heads, block.kv_heads);
    if kv_heads == 0 || heads % kv_heads != 0 || out % heads != 0 {
        return Err(Error::train(format!(
            "self_attention: {heads} heads and {kv_heads} key heads for {out} query rows"
        )));
    }
    let dim = out / heads;
    let (width, kv) = (x.dims()[1], kv_heads * dim);
    if !block.key.weight.is(kv, width) || !block.value.weight.is(kv, width) || !block.output.weight.is(width, out) {
        return Err(Error::train("self_attention: query, key, value and output do not fit together"));
    }
    attention::check_starts("self_attention", block.starts, n)?;
    let half = rope_table::check(&[n, heads, dim], block.rope)?;
    if let Some((q, k)) = block.head_norms
        && (q.dims() != [dim] || k.dims() != [dim])
    {
        return Err(Error::train(format!(
            "self_attention: head norms {:?} and {:?}, expected [{dim}]",
            q.dims(),
            k.dims()
        )));
    }
    let specs = [block.query, block.key, block.value, block.output];
    if let Some((layers, flat)) = Layers::new(x, &specs)? {
        let x = x.contiguous()?;
        let norm = |weight| Ok::<_, Error>(Norm { weight: frozen_values(weight)?, bias: None, eps: block.eps });
        let window = usize::MAX;
        let shapes = Shapes { starts: block.starts.to_vec(), heads, kv_heads, dim, scale: block.scale, window };
        let op = FusedSelfAttention {
            norm: norm(block.norm)?,
            keep: x.track_op() || flat.track_op(),
            layers,
            head_norms: block.head_norms.map(|(q, k)| Ok::<_, Error>([norm(q)?, norm(k)?])).transpose()?,
            rope: Rope { turns: block.rope.turns.clone(), half, style: block.style },
            shapes,
            kept: OnceLock::new(),
        };
        return Ok(x.apply_op2(&flat, op)?);
    }
    elsewhere::self_attention(x, block)
}

const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;
const OUTPUT: usize = 3;

/// `x + output(attention(rope(query(norm(x))), rope(key(norm(x))), value(norm(x))))`, an operation of `x [N, E]` and
/// the flat factors.
pub struct FusedSelfAttention {
    pub norm: Norm,
    pub layers: Layers, // query, key, value, output
    /// Norms of each query and key head, before the rotation.
    pub head_norms: Option<[Norm; 2]>,
    pub rope: Rope,
    pub shapes: Shapes,
    /// Whether a backward pass may follow.
    pub keep: bool,
    pub kept: OnceLock<Kept>,
}

/// What the forward pass keeps for the backward pass.
pub struct Kept {
    q: Mat, // [N, heads · dim]
    k: Mat,
    v: Mat,
    /// Queries and keys before their head norms, per task, if there are such norms.
    raw: Vec<Option<[Mat; 2]>>,
    mixed: Mat,
    log_sums: Vec<f32>, // [N, heads]
    /// `u` of query, key and value, and of output, per task; see [`super::linear`].
    low: Vec<[Vec<f32>; 3]>,
    low_output: Vec<Vec<f32>>,
}

/// Queries, keys and values of one task's rows.
struct Projected {
    qkv: [Mat; 3],
    raw: Option<[Mat; 2]>,
    low: [Vec<f32>; 3],
}

impl FusedSelfAttention {
    fn width(&self) -> usize {
        self.norm.weight.len()
    }

    fn heads_width(&self) -> usize {
        self.shapes.heads * self.shapes.dim
    }

    fn normed(&self, x: &[f32], factors: &[Option<Factors>]) -> Mat {
        let width = self.width();
        let room = factors[..OUTPUT].iter().flatten().map(Factors::rank).max().unwrap_or(0);
        let shape = (x.len() / width, width, room);
        Mat::from_rows(self.layers.precision(), shape, |r, n| self.norm.row(&x[r * width..][..width], n))
    }

    fn turn(&self, first: usize, heads: &mut [f32], width: usize, sign: f32) {
        for (i, token) in heads.chunks_exact_mut(width).enumerate() {
            self.rope.turn(first + i, token, self.shapes.dim, sign);
        }
    }

    /// Computes queries, keys and values of the rows from `first` on.
    fn project(&self, first: usize, x: &[f32], factors: &[Option<Factors>]) -> Projected {
        let (count, dim, precision) = (x.len() / self.width(), self.shapes.dim, self.layers.precision());
        let mut n = self.normed(x, factors);
        let mut project = |i: usize| {
            let mut out = vec![0f32; count * self.layers.layer(i).out()];
            let low = self.layers.layer(i).forward(&mut n, factors[i].as_ref(), &mut out, false, Run::Here);
            (out, low)
        };
        let [(mut q, low_q), (mut k, low_k), (v, low_v)] = [project(QUERY), project(KEY), project(VALUE)];
        let (q_width, k_width) = (self.heads_width(), self.shapes.kv_heads * dim);
        let mut raw = None;
        if let Some([q_norm, k_norm]) = &self.head_norms {
            if self.keep {
                raw = Some([Mat::new(precision, &q, q_width), Mat::new(precision, &k, k_width)]);
            }
            for (norm, heads) in [(q_norm, &mut q), (k_norm, &mut k)] {
                let before = heads.clone();
                before.chunks_exact(dim).zip(heads.chunks_exact_mut(dim)).for_each(|(x, y)| norm.row(x, y));
            }
        }
        self.turn(first, &mut q, q_width, 1.0);
        self.turn(first, &mut k, k_width, 1.0);
        let qkv =
            [(q, q_width), (k, k_width), (v, k_width)].map(|(values, width)| Mat::owned(precision, values, width));
        Projected { qkv, raw, low: [low_q, low_k, low_v] }
    }

    /// Propagates the gradients of queries and keys back through rotation and head norm, in place.
    fn unturn(&self, first: usize, heads: &mut [f32], width: usize, raw: Option<&Mat>, norm: Option<&Norm>) {
        self.turn(first, heads, width, -1.0);
        let (Some(raw), Some(norm)) = (raw, norm) else { return };
        let dim = self.shapes.dim;
        let (mut x, mut slopes) = (vec![0f32; width], vec![0f32; width]);
        for (i, token) in heads.chunks_exact_mut(width).enumerate() {
            raw.read_row(i, &mut x);
            slopes.copy_from_slice(token);
            for ((x, dy), dx) in x.chunks_exact(dim).zip(slopes.chunks_exact(dim)).zip(token.chunks_exact_mut(dim)) {
                norm.row_backward(x, dy, dx);
            }
        }
    }
}

impl CustomOp2 for FusedSelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, f: &CpuStorage, lf: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width, precision) = (slice(self.name(), x, lx)?, self.width(), self.layers.precision());
        let factors = self.layers.factors(slice(self.name(), f, lf)?);
        let (tokens, mut y) = (x.len() / width, x.to_vec());
        let step = task_rows(tokens);
        let projected =
            by_rows(&mut y, width, step, |first, y| self.project(first, &x[first * width..][..y.len()], &factors));
        let join = |i: usize| {
            let mut all = Mat::zeros(precision, tokens, self.layers.layer(i).out());
            for (task, part) in projected.iter().enumerate() {
                all.copy(task * step, &part.qkv[i], (0, 0), part.qkv[i].rows(), part.qkv[i].cols());
            }
            all
        };
        let (q, k, v) = (join(QUERY), join(KEY), join(VALUE));
        let (mixed, log_sums) = attention::forward(&self.shapes, &q, &k, &v);
        let heads = self.heads_width();
        let room = factors[OUTPUT].as_ref().map_or(0, Factors::rank);
        // y already holds the residual.
        let low_output = by_rows(&mut y, width, step, |first, y| {
            let rows = &mixed[first * heads..][..y.len() / width * heads];
            let mut rows = Mat::with_room(precision, rows, heads, room);
            self.layers.layer(OUTPUT).forward(&mut rows, factors[OUTPUT].as_ref(), y, true, Run::Here)
        });
        if self.keep {
            let mixed = Mat::new(precision, &mixed, heads);
            let (raw, low) = projected.into_iter().map(|p| (p.raw, p.low)).unzip();
            self.kept.set(Kept { q, k, v, raw, mixed, log_sums, low, low_output }).ok();
        }
        result(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, f: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (xs, dys, width) = (Values::of(x)?, Values::of(&dy)?, self.width());
        let (xs, dys): (&[f32], &[f32]) = (&xs, &dys);
        let factors = self.layers.factors(&Values::of(f)?);
        let Some(kept) = self.kept.get() else { candle_core::bail!("{}: nothing was kept for this pass", self.name()) };
        let (tokens, heads, precision) = (xs.len() / width, self.heads_width(), self.layers.precision());
        let step = task_rows(tokens);

        let mut dmixed = vec![0f32; tokens * heads];
        let mut grads = by_rows(&mut dmixed, heads, step, |first, dmixed| {
            let mut grads = self.layers.zero_grads();
            let count = dmixed.len() / heads;
            let mixed = kept.mixed.cut((first, 0), count, heads);
            let with = self.layers.with_grads(OUTPUT, &factors, &mut grads);
            let dy = &dys[first * width..][..count * width];
            let to = Some((dmixed, Begin::Zero));
            self.layers.layer(OUTPUT).backward(&mixed, &kept.low_output[first / step], dy, with, to, Run::Here);
            grads
        });
        let dmixed = Mat::new(precision, &dmixed, heads);
        let (dq, dk, dv) = attention::backward(&self.shapes, &kept.q, &kept.k, &kept.v, &dmixed, &kept.log_sums);

        let mut dx = vec![0f32; xs.len()];
        let kv = self.shapes.kv_heads * self.shapes.dim;
        let of_inputs = by_rows(&mut dx, width, step, |first, dx| {
            let (task, count) = (first / step, dx.len() / width);
            let mut grads = self.layers.zero_grads();
            let x = &xs[first * width..][..dx.len()];
            let n = self.normed(x, &[None, None, None]);
            let mut dq = dq[first * heads..][..count * heads].to_vec();
            let mut dk = dk[first * kv..][..count * kv].to_vec();
            let (raw, norms) = (kept.raw[task].as_ref(), self.head_norms.as_ref());
            self.unturn(first, &mut dq, heads, raw.map(|r| &r[0]), norms.map(|n| &n[0]));
            self.unturn(first, &mut dk, kv, raw.map(|r| &r[1]), norms.map(|n| &n[1]));
            let mut dn = vec![0f32; x.len()];
            let dv = &dv[first * kv..][..count * kv];
            for (i, slopes) in [(QUERY, dq.as_slice()), (KEY, &dk), (VALUE, dv)] {
                let begin = if i == QUERY { Begin::Zero } else { Begin::Add };
                let with = self.layers.with_grads(i, &factors, &mut grads);
                let to = Some((dn.as_mut_slice(), begin));
                self.layers.layer(i).backward(&n, &kept.low[task][i], slopes, with, to, Run::Here);
            }
            self.norm.add_backward(x, &dn, &dys[first * width..][..dx.len()], dx);
            grads
        });
        grads.extend(of_inputs);
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(self.layers.total(&grads), f.shape())?)))
    }
}
