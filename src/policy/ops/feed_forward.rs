//! The gated feed-forward block with its norm and residual as one operation. Keeps gate and up in the weights'
//! precision, and recomputes the rest in the backward pass.

use super::accumulate::{Begin, Run};
use super::activation::{gated, gated_backward};
use super::adapted::{self, Adapted};
use super::cpu::{Values, result, slice, tensor};
use super::elsewhere;
use super::frozen::frozen_values;
use super::layers::{Layers, by_rows, task_rows};
use super::linear::Factors;
use super::matrix::Mat;
use super::norm::{self, Norm};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use std::sync::OnceLock;

/// RMSNorm, then a gated feed-forward layer, then the residual.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'a> {
    /// `[E]`, frozen.
    pub norm: &'a Tensor,
    /// The norm's epsilon.
    pub eps: f32,
    /// `[F, E]`.
    pub gate: Adapted<'a>,
    /// `[F, E]`.
    pub up: Adapted<'a>,
    /// `[E, F]`.
    pub down: Adapted<'a>,
}

/// `x + down(silu(gate(n)) · up(n))` with `n = rms_norm(x)`, `[N, E]`: one operation that keeps
/// a third of its parts' memory.
pub fn feed_forward(x: &Tensor, block: &FeedForward) -> crate::Result<Tensor> {
    norm::check("feed_forward", x, block.norm)?;
    let (n, inner) = (x.dims()[0], block.gate.weight.out_features());
    adapted::check(x.dims(), &block.gate)?;
    adapted::check(x.dims(), &block.up)?;
    adapted::check(&[n, inner], &block.down)?;
    if !block.up.weight.is(inner, x.dims()[1]) || !block.down.weight.is(x.dims()[1], inner) {
        return Err(Error::train("feed_forward: gate, up and down do not fit together"));
    }
    if let Some((layers, flat)) = Layers::new(x, &[block.gate, block.up, block.down])? {
        let x = x.contiguous()?;
        let norm = Norm { weight: frozen_values(block.norm)?, bias: None, eps: block.eps };
        let keep = x.track_op() || flat.track_op();
        return Ok(x.apply_op2(&flat, FusedFeedForward { norm, layers, keep, kept: OnceLock::new() })?);
    }
    elsewhere::feed_forward(x, block)
}

const GATE: usize = 0;
const UP: usize = 1;
const DOWN: usize = 2;

/// `x + down(silu(gate(norm(x))) · up(norm(x)))`, an operation of `x [N, E]` and the flat factors.
pub struct FusedFeedForward {
    pub norm: Norm,
    pub layers: Layers, // gate, up, down
    /// Whether a backward pass may follow.
    pub keep: bool,
    pub kept: OnceLock<Vec<Kept>>,
}

/// What one task keeps for the backward pass.
pub struct Kept {
    gate: Mat,
    up: Mat,
    /// `u` of the three layers; see [`super::linear`].
    low: [Vec<f32>; 3],
}

impl FusedFeedForward {
    fn width(&self) -> usize {
        self.norm.weight.len()
    }

    fn normed(&self, x: &[f32], factors: &[Option<Factors>]) -> Mat {
        let width = self.width();
        let room = factors[..DOWN].iter().flatten().map(Factors::rank).max().unwrap_or(0);
        let shape = (x.len() / width, width, room);
        Mat::from_rows(self.layers.precision(), shape, |r, n| self.norm.row(&x[r * width..][..width], n))
    }

    fn forward(&self, x: &[f32], factors: &[Option<Factors>], y: &mut [f32]) -> Option<Kept> {
        let (rows, inner) = (x.len() / self.width(), self.layers.layer(UP).out());
        let mut n = self.normed(x, factors);
        let mut project = |i: usize| {
            let mut out = vec![0f32; rows * inner];
            let low = self.layers.layer(i).forward(&mut n, factors[i].as_ref(), &mut out, false, Run::Here);
            (out, low)
        };
        let ((gate, low_gate), (up, low_up)) = (project(GATE), project(UP));
        let precision = self.layers.precision();
        let room = factors[DOWN].as_ref().map_or(0, Factors::rank);
        let mut product = Mat::from_rows(precision, (rows, inner, room), |r, to| {
            gated(&gate[r * inner..][..inner], &up[r * inner..][..inner], to);
        });
        y.copy_from_slice(x);
        let low_down = self.layers.layer(DOWN).forward(&mut product, factors[DOWN].as_ref(), y, true, Run::Here);
        self.keep.then(|| {
            let [gate, up] = [gate, up].map(|values| Mat::owned(precision, values, inner));
            Kept { gate, up, low: [low_gate, low_up, low_down] }
        })
    }

    /// Writes `dx`; returns the factors' gradients.
    fn backward(&self, kept: &Kept, x: &[f32], dy: &[f32], factors: &[Option<Factors>], dx: &mut [f32]) -> Vec<f32> {
        let (rows, inner, precision) = (kept.gate.rows(), kept.gate.cols(), self.layers.precision());
        let mut grads = self.layers.zero_grads();
        let (mut gate, mut up) = (vec![0f32; rows * inner], vec![0f32; rows * inner]);
        gate.chunks_exact_mut(inner).enumerate().for_each(|(i, to)| kept.gate.read_row(i, to));
        up.chunks_exact_mut(inner).enumerate().for_each(|(i, to)| kept.up.read_row(i, to));

        let mut slopes = vec![0f32; rows * inner];
        let product = Mat::from_rows(precision, (rows, inner, 0), |r, to| {
            gated(&gate[r * inner..][..inner], &up[r * inner..][..inner], to);
        });
        let to = Some((slopes.as_mut_slice(), Begin::Zero));
        let with = self.layers.with_grads(DOWN, factors, &mut grads);
        self.layers.layer(DOWN).backward(&product, &kept.low[DOWN], dy, with, to, Run::Here);
        gated_backward(&mut gate, &mut up, &slopes);

        let n = self.normed(x, &[None, None]);
        let mut dn = vec![0f32; x.len()];
        for (i, slopes, begin) in [(GATE, &gate, Begin::Zero), (UP, &up, Begin::Add)] {
            let with = self.layers.with_grads(i, factors, &mut grads);
            self.layers.layer(i).backward(&n, &kept.low[i], slopes, with, Some((&mut dn, begin)), Run::Here);
        }
        self.norm.add_backward(x, &dn, dy, dx);
        grads
    }
}

impl CustomOp2 for FusedFeedForward {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, f: &CpuStorage, lf: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width) = (slice(self.name(), x, lx)?, self.width());
        let factors = self.layers.factors(slice(self.name(), f, lf)?);
        let mut y = vec![0f32; x.len()];
        let kept = by_rows(&mut y, width, task_rows(x.len() / width), |first, y| {
            self.forward(&x[first * width..][..y.len()], &factors, y)
        });
        if self.keep {
            self.kept.set(kept.into_iter().flatten().collect()).ok();
        }
        result(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, f: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (xs, dys, width) = (Values::of(x)?, Values::of(&dy)?, self.width());
        let (xs, dys): (&[f32], &[f32]) = (&xs, &dys);
        let factors = self.layers.factors(&Values::of(f)?);
        let kept = self.kept.get().map_or(&[][..], Vec::as_slice);
        let step = task_rows(xs.len() / width);
        let mut dx = vec![0f32; xs.len()];
        let grads = by_rows(&mut dx, width, step, |first, dx| {
            let range = first * width..first * width + dx.len();
            self.backward(&kept[first / step], &xs[range.clone()], &dys[range], &factors, dx)
        });
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(self.layers.total(&grads), f.shape())?)))
    }
}
