// The two number formats of the kernels, and a block's sum. `T` is float or __nv_bfloat16; arithmetic is in float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

__device__ inline float real(float x) { return x; }
__device__ inline float real(bf16 x) { return __bfloat162float(x); }
__device__ inline void put(float &to, float x) { to = x; }
__device__ inline void put(bf16 &to, float x) { to = __float2bfloat16(x); }

// The sum of every thread's value, for every thread of the block.
__device__ inline float block_sum(float x) {
    __shared__ float parts[32];
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < (int)(blockDim.x + 31) / 32; i++) sum += parts[i];
    return sum;
}
