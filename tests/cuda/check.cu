// Kernels that check.cpp launches: what the emulated device must compute, and faults that it must tell.
#include <cuda_bf16.h>
#include <mma.h>

template <class T>
__device__ T block_sum(T x) {
    static __shared__ T parts[32];
    for (int other = 16; other > 0; other >>= 1) x += __shfl_xor_sync(0xffffffff, x, other);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : T(0);
    if (threadIdx.x < 32)
        for (int by = 16; by > 0; by >>= 1) x += __shfl_down_sync(0xffffffff, x, by);
    return x;
}

// Sums of rows, and of all.
extern "C" __global__ void __launch_bounds__(256) sums(const float *in, float *rows, float *all, int columns) {
    float sum = 0;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += in[blockIdx.x * columns + c];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        rows[blockIdx.x] = sum;
        atomicAdd(all, sum);
    }
}

// Reverses each row by way of dynamic shared memory.
extern "C" __global__ void reversed(const float4 *in, float4 *out) {
    extern __shared__ __align__(16) float4 row[];
    const float4 *from = in + blockIdx.x * blockDim.x;
    row[threadIdx.x] = from[threadIdx.x];
    __syncthreads();
    float4 v = row[blockDim.x - 1 - threadIdx.x];
    out[blockIdx.x * blockDim.x + threadIdx.x] = make_float4(v.w, v.z, v.y, v.x);
}

// The same without a barrier.
extern "C" __global__ void raced(const float *in, float *out) {
    __shared__ float row[64];
    row[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = row[63 - threadIdx.x];
}

// c = a b^T of 16 rows, 16 columns and any multiple of 16 between, by one warp.
extern "C" __global__ void tiles(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int k) {
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 16, __nv_bfloat16, row_major> left;
    fragment<matrix_b, 16, 16, 16, __nv_bfloat16, col_major> right;
    fragment<accumulator, 16, 16, 16, float> sums;
    fill_fragment(sums, 0.0f);
    for (int p = 0; p < k; p += 16) {
        load_matrix_sync(left, a + p, k);
        load_matrix_sync(right, b + p, k);
        mma_sync(sums, left, right, sums);
    }
    store_matrix_sync(c, sums, 16, mem_row_major);
}

extern "C" __global__ void beyond_memory(float *out, int at) { out[at] = 1; }
extern "C" __global__ void beyond_array(float *out, int at) {
    __shared__ float row[32];
    row[(threadIdx.x + at) % 64] = 1;
    out[threadIdx.x] = row[threadIdx.x];
}
extern "C" __global__ void beyond_shared(float *out, int at) {
    extern __shared__ float row[];
    out[0] = row[at];
}
extern "C" __global__ void half_a_barrier(float *out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1;
}
extern "C" __global__ void half_a_warp(float *out) {
    float x = 1;
    if (threadIdx.x < 16)
        x = __shfl_xor_sync(0xffffffff, x, 1);
    else
        __syncthreads();
    out[threadIdx.x] = x;
}
extern "C" __global__ void tile_awry(const __nv_bfloat16 *a) {
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, __nv_bfloat16, nvcuda::wmma::row_major> left;
    load_matrix_sync(left, a + 1, 16);
}
extern "C" __global__ void misaligned(float *out, int at) {
    *reinterpret_cast<float4 *>(out + at) = make_float4(1, 2, 3, 4);
}
extern "C" __global__ void unwritten_shared(float *out) {
    __shared__ __align__(16) float row[64];
    if (threadIdx.x < 32) row[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x];
}
