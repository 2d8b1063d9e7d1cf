//! Packs right operands for the bf16 kernels. Never multiplies.
//!
//! A right operand is packed panel by panel (32 columns, in pairs along the contraction) just before use, from
//! row-major bf16 or from the blocks of a GGUF file, in either direction. Where memory allows, a frozen weight is
//! packed once for both, `x Wᵀ` and `dy W`, since repacking it took a tenth of a training step.

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::shuffle::{pairs, transpose};
use super::{PANEL, available, decode};
use crate::policy::ops::quantized::Quantized;

/// Row-major bf16 values: `rows` rows of `cols` values, `stride` apart, which is even. The last row may end early.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [u16],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl Rows<'_> {
    /// Panics if the values end before the last row's last pair.
    pub(super) fn check(&self) {
        let pair = self.cols.next_multiple_of(2);
        assert!(self.rows == 0 || self.data.len() >= (self.rows - 1) * self.stride + pair, "bf16 operand is too short");
        assert!(self.stride.is_multiple_of(2) && pair <= self.stride, "bf16 operand: stride {}", self.stride);
    }
}

/// A matrix packed once, to be read transposed and straight.
#[derive(Clone, Debug)]
pub struct Panels {
    rows: usize,
    cols: usize,
    /// `[rows / 32][cols / 2][32]` pairs.
    transposed: Vec<u32>,
    /// `[cols / 32][rows / 2][32]` pairs.
    straight: Vec<u32>,
}

impl Panels {
    /// Packs a whole matrix.
    pub fn new(rows: Rows) -> Self {
        assert!(available(), "bf16 panels");
        rows.check();
        let pack = |transposed: bool, panels: usize| {
            let loose = Packed { operand: Operand::Loose(rows), transposed };
            let len = loose.pairs() * PANEL;
            let mut all = vec![0u32; panels * len];
            all.par_chunks_exact_mut(len.max(1)).enumerate().for_each(|(i, panel)| loose.pack(i * PANEL, panel));
            all
        };
        let (transposed, straight) = (pack(true, rows.rows.div_ceil(PANEL)), pack(false, rows.cols.div_ceil(PANEL)));
        Self { rows: rows.rows, cols: rows.cols, transposed, straight }
    }

    /// Reads the first values of a row into `to`.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        let pairs = self.cols.div_ceil(2);
        let panel = &self.transposed[row / PANEL * pairs * PANEL..][..pairs * PANEL];
        for (to, pair) in to.chunks_mut(2).zip(panel.iter().skip(row % PANEL).step_by(PANEL)) {
            let halves = [pair << 16, pair & 0xffff_0000];
            to.iter_mut().zip(halves).for_each(|(to, bits)| *to = f32::from_bits(bits));
        }
    }
}

/// The source of a part of the right operand.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// Packed panel by panel when needed.
    Loose(Rows<'a>),
    /// Rows `first..first + rows` of a packed matrix. Transposed ones begin at a panel, straight ones at a pair.
    Ready { panels: &'a Panels, first: usize, rows: usize },
    /// Rows `first..first + rows` of a matrix as its file stores it, decoded and packed panel by panel when needed.
    Quantized { matrix: &'a Quantized, first: usize, rows: usize },
}

/// A part of the right operand, read transposed or straight.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    pub operand: Operand<'a>,
    pub transposed: bool,
}

impl<'a> Packed<'a> {
    pub(super) fn pairs(&self) -> usize {
        let (rows, cols) = match self.operand {
            Operand::Loose(m) => (m.rows, m.cols),
            Operand::Ready { panels, rows, .. } => (rows, panels.cols),
            Operand::Quantized { matrix, rows, .. } => (rows, matrix.cols()),
        };
        if self.transposed { cols.div_ceil(2) } else { rows.div_ceil(2) }
    }

    /// Panics if the kernel would read outside the operand.
    pub(super) fn check(&self) {
        match self.operand {
            Operand::Loose(rows) => rows.check(),
            Operand::Ready { panels, first, rows } => {
                let (begins, ends) = if self.transposed { (PANEL, true) } else { (2, rows.is_multiple_of(2)) };
                let whole = first + rows == panels.rows;
                assert!(first.is_multiple_of(begins) && (ends || whole) && first + rows <= panels.rows, "bf16: panels");
            }
            Operand::Quantized { matrix, first, rows } => assert!(first + rows <= matrix.rows(), "bf16: blocks"),
        }
    }

    /// The panel of 32 columns from `first_col` on, if it is already packed.
    pub(super) fn ready(&self, first_col: usize) -> Option<&'a [u32]> {
        let Operand::Ready { panels, first, .. } = self.operand else { return None };
        let len = self.pairs() * PANEL;
        Some(if self.transposed {
            &panels.transposed[(first + first_col) / PANEL * len..][..len]
        } else {
            &panels.straight[(first_col / PANEL * panels.rows.div_ceil(2) + first / 2) * PANEL..][..len]
        })
    }

    /// Packs 32 columns from `first` on, which are not packed yet, as `[pairs][32]` pairs; positions outside the matrix
    /// are zero.
    pub(super) fn pack(&self, first: usize, panel: &mut [u32]) {
        assert!(panel.len() == self.pairs() * PANEL);
        let rows = match self.operand {
            Operand::Loose(rows) => rows,
            Operand::Ready { .. } => panic!("bf16: packing what is packed"),
            Operand::Quantized { matrix, first: start, rows } => {
                return decode::pack(matrix, (start, rows), self.transposed, first, panel);
            }
        };
        // SAFETY: the callers checked the features and the operand; both functions mask their reads to its rows.
        if self.transposed {
            unsafe { pack_transposed(rows, first, panel) }
        } else {
            unsafe { pack_straight(rows, first, panel) }
        }
    }
}

/// Packs rows `first..` of `m` as columns: transposes blocks of 16 × 16 pairs.
///
/// # Safety
/// Needs AVX-512F; `panel` has a pair for each two columns of `m`, times 32.
#[target_feature(enable = "avx512f")]
unsafe fn pack_transposed(m: Rows, first: usize, panel: &mut [u32]) {
    let pairs = m.cols.div_ceil(2);
    for half in 0..2 {
        let first = first + half * 16;
        for p in (0..pairs).step_by(16) {
            let count = 16.min(pairs - p);
            let mask = ((1u32 << count) - 1) as u16;
            let mut r = [_mm512_setzero_si512(); 16];
            for (i, r) in r.iter_mut().enumerate().take(m.rows.saturating_sub(first)) {
                // SAFETY: row first + i exists; the mask keeps the read inside it.
                *r = unsafe {
                    let at = m.data.as_ptr().add((first + i) * m.stride + 2 * p);
                    _mm512_maskz_loadu_epi32(mask, at.cast())
                };
            }
            for (i, row) in transpose(r).into_iter().enumerate().take(count) {
                let at = (p + i) * PANEL + half * 16;
                // SAFETY: `at + 16 <= panel.len()`.
                unsafe { _mm512_storeu_si512(panel[at..at + 16].as_mut_ptr().cast(), row) };
            }
        }
    }
}

/// Packs columns `first..` of `m`: interleaves each two rows.
///
/// # Safety
/// Needs AVX-512F and BW; `panel` has `m.rows / 2` (rounded up) `× 32` pairs.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_straight(m: Rows, first: usize, panel: &mut [u32]) {
    let cols = PANEL.min(m.cols - first);
    let mask = if cols >= PANEL { u32::MAX } else { (1u32 << cols) - 1 };
    let (low, high) = pairs();
    // SAFETY: reads are masked to existing columns of existing rows; the panel's chunks hold 32 pairs.
    unsafe {
        let low = _mm512_loadu_si512(low.as_ptr().cast());
        let high = _mm512_loadu_si512(high.as_ptr().cast());
        for (p, to) in panel.chunks_exact_mut(PANEL).enumerate() {
            let at = m.data.as_ptr().add(2 * p * m.stride + first);
            let even = _mm512_maskz_loadu_epi16(mask, at.cast());
            let odd = if 2 * p + 1 < m.rows {
                _mm512_maskz_loadu_epi16(mask, at.add(m.stride).cast())
            } else {
                _mm512_setzero_si512()
            };
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_permutex2var_epi16(even, low, odd));
            _mm512_storeu_si512(to.as_mut_ptr().add(16).cast(), _mm512_permutex2var_epi16(even, high, odd));
        }
    }
}
