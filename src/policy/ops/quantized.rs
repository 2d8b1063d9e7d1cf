//! Frozen matrices in the number formats of GGUF files, decoded where they are used. Never keeps what it decoded.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Values that are decoded at a time: a block of the small formats, an eighth of a super-block of the others.
pub const GROUP: usize = 32;

/// A number format, in groups of [`GROUP`] values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

/// Each format with its name in ggml, the groups of a block and its bytes (ggml-common.h).
const FORMATS: [(Format, &str, usize, usize); 15] = [
    (Format::F32, "F32", 1, 128),
    (Format::F16, "F16", 1, 64),
    (Format::Bf16, "BF16", 1, 64),
    (Format::Q4_0, "Q4_0", 1, 18),
    (Format::Q4_1, "Q4_1", 1, 20),
    (Format::Q5_0, "Q5_0", 1, 22),
    (Format::Q5_1, "Q5_1", 1, 24),
    (Format::Q8_0, "Q8_0", 1, 34),
    (Format::Q2K, "Q2_K", 8, 84),
    (Format::Q3K, "Q3_K", 8, 110),
    (Format::Q4K, "Q4_K", 8, 144),
    (Format::Q5K, "Q5_K", 8, 176),
    (Format::Q6K, "Q6_K", 8, 210),
    (Format::Iq4Nl, "IQ4_NL", 1, 18),
    (Format::Iq4Xs, "IQ4_XS", 8, 136),
];

/// The values of IQ4_NL and IQ4_XS (`kvalues_iq4nl`).
pub const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Format {
    /// The format with ggml's name, if it can be decoded.
    pub fn named(name: &str) -> Option<Self> {
        FORMATS.iter().find(|f| f.1 == name).map(|f| f.0)
    }

    /// Every format.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.iter().map(|f| f.0)
    }

    /// Groups of a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        let row = FORMATS.iter().find(|f| f.0 == self).unwrap_or(&FORMATS[0]);
        (row.2, row.3)
    }

    /// Decodes group `at` of a block, as ggml's `dequantize_row_*` do, to the last bit.
    pub fn decode(self, block: &[u8], at: usize, to: &mut [f32; GROUP]) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        // The low half of each byte, then the high half.
        let nibble = |from: usize, i: usize| (block[from + i % 16] >> (i / 16 * 4)) & 15;
        // Bit i of four bytes, as the fifth bit of a value.
        let fifth = |from: usize, i: usize| (block[from + i / 8] >> (i % 8) & 1) << 4;
        match self {
            Format::F32 => fill(to, |i| f32::from_le_bytes(std::array::from_fn(|b| block[4 * i + b]))),
            Format::F16 => fill(to, |i| half(2 * i)),
            Format::Bf16 => fill(to, |i| bf16::from_le_bytes([block[2 * i], block[2 * i + 1]]).to_f32()),
            Format::Q4_0 => {
                let d = half(0);
                fill(to, |i| (f32::from(nibble(2, i)) - 8.0) * d);
            }
            Format::Q4_1 => {
                let (d, m) = (half(0), half(2));
                fill(to, |i| f32::from(nibble(4, i)) * d + m);
            }
            Format::Q5_0 => {
                let d = half(0);
                fill(to, |i| (f32::from(nibble(6, i) | fifth(2, i)) - 16.0) * d);
            }
            Format::Q5_1 => {
                let (d, m) = (half(0), half(2));
                fill(to, |i| f32::from(nibble(8, i) | fifth(4, i)) * d + m);
            }
            Format::Q8_0 => {
                let d = half(0);
                fill(to, |i| f32::from(block[2 + i] as i8) * d);
            }
            Format::Q2K => {
                let (part, k, d, m) = (at / 4, at % 4, half(80), half(82));
                fill(to, |i| {
                    let scale = block[8 * part + 2 * k + i / 16];
                    let q = (block[16 + 32 * part + i] >> (2 * k)) & 3;
                    d * f32::from(scale & 15) * f32::from(q) - m * f32::from(scale >> 4)
                });
            }
            Format::Q3K => {
                let (part, k, d) = (at / 4, at % 4, half(108));
                fill(to, |i| {
                    let s = 8 * part + 2 * k + i / 16;
                    let low = block[96 + s % 8] >> (s / 8 * 4) & 15;
                    let high = block[104 + s % 4] >> (s / 4 * 2) & 3;
                    let scale = f32::from(low | high << 4) - 32.0;
                    let q = f32::from((block[32 + 32 * part + i] >> (2 * k)) & 3);
                    let less = if block[i] >> at & 1 == 1 { 0.0 } else { 4.0 };
                    d * scale * (q - less)
                });
            }
            Format::Q4K | Format::Q5K => {
                let (scale, least) = k_scales(&block[4..16], at);
                let (d, m) = (half(0) * f32::from(scale), half(2) * f32::from(least));
                let (values, bits) = if self == Format::Q4K { (16, None) } else { (48, Some(16)) };
                fill(to, |i| {
                    let low = (block[values + 32 * (at / 2) + i] >> (at % 2 * 4)) & 15;
                    let high = bits.map_or(0, |bits| (block[bits + i] >> at & 1) << 4);
                    d * f32::from(low | high) - m
                });
            }
            Format::Q6K => {
                let (part, k, d) = (at / 4, at % 4, half(208));
                fill(to, |i| {
                    let low = (block[64 * part + 32 * (k % 2) + i] >> (k / 2 * 4)) & 15;
                    let high = (block[128 + 32 * part + i] >> (2 * k)) & 3;
                    let scale = block[192 + 8 * part + 2 * k + i / 16] as i8;
                    d * f32::from(scale) * (f32::from(low | high << 4) - 32.0)
                });
            }
            Format::Iq4Nl => {
                let d = half(0);
                fill(to, |i| d * f32::from(IQ4[usize::from(nibble(2, i))]));
            }
            Format::Iq4Xs => {
                let scale = half(0) * f32::from(iq4_xs_scale(&block[2..8], at));
                fill(to, |i| scale * f32::from(IQ4[usize::from(nibble(8 + 16 * at, i))]));
            }
        }
    }
}

#[inline(always)]
fn fill(to: &mut [f32; GROUP], value: impl Fn(usize) -> f32) {
    to.iter_mut().enumerate().for_each(|(i, to)| *to = value(i));
}

/// Scale and minimum of a group of Q4_K and Q5_K, six bits each (`get_scale_min_k4`).
#[inline(always)]
pub fn k_scales(scales: &[u8], at: usize) -> (u8, u8) {
    match at {
        0..4 => (scales[at] & 63, scales[at + 4] & 63),
        _ => ((scales[at + 4] & 15) | (scales[at - 4] >> 6) << 4, (scales[at + 4] >> 4) | (scales[at] >> 6) << 4),
    }
}

/// Scale of a group of IQ4_XS, from two bytes of high bits and four of low ones.
#[inline(always)]
pub fn iq4_xs_scale(scales: &[u8], at: usize) -> i8 {
    let high = u16::from_le_bytes([scales[0], scales[1]]) >> (2 * at) & 3;
    let low = scales[2 + at / 2] >> (at % 2 * 4) & 15;
    (low | (high as u8) << 4) as i8 - 32
}

/// Bytes that nobody changes: those of a mapped file, or of memory.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A matrix `[rows, cols]` as a GGUF file stores it. Clones share the bytes.
#[derive(Clone)]
pub struct Quantized {
    bytes: Bytes,
    range: Range<usize>,
    format: Format,
    rows: usize,
    cols: usize,
}

impl std::fmt::Debug for Quantized {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} [{}, {}]", self.format, self.rows, self.cols)
    }
}

impl Quantized {
    /// A matrix whose data are the bytes of `range`.
    ///
    /// # Errors
    /// `Model` if the bytes are not there, or are not those of a whole matrix.
    pub fn new(bytes: Bytes, range: Range<usize>, format: Format, rows: usize, cols: usize) -> Result<Self> {
        let (groups, size) = format.block();
        let needed = (cols / (groups * GROUP)).checked_mul(size).and_then(|row| row.checked_mul(rows));
        if !cols.is_multiple_of(groups * GROUP) || needed != Some(range.len()) {
            let found = range.len();
            return Err(Error::model(format!("{found} bytes can't be a matrix [{rows}, {cols}] of {format:?}")));
        }
        if (*bytes).as_ref().get(range.clone()).is_none() {
            return Err(Error::model(format!("the file ends before byte {}, where its tensors end", range.end)));
        }
        Ok(Self { bytes, range, format, rows, cols })
    }

    /// Whether a matrix of that width can be used as it is stored: products decode whole groups.
    pub fn takes(format: Format, cols: usize) -> bool {
        cols.is_multiple_of(format.block().0 * GROUP)
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All of its bytes, and those of a row.
    pub fn data(&self) -> (&[u8], usize) {
        let (groups, size) = self.format.block();
        let all = (*self.bytes).as_ref().get(self.range.clone()).unwrap_or_default();
        (all, self.cols / (groups * GROUP) * size)
    }

    /// Reads the first values of a row into `to`, exactly.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        let ((groups, size), (data, row_bytes)) = (self.format.block(), self.data());
        let row = &data[row * row_bytes..][..row_bytes];
        let mut group = [0f32; GROUP];
        for (i, to) in to.chunks_mut(GROUP).enumerate() {
            self.format.decode(&row[i / groups * size..][..size], i % groups, &mut group);
            to.copy_from_slice(&group[..to.len()]);
        }
    }

    /// Some rows, exactly, `[rows.len(), cols]`, in parallel.
    pub fn read(&self, rows: Range<usize>, to: &mut Vec<f32>) {
        to.resize(rows.len() * self.cols, 0.0);
        let row = |(i, to): (usize, &mut [f32])| self.read_row(rows.start + i, to);
        to.par_chunks_exact_mut(self.cols.max(1)).enumerate().with_min_len(16).for_each(row);
    }

    /// The same on this thread.
    pub fn read_here(&self, rows: Range<usize>, to: &mut Vec<f32>) {
        to.resize(rows.len() * self.cols, 0.0);
        rows.zip(to.chunks_exact_mut(self.cols.max(1))).for_each(|(row, to)| self.read_row(row, to));
    }
}

#[cfg(test)]
#[path = "quantized_tests.rs"]
mod tests;
