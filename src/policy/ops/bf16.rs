//! Matrix products of bf16 operands with f32 sums, on AVX512-BF16. Never rounds a sum and never knows a model.
//!
//! One micro-kernel makes 14 × 32 results at a time. The right operand is packed panel by panel (32 columns, the
//! contraction in pairs) just before its use, from row-major bf16 in either direction; so a frozen weight is kept once
//! and serves `x Wᵀ` and `dy W`. Every result is one sum in a fixed order: the partition never changes a bit.

use rayon::prelude::*;
use std::arch::x86_64::*;

/// Rows of the left operand that a kernel call takes.
const ROWS: usize = 14;
/// Columns of a panel.
const PANEL: usize = 32;

/// Whether this processor has what the kernels need.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16")
}

/// Row-major bf16 values, rows padded with zeros to an even length.
#[derive(Clone, Debug, Default)]
pub struct Mat {
    data: Vec<u16>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Mat {
    /// Zeros `[rows, cols]`.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let stride = cols.next_multiple_of(2);
        Self { data: vec![0; rows * stride], rows, cols, stride }
    }

    /// Rounds row-major f32 `[rows, cols]`, leaving `extra` zero columns on the right.
    pub fn from_f32(values: &[f32], cols: usize, extra: usize) -> Self {
        let rows = if cols == 0 { 0 } else { values.len() / cols };
        let width = if extra == 0 { cols } else { cols.next_multiple_of(2) + extra };
        let mut mat = Self::zeros(rows, width);
        mat.put(0, values, cols, 1.0);
        mat
    }

    /// Rounds the transpose of row-major f32 `[rows, cols]`, times `scale`: `[cols, rows]`.
    pub fn transposed(values: &[f32], cols: usize, scale: f32) -> Self {
        let rows = values.len() / cols.max(1);
        let mut mat = Self::zeros(cols, rows);
        for (r, row) in values.chunks_exact(cols.max(1)).enumerate() {
            for (c, v) in row.iter().enumerate() {
                mat.data[c * mat.stride + r] = round(v * scale);
            }
        }
        mat
    }

    /// Writes f32 rows of `cols` values, times `scale`, at column `at` (even).
    pub fn put(&mut self, at: usize, values: &[f32], cols: usize, scale: f32) {
        assert!(at % 2 == 0 && at + cols <= self.stride && values.len() == self.rows * cols);
        if cols == 0 || self.rows == 0 {
            return;
        }
        let block = (1 << 14) / cols + 1;
        self.data.par_chunks_mut(self.stride * block).zip(values.par_chunks(cols * block)).for_each(|(to, from)| {
            for (to, from) in to.chunks_exact_mut(self.stride).zip(from.chunks_exact(cols)) {
                for (t, f) in to[at..at + cols].iter_mut().zip(from) {
                    *t = round(f * scale);
                }
            }
        });
    }

    /// A row's values as f32.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        self.data[row * self.stride..][..self.cols].iter().map(|&v| widen(v))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// To bf16, nearest even; a NaN stays a NaN.
#[inline(always)]
fn round(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if v.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

#[inline(always)]
fn widen(v: u16) -> f32 {
    f32::from_bits(u32::from(v) << 16)
}

/// How a part of the right operand is read: the contraction of `a · B` runs over the matrix's columns or its rows.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// `a · Mᵀ`.
    Transposed(&'a Mat),
    /// `a · M`.
    Straight(&'a Mat),
}

impl Right<'_> {
    fn pairs(&self) -> usize {
        match self {
            Right::Transposed(m) => m.stride / 2,
            Right::Straight(m) => m.rows.div_ceil(2),
        }
    }

    fn width(&self) -> usize {
        match self {
            Right::Transposed(m) => m.rows,
            Right::Straight(m) => m.cols,
        }
    }

    /// Packs 32 columns from `first` on as `[pairs][32]` pairs; what is outside the matrix is zero.
    fn pack(&self, first: usize, panel: &mut [u32]) {
        assert!(available() && panel.len() == self.pairs() * PANEL);
        // SAFETY: the features were just checked; both functions mask their reads to the matrix.
        match self {
            Right::Transposed(m) => unsafe { pack_transposed(m, first, panel) },
            Right::Straight(m) => unsafe { pack_straight(m, first, panel) },
        }
    }
}

/// Where results go; `C` has the row length of the caller's choice.
struct Out(*mut f32);
// SAFETY: tasks write disjoint elements, see `product`.
unsafe impl Sync for Out {}

/// `C [a.rows, n] = a · [right₀; right₁; …] + bias`, where the parts are laid one below the other along the contraction.
///
/// Panics if the parts do not fill `a`'s row or differ in width, or if `c` is not `a.rows × n`: a bug of the caller.
pub fn product(a: &Mat, rights: &[Right], bias: Option<&[f32]>, c: &mut [f32]) {
    let pairs: usize = rights.iter().map(Right::pairs).sum();
    let n = rights.first().map_or(0, Right::width);
    assert!(available() && pairs * 2 == a.stride && rights.iter().all(|r| r.width() == n));
    assert!(c.len() == a.rows * n && bias.is_none_or(|b| b.len() == n));
    if c.is_empty() {
        return;
    }
    let panels = n.div_ceil(PANEL);
    // Few panels: split the rows as well, so that two cores have work.
    let block = if panels >= 8 { a.rows } else { ROWS * 16 };
    let blocks = a.rows.div_ceil(block);
    let out = Out(c.as_mut_ptr());
    let out = &out;
    (0..panels * blocks).into_par_iter().with_max_len(1).for_each_init(Vec::new, |panel: &mut Vec<u32>, task| {
        let (first, start) = (task / blocks * PANEL, task % blocks * block);
        let (cols, end) = (PANEL.min(n - first), a.rows.min(start + block));
        panel.resize(pairs * PANEL, 0);
        let mut at = 0;
        for right in rights {
            let len = right.pairs() * PANEL;
            right.pack(first, &mut panel[at..at + len]);
            at += len;
        }
        let mut begin = [0f32; PANEL];
        if let Some(bias) = bias {
            begin[..cols].copy_from_slice(&bias[first..first + cols]);
        }
        let mut row = start;
        while row < end {
            let rows = ROWS.min(end - row);
            // SAFETY: features checked above; rows row..row + rows exist in `a` (stride = 2 · pairs) and in `c` (row
            // length n); the kernel writes columns first..first + cols of these rows, which no other task writes.
            unsafe {
                let a = a.data.as_ptr().add(row * a.stride);
                let c = out.0.add(row * n + first);
                kernel(rows, a, pairs, panel.as_ptr(), &begin, c, n, cols);
            }
            row += rows;
        }
    });
}

/// Dispatches on the number of rows.
///
/// # Safety
/// As [`block`], and `rows` is 1 to 14.
#[allow(clippy::too_many_arguments)]
unsafe fn kernel(
    rows: usize,
    a: *const u16,
    pairs: usize,
    panel: *const u32,
    begin: &[f32; PANEL],
    c: *mut f32,
    ldc: usize,
    cols: usize,
) {
    macro_rules! dispatch {
        ($($r:literal)*) => {
            // SAFETY: passed on from the caller.
            match rows { $($r => unsafe { block::<$r>(a, pairs, panel, begin, c, ldc, cols) },)* _ => unreachable!() }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// `R × 32` results over the whole contraction.
///
/// # Safety
/// Needs AVX512-BF16; `a` has R rows of `pairs` pairs, `panel` has `pairs × 32` pairs, `c` has R rows of `cols` values at
/// distance `ldc`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn block<const R: usize>(
    a: *const u16,
    pairs: usize,
    panel: *const u32,
    begin: &[f32; PANEL],
    c: *mut f32,
    ldc: usize,
    cols: usize,
) {
    let half = PANEL / 2;
    // SAFETY: every address is inside what the caller promised; stores are masked to `cols`.
    unsafe {
        let low = _mm512_loadu_ps(begin.as_ptr());
        let high = _mm512_loadu_ps(begin.as_ptr().add(half));
        let mut sums = [[low, high]; R];
        let a = a.cast::<i32>();
        for p in 0..pairs {
            let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(panel.add(p * PANEL).cast()));
            let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(panel.add(p * PANEL + half).cast()));
            for r in 0..R {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.add(r * pairs + p).read_unaligned()));
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], b0, x);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], b1, x);
            }
        }
        let mask = if cols >= PANEL { u32::MAX } else { (1u32 << cols) - 1 };
        for r in 0..R {
            let c = c.add(r * ldc);
            _mm512_mask_storeu_ps(c, mask as u16, sums[r][0]);
            _mm512_mask_storeu_ps(c.wrapping_add(half), (mask >> 16) as u16, sums[r][1]);
        }
    }
}

/// Rows `first..` of `m` become columns: transposes blocks of 16 × 16 pairs.
///
/// # Safety
/// Needs AVX-512F; `panel` has `m.stride / 2 × 32` pairs.
#[target_feature(enable = "avx512f")]
unsafe fn pack_transposed(m: &Mat, first: usize, panel: &mut [u32]) {
    let pairs = m.stride / 2;
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

/// Transposes 16 × 16 values of 32 bits.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(mut r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for g in (0..16).step_by(4) {
        r[g] = _mm512_unpacklo_epi64(t[g], t[g + 2]);
        r[g + 1] = _mm512_unpackhi_epi64(t[g], t[g + 2]);
        r[g + 2] = _mm512_unpacklo_epi64(t[g + 1], t[g + 3]);
        r[g + 3] = _mm512_unpackhi_epi64(t[g + 1], t[g + 3]);
    }
    for g in [0, 8] {
        for i in 0..4 {
            t[g + i] = _mm512_shuffle_i32x4::<0x88>(r[g + i], r[g + i + 4]);
            t[g + i + 4] = _mm512_shuffle_i32x4::<0xdd>(r[g + i], r[g + i + 4]);
        }
    }
    for i in 0..8 {
        r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
        r[i + 8] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 8]);
    }
    r
}

/// Columns `first..` of `m`: interleaves each two rows.
///
/// # Safety
/// Needs AVX-512F and BW; `panel` has `m.rows / 2` (rounded up) `× 32` pairs.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_straight(m: &Mat, first: usize, panel: &mut [u32]) {
    let cols = PANEL.min(m.cols - first);
    let mask = if cols >= PANEL { u32::MAX } else { (1u32 << cols) - 1 };
    let mut low = [0u16; 32];
    let mut high = [0u16; 32];
    for i in 0..16u16 {
        (low[2 * i as usize], low[2 * i as usize + 1]) = (i, i + 32);
        (high[2 * i as usize], high[2 * i as usize + 1]) = (i + 16, i + 48);
    }
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
