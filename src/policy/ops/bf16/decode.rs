//! Panels of right operands straight from the blocks of a GGUF file, rounded to bf16. Never multiplies, and never keeps
//! a panel.
//!
//! Formats of four and five bits look their values up: a group has one scale, so at most 32 of them, rounded once.

use super::super::quantized::{Format, GROUP, IQ4, Quantized, iq4_xs_scale, k_scales};
use super::PANEL;
use super::shuffle::{pairs, transpose};
use std::arch::x86_64::*;

macro_rules! by_format {
    ($format:expr, $call:ident($($arg:expr),*)) => {
        match $format {
            Format::F32 => $call::<{ Format::F32 as u8 }>($($arg),*),
            Format::F16 => $call::<{ Format::F16 as u8 }>($($arg),*),
            Format::Bf16 => $call::<{ Format::Bf16 as u8 }>($($arg),*),
            Format::Q4_0 => $call::<{ Format::Q4_0 as u8 }>($($arg),*),
            Format::Q4_1 => $call::<{ Format::Q4_1 as u8 }>($($arg),*),
            Format::Q5_0 => $call::<{ Format::Q5_0 as u8 }>($($arg),*),
            Format::Q5_1 => $call::<{ Format::Q5_1 as u8 }>($($arg),*),
            Format::Q8_0 => $call::<{ Format::Q8_0 as u8 }>($($arg),*),
            Format::Q2K => $call::<{ Format::Q2K as u8 }>($($arg),*),
            Format::Q3K => $call::<{ Format::Q3K as u8 }>($($arg),*),
            Format::Q4K => $call::<{ Format::Q4K as u8 }>($($arg),*),
            Format::Q5K => $call::<{ Format::Q5K as u8 }>($($arg),*),
            Format::Q6K => $call::<{ Format::Q6K as u8 }>($($arg),*),
            Format::Iq4Nl => $call::<{ Format::Iq4Nl as u8 }>($($arg),*),
            Format::Iq4Xs => $call::<{ Format::Iq4Xs as u8 }>($($arg),*),
        }
    };
}

/// Packs 32 columns from `first` on of rows `rows..` read transposed (they are rows of the matrix) or straight, as
/// `[pairs][32]` pairs; positions outside the matrix are zero.
///
/// Panics if a row or a column is not there.
pub fn pack(m: &Quantized, rows: (usize, usize), transposed: bool, first: usize, panel: &mut [u32]) {
    let (start, count) = rows;
    assert!(super::available() && start + count <= m.rows(), "bf16: decoding rows that are not there");
    assert!(panel.len().is_multiple_of(PANEL), "bf16: a panel of {} pairs", panel.len());
    if transposed {
        assert!(first < count && panel.len() == m.cols() / 2 * PANEL, "bf16: decoding into another panel");
        let (first, count) = (start + first, (count - first).min(PANEL));
        // SAFETY: the features and the rows were checked, and the panel has a row for each pair of columns.
        unsafe { by_format!(m.format(), pack_transposed(m, first, count, panel)) }
    } else {
        assert!(first.is_multiple_of(GROUP) && first < m.cols(), "bf16: decoding columns that are not there");
        assert!(panel.len() == count.div_ceil(2) * PANEL, "bf16: decoding into another panel");
        // SAFETY: as above, with a row for each pair of rows.
        unsafe { by_format!(m.format(), pack_straight(m, start, count, first / GROUP, panel)) }
    }
}

/// # Safety
/// Needs AVX512-BF16 and F16C; rows `first..first + count`, at most 32, are there, and `panel` has `cols / 2` times 32
/// pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,f16c")]
unsafe fn pack_transposed<const FORMAT: u8>(m: &Quantized, first: usize, count: usize, panel: &mut [u32]) {
    let ((groups, size), (data, row_bytes)) = (m.format().block(), m.data());
    for (g, to) in panel.chunks_exact_mut(GROUP / 2 * PANEL).enumerate() {
        let place = g / groups * size;
        for half in 0..2 {
            let mut r = [_mm512_setzero_si512(); 16];
            for (i, r) in r.iter_mut().enumerate().take(count.saturating_sub(half * 16)) {
                let row = first + half * 16 + i;
                // SAFETY: the row's blocks are there, and this is one of them.
                *r = unsafe { group::<FORMAT>(data.as_ptr().add(row * row_bytes + place), g % groups) };
            }
            for (i, row) in transpose(r).into_iter().enumerate() {
                let at = i * PANEL + half * 16;
                // SAFETY: the slice has 16 pairs.
                unsafe { _mm512_storeu_si512(to[at..at + 16].as_mut_ptr().cast(), row) };
            }
        }
    }
}

/// # Safety
/// Needs AVX512-BF16 and F16C; rows `first..first + count` have the group, and `panel` has 32 pairs for each two.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,f16c")]
unsafe fn pack_straight<const FORMAT: u8>(m: &Quantized, first: usize, count: usize, column: usize, panel: &mut [u32]) {
    let ((groups, size), (data, row_bytes)) = (m.format().block(), m.data());
    let (low, high) = pairs();
    // SAFETY: the rows' blocks are there, and these are among them; the panel's chunks hold 32 pairs.
    unsafe {
        let low = _mm512_loadu_si512(low.as_ptr().cast());
        let high = _mm512_loadu_si512(high.as_ptr().cast());
        let place = data.as_ptr().add(first * row_bytes + column / groups * size);
        let at = column % groups;
        for (p, to) in panel.chunks_exact_mut(PANEL).enumerate() {
            let even = group::<FORMAT>(place.add(2 * p * row_bytes), at);
            let odd = match 2 * p + 1 < count {
                true => group::<FORMAT>(place.add((2 * p + 1) * row_bytes), at),
                false => _mm512_setzero_si512(),
            };
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_permutex2var_epi16(even, low, odd));
            _mm512_storeu_si512(to.as_mut_ptr().add(16).cast(), _mm512_permutex2var_epi16(even, high, odd));
        }
    }
}

/// The 32 values of group `at` of a block, rounded to bf16.
///
/// # Safety
/// Needs AVX512-BF16 and F16C; the block is there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,f16c")]
#[inline]
unsafe fn group<const FORMAT: u8>(block: *const u8, at: usize) -> __m512i {
    const F32: u8 = Format::F32 as u8;
    const F16: u8 = Format::F16 as u8;
    const BF16: u8 = Format::Bf16 as u8;
    const Q4_0: u8 = Format::Q4_0 as u8;
    const Q4_1: u8 = Format::Q4_1 as u8;
    const Q5_0: u8 = Format::Q5_0 as u8;
    const Q5_1: u8 = Format::Q5_1 as u8;
    const Q8_0: u8 = Format::Q8_0 as u8;
    const Q2K: u8 = Format::Q2K as u8;
    const Q3K: u8 = Format::Q3K as u8;
    const Q4K: u8 = Format::Q4K as u8;
    const Q5K: u8 = Format::Q5K as u8;
    const Q6K: u8 = Format::Q6K as u8;
    const IQ4_NL: u8 = Format::Iq4Nl as u8;
    const IQ4_XS: u8 = Format::Iq4Xs as u8;
    // SAFETY: every address lies in the block.
    unsafe {
        match FORMAT {
            F32 => rounded(_mm512_loadu_ps(block.cast()), _mm512_loadu_ps(block.add(64).cast())),
            F16 => {
                let wide = |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(block.add(at).cast()));
                rounded(wide(0), wide(32))
            }
            BF16 => _mm512_loadu_si512(block.cast()),
            Q4_0 => look_up(few(_mm512_mul_ps(count_from(-8.0), half(block))), nibbles(block.add(2))),
            Q4_1 => look_up(few(scaled(count_from(0.0), half(block), half(block.add(2)))), nibbles(block.add(4))),
            Q5_0 => {
                let d = half(block);
                let table = rounded(_mm512_mul_ps(count_from(-16.0), d), _mm512_mul_ps(count_from(0.0), d));
                look_up(table, with_fifth(nibbles(block.add(6)), block.add(2).cast::<u32>().read_unaligned()))
            }
            Q5_1 => {
                let (d, m) = (half(block), half(block.add(2)));
                let table = rounded(scaled(count_from(0.0), d, m), scaled(count_from(16.0), d, m));
                look_up(table, with_fifth(nibbles(block.add(8)), block.add(4).cast::<u32>().read_unaligned()))
            }
            Q8_0 => {
                let d = half(block);
                let wide = |at: usize| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(at).cast())));
                rounded(_mm512_mul_ps(wide(2), d), _mm512_mul_ps(wide(18), d))
            }
            Q4K | Q5K => {
                let (scale, least) = k_scales(std::slice::from_raw_parts(block.add(4), 12), at);
                let d = _mm512_mul_ps(half(block), _mm512_set1_ps(f32::from(scale)));
                let m = _mm512_mul_ps(half(block.add(2)), _mm512_set1_ps(f32::from(least)));
                let less = |from: f32| _mm512_sub_ps(_mm512_mul_ps(count_from(from), d), m);
                let values = block.add(if FORMAT == Q4K { 16 } else { 48 } + 32 * (at / 2));
                let wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(values.cast()));
                let shift = _mm_cvtsi32_si128((at % 2 * 4) as i32);
                let low = _mm512_and_si512(_mm512_srl_epi16(wide, shift), _mm512_set1_epi16(15));
                if FORMAT == Q4K {
                    return look_up(few(less(0.0)), low);
                }
                let bits = _mm256_loadu_si256(block.add(16).cast());
                let bits = _mm256_test_epi8_mask(bits, _mm256_set1_epi8((1u8 << at) as i8));
                look_up(rounded(less(0.0), less(16.0)), with_fifth(low, bits))
            }
            Q6K => {
                let (part, k) = (at / 4, at % 4);
                let byte = |v: u8| _mm256_set1_epi8(v as i8);
                let low = _mm256_loadu_si256(block.add(64 * part + 32 * (k % 2)).cast());
                let low = _mm256_and_si256(_mm256_srl_epi16(low, _mm_cvtsi32_si128((k / 2 * 4) as i32)), byte(15));
                let high = _mm256_loadu_si256(block.add(128 + 32 * part).cast());
                let high = _mm256_and_si256(_mm256_srl_epi16(high, _mm_cvtsi32_si128((2 * k) as i32)), byte(3));
                let q = _mm256_sub_epi8(_mm256_or_si256(low, _mm256_slli_epi16::<4>(high)), byte(32));
                let d = half(block.add(208));
                let scales = block.add(192 + 8 * part + 2 * k).cast::<i8>();
                let wide = |q: __m128i, i: usize| {
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps(f32::from(scales.add(i).read())));
                    _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)))
                };
                rounded(wide(_mm256_castsi256_si128(q), 0), wide(_mm256_extracti128_si256::<1>(q), 1))
            }
            IQ4_NL => look_up(few(_mm512_mul_ps(half(block), iq4())), nibbles(block.add(2))),
            IQ4_XS => {
                let scale = iq4_xs_scale(std::slice::from_raw_parts(block.add(2), 6), at);
                let d = _mm512_mul_ps(half(block), _mm512_set1_ps(f32::from(scale)));
                look_up(few(_mm512_mul_ps(d, iq4())), nibbles(block.add(8 + 16 * at)))
            }
            _ => {
                let format = if FORMAT == Q2K { Format::Q2K } else { Format::Q3K };
                debug_assert!(FORMAT == Q2K || FORMAT == Q3K);
                let mut values = [0f32; GROUP];
                format.decode(std::slice::from_raw_parts(block, format.block().1), at, &mut values);
                rounded(_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)))
            }
        }
    }
}

/// A 16-bit float in every lane.
///
/// # Safety
/// Needs AVX-512F and F16C; two bytes are there.
#[target_feature(enable = "avx512f,f16c")]
#[inline]
unsafe fn half(at: *const u8) -> __m512 {
    // SAFETY: passed on from the caller.
    let bits = unsafe { at.cast::<u16>().read_unaligned() };
    _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn count_from(first: f32) -> __m512 {
    let count = _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
    _mm512_add_ps(count, _mm512_set1_ps(first))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn scaled(values: __m512, scale: __m512, least: __m512) -> __m512 {
    _mm512_add_ps(_mm512_mul_ps(values, scale), least)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn iq4() -> __m512 {
    let values: [f32; 16] = std::array::from_fn(|i| f32::from(IQ4[i]));
    // SAFETY: sixteen values are there.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// 32 values, the first sixteen in `low`.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 512 bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// A table of sixteen values.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn few(values: __m512) -> __m512i {
    // SAFETY: both are 256 bits.
    _mm512_castsi256_si512(unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) })
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn look_up(table: __m512i, places: __m512i) -> __m512i {
    _mm512_permutexvar_epi16(places, table)
}

/// The low halves of sixteen bytes, then the high halves.
///
/// # Safety
/// Needs AVX-512BW; sixteen bytes are there.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn nibbles(at: *const u8) -> __m512i {
    // SAFETY: passed on from the caller.
    let bytes = unsafe { _mm_loadu_si128(at.cast()) };
    let low = _mm256_set1_epi8(15);
    let both = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes), low);
    _mm512_cvtepu8_epi16(both)
}

/// Adds the fifth bits of 32 places.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn with_fifth(places: __m512i, bits: u32) -> __m512i {
    _mm512_mask_add_epi16(places, bits, places, _mm512_set1_epi16(16))
}
