// Causal attention with grouped heads over packed sequences, in both directions.
#pragma once

#include "numbers.cuh"

// A tile is (first row, rows, start and end of its sequence). A block takes the 64 rows of a tile, `own`, for one head,
// and sweeps over the rows that they see, or are seen by, 32 at a time; a warp has 16 of the rows. Scores are computed
// anew in each sweep and never stored.

#define OWN 64
#define STEP 32
#define SCORES (STEP + 4)
#define WEIGHTS (STEP + 8)

// A sum of products of 16 x 16 tiles in shared memory, held by a warp. AT, BT: the operand is stored transposed.
template <class T> struct Sum;

template <> struct Sum<bf16> {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum;
    __device__ void zero() { nvcuda::wmma::fill_fragment(sum, 0.0f); }
    // a [16, 16] row by row; b [16, 16] row by row.
    __device__ void add(const bf16 *a, int lda, const bf16 *b, int ldb) {
        using namespace nvcuda::wmma;
        fragment<matrix_a, 16, 16, 16, bf16, row_major> left;
        fragment<matrix_b, 16, 16, 16, bf16, row_major> right;
        load_matrix_sync(left, a, lda);
        load_matrix_sync(right, b, ldb);
        mma_sync(sum, left, right, sum);
    }
    // The same with b transposed: b [n, k].
    __device__ void add_transposed(const bf16 *a, int lda, const bf16 *b, int ldb) {
        using namespace nvcuda::wmma;
        fragment<matrix_a, 16, 16, 16, bf16, row_major> left;
        fragment<matrix_b, 16, 16, 16, bf16, col_major> right;
        load_matrix_sync(left, a, lda);
        load_matrix_sync(right, b, ldb);
        mma_sync(sum, left, right, sum);
    }
    __device__ void store(float *to, int ld) {
        nvcuda::wmma::store_matrix_sync(to, sum, ld, nvcuda::wmma::mem_row_major);
    }
};

// Each lane has half a row.
template <> struct Sum<float> {
    float sum[8];
    __device__ void zero() {
        for (int j = 0; j < 8; j++) sum[j] = 0;
    }
    __device__ void add(const float *a, int lda, const float *b, int ldb) {
        int row = threadIdx.x % 32 / 2, col = threadIdx.x % 2 * 8;
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) sum[j] += a[row * lda + k] * b[k * ldb + col + j];
    }
    __device__ void add_transposed(const float *a, int lda, const float *b, int ldb) {
        int row = threadIdx.x % 32 / 2, col = threadIdx.x % 2 * 8;
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) sum[j] += a[row * lda + k] * b[(col + j) * ldb + k];
    }
    __device__ void store(float *to, int ld) {
        int row = threadIdx.x % 32 / 2, col = threadIdx.x % 2 * 8;
        for (int j = 0; j < 8; j++) to[row * ld + col + j] = sum[j];
    }
};

// Copies `count` rows of a head of x [n, heads, dim], from row `first` on, to `rows` rows of a tile, zeros elsewhere.
template <class T, int DIM>
__device__ void load(T *tile, int rows, const T *x, int heads, int head, int dim, int first, int count) {
    constexpr int LD = DIM + 16 / sizeof(T), VECTOR = 16 / sizeof(T), ROW = DIM / VECTOR;
    size_t width = (size_t)heads * dim;
    x += first * width + (size_t)head * dim;
    if (dim % VECTOR == 0) {
        for (int i = threadIdx.x; i < rows * ROW; i += blockDim.x) {
            int row = i / ROW, col = i % ROW * VECTOR;
            uint4 values = {0, 0, 0, 0};
            if (row < count && col < dim) values = *(const uint4 *)(x + row * width + col);
            *(uint4 *)(tile + row * LD + col) = values;
        }
        return;
    }
    for (int i = threadIdx.x; i < rows * DIM; i += blockDim.x) {
        int row = i / DIM, col = i % DIM;
        put(tile[row * LD + col], row < count && col < dim ? real(x[row * width + col]) : 0.0f);
    }
}

// The warp's 16 rows against the tile's STEP rows: scores [16, STEP].
template <class T, int DIM> __device__ void score(const T *own, const T *tile, float *scores) {
    constexpr int LD = DIM + 16 / sizeof(T);
    for (int n = 0; n < STEP; n += 16) {
        Sum<T> sum;
        sum.zero();
        for (int d = 0; d < DIM; d += 16) sum.add_transposed(own + d, LD, tile + n * LD + d, LD);
        sum.store(scores + n, SCORES);
    }
    __syncwarp();
}

struct Heads {
    int heads, kv_heads, dim, window;
    float scale;
};

// Log of the sum of exponentials of each query's scores, [n, heads].
template <class T, int DIM>
__device__ void log_sums(const T *q, const T *k, float *sums, const int4 *tiles, Heads h) {
    extern __shared__ __align__(128) unsigned char shared[];
    constexpr int LD = DIM + 16 / sizeof(T);
    T *own = (T *)shared, *tile = own + OWN * LD;
    float *scores = (float *)(tile + STEP * LD);
    int4 place = tiles[blockIdx.x];
    int warp = threadIdx.x / 32, row = threadIdx.x / 2, half = threadIdx.x % 2 * (STEP / 2), query = place.x + row;
    float *mine = scores + warp * 16 * SCORES, *line = scores + row * SCORES + half;
    load<T, DIM>(own, OWN, q, h.heads, blockIdx.y, h.dim, place.x, place.y);
    float largest = -INFINITY, sum = 0;
    for (int at = max(place.z, place.x - h.window + 1); at < place.x + place.y; at += STEP) {
        int count = min(STEP, place.x + place.y - at);
        __syncthreads();
        load<T, DIM>(tile, STEP, k, h.kv_heads, blockIdx.y / (h.heads / h.kv_heads), h.dim, at, count);
        __syncthreads();
        score<T, DIM>(own + warp * 16 * LD, tile, mine);
        for (int i = 0; i < STEP / 2; i++) {
            int key = at + half + i;
            if (half + i >= count || key > query || query - key >= h.window) continue;
            float x = line[i] * h.scale;
            if (x > largest) sum *= expf(largest - x), largest = x;
            sum += expf(x - largest);
        }
        __syncwarp();
    }
    float other = __shfl_xor_sync(0xffffffff, largest, 1), more = __shfl_xor_sync(0xffffffff, sum, 1);
    float both = fmaxf(largest, other);
    if (row < place.y && half == 0) {
        // A half that saw no key has no sum.
        float total = (sum != 0 ? sum * expf(largest - both) : 0) + (more != 0 ? more * expf(other - both) : 0);
        sums[(size_t)query * h.heads + blockIdx.y] = both + logf(total);
    }
}

// QUERIES: the rows are queries and what they see are keys; else the other way round. Weights are P, or with SLOPES the
// scores' gradient P (dP - delta) scale, dP = own2 . values. out = weights . values, or with SLOPES weights . other.
//     out:  QUERIES, P         (q, -, k, v)        dv: keys, P         (k, -, q, dout)
//     dq:   QUERIES, SLOPES    (q, dout, k, v)     dk: keys, SLOPES    (k, v, q, dout)
template <class T, int DIM, bool QUERIES, bool SLOPES, class OUT>
__device__ void sweep(const T *own, const T *own2, const T *other, const T *values, OUT *out, const float *sums,
                      const float *deltas, const int4 *tiles, Heads h) {
    extern __shared__ __align__(128) unsigned char shared[];
    constexpr int LD = DIM + 16 / sizeof(T);
    T *rows = (T *)shared, *tile = rows + OWN * LD, *weights = tile + STEP * LD;
    float *scores = (float *)(weights + OWN * WEIGHTS);
    T *rows2 = (T *)(scores + OWN * SCORES); // with SLOPES alone
    int4 place = tiles[blockIdx.x];
    int group = h.heads / h.kv_heads, own_heads = QUERIES ? h.heads : h.kv_heads;
    int other_heads = QUERIES ? h.kv_heads : h.heads;
    int warp = threadIdx.x / 32, row = threadIdx.x / 2, half = threadIdx.x % 2 * (STEP / 2);
    int from = QUERIES ? max(place.z, place.x - h.window + 1) : place.x;
    int to = QUERIES ? place.x + place.y : min(place.w, place.x + place.y - 1 + h.window);
    load<T, DIM>(rows, OWN, own, own_heads, blockIdx.y, h.dim, place.x, place.y);
    if (SLOPES) load<T, DIM>(rows2, OWN, own2, own_heads, blockIdx.y, h.dim, place.x, place.y);
    Sum<T> sum[DIM / 16];
    for (int d = 0; d < DIM / 16; d++) sum[d].zero();
    float *line = scores + row * SCORES + half;
    for (int g = 0; g < (QUERIES ? 1 : group); g++) {
        int head = QUERIES ? blockIdx.y / group : blockIdx.y * group + g, query_head = QUERIES ? blockIdx.y : head;
        for (int at = from; at < to; at += STEP) {
            int count = min(STEP, to - at);
            __syncthreads();
            load<T, DIM>(tile, STEP, other, other_heads, head, h.dim, at, count);
            __syncthreads();
            score<T, DIM>(rows + warp * 16 * LD, tile, scores + warp * 16 * SCORES);
            float p[STEP / 2];
            for (int i = 0; i < STEP / 2; i++) {
                int query = QUERIES ? place.x + row : at + half + i, key = QUERIES ? at + half + i : place.x + row;
                bool seen = row < place.y && half + i < count && key <= query && query - key < h.window;
                p[i] = seen ? expf(line[i] * h.scale - sums[(size_t)query * h.heads + query_head]) : 0.0f;
            }
            if (SLOPES) {
                __syncthreads();
                load<T, DIM>(tile, STEP, values, other_heads, head, h.dim, at, count);
                __syncthreads();
                score<T, DIM>(rows2 + warp * 16 * LD, tile, scores + warp * 16 * SCORES);
                for (int i = 0; i < STEP / 2; i++) {
                    if (p[i] == 0.0f) continue;
                    int query = QUERIES ? place.x + row : at + half + i;
                    p[i] *= (line[i] - deltas[(size_t)query * h.heads + query_head]) * h.scale;
                }
            }
            for (int i = 0; i < STEP / 2; i++) put(weights[row * WEIGHTS + half + i], p[i]);
            __syncthreads();
            load<T, DIM>(tile, STEP, SLOPES ? other : values, other_heads, head, h.dim, at, count);
            __syncthreads();
            for (int d = 0; d < DIM / 16; d++)
                for (int n = 0; n < STEP; n += 16)
                    sum[d].add(weights + warp * 16 * WEIGHTS + n, WEIGHTS, tile + n * LD + d * 16, LD);
        }
    }
    __syncthreads();
    for (int d = 0; d < DIM / 16; d++) {
        float *mine = scores + warp * 16 * SCORES;
        sum[d].store(mine, SCORES);
        __syncwarp();
        for (int i = threadIdx.x % 32; i < 256; i += 32) {
            int r = warp * 16 + i / 16, col = d * 16 + i % 16;
            if (r < place.y && col < h.dim)
                put(out[((size_t)(place.x + r) * own_heads + blockIdx.y) * h.dim + col], mine[i / 16 * SCORES + i % 16]);
        }
        __syncwarp();
    }
}

// The sum over a head of what was given out times its gradient: a warp for each of n * heads.
template <class T> __device__ void deltas(const T *out, const float *dout, float *deltas, int dim, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (i >= n) return;
    float sum = 0;
    for (int d = threadIdx.x % 32; d < dim; d += 32) sum += real(out[i * dim + d]) * dout[i * dim + d];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) deltas[i] = sum;
}

#define HEADS int heads, int kv_heads, int dim, int window, float scale
#define SWEEP(NAME, T, DIM, QUERIES, SLOPES, OUT) \
    extern "C" __global__ void apa_##NAME(const T *own, const T *own2, const T *other, const T *values, OUT *out, const float *sums, \
                                    const float *deltas, const int4 *tiles, HEADS) { \
        sweep<T, DIM, QUERIES, SLOPES>(own, own2, other, values, out, sums, deltas, tiles, \
                                       {heads, kv_heads, dim, window, scale}); \
    }
#define ATTENTION(NAME, T, DIM) \
    extern "C" __global__ void apa_log_sums_##NAME##_##DIM(const T *q, const T *k, float *sums, const int4 *tiles, HEADS) { \
        log_sums<T, DIM>(q, k, sums, tiles, {heads, kv_heads, dim, window, scale}); \
    } \
    SWEEP(attention_##NAME##_##DIM, T, DIM, true, false, T) \
    SWEEP(attention_dv_##NAME##_##DIM, T, DIM, false, false, T) \
    SWEEP(attention_dq_##NAME##_##DIM, T, DIM, true, true, float) \
    SWEEP(attention_dk_##NAME##_##DIM, T, DIM, false, true, float)

ATTENTION(f32, float, 64)
ATTENTION(f32, float, 128)
ATTENTION(f32, float, 256)
ATTENTION(bf16, bf16, 64)
ATTENTION(bf16, bf16, 128)
ATTENTION(bf16, bf16, 256)

extern "C" __global__ void apa_deltas_f32(const float *out, const float *dout, float *d, int dim, size_t n) {
    deltas(out, dout, d, dim, n);
}
extern "C" __global__ void apa_deltas_bf16(const bf16 *out, const float *dout, float *d, int dim, size_t n) {
    deltas(out, dout, d, dim, n);
}
