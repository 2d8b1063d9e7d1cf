//! Stands in for the bf16 products where the processor cannot have them. Never computes.

use super::accumulate::{Begin, Run};
use super::quantized::Quantized;

pub fn available() -> bool {
    false
}

pub fn precision() -> &'static str {
    "f32"
}

#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [u16],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

#[derive(Clone, Debug)]
pub struct Panels;

impl Panels {
    /// Not reached, as [`product`].
    pub fn new(_: Rows) -> Self {
        unreachable!("bf16 values need AVX512-BF16")
    }

    /// Not reached, as [`product`].
    pub fn read_row(&self, _: usize, _: &mut [f32]) {
        unreachable!("bf16 values need AVX512-BF16")
    }
}

#[derive(Clone, Copy)]
pub enum Operand<'a> {
    Loose(Rows<'a>),
    Ready { panels: &'a Panels, first: usize, rows: usize },
    Quantized { matrix: &'a Quantized, first: usize, rows: usize },
}

#[derive(Clone, Copy)]
pub struct Packed<'a> {
    pub operand: Operand<'a>,
    pub transposed: bool,
}

/// Not reached: `Frozen::new` makes no bf16 matrix here.
pub fn product(_: Rows, _: &[Packed], _: Begin, _: &mut [f32], _: usize, _: Run) {
    unreachable!("bf16 products need AVX512-BF16")
}

/// Not reached, as [`product`].
pub fn round(_: &[f32], _: f32, _: &mut [u16]) {
    unreachable!("bf16 values need AVX512-BF16")
}
