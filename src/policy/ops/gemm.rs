//! Sums of products of f32 matrices, by the crate `gemm`. Knows no other precision.

use super::accumulate::Run;

/// Row-major f32 values: `rows` rows, `stride` apart.
#[derive(Clone, Copy)]
pub struct F32Rows<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub stride: usize,
}

/// A sum of products, `c [left.rows, n]`.
pub struct Gemm<'a> {
    pub left: F32Rows<'a>,
    pub c: &'a mut [f32],
    pub n: usize,
    /// Whether to add to what `c` holds.
    pub keep: bool,
    pub run: Run,
}

impl Gemm<'_> {
    /// Adds the left operand, from column `depth` on, times `(rows, cols)` values of row-major `right`, in columns
    /// `column..` of the result.
    ///
    /// Panics if an operand ends early, which is a bug of the caller.
    pub fn add(
        &mut self,
        right: &[f32],
        stride: usize,
        (rows, cols): (usize, usize),
        transposed: bool,
        (depth, column): (usize, usize),
    ) {
        let (contracted, width) = if transposed { (cols, rows) } else { (rows, cols) };
        let (depth_step, width_step) = if transposed { (1, stride) } else { (stride, 1) };
        let (left, n) = (self.left, self.n);
        assert!(right.len() >= rows.saturating_sub(1) * stride + cols && column + width <= n, "product: f32 operand");
        let last = left.rows.saturating_sub(1) * left.stride + depth + contracted;
        assert!(
            left.rows == 0 || left.data.len() >= last && depth + contracted <= left.stride,
            "product: left operand"
        );
        assert!(self.c.len() >= left.rows * n, "product: f32 result");
        let parallelism = if self.run == Run::Parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
        // SAFETY: the operands hold their rows and columns and `c` its own, which was checked here; `c` is borrowed
        // exclusively.
        unsafe {
            gemm::gemm(
                left.rows,
                width,
                contracted,
                self.c.as_mut_ptr().add(column),
                1,
                n as isize,
                self.keep,
                left.data[depth.min(left.data.len())..].as_ptr(),
                1,
                left.stride as isize,
                right.as_ptr(),
                width_step as isize,
                depth_step as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}
