//! Rotary positions. Never knows a frequency's origin.

use super::cpu::{Values, result, rows, slice, tensor};
use super::{cpu, plain};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours `(2i, 2i + 1)`: llama files.
    Interleaved,
    /// `(i, i + rotary_dim / 2)`: qwen and gptneox files.
    Halves,
}

/// Cosines and sines of each token's angles.
#[derive(Clone, Debug)]
pub struct RopeTable {
    pub(super) cos: Tensor, // [tokens, rotary_dim / 2]
    pub(super) sin: Tensor,
    /// The same values for the fused form.
    pub(super) turns: Arc<Turns>,
}

impl RopeTable {
    /// One row a token; `inv_freq` holds rotary_dim / 2 angles a position, scaling factors applied.
    pub fn new(positions: &[u32], inv_freq: &[f32], device: &Device) -> crate::Result<Self> {
        if inv_freq.is_empty() {
            return Err(Error::train("rope: no frequencies, expected rotary_dim / 2 of them"));
        }
        let angles: Vec<f64> =
            positions.iter().flat_map(|&p| inv_freq.iter().map(move |&f| f64::from(p) * f64::from(f))).collect();
        let table = |f: fn(f64) -> f64| -> Vec<f32> { angles.iter().map(|&a| f(a) as f32).collect() };
        let turns = Turns { cos: table(f64::cos), sin: table(f64::sin) };
        let tensor = |v: &[f32]| Tensor::from_slice(v, (positions.len(), inv_freq.len()), device);
        Ok(Self { cos: tensor(&turns.cos)?, sin: tensor(&turns.sin)?, turns: Arc::new(turns) })
    }
}

/// Rotates the first rotary_dim elements of each head of `[N, heads, dim]` by the token's angles; the rest passes.
pub fn rope(x: &Tensor, table: &RopeTable, style: RopeStyle) -> crate::Result<Tensor> {
    let half = check(x.dims(), table)?;
    if !cpu::takes(x) {
        return plain::rope(x, table, style);
    }
    Ok(x.contiguous()?.apply_op1(Rope { turns: table.turns.clone(), half, style })?)
}

/// The number of rotating pairs.
pub(super) fn check(x: &[usize], table: &RopeTable) -> crate::Result<usize> {
    let (rows, half) = (table.cos.dims()[0], table.cos.dims()[1]);
    match x {
        [n, _, dim] if *n == rows && 2 * half <= *dim => Ok(half),
        _ => Err(Error::train(format!("rope: x is {x:?}, the table expects [{rows}, heads, at least {}]", 2 * half))),
    }
}

/// Each token's angles, `[N, half]`.
#[derive(Debug)]
pub struct Turns {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// Turns each head of `[N, heads, dim]`.
#[derive(Clone)]
pub struct Rope {
    pub turns: Arc<Turns>,
    pub half: usize,
    pub style: RopeStyle,
}

impl Rope {
    /// Turns one token's heads in place, forward (`sign` 1) or back (-1).
    pub fn turn(&self, token: usize, heads: &mut [f32], dim: usize, sign: f32) {
        let half = self.half;
        let (cos, sin) = (&self.turns.cos[token * half..][..half], &self.turns.sin[token * half..][..half]);
        for head in heads.chunks_exact_mut(dim) {
            match self.style {
                RopeStyle::Halves => {
                    let (first, second) = head[..2 * half].split_at_mut(half);
                    for i in 0..half {
                        let (a, b, s) = (first[i], second[i], sign * sin[i]);
                        first[i] = a * cos[i] - b * s;
                        second[i] = a * s + b * cos[i];
                    }
                }
                RopeStyle::Interleaved => {
                    for (i, pair) in head[..2 * half].chunks_exact_mut(2).enumerate() {
                        let (a, b, s) = (pair[0], pair[1], sign * sin[i]);
                        pair[0] = a * cos[i] - b * s;
                        pair[1] = a * s + b * cos[i];
                    }
                }
            }
        }
    }

    fn all(&self, x: &[f32], shape: &Shape, sign: f32) -> Result<Vec<f32>> {
        let (_, heads, dim) = shape.dims3()?;
        let mut y = x.to_vec();
        rows(&mut y, heads * dim, |first, part| {
            for (i, token) in part.chunks_exact_mut(heads * dim).enumerate() {
                self.turn(first + i, token, dim, sign);
            }
        });
        Ok(y)
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        result(self.all(slice(self.name(), x, l)?, l.shape(), 1.0)?, l.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        tensor(self.all(&Values::of(&dy)?, x.shape(), -1.0)?, x.shape()).map(Some)
    }
}
