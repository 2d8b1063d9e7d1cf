//! Matrix products of bf16 operands with f32 sums, on AVX512-BF16 and AMX. Never rounds a sum, and knows no model.
//!
//! One call of the micro-kernel computes 14 × 32 results, on AMX 32 × 32. Every result is one sum in a fixed order, so
//! neither the partition nor the form of a weight changes a bit.

mod amx;
mod decode;
mod pack;
mod shuffle;
#[cfg(test)]
mod tests;

use super::accumulate::{Begin, Run};
pub use pack::{Operand, Packed, Panels, Rows};
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows of the left operand per kernel call.
const ROWS: usize = 14;
/// Columns per panel.
const PANEL: usize = 32;
/// Most parts of a right operand: a weight and its update.
const PARTS: usize = 2;

/// Whether this processor has the required instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// What computes the products.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    /// AVX512-BF16.
    Vectors,
    /// AMX.
    Tiles,
    /// The same with tiles that are no processor's.
    #[cfg(test)]
    Emulated,
}

/// The fastest that this machine has. It is one for all shapes and for good: sums are in another order on each, and
/// what was trained once must be trained again bit for bit.
fn kernel() -> Kernel {
    static CHOSEN: OnceLock<Kernel> = OnceLock::new();
    *CHOSEN
        .get_or_init(|| if available() && amx::permitted() && tiles_agree() { Kernel::Tiles } else { Kernel::Vectors })
}

/// Whether AMX gives the products that AVX512-BF16 gives, edges included.
fn tiles_agree() -> bool {
    let (m, k, rank, n) = (37, 70, 10, 45);
    let values = |len: usize, salt: usize| -> Vec<u16> {
        let value = |i: usize| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        let mut rounded = vec![0; len];
        round(&(0..len).map(value).collect::<Vec<f32>>(), 1.0, &mut rounded);
        rounded
    };
    let (a, w, b) = (values(m * (k + rank), 1), values(n * k, 2), values(rank * (n + 1), 3));
    let left = Rows { data: &a, rows: m, cols: k + rank, stride: k + rank };
    let weight = Packed { operand: Operand::Loose(Rows { data: &w, rows: n, cols: k, stride: k }), transposed: true };
    let update = Rows { data: &b, rows: rank, cols: n, stride: n + 1 };
    let rights = [weight, Packed { operand: Operand::Loose(update), transposed: false }];
    let [vectors, tiles] = [Kernel::Vectors, Kernel::Tiles].map(|kernel| {
        let mut c = vec![0.5; m * n];
        product_by(kernel, left, &rights, Begin::Add, &mut c, n, Run::Here);
        c
    });
    let agree = vectors.iter().zip(&tiles).all(|(v, t)| (v - t).abs() < 1e-3);
    if !agree {
        tracing::warn!("products of AMX are wrong on this machine; training goes on without it");
    }
    agree
}

/// What frozen products are computed in when settings leave it open.
pub fn precision() -> &'static str {
    match kernel() {
        Kernel::Tiles => "bf16 with f32 sums, by AMX",
        _ if available() => "bf16 with f32 sums, by AVX512-BF16",
        _ => "f32",
    }
}

/// Rounds `from · scale` to bf16, to nearest even; NaN stays NaN, denormals become zero.
pub fn round(from: &[f32], scale: f32, to: &mut [u16]) {
    assert!(available() && from.len() == to.len(), "bf16: rounding {} values to {}", from.len(), to.len());
    // SAFETY: the features were just checked.
    unsafe { round_vectors(from, scale, to) }
}

/// # Safety
/// Needs AVX512-BF16 and BW.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn round_vectors(from: &[f32], scale: f32, to: &mut [u16]) {
    let scale = _mm512_set1_ps(scale);
    for (from, to) in from.chunks(16).zip(to.chunks_mut(16)) {
        let mask = ((1u32 << from.len()) - 1) as u16;
        // SAFETY: reads and writes are masked to the chunk.
        unsafe {
            let values = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from.as_ptr()), scale);
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
            _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, rounded);
        }
    }
}

/// The output pointer.
struct Out(*mut f32);
// SAFETY: tasks write disjoint elements, see `product`.
unsafe impl Sync for Out {}

/// See [`super::matrix::product`], which has checked the shapes.
pub fn product(a: Rows, rights: &[Packed], begin: Begin, c: &mut [f32], n: usize, run: Run) {
    product_by(kernel(), a, rights, begin, c, n, run);
}

fn product_by(kernel: Kernel, a: Rows, rights: &[Packed], begin: Begin, c: &mut [f32], n: usize, run: Run) {
    let pairs: usize = rights.iter().map(Packed::pairs).sum();
    assert!(available() && pairs * 2 == a.cols && c.len() == a.rows * n, "bf16 product: shapes");
    assert!(rights.len() <= PARTS, "bf16 product: {} parts", rights.len());
    a.check();
    rights.iter().for_each(Packed::check);
    let panels = n.div_ceil(PANEL);
    // With few panels, the rows are split as well, so that two cores have work.
    let block = if panels >= 8 || run == Run::Here { a.rows } else { ROWS * 16 };
    let blocks = a.rows.div_ceil(block);
    let out = Out(c.as_mut_ptr());
    let out = &out;
    let task = |panel: &mut Vec<u32>, task: usize| {
        let (first, start) = (task / blocks * PANEL, task % blocks * block);
        let (cols, end) = (PANEL.min(n - first), a.rows.min(start + block));
        let not_ready = |r: &Packed| if let Operand::Ready { .. } = r.operand { 0 } else { r.pairs() * PANEL };
        panel.resize(rights.iter().map(not_ready).sum(), 0);
        let mut rest = panel.as_mut_slice();
        let mut parts: [&[u32]; PARTS] = [&[]; PARTS];
        for (part, right) in parts.iter_mut().zip(rights) {
            *part = match right.ready(first) {
                Some(ready) => ready,
                None => {
                    let (here, behind) = std::mem::take(&mut rest).split_at_mut(right.pairs() * PANEL);
                    rest = behind;
                    right.pack(first, here);
                    here
                }
            };
        }
        let mut bias = [0f32; PANEL];
        if let Begin::Bias(values) = begin {
            bias[..cols].copy_from_slice(&values[first..first + cols]);
        }
        // SAFETY: features and operands are checked above; rows start..end exist in `a`, with as many pairs as the
        // parts have, and in `c`, with n values; the kernel writes columns first..first + cols of these rows, which no
        // other task does.
        unsafe {
            let block = Block {
                a: a.data.as_ptr().add(start * a.stride).cast(),
                distance: a.stride / 2,
                parts: &parts,
                bias: &bias,
                c: out.0.add(start * n + first),
                ldc: n,
                cols,
                add: matches!(begin, Begin::Add),
            };
            match kernel {
                Kernel::Vectors => block.by_vectors(end - start),
                Kernel::Tiles => block.by_tiles(&mut amx::Hardware::new(), end - start),
                #[cfg(test)]
                Kernel::Emulated => block.by_tiles(&mut amx::Emulated::default(), end - start),
            }
        }
    };
    match run {
        Run::Parallel => (0..panels * blocks).into_par_iter().with_max_len(1).for_each_init(Vec::new, task),
        Run::Here => {
            let mut panel = Vec::new();
            (0..panels * blocks).for_each(|i| task(&mut panel, i));
        }
    }
}

/// Some rows of one panel's results, and their operands.
#[derive(Clone, Copy)]
struct Block<'a> {
    /// Pairs of the left operand; rows are `distance` pairs apart.
    a: *const i32,
    distance: usize,
    /// Each `[pairs][32]` pairs, consecutive along the contraction.
    parts: &'a [&'a [u32]; PARTS],
    bias: &'a [f32; PANEL],
    /// `cols` values per row, rows `ldc` apart.
    c: *mut f32,
    ldc: usize,
    cols: usize,
    /// Whether to add to the values in `c`.
    add: bool,
}

impl Block<'_> {
    /// The block from a later row on.
    fn from(self, row: usize) -> Self {
        Self { a: self.a.wrapping_add(row * self.distance), c: self.c.wrapping_add(row * self.ldc), ..self }
    }

    /// Computes all rows on AVX512-BF16.
    ///
    /// # Safety
    /// Needs AVX512-BF16; all addresses hold what the fields say, for `rows` rows.
    unsafe fn by_vectors(self, rows: usize) {
        // Equal parts: a call with few rows takes nearly as long as one with all.
        let step = rows.div_ceil(rows.div_ceil(ROWS).max(1)).max(1);
        for row in (0..rows).step_by(step) {
            // SAFETY: passed on from the caller.
            unsafe { self.from(row).run(step.min(rows - row)) };
        }
    }

    /// Computes all rows on tiles.
    ///
    /// # Safety
    /// Needs AVX-512F; all addresses hold what the fields say, for `rows` rows.
    unsafe fn by_tiles(self, tiles: &mut impl amx::Tiles, rows: usize) {
        let mut scratch = amx::Scratch::NEW;
        for row in (0..rows).step_by(amx::ROWS) {
            let (block, rows) = (self.from(row), amx::ROWS.min(rows - row));
            let wide = self.cols > PANEL / 2;
            // SAFETY: passed on from the caller.
            unsafe {
                amx::block(tiles, block.a.cast(), block.distance, rows, block.parts, wide, &mut scratch);
                block.write(&scratch.sums[..rows]);
            }
        }
    }

    /// Writes results, with the bias and what is added to.
    ///
    /// # Safety
    /// Needs AVX-512F; `c` has as many rows.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&self, sums: &[[f32; PANEL]]) {
        let mask = if self.cols >= PANEL { u32::MAX } else { (1u32 << self.cols) - 1 };
        for (r, row) in sums.iter().enumerate() {
            for v in 0..PANEL / 16 {
                let (c, mask) = (self.c.wrapping_add(r * self.ldc + 16 * v), (mask >> (16 * v)) as u16);
                // SAFETY: 16 values of the bias and of the row; access to `c` is masked to `cols`.
                unsafe {
                    let bias = _mm512_loadu_ps(self.bias.as_ptr().add(16 * v));
                    let mut sum = _mm512_add_ps(_mm512_loadu_ps(row.as_ptr().add(16 * v)), bias);
                    if self.add {
                        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, c));
                    }
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }

    /// Dispatches on the number of rows, 1 to 14.
    ///
    /// # Safety
    /// Needs AVX512-BF16; all addresses hold what the fields say, for `rows` rows.
    unsafe fn run(&self, rows: usize) {
        macro_rules! dispatch {
            ($($r:literal)*) => {
                // SAFETY: passed on from the caller.
                match (rows, self.cols > PANEL / 2) {
                    $(($r, true) => unsafe { self.block::<$r, 2>() }, ($r, false) => unsafe { self.block::<$r, 1>() },)*
                    _ => unreachable!("a block of {rows} rows"),
                }
            };
        }
        dispatch!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }

    /// Computes `R × 16 V` results over the whole contraction.
    ///
    /// # Safety
    /// As [`Block::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn block<const R: usize, const V: usize>(&self) {
        // SAFETY: every address is inside what the caller promised; access to `c` is masked to `cols`.
        unsafe {
            let mut bias = [_mm512_setzero_ps(); V];
            for (v, bias) in bias.iter_mut().enumerate() {
                *bias = _mm512_loadu_ps(self.bias.as_ptr().add(16 * v));
            }
            let mut sums = [bias; R];
            let mut a = self.a;
            for part in self.parts {
                let pairs = part.len() / PANEL;
                for p in 0..pairs {
                    let mut b: [__m512bh; V] = std::mem::zeroed();
                    for (v, b) in b.iter_mut().enumerate() {
                        *b = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(
                            part.as_ptr().add(p * PANEL + 16 * v).cast(),
                        ));
                    }
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let pair = a.add(r * self.distance + p).read_unaligned();
                        let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                        for v in 0..V {
                            sum[v] = _mm512_dpbf16_ps(sum[v], b[v], x);
                        }
                    }
                }
                a = a.add(pairs);
            }
            let mask = if self.cols >= PANEL { u32::MAX } else { (1u32 << self.cols) - 1 };
            for (r, sum) in sums.into_iter().enumerate() {
                for (v, mut sum) in sum.into_iter().enumerate() {
                    let (c, mask) = (self.c.wrapping_add(r * self.ldc + 16 * v), (mask >> (16 * v)) as u16);
                    if self.add {
                        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, c));
                    }
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }
}
