//! Matrices as operands of products, f32 or bf16, and the product itself. Never rounds a result, and knows no model.

use super::accumulate::{Begin, Run};
use super::bf16;
use super::gemm::{F32Rows, Gemm};
use super::quantized::Quantized;
use rayon::prelude::*;

/// The precision that operands are rounded to before multiplication; sums are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

/// Number of values from which rounding is parallel. For fewer, splitting costs more than it saves.
const PARALLEL: usize = 1 << 19;

#[derive(Clone, Debug)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    /// Right operands that never change.
    Packed(bf16::Panels),
    /// The same as their file stores them, decoded to the precision in every product.
    Quantized(Quantized, Precision),
}

/// A row-major matrix whose rows are padded with zeros to an even length.
#[derive(Clone, Debug)]
pub struct Mat {
    data: Data,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Mat {
    /// A matrix of zeros.
    pub fn zeros(precision: Precision, rows: usize, cols: usize) -> Self {
        let stride = cols.next_multiple_of(2);
        let data = match precision {
            Precision::F32 => Data::F32(vec![0.0; rows * stride]),
            Precision::Bf16 => Data::Bf16(vec![0; rows * stride]),
        };
        Self { data, rows, cols, stride }
    }

    /// From row-major f32 values `[.., cols]`.
    pub fn new(precision: Precision, values: &[f32], cols: usize) -> Self {
        Self::with_room(precision, values, cols, 0)
    }

    /// From row-major f32 values `[.., cols]`, which are taken as they are where that is possible.
    pub fn owned(precision: Precision, values: Vec<f32>, cols: usize) -> Self {
        if precision == Precision::F32 && cols > 0 && cols.is_multiple_of(2) {
            return Self { rows: values.len() / cols, cols, stride: cols, data: Data::F32(values) };
        }
        Self::new(precision, &values, cols)
    }

    /// From row-major f32 values `[.., cols]`, followed by `extra` zero columns, which start at `cols` rounded up to
    /// even.
    pub fn with_room(precision: Precision, values: &[f32], cols: usize, extra: usize) -> Self {
        let mut mat = Self::zeros(precision, values.len() / cols.max(1), width(cols, extra));
        mat.put(0, values, cols, 1.0);
        mat
    }

    /// The same from rows that `write` fills one after the other.
    pub fn from_rows(
        precision: Precision,
        (rows, cols, extra): (usize, usize, usize),
        mut write: impl FnMut(usize, &mut [f32]),
    ) -> Self {
        let mut mat = Self::zeros(precision, rows, width(cols, extra));
        let (stride, mut row) = (mat.stride, vec![0f32; cols]);
        for r in 0..rows {
            match &mut mat.data {
                Data::F32(data) => write(r, &mut data[r * stride..][..cols]),
                Data::Bf16(data) => {
                    write(r, &mut row);
                    bf16::round(&row, 1.0, &mut data[r * stride..][..cols]);
                }
                Data::Packed(_) | Data::Quantized(..) => unreachable!("it was just made"),
            }
        }
        mat
    }

    /// The same values, to be used only as a right operand from now on: bf16 ones are packed as the product reads them.
    pub fn frozen(self) -> Self {
        let Data::Bf16(data) = &self.data else { return self };
        let rows = bf16::Rows { data, rows: self.rows, cols: self.cols, stride: self.stride };
        Self { data: Data::Packed(bf16::Panels::new(rows)), ..self }
    }

    /// A right operand as its file stores it.
    pub fn quantized(precision: Precision, matrix: Quantized) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        Self { data: Data::Quantized(matrix, precision), rows, cols, stride: cols }
    }

    /// The transpose of row-major f32 values `[.., cols]`, times `scale`.
    pub fn transpose_of(precision: Precision, values: &[f32], cols: usize, scale: f32) -> Self {
        let mut mat = Self::zeros(precision, cols, values.len() / cols.max(1));
        let stride = mat.stride;
        let rows = mat.cols;
        let mut turned = vec![0f32; rows];
        for c in 0..cols {
            turned.iter_mut().enumerate().for_each(|(r, t)| *t = values[r * cols + c] * scale);
            match &mut mat.data {
                Data::F32(data) => data[c * stride..][..rows].copy_from_slice(&turned),
                Data::Bf16(data) => bf16::round(&turned, 1.0, &mut data[c * stride..][..rows]),
                Data::Packed(_) | Data::Quantized(..) => unreachable!("it was just made"),
            }
        }
        mat
    }

    /// Writes rows of `cols` values, times `scale`, starting at column `at`.
    pub fn put(&mut self, at: usize, values: &[f32], cols: usize, scale: f32) {
        assert!(at + cols <= self.stride && values.len() == self.rows * cols);
        if values.is_empty() {
            return;
        }
        let rows = if values.len() < PARALLEL { self.rows } else { PARALLEL / (16 * cols) + 1 };
        let (to, from) = (self.stride * rows, cols * rows);
        let stride = self.stride;
        match &mut self.data {
            Data::F32(data) => data.par_chunks_mut(to).zip(values.par_chunks(from)).for_each(|(to, from)| {
                for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(cols)) {
                    to[at..at + cols].iter_mut().zip(from).for_each(|(t, f)| *t = f * scale);
                }
            }),
            Data::Bf16(data) => data.par_chunks_mut(to).zip(values.par_chunks(from)).for_each(|(to, from)| {
                for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(cols)) {
                    bf16::round(from, scale, &mut to[at..at + cols]);
                }
            }),
            Data::Packed(_) | Data::Quantized(..) => panic!("put: into a frozen matrix"),
        }
    }

    /// Reads the first values of `row` into `to`.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        assert!(to.len() <= self.cols);
        let at = row * self.stride;
        match &self.data {
            Data::F32(data) => to.copy_from_slice(&data[at..at + to.len()]),
            Data::Bf16(data) => to.iter_mut().zip(&data[at..]).for_each(|(t, f)| *t = widen(*f)),
            Data::Packed(panels) => panels.read_row(row, to),
            Data::Quantized(matrix, precision) => {
                matrix.read_row(row, to);
                if *precision == Precision::Bf16 {
                    let mut rounded = vec![0u16; to.len()];
                    bf16::round(to, 1.0, &mut rounded);
                    to.iter_mut().zip(rounded).for_each(|(to, bits)| *to = widen(bits));
                }
            }
        }
    }

    /// Copies `rows × cols` values from `(row, col)` of a matrix of the same precision to rows `to..`.
    pub fn copy(&mut self, to: usize, from: &Mat, (row, col): (usize, usize), rows: usize, cols: usize) {
        assert!(to + rows <= self.rows && cols <= self.stride && row + rows <= from.rows && col + cols <= from.stride);
        let (stride, step) = (self.stride, from.stride);
        let (ours, theirs) = (|i| (to + i) * stride, |i| (row + i) * step + col);
        match (&mut self.data, &from.data) {
            (Data::F32(a), Data::F32(b)) => {
                (0..rows).for_each(|i| a[ours(i)..][..cols].copy_from_slice(&b[theirs(i)..][..cols]));
            }
            (Data::Bf16(a), Data::Bf16(b)) => {
                (0..rows).for_each(|i| a[ours(i)..][..cols].copy_from_slice(&b[theirs(i)..][..cols]));
            }
            _ => panic!("copy: matrices of two kinds"),
        }
    }

    /// Copies `rows × cols` values from `(row, col)` on into a new matrix.
    pub fn cut(&self, at: (usize, usize), rows: usize, cols: usize) -> Mat {
        let mut part = Mat::zeros(self.precision(), rows, cols);
        part.copy(0, self, at, rows, cols);
        part
    }

    /// `[cols, rows]`.
    pub fn transpose(&self) -> Mat {
        let mut t = Mat::zeros(self.precision(), self.cols, self.rows);
        let (stride, step) = (t.stride, self.stride);
        for r in 0..self.rows {
            match (&mut t.data, &self.data) {
                (Data::F32(a), Data::F32(b)) => (0..self.cols).for_each(|c| a[c * stride + r] = b[r * step + c]),
                (Data::Bf16(a), Data::Bf16(b)) => (0..self.cols).for_each(|c| a[c * stride + r] = b[r * step + c]),
                _ => unreachable!("one precision"),
            }
        }
        t
    }

    pub fn precision(&self) -> Precision {
        match self.data {
            Data::F32(_) => Precision::F32,
            Data::Bf16(_) | Data::Packed(_) => Precision::Bf16,
            Data::Quantized(_, precision) => precision,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The whole matrix.
    pub fn all(&self) -> View<'_> {
        View { mat: self, first: 0, rows: self.rows, cols: self.cols }
    }

    /// Rows `first..first + rows`, columns `0..cols`.
    pub fn part(&self, first: usize, rows: usize, cols: usize) -> View<'_> {
        assert!(first + rows <= self.rows && cols <= self.stride);
        View { mat: self, first, rows, cols }
    }
}

/// Columns of a matrix with room after the first `cols`.
fn width(cols: usize, extra: usize) -> usize {
    if extra == 0 { cols } else { cols.next_multiple_of(2) + extra }
}

#[inline(always)]
fn widen(v: u16) -> f32 {
    f32::from_bits(u32::from(v) << 16)
}

/// Some rows of a matrix and their first columns.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    mat: &'a Mat,
    first: usize,
    pub rows: usize,
    pub cols: usize,
}

/// How a part of the right operand is read: the contraction of `a · B` runs over the view's columns or rows.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// `a · Vᵀ`.
    Transposed(View<'a>),
    /// `a · V`.
    Straight(View<'a>),
}

impl<'a> Right<'a> {
    fn view(&self) -> View<'a> {
        match *self {
            Right::Transposed(v) | Right::Straight(v) => v,
        }
    }

    /// Length of the contraction.
    fn depth(&self) -> usize {
        match self {
            Right::Transposed(v) => v.cols,
            Right::Straight(v) => v.rows,
        }
    }

    fn width(&self) -> usize {
        match self {
            Right::Transposed(v) => v.rows,
            Right::Straight(v) => v.cols,
        }
    }
}

/// `c [a.rows, n] = a · [right₀; right₁; …]` plus `begin`; the parts are stacked along the contraction, each starting
/// at an even column of `a`. A result is one sum in a fixed order, whatever the number of threads.
///
/// Panics if shapes or precisions do not fit, which is a bug of the caller.
pub fn product(a: View, rights: &[Right], begin: Begin, c: &mut [f32], run: Run) {
    let n = rights.first().map_or(0, Right::width);
    let depth: usize = rights.iter().map(|r| r.depth().next_multiple_of(2)).sum();
    assert!(depth == a.cols.next_multiple_of(2) && rights.iter().all(|r| r.width() == n), "product: shapes");
    assert!(c.len() == a.rows * n, "product: result has {} elements for {} x {n}", c.len(), a.rows);
    let whole_pairs = |r: &Right| match r {
        Right::Transposed(v) => v.cols.is_multiple_of(2) || v.cols == v.mat.cols,
        Right::Straight(_) => true,
    };
    assert!(rights.iter().all(whole_pairs), "product: a part that ends inside a pair");
    assert!(if let Begin::Bias(b) = begin { b.len() == n } else { true }, "product: bias");
    if c.is_empty() {
        return;
    }
    match &a.mat.data {
        Data::F32(left) => product_f32(a, left, rights, begin, c, n, run),
        Data::Bf16(left) => {
            let left =
                bf16::Rows { data: &left[a.first * a.mat.stride..], rows: a.rows, cols: depth, stride: a.mat.stride };
            let rights: Vec<bf16::Packed> = rights
                .iter()
                .map(|right| {
                    let v = right.view();
                    let operand = match &v.mat.data {
                        Data::Bf16(data) => bf16::Operand::Loose(bf16::Rows {
                            data: &data[v.first * v.mat.stride..],
                            rows: v.rows,
                            cols: v.cols,
                            stride: v.mat.stride,
                        }),
                        Data::Packed(panels) => {
                            assert!(v.cols == v.mat.cols, "product: some columns of a frozen matrix");
                            bf16::Operand::Ready { panels, first: v.first, rows: v.rows }
                        }
                        Data::Quantized(matrix, Precision::Bf16) => {
                            assert!(v.cols == v.mat.cols, "product: some columns of a frozen matrix");
                            bf16::Operand::Quantized { matrix, first: v.first, rows: v.rows }
                        }
                        Data::F32(_) | Data::Quantized(..) => panic!("product: a bf16 and an f32 operand"),
                    };
                    bf16::Packed { operand, transposed: matches!(right, Right::Transposed(_)) }
                })
                .collect();
            bf16::product(left, &rights, begin, c, n, run);
        }
        Data::Packed(_) | Data::Quantized(..) => panic!("product: a frozen matrix on the left"),
    }
}

/// Values that are decoded at a time for products in f32.
const DECODED: usize = 1 << 18;

fn product_f32(a: View, left: &[f32], rights: &[Right], begin: Begin, c: &mut [f32], n: usize, run: Run) {
    if let Begin::Bias(bias) = begin {
        c.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
    }
    let left = F32Rows { data: &left[a.first * a.mat.stride..], rows: a.rows, stride: a.mat.stride };
    let mut gemm = Gemm { left, c, n, keep: !matches!(begin, Begin::Zero), run };
    let mut at = 0;
    for right in rights {
        let (v, transposed) = (right.view(), matches!(right, Right::Transposed(_)));
        match &v.mat.data {
            Data::F32(data) => {
                let part = &data[v.first * v.mat.stride..];
                gemm.add(part, v.mat.stride, (v.rows, v.cols), transposed, (at, 0));
                gemm.keep = true;
            }
            Data::Quantized(matrix, Precision::F32) => {
                let (step, mut rows) = ((DECODED / v.cols.max(1)).max(32), Vec::new());
                for first in (0..v.rows).step_by(step) {
                    let count = step.min(v.rows - first);
                    let decoded = v.first + first..v.first + first + count;
                    match run {
                        Run::Parallel => matrix.read(decoded, &mut rows),
                        Run::Here => matrix.read_here(decoded, &mut rows),
                    }
                    // Transposed they are columns of the result, straight a part of the contraction.
                    let places = if transposed { (at, first) } else { (at + first, 0) };
                    gemm.add(&rows, v.cols, (count, v.cols), transposed, places);
                    gemm.keep |= !transposed;
                }
                gemm.keep = true;
            }
            _ => panic!("product: an f32 and a bf16 operand"),
        }
        at += right.depth().next_multiple_of(2);
    }
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
