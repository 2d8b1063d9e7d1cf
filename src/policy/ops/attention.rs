//! Causal attention with grouped heads over packed sequences. Never stores scores: the backward pass recomputes them
//! from queries, keys and one log-sum per row, so memory grows linearly with the tokens.

use super::accumulate::{Begin, Run};
use super::cpu::{Values, exp, result, rows, slice, tensor};
use super::matrix::{Mat, Precision, Right, product};
use super::vectors::{map, map_all, max, sum};
use super::{cpu, elsewhere};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Causal attention inside each sequence: `q [N, H, D]`, `k` and `v [N, Hkv, D]` to `[N, H, D]`.
///
/// Sequence `i` is rows `starts[i]..starts[i + 1]`; `starts` begins with 0 and ends with N. Hkv divides H.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, starts: &[usize], scale: f32) -> crate::Result<Tensor> {
    windowed_attention(q, k, v, starts, scale, None)
}

/// [`attention`] in which each token sees itself and the `window - 1` tokens before it, or all.
pub fn windowed_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    starts: &[usize],
    scale: f32,
    window: Option<usize>,
) -> crate::Result<Tensor> {
    let (n, h, d) = match q.dims() {
        &[n, h, d] => (n, h, d),
        dims => return Err(Error::train(format!("attention: q is {dims:?}, expected [N, H, D]"))),
    };
    match k.dims() {
        &[kn, kh, kd] if kn == n && kd == d && kh > 0 && h % kh == 0 && v.dims() == k.dims() => {}
        dims => {
            return Err(Error::train(format!(
                "attention: k is {dims:?} and v {:?}, q {:?} expects [{n}, a divisor of {h}, {d}]",
                v.dims(),
                q.dims()
            )));
        }
    }
    check_starts("attention", starts, n)?;
    if !cpu::takes(q) {
        return elsewhere::attention(q, k, v, starts, scale, window);
    }
    let window = window.unwrap_or(usize::MAX).max(1);
    let shapes = Shapes { starts: starts.to_vec(), heads: h, kv_heads: k.dims()[1], dim: d, scale, window };
    let op = Attention { shapes, log_sums: OnceLock::new() };
    Ok(q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)?)
}

pub(super) fn check_starts(op: &str, starts: &[usize], n: usize) -> crate::Result<()> {
    if starts.first() != Some(&0) || starts.last() != Some(&n) || starts.windows(2).any(|w| w[0] > w[1]) {
        return Err(Error::train(format!("{op}: sequence borders must rise from 0 to {n}, got {starts:?}")));
    }
    Ok(())
}

/// Rows of queries (tokens × heads of a group) per block.
const ROWS: usize = 96;
/// Most tokens whose queries make one task: even a single long sequence is divided among the cores, in the same way for
/// any number of them.
const PIECE: usize = 128;

/// Gradients with respect to queries, keys and values.
type Slopes = (Vec<f32>, Vec<f32>, Vec<f32>);

/// The shapes of the operation.
#[derive(Clone, Debug)]
pub struct Shapes {
    /// Boundaries of the sequences.
    pub starts: Vec<usize>,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub scale: f32,
    /// How many keys a token sees, its own included.
    pub window: usize,
}

/// A piece of a sequence with one of its key heads: all query heads that read it, for these tokens, with all keys up to
/// them.
struct Task<'a> {
    shapes: &'a Shapes,
    /// First row of the sequence.
    start: usize,
    /// First token of the piece, within the sequence.
    first: usize,
    count: usize,
    kv: usize,
}

impl Shapes {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// In the order of the tokens, and for each piece all key heads.
    fn tasks(&self) -> Vec<Task<'_>> {
        let mut tasks = Vec::new();
        for (start, end) in self.starts.windows(2).map(|w| (w[0], w[1])) {
            for first in (0..end.saturating_sub(start)).step_by(PIECE) {
                let count = PIECE.min(end - start - first);
                tasks.extend((0..self.kv_heads).map(|kv| Task { shapes: self, start, first, count, kv }));
            }
        }
        tasks
    }

    /// Arranges the tasks' results, each `[heads of the task][count][width]`, as `[N, heads, width]`.
    fn gather(&self, tasks: &[Task], parts: &[&[f32]], per_task: usize, width: usize) -> Vec<f32> {
        let heads = per_task * self.kv_heads;
        let mut out = vec![0f32; self.tokens() * heads * width];
        rows(&mut out, heads * width, |first, block| {
            let mut at = tasks.partition_point(|t| t.end() <= first);
            for (i, token) in block.chunks_exact_mut(heads * width).enumerate() {
                let row = first + i;
                while tasks[at].end() <= row {
                    at += 1;
                }
                for (h, to) in token.chunks_exact_mut(width).enumerate() {
                    let (kv, member) = (h / per_task, h % per_task);
                    let task = &tasks[at + kv];
                    let from = (member * task.count + row - task.start - task.first) * width;
                    to.copy_from_slice(&parts[at + kv][from..from + width]);
                }
            }
        });
        out
    }

    /// Sums the tasks' gradients of keys, each `[tokens up to the piece's end][dim]`, to `[N, kv heads, dim]`.
    fn sum(&self, tasks: &[Task], parts: &[&[f32]]) -> Vec<f32> {
        let width = self.kv_heads * self.dim;
        let mut out = vec![0f32; self.tokens() * width];
        rows(&mut out, width, |first, block| {
            for (i, token) in block.chunks_exact_mut(width).enumerate() {
                let row = first + i;
                // A key is read by its own piece and by later ones of its sequence.
                let own = tasks.partition_point(|t| t.end() <= row);
                let start = tasks[own].start;
                for (task, part) in tasks[own..].iter().zip(&parts[own..]).take_while(|(t, _)| t.start == start) {
                    let from = &part[(row - start) * self.dim..][..self.dim];
                    token[task.kv * self.dim..][..self.dim].iter_mut().zip(from).for_each(|(to, x)| *to += x);
                }
            }
        });
        out
    }
}

impl Task<'_> {
    /// One past the piece's last row of the packed tokens.
    fn end(&self) -> usize {
        self.start + self.first + self.count
    }

    /// Calls `f(first token of the block, tokens, all query heads of these as one matrix [heads · tokens, dim])` for
    /// each block.
    fn blocks(&self, q: &Mat, mut f: impl FnMut(usize, usize, &Mat)) {
        let step = (ROWS / self.shapes.group()).max(1);
        for first in (0..self.count).step_by(step) {
            let tokens = step.min(self.count - first);
            f(first, tokens, &self.queries(q, first, tokens));
        }
    }

    /// The heads of the group stacked, `tokens` rows each.
    fn queries(&self, q: &Mat, first: usize, tokens: usize) -> Mat {
        let (group, dim) = (self.shapes.group(), self.shapes.dim);
        let mut block = Mat::zeros(q.precision(), group * tokens, dim);
        for member in 0..group {
            let at = (self.start + self.first + first, (self.kv * group + member) * dim);
            block.copy(member * tokens, q, at, tokens, dim);
        }
        block
    }

    /// The keys of all tokens that the piece sees.
    fn keys(&self, k: &Mat) -> Mat {
        k.cut((self.start, self.kv * self.shapes.dim), self.first + self.count, self.shapes.dim)
    }

    /// `(output [group][count][dim], log-sums [group][count])`.
    fn forward(&self, q: &Mat, k: &Mat, v: &Mat) -> (Vec<f32>, Vec<f32>) {
        let (dim, count, group, scale) = (self.shapes.dim, self.count, self.shapes.group(), self.shapes.scale);
        let (k, v) = (self.keys(k), self.keys(v));
        let mut out = vec![0f32; group * count * dim];
        let mut log_sums = vec![0f32; group * count];
        let (mut scores, mut values) = (Vec::new(), Vec::new());
        self.blocks(q, |first, tokens, q| {
            let (height, before) = (q.rows(), self.first + first);
            let seen = before + tokens;
            scores.resize(height * seen, 0.0);
            let keys = k.part(0, seen, dim);
            product(q.all(), &[Right::Transposed(keys)], Begin::Zero, &mut scores, Run::Here);
            let mut sums = vec![0f32; height];
            for (r, row) in scores.chunks_exact_mut(seen).enumerate() {
                let last = before + r % tokens + 1;
                let (row, later) = row.split_at_mut(last);
                let (earlier, row) = row.split_at_mut(last.saturating_sub(self.shapes.window));
                map(row, [], |s, []| s * scale);
                let max = max(row);
                map(row, [], |s, []| exp(s - max));
                sums[r] = sum([&*row], |[w]| w);
                earlier.fill(0.0);
                later.fill(0.0);
                log_sums[r / tokens * count + first + r % tokens] = max + sums[r].ln();
            }
            let weights = Mat::new(q.precision(), &scores, seen);
            values.resize(height * dim, 0.0);
            product(weights.all(), &[Right::Straight(v.part(0, seen, dim))], Begin::Zero, &mut values, Run::Here);
            for (r, row) in values.chunks_exact(dim).enumerate() {
                let to = (r / tokens * count + first + r % tokens) * dim;
                map(&mut out[to..to + dim], [row], |_, [v]| v / sums[r]);
            }
        });
        (out, log_sums)
    }

    /// `(dq [group][count][dim], dk and dv [tokens that the piece sees][dim])`. Works on transposed scores, `[keys,
    /// queries]`, which all three products can read directly.
    fn backward(&self, q: &Mat, k: &Mat, v: &Mat, dout: &Mat, log_sums: &[f32]) -> Slopes {
        let (dim, count, group, scale) = (self.shapes.dim, self.count, self.shapes.group(), self.shapes.scale);
        let (k, v) = (self.keys(k), self.keys(v));
        let k_t = k.transpose();
        let mut dq = vec![0f32; group * count * dim];
        let (mut dk, mut dv) = (vec![0f32; k.rows() * dim], vec![0f32; k.rows() * dim]);
        let (mut weights, mut slopes, mut dq_t) = (Vec::new(), Vec::new(), Vec::new());
        self.blocks(q, |first, tokens, q| {
            let (height, before) = (q.rows(), self.first + first);
            let seen = before + tokens;
            let dout = self.queries(dout, first, tokens);
            weights.resize(seen * height, 0.0);
            slopes.resize(seen * height, 0.0);
            product(k.part(0, seen, dim), &[Right::Transposed(q.all())], Begin::Zero, &mut weights, Run::Here);
            product(v.part(0, seen, dim), &[Right::Transposed(dout.all())], Begin::Zero, &mut slopes, Run::Here);
            let log_sum: Vec<f32> = (0..height)
                .map(|r| {
                    log_sums[(self.start + before + r % tokens) * self.shapes.heads + self.kv * group + r / tokens]
                })
                .collect();
            // Places as floats, which are exact up to 2²⁴.
            let last_seen: Vec<f32> = (0..height).map(|r| (before + r % tokens) as f32).collect();
            let window = self.shapes.window as f32;
            let mut along = vec![0f32; height];
            for (j, (w, s)) in weights.chunks_exact_mut(height).zip(slopes.chunks_exact(height)).enumerate() {
                let j = j as f32;
                map_all([w, &mut along], [s, &log_sum, &last_seen], |[w, along], [s, log_sum, last]| {
                    let p = if j <= last && last - j < window { exp(w * scale - log_sum) } else { 0.0 };
                    [p, along + p * s]
                });
            }
            for (w, s) in weights.chunks_exact(height).zip(slopes.chunks_exact_mut(height)) {
                map(s, [w, &along], |s, [w, along]| w * (s - along) * scale);
            }
            let weights = Mat::new(q.precision(), &weights, height);
            let slopes = Mat::new(q.precision(), &slopes, height);
            let sofar = seen * dim;
            product(weights.all(), &[Right::Straight(dout.all())], Begin::Add, &mut dv[..sofar], Run::Here);
            product(slopes.all(), &[Right::Straight(q.all())], Begin::Add, &mut dk[..sofar], Run::Here);
            dq_t.resize(dim * height, 0.0);
            product(k_t.part(0, dim, seen), &[Right::Straight(slopes.all())], Begin::Zero, &mut dq_t, Run::Here);
            for r in 0..height {
                let to = (r / tokens * count + first + r % tokens) * dim;
                dq[to..to + dim].iter_mut().enumerate().for_each(|(d, x)| *x = dq_t[d * height + r]);
            }
        });
        (dq, dk, dv)
    }
}

/// `(output [N, H, D], log-sums [N, H])` from `q [N, H · D]`, `k` and `v [N, Hkv · D]`.
pub fn forward(shapes: &Shapes, q: &Mat, k: &Mat, v: &Mat) -> (Vec<f32>, Vec<f32>) {
    let tasks = shapes.tasks();
    let parts: Vec<(Vec<f32>, Vec<f32>)> = tasks.par_iter().with_max_len(1).map(|task| task.forward(q, k, v)).collect();
    let outs: Vec<&[f32]> = parts.iter().map(|p| p.0.as_slice()).collect();
    let sums: Vec<&[f32]> = parts.iter().map(|p| p.1.as_slice()).collect();
    let group = shapes.group();
    (shapes.gather(&tasks, &outs, group, shapes.dim), shapes.gather(&tasks, &sums, group, 1))
}

/// `(dq, dk, dv)` in the shapes of the inputs.
pub fn backward(shapes: &Shapes, q: &Mat, k: &Mat, v: &Mat, dout: &Mat, log_sums: &[f32]) -> Slopes {
    let tasks = shapes.tasks();
    let parts: Vec<Slopes> =
        tasks.par_iter().with_max_len(1).map(|task| task.backward(q, k, v, dout, log_sums)).collect();
    let part = |f: fn(&Slopes) -> &[f32]| parts.iter().map(f).collect::<Vec<_>>();
    let dq = shapes.gather(&tasks, &part(|p| &p.0), shapes.group(), shapes.dim);
    (dq, shapes.sum(&tasks, &part(|p| &p.1)), shapes.sum(&tasks, &part(|p| &p.2)))
}

/// The operation on f32 tensors.
pub struct Attention {
    pub shapes: Shapes,
    /// From the forward pass, `[N, H]`.
    pub log_sums: OnceLock<Vec<f32>>,
}

impl Attention {
    fn queries(&self, x: &[f32]) -> Mat {
        Mat::new(Precision::F32, x, self.shapes.heads * self.shapes.dim)
    }

    fn keys(&self, x: &[f32]) -> Mat {
        Mat::new(Precision::F32, x, self.shapes.kv_heads * self.shapes.dim)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = self.name();
        let q = self.queries(slice(op, q, lq)?);
        let (k, v) = (self.keys(slice(op, k, lk)?), self.keys(slice(op, v, lv)?));
        let (out, log_sums) = forward(&self.shapes, &q, &k, &v);
        self.log_sums.set(log_sums).ok();
        result(out, lq.shape())
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dout = self.queries(&Values::of(&dout.contiguous()?)?);
        let (qm, km, vm) = (self.queries(&Values::of(q)?), self.keys(&Values::of(k)?), self.keys(&Values::of(v)?));
        let log_sums = self.log_sums.get().map_or(&[][..], Vec::as_slice);
        let (dq, dk, dv) = backward(&self.shapes, &qm, &km, &vm, &dout, log_sums);
        Ok((Some(tensor(dq, q.shape())?), Some(tensor(dk, k.shape())?), Some(tensor(dv, v.shape())?)))
    }
}
