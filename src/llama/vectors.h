// The vectors that kernels.cpp computes with: 16 floats of AVX-512, or 8 of AVX2. Knows neither weights nor heads.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)

constexpr int LANES = 16;
constexpr int REGISTERS = 32;
using Floats = __m512;
using Ints = __m512i;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float * at) { return _mm512_loadu_ps(at); }
inline void store(float * at, Floats x) { _mm512_storeu_ps(at, x); }
inline Floats load_half(const void * at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) at)); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }   // a b + c
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats abs(Floats a) { return _mm512_abs_ps(a); }
inline float most(Floats a) { return _mm512_reduce_max_ps(a); }
inline float total(Floats a) { return _mm512_reduce_add_ps(a); }
inline Floats round(Floats a) { return _mm512_roundscale_ps(a, 0); }
inline Floats power(Floats p, Floats n, Floats) { return _mm512_scalef_ps(p, n); }  // p 2^n

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Ints load_bytes(const uint8_t * at) { return _mm512_loadu_si512(at); }
inline Ints four_bytes(int32_t value) { return _mm512_set1_epi32(value); }
inline Ints low_halves(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Ints high_halves(Ints x) { return low_halves(_mm512_srli_epi16(x, 4)); }
inline Floats floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Ints ints(Floats x) { return _mm512_cvtps_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline int32_t total_ints(Ints a) { return _mm512_reduce_add_epi32(a); }

// Writes 32 values of -127 to 127 as bytes.
inline void store_bytes(int8_t * at, const Ints * x) {
    for (int i = 0; i < 2; i++) _mm_storeu_si128((__m128i *) at + i, _mm512_cvtsepi32_epi8(x[i]));
}

// The sums of four vectors.
inline __m128 totals(Floats a, Floats b, Floats c, Floats d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Which of 32 halves differ from `value`, a bit each.
inline uint32_t unequal(const uint16_t * at, uint16_t value) {
    return _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(at), _mm512_set1_epi16((short) value));
}

// Products of bytes, four by four. `dot_small` takes weights of 0 to 15 and is called eight times at most before its sums
// are read by `sum_small`; `dot_bytes` takes weights to which BIAS was added.
constexpr int BIAS = 128;
inline Ints dot_small(Ints sum, Ints w, Ints y) { return _mm512_dpbusd_epi32(sum, w, y); }
inline Ints dot_bytes(Ints sum, Ints w, Ints y) { return _mm512_dpbusd_epi32(sum, w, y); }
inline Ints add_small(Ints a, Ints b) { return add_ints(a, b); }
inline Ints sum_small(Ints sum) { return sum; }

#else

constexpr int LANES = 8;
constexpr int REGISTERS = 16;
using Floats = __m256;
using Ints = __m256i;

inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float * at) { return _mm256_loadu_ps(at); }
inline void store(float * at, Floats x) { _mm256_storeu_ps(at, x); }
inline Floats load_half(const void * at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) at)); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }   // a b + c
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats abs(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline float most(Floats a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float total(Floats a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline Floats round(Floats a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// p 2^n, or 0 where x is below -87 or no number: 2^n would be too small for a float of full precision.
inline Floats power(Floats p, Floats n, Floats x) {
    const __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    const __m256 some = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_GE_OQ);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(scale)), some);
}

inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Ints load_bytes(const uint8_t * at) { return _mm256_loadu_si256((const __m256i *) at); }
inline Ints four_bytes(int32_t value) { return _mm256_set1_epi32(value); }
inline Ints low_halves(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Ints high_halves(Ints x) { return low_halves(_mm256_srli_epi16(x, 4)); }
inline Floats floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Ints ints(Floats x) { return _mm256_cvtps_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline int32_t total_ints(Ints a) {
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
}

inline void store_bytes(int8_t * at, const Ints * x) {
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
    _mm256_storeu_si256((__m256i *) at, _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

inline __m128 totals(Floats a, Floats b, Floats c, Floats d) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

inline uint32_t unequal(const uint16_t * at, uint16_t value) {
    const __m256i same = _mm256_set1_epi16((short) value);
    const __m256i a = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *) at), same);
    const __m256i b = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *) at + 1), same);
    return ~(uint32_t) _mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xD8));
}

#if defined(__AVXVNNI__)
constexpr int BIAS = 128;
inline Ints dot_small(Ints sum, Ints w, Ints y) { return _mm256_dpbusd_avx_epi32(sum, w, y); }
inline Ints dot_bytes(Ints sum, Ints w, Ints y) { return _mm256_dpbusd_avx_epi32(sum, w, y); }
inline Ints add_small(Ints a, Ints b) { return add_ints(a, b); }
inline Ints sum_small(Ints sum) { return sum; }
#else
// Sums of 16 bits: of eight products of two by at most 15 and 127, the largest is 30480.
constexpr int BIAS = 0;
inline Ints sum_small(Ints sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
inline Ints add_small(Ints a, Ints b) { return _mm256_add_epi16(a, b); }
inline Ints dot_small(Ints sum, Ints w, Ints y) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, y)); }
inline Ints dot_bytes(Ints sum, Ints w, Ints y) {
    return add_ints(sum, sum_small(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(y, w))));
}
#endif

#endif

}  // namespace
