//! Rotary positions: rotates heads by the angles of a table. Never makes a table.

use super::cpu::{Values, result, rows, slice, tensor};
use super::rope_table::{RopeStyle, RopeTable, Turns, check};
use super::{cpu, elsewhere};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// Rotates the first rotary_dim elements of each head of `[N, heads, dim]` by the token's angles, and copies the rest.
pub fn rope(x: &Tensor, table: &RopeTable, style: RopeStyle) -> crate::Result<Tensor> {
    let half = check(x.dims(), table)?;
    if !cpu::takes(x) {
        return elsewhere::rope(x, table, style);
    }
    Ok(x.contiguous()?.apply_op1(Rope { turns: table.turns.clone(), half, style })?)
}

/// Rotates each head of `[N, heads, dim]`.
#[derive(Clone)]
pub struct Rope {
    pub turns: Arc<Turns>,
    pub half: usize,
    pub style: RopeStyle,
}

impl Rope {
    /// Rotates one token's heads in place, forward (`sign` 1) or backward (-1).
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
