//! Stands in for the bf16 products where the processor cannot have them. Never computes.

use super::matrix::{Begin, Run};

pub fn available() -> bool {
    false
}

#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [u16],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

#[derive(Clone, Copy)]
pub struct Packed<'a> {
    pub rows: Rows<'a>,
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
