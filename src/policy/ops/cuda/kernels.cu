// The trainer's kernels for CUDA: norms, rotation, activations, the optimizer, the head's softmax; and what is included: attention, and
// weights decoded. Products of matrices are cuBLAS's. Sums have a fixed order, so a step gives the same bits each time.

#include "attention.cuh"
#include "decode.cuh"

// ---- norms: a block for each row ----

struct Moments {
    float mean, root; // root: 1 / sqrt(mean of squares + eps)
};

template <class X> __device__ Moments moments(const X *x, int width, float eps, bool centred) {
    float mean = 0;
    if (centred) {
        float sum = 0;
        for (int i = threadIdx.x; i < width; i += blockDim.x) sum += real(x[i]);
        mean = block_sum(sum) / width;
    }
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float c = real(x[i]) - mean;
        squares += c * c;
    }
    return {mean, rsqrtf(block_sum(squares) / width + eps)};
}

// y = (x - mean) / root mean square * weight + bias; RMSNorm where there is no bias, then without the mean.
template <class X, class Y>
__device__ void norm(const X *x, const float *weight, const float *bias, Y *y, int width, float eps) {
    x += (size_t)blockIdx.x * width, y += (size_t)blockIdx.x * width;
    Moments m = moments(x, width, eps, bias != nullptr);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float v = (real(x[i]) - m.mean) * m.root * weight[i];
        put(y[i], bias ? v + bias[i] : v);
    }
}

// dx = the norm's gradient, plus `more` where it is given.
template <class X, class Y>
__device__ void norm_slopes(const X *x, const float *weight, const Y *dy, const float *more, X *dx, int width, float eps,
                            int centred) {
    size_t at = (size_t)blockIdx.x * width;
    x += at, dy += at, dx += at;
    Moments m = moments(x, width, eps, centred);
    float along = 0, sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float g = real(dy[i]) * weight[i];
        along += g * (real(x[i]) - m.mean);
        sum += g;
    }
    along = block_sum(along) / width * m.root * m.root;
    sum = centred ? block_sum(sum) / width : 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float g = real(dy[i]) * weight[i];
        float v = m.root * (g - sum - (real(x[i]) - m.mean) * along);
        put(dx[i], more ? v + more[at + i] : v);
    }
}

#define NORM(NAME, X, Y) \
    extern "C" __global__ void apa_norm_##NAME(const X *x, const float *weight, const float *bias, Y *y, int width, float eps) { \
        norm(x, weight, bias, y, width, eps); \
    } \
    NORM_SLOPES(NAME, X, Y)
#define NORM_SLOPES(NAME, X, Y) \
    extern "C" __global__ void apa_norm_slopes_##NAME(const X *x, const float *weight, const Y *dy, const float *more, X *dx, \
                                                  int width, float eps, int centred) { \
        norm_slopes(x, weight, dy, more, dx, width, eps, centred); \
    }

NORM(f32_f32, float, float)
NORM(f32_bf16, float, bf16)
NORM(bf16_bf16, bf16, bf16)
NORM_SLOPES(bf16_f32, bf16, float)

// ---- rotation ----

// y = x [n, heads, dim] with pairs rotated by the tokens' angles, cos and sin [n, half]; the rest is copied. Sign -1 turns back.
template <class X, class Y>
__device__ void rope(const X *x, Y *y, const float *cos, const float *sin, int heads, int dim, int half, int interleaved,
                     float sign, size_t count) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int d = i % dim;
    if (d >= 2 * half) {
        put(y[i], real(x[i]));
        return;
    }
    size_t token = i / dim / heads;
    int pair = interleaved ? d / 2 : d % half, step = interleaved ? 1 : half;
    bool second = interleaved ? d % 2 : d >= half;
    float c = cos[token * half + pair], s = sign * sin[token * half + pair];
    float mine = real(x[i]), other = real(second ? x[i - step] : x[i + step]);
    put(y[i], second ? other * s + mine * c : mine * c - other * s);
}

#define ROPE(NAME, X, Y) \
    extern "C" __global__ void apa_rope_##NAME(const X *x, Y *y, const float *cos, const float *sin, int heads, int dim, \
                                               int half, int interleaved, float sign, size_t count) { \
        rope(x, y, cos, sin, heads, dim, half, interleaved, sign, count); \
    }

ROPE(f32_f32, float, float)
ROPE(f32_bf16, float, bf16)
ROPE(bf16_bf16, bf16, bf16)

// ---- activations ----

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ inline float silu_slope(float x) {
    float s = 1.0f / (1.0f + expf(-x));
    return s * (1.0f + x * (1.0f - s));
}

// GELU by tanh, as ggml and so the trainer compute it.
#define GELU_ROOT 0.7978845608028654f
#define GELU_CUBE 0.044715f
__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + tanhf(GELU_ROOT * x * (1.0f + GELU_CUBE * x * x))); }
__device__ inline float gelu_slope(float x) {
    float t = tanhf(GELU_ROOT * x * (1.0f + GELU_CUBE * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_ROOT * (1.0f + 3.0f * GELU_CUBE * x * x);
}

// y = silu(gate) * up.
template <class T> __device__ void swiglu(const T *gate, const T *up, T *y, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(y[i], silu(real(gate[i])) * real(up[i]));
}

template <class T> __device__ void swiglu_slopes(const T *gate, const T *up, const T *dy, T *dgate, T *dup, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float g = real(gate[i]), d = real(dy[i]);
    put(dgate[i], d * real(up[i]) * silu_slope(g));
    put(dup[i], d * silu(g));
}

template <class T> __device__ void gelu_all(const T *x, T *y, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(y[i], gelu(real(x[i])));
}

template <class T> __device__ void gelu_slopes(const T *x, const T *dy, T *dx, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(dx[i], real(dy[i]) * gelu_slope(real(x[i])));
}

#define ACTIVATIONS(NAME, T) \
    extern "C" __global__ void apa_swiglu_##NAME(const T *gate, const T *up, T *y, size_t n) { swiglu(gate, up, y, n); } \
    extern "C" __global__ void apa_swiglu_slopes_##NAME(const T *gate, const T *up, const T *dy, T *dgate, T *dup, size_t n) { \
        swiglu_slopes(gate, up, dy, dgate, dup, n); \
    } \
    extern "C" __global__ void apa_gelu_##NAME(const T *x, T *y, size_t n) { gelu_all(x, y, n); } \
    extern "C" __global__ void apa_gelu_slopes_##NAME(const T *x, const T *dy, T *dx, size_t n) { gelu_slopes(x, dy, dx, n); }

ACTIVATIONS(f32, float)
ACTIVATIONS(bf16, bf16)

// ---- rows ----

template <class X, class Y> __device__ void cast(const X *x, Y *y, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(y[i], real(x[i]));
}

extern "C" __global__ void apa_cast_f32_bf16(const float *x, bf16 *y, size_t n) { cast(x, y, n); }
extern "C" __global__ void apa_cast_bf16_f32(const bf16 *x, float *y, size_t n) { cast(x, y, n); }

// y [n / width, width] = bias in each row, or plus it.
template <class T> __device__ void bias(T *y, const float *bias, int width, int add, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(y[i], (add ? real(y[i]) : 0.0f) + bias[i % width]);
}

extern "C" __global__ void apa_bias_f32(float *y, const float *b, int width, int add, size_t n) { bias(y, b, width, add, n); }
extern "C" __global__ void apa_bias_bf16(bf16 *y, const float *b, int width, int add, size_t n) { bias(y, b, width, add, n); }

// ---- the optimizer ----

extern "C" __global__ void apa_adamw(float *weights, const float *grads, const float *first, const float *second,
                                     float *new_first, float *new_second, float scale, float one, float two, float rate,
                                     float correction, float keep, float epsilon, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float g = grads[i] * scale;
    float m = first[i] * one + g * (1.0f - one), v = second[i] * two + g * g * (1.0f - two);
    new_first[i] = m, new_second[i] = v;
    weights[i] = weights[i] * keep - rate * m / (sqrtf(v * correction) + epsilon);
}

// ---- the head: a block for each row of logits [rows, words] ----

struct Logits {
    const float *row, *bias;
    float inverse;
    __device__ Logits(const float *logits, const float *bias, const float *inverses, int words)
        : row(logits + (size_t)blockIdx.x * words), bias(bias), inverse(inverses[blockIdx.x]) {}
    __device__ float operator[](int i) const { return (bias ? row[i] + bias[i] : row[i]) * inverse; }
};

// Log of the sum of exponentials, log-probability of the target, and entropy of each row's distribution.
extern "C" __global__ void apa_softmax(const float *logits, const float *bias, const float *inverses, const uint32_t *targets,
                                   float *log_sums, float *logprobs, float *entropies, int words) {
    Logits l(logits, bias, inverses, words);
    __shared__ float most[32];
    float largest = -INFINITY;
    for (int i = threadIdx.x; i < words; i += blockDim.x) largest = fmaxf(largest, l[i]);
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
    if (threadIdx.x % 32 == 0) most[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int i = 0; i < (int)(blockDim.x + 31) / 32; i++) largest = fmaxf(largest, most[i]);
    float sum = 0, moment = 0;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        float x = l[i] - largest, e = expf(x);
        sum += e;
        // A word that can't be said, of a logit of -inf, adds nothing.
        if (e != 0) moment += e * x;
    }
    sum = block_sum(sum), moment = block_sum(moment);
    if (threadIdx.x == 0) {
        float log_sum = largest + logf(sum);
        log_sums[blockIdx.x] = log_sum;
        logprobs[blockIdx.x] = l[targets[blockIdx.x]] - log_sum;
        entropies[blockIdx.x] = logf(sum) - moment / sum;
    }
}

// The gradient of the rows' log-probabilities in the logits before bias and temperature.
template <class T>
__device__ void softmax_slopes(const float *logits, const float *bias, const float *inverses, const uint32_t *targets,
                               const float *log_sums, const float *dy, T *slopes, int words) {
    Logits l(logits, bias, inverses, words);
    slopes += (size_t)blockIdx.x * words;
    float factor = dy[blockIdx.x] * l.inverse, log_sum = log_sums[blockIdx.x];
    int target = targets[blockIdx.x];
    for (int i = threadIdx.x; i < words; i += blockDim.x)
        put(slopes[i], factor * ((i == target ? 1.0f : 0.0f) - expf(l[i] - log_sum)));
}

#define SOFTMAX_SLOPES(NAME, T) \
    extern "C" __global__ void apa_softmax_slopes_##NAME(const float *logits, const float *bias, const float *inverses, \
                                                     const uint32_t *targets, const float *log_sums, const float *dy, \
                                                     T *slopes, int words) { \
        softmax_slopes(logits, bias, inverses, targets, log_sums, dy, slopes, words); \
    }

SOFTMAX_SLOPES(f32, float)
SOFTMAX_SLOPES(bf16, bf16)

// KL of each row's distribution to the other's, nats.
extern "C" __global__ void apa_softmax_kl(const float *logits, const float *others, const float *bias, const float *inverses,
                                      const float *log_sums, const float *other_log_sums, float *kl, int words) {
    Logits p(logits, bias, inverses, words), q(others, bias, inverses, words);
    float log_sum = log_sums[blockIdx.x], other = other_log_sums[blockIdx.x], sum = 0;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        float log_p = p[i] - log_sum, e = expf(log_p);
        if (e != 0) sum += e * (log_p - (q[i] - other));
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) kl[blockIdx.x] = sum;
}
