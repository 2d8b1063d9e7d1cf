// Weights decoded from the number formats of GGUF files.
#pragma once

#include "numbers.cuh"

__device__ inline float half_at(const uint8_t *b) { return __half2float(__ushort_as_half((uint16_t)(b[0] | b[1] << 8))); }
__device__ inline float single_at(const uint8_t *b) {
    return __uint_as_float((uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24);
}

__constant__ int8_t IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The low half of each of 16 bytes, then the high half.
__device__ inline int nibble(const uint8_t *b, int i) { return b[i % 16] >> (i / 16 * 4) & 15; }
// Bit i of four bytes, as the fifth bit of a value.
__device__ inline int fifth(const uint8_t *b, int i) { return (b[i / 8] >> (i % 8) & 1) << 4; }

// Value i of group `at` of a block; formats are numbered as `Format` is. Sums and products are rounded one by one, as on
// the CPU, so that the values are the same to the last bit.
__device__ inline float decoded(int format, const uint8_t *b, int at, int i) {
    int part = at / 4, k = at % 4;
    switch (format) {
    case 0: return single_at(b + 4 * i);
    case 1: return half_at(b + 2 * i);
    case 2: return __uint_as_float((uint32_t)(b[2 * i] | b[2 * i + 1] << 8) << 16);
    case 3: return __fmul_rn((float)(nibble(b + 2, i) - 8), half_at(b));
    case 4: return __fadd_rn(__fmul_rn((float)nibble(b + 4, i), half_at(b)), half_at(b + 2));
    case 5: return __fmul_rn((float)((nibble(b + 6, i) | fifth(b + 2, i)) - 16), half_at(b));
    case 6: return __fadd_rn(__fmul_rn((float)(nibble(b + 8, i) | fifth(b + 4, i)), half_at(b)), half_at(b + 2));
    case 7: return __fmul_rn((float)(int8_t)b[2 + i], half_at(b));
    case 8: {
        int scale = b[8 * part + 2 * k + i / 16], q = b[16 + 32 * part + i] >> (2 * k) & 3;
        float more = __fmul_rn(__fmul_rn(half_at(b + 80), (float)(scale & 15)), (float)q);
        return __fsub_rn(more, __fmul_rn(half_at(b + 82), (float)(scale >> 4)));
    }
    case 9: {
        int s = 8 * part + 2 * k + i / 16;
        int scale = (b[96 + s % 8] >> (s / 8 * 4) & 15) | (b[104 + s % 4] >> (s / 4 * 2) & 3) << 4;
        int q = (b[32 + 32 * part + i] >> (2 * k) & 3) - ((b[i] >> at & 1) ? 0 : 4);
        return __fmul_rn(__fmul_rn(half_at(b + 108), (float)(scale - 32)), (float)q);
    }
    case 10:
    case 11: {
        const uint8_t *s = b + 4;
        int scale = at < 4 ? s[at] & 63 : (s[at + 4] & 15) | s[at - 4] >> 6 << 4;
        int least = at < 4 ? s[at + 4] & 63 : s[at + 4] >> 4 | s[at] >> 6 << 4;
        int q = b[(format == 10 ? 16 : 48) + 32 * (at / 2) + i] >> (at % 2 * 4) & 15;
        if (format == 11) q |= (b[16 + i] >> at & 1) << 4;
        float d = __fmul_rn(half_at(b), (float)scale), m = __fmul_rn(half_at(b + 2), (float)least);
        return __fsub_rn(__fmul_rn(d, (float)q), m);
    }
    case 12: {
        int low = b[64 * part + 32 * (k % 2) + i] >> (k / 2 * 4) & 15, high = b[128 + 32 * part + i] >> (2 * k) & 3;
        float d = __fmul_rn(half_at(b + 208), (float)(int8_t)b[192 + 8 * part + 2 * k + i / 16]);
        return __fmul_rn(d, (float)((low | high << 4) - 32));
    }
    case 13: return __fmul_rn(half_at(b), (float)IQ4[nibble(b + 2, i)]);
    default: {
        int low = b[4 + at / 2] >> (at % 2 * 4) & 15, high = (b[2] | b[3] << 8) >> (2 * at) & 3;
        float scale = __fmul_rn(half_at(b), (float)((low | high << 4) - 32));
        return __fmul_rn(scale, (float)IQ4[nibble(b + 8 + 16 * at, i)]);
    }
    }
}

// Rows of a stored matrix: those of `ids`, or from `first` on. A warp decodes a group of 32 values.
template <class T>
__device__ void decode(const uint8_t *bytes, int format, int per_block, int block_bytes, int row_groups, size_t first,
                       const uint32_t *ids, T *to, size_t groups) {
    size_t group = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (group >= groups) return;
    size_t row = group / row_groups;
    int in_row = group % row_groups, lane = threadIdx.x % 32;
    size_t source = ids ? ids[row] : first + row;
    size_t block = source * (row_groups / per_block) + in_row / per_block;
    put(to[group * 32 + lane], decoded(format, bytes + block * block_bytes, in_row % per_block, lane));
}

#define DECODE(NAME, T) \
    extern "C" __global__ void apa_decode_##NAME(const uint8_t *bytes, int format, int per_block, int block_bytes, int row_groups, \
                                             size_t first, const uint32_t *ids, T *to, size_t groups) { \
        decode(bytes, format, per_block, block_bytes, row_groups, first, ids, to, groups); \
    }

DECODE(f32, float)
DECODE(bf16, bf16)
