//! Orders of values within vectors, for those who pack. Never reads memory.

use std::arch::x86_64::*;

/// Transposes 16 × 16 32-bit values.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transpose(mut r: [__m512i; 16]) -> [__m512i; 16] {
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

/// For two rows of 32 columns, the places of the values of 16 columns each, the rows in turns: what a panel holds.
pub(super) fn pairs() -> ([u16; 32], [u16; 32]) {
    let (mut low, mut high) = ([0; 32], [0; 32]);
    for i in 0..16 {
        (low[2 * i as usize], low[2 * i as usize + 1]) = (i, i + 32);
        (high[2 * i as usize], high[2 * i as usize + 1]) = (i + 16, i + 48);
    }
    (low, high)
}
