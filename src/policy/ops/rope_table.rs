//! Tables of rotary angles, and the checks of their shapes. Does not know where frequencies come from, and rotates
//! nothing.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Adjacent pairs `(2i, 2i + 1)`, in llama files.
    Interleaved,
    /// Pairs `(i, i + rotary_dim / 2)`, in qwen and gptneox files.
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
    /// One row per token; `inv_freq` holds rotary_dim / 2 angles per position, scaling factors applied.
    pub fn new(positions: &[u32], inv_freq: &[f32], device: &Device) -> Result<Self> {
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

/// Checks the shapes; returns the number of rotating pairs.
pub(super) fn check(x: &[usize], table: &RopeTable) -> Result<usize> {
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
