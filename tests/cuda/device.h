// CUDA C++ as kernels see it, for a compiler of the CPU. Stands in for cuda_runtime.h, cuda_bf16.h and others.
#pragma once
#include "machine.h"
#include "numbers.h"
#include <algorithm>
#include <cassert>
#include <cstdio>
#include <limits>
#include <utility>

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
// module.sh sees to __global__, __launch_bounds__ and __shared__, which is memory of the CPU thread that runs the
// block.

#undef assert
#define assert(that) ((that) ? void() : emu::fail("%s:%d: not so: %s", __FILE__, __LINE__, #that))

#define threadIdx (emu::position->thread)
#define blockIdx (emu::position->block)
#define blockDim (emu::position->block_size)
#define gridDim (emu::position->grid_size)
constexpr int warpSize = 32;
using dim3 = emu::Dim;
using uint3 = emu::Dim;

namespace emu {

// Calls a kernel with the arguments of a launch.
template <class... P, size_t... I>
void call(void (*kernel)(P...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<P> *>(arguments[I])...);
}
template <class... P>
void call(void (*kernel)(P...), void **arguments) {
    call(kernel, arguments, std::index_sequence_for<P...>{});
}

template <class T>
void check(size_t number, const T &argument) {
    if constexpr (std::is_pointer_v<T>) check_argument(number, argument);
}
template <class... P, size_t... I>
void check(void (*)(P...), void **arguments, std::index_sequence<I...>) {
    (check(I, *static_cast<std::remove_cv_t<P> *>(arguments[I])), ...);
}
template <class... P>
void check(void (*kernel)(P...), void **arguments) {
    check(kernel, arguments, std::index_sequence_for<P...>{});
}

template <class T>
T *dynamic_shared() {
    if (!position) fail("extern __shared__ is only emulated within a kernel");
    return reinterpret_cast<T *>(position->dynamic_shared);
}

}  // namespace emu

// Vectors of 2, 3 and 4.
#define EMU_VECTORS(T, name, two, four)                                \
    struct alignas(two) name##2 { T x, y; };                           \
    struct name##3 { T x, y, z; };                                     \
    struct alignas(four) name##4 { T x, y, z, w; };                    \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint_, 8, 16)
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(long long, longlong, 16, 16)
using uint2 = uint_2;
using uint4 = uint_4;
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Barriers and operations of a warp.
inline void __syncthreads() { emu::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { emu::collective(mask, 0); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { emu::fail("trap"); }
inline unsigned __ballot_sync(unsigned mask, int vote) {
    const emu::Collective &told = emu::collective(mask, vote != 0);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++) votes |= (told.lanes >> i & 1) && told.values[i] ? 1u << i : 0;
    return votes;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }

namespace emu {

// What the lane `from` told of those in the same part of the warp; one's own value from beyond it, 0xFF of a lane that
// isn't there.
template <class T>
T shuffle(unsigned mask, T own, int from, int width) {
    static_assert(sizeof(T) <= 8);
    uint64_t value = 0;
    memcpy(&value, &own, sizeof own);
    const Collective &told = collective(mask, value);
    int begin = static_cast<int>(lane()) & ~(width - 1);
    if (from < begin || from >= begin + width) return own;
    memcpy(&own, &told.values[from], sizeof own);
    return own;
}

inline int own_lane() { return static_cast<int>(lane()); }

}  // namespace emu

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    return emu::shuffle(mask, value, (emu::own_lane() & ~(width - 1)) + (from & (width - 1)), width);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32) {
    return emu::shuffle(mask, value, emu::own_lane() ^ other, width);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return emu::shuffle(mask, value, emu::own_lane() + static_cast<int>(by), width);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return emu::shuffle(mask, value, emu::own_lane() - static_cast<int>(by), width);
}

// Atomic operations.
namespace emu {
template <class T, class F>
T atomically(T *address, F next) {
    T old, now;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do now = next(old);
    while (!__atomic_compare_exchange(address, &old, &now, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
}  // namespace emu
#define EMU_ATOMIC(name, next)                                             \
    template <class T>                                                     \
    inline T name(T *address, emu::same<T> v) {                            \
        return emu::atomically(address, [=](T old) -> T { return next; }); \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, old < v ? v : old)
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicAnd, old &v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, v)
template <class T>
inline T atomicCAS(T *address, emu::same<T> expected, emu::same<T> v) {
    return emu::atomically(address, [=](T old) -> T { return old == expected ? v : old; });
}

// Mathematics. The quick functions are exact here, for what they lose is the device's.
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using C = std::common_type_t<A, B>;
    return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using C = std::common_type_t<A, B>;
    return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a);
}
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline double normcdf(double x) { return erfc(-x * 0.70710678118654752440) / 2; }
inline float normcdff(float x) { return static_cast<float>(normcdf(x)); }
template <class T>
inline T __ldg(const T *address) {
    return *address;
}
template <class T>
inline T __ldcs(const T *address) {
    return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(uint64_t{x} * y >> 32); }
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    return sum;
}
// Differences of four signed bytes, held within their range.
inline int __vsubss4(int a, int b) {
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        int difference = static_cast<int8_t>(a >> 8 * i) - static_cast<int8_t>(b >> 8 * i);
        out |= static_cast<unsigned>(std::clamp(difference, -128, 127) & 0xFF) << 8 * i;
    }
    return static_cast<int>(out);
}
#define EMU_BITS(name, To, From) \
    inline To name(From x) { return emu::bits<To>(x); }
EMU_BITS(__float_as_uint, unsigned, float)
EMU_BITS(__float_as_int, int, float)
EMU_BITS(__uint_as_float, float, unsigned)
EMU_BITS(__int_as_float, float, int)
EMU_BITS(__double_as_longlong, long long, double)
EMU_BITS(__longlong_as_double, double, long long)
EMU_BITS(__half_as_ushort, unsigned short, __half)
EMU_BITS(__ushort_as_half, __half, unsigned short)
EMU_BITS(__bfloat16_as_ushort, unsigned short, __nv_bfloat16)
EMU_BITS(__ushort_as_bfloat16, __nv_bfloat16, unsigned short)

// Functions of the small numbers, by their names in cuda_fp16.h and cuda_bf16.h.
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
namespace emu {
#define EMU_SMALL(name, value)         \
    template <class F>                 \
    inline Small<F> name(Small<F> a) { \
        float x = a;                   \
        return value;                  \
    }
EMU_SMALL(hsqrt, sqrtf(x))
EMU_SMALL(hcos, cosf(x))
EMU_SMALL(hsin, sinf(x))
EMU_SMALL(hlog, logf(x))
EMU_SMALL(hexp, expf(x))
EMU_SMALL(hrsqrt, 1 / sqrtf(x))
EMU_SMALL(__habs, fabsf(x))
EMU_SMALL(__hneg, -x)
#define EMU_SMALL_TWO(name, value)                                \
    template <class F>                                            \
    inline Small<F> name(Small<F> a, Small<F> b) {                \
        float x = a, y = b;                                       \
        return value;                                             \
    }                                                             \
    template <class F>                                            \
    inline SmallPair<F> name##2(SmallPair<F> a, SmallPair<F> b) { \
        return {name(a.x, b.x), name(a.y, b.y)};                  \
    }
EMU_SMALL_TWO(__hadd, x + y)
EMU_SMALL_TWO(__hsub, x - y)
EMU_SMALL_TWO(__hmul, x *y)
EMU_SMALL_TWO(__hdiv, x / y)
EMU_SMALL_TWO(__hmax, fmaxf(x, y))
EMU_SMALL_TWO(__hmin, fminf(x, y))
template <class F>
inline __attribute__((always_inline)) bool __hisnan(Small<F> x) {
    return std::isnan(static_cast<float>(x));
}
template <class F>
inline Small<F> __hmax_nan(Small<F> a, Small<F> b) {
    return __hisnan(a) || __hisnan(b) ? Small<F>(NAN) : __hmax(a, b);
}
template <class F>
inline Small<F> __hmin_nan(Small<F> a, Small<F> b) {
    return __hisnan(a) || __hisnan(b) ? Small<F>(NAN) : __hmin(a, b);
}
template <class F>
inline Small<F> __hfma(Small<F> a, Small<F> b, Small<F> c) {
    return fmaf(a, b, c);
}
}  // namespace emu

// Candle names this type in every file; numbers of 8 bits aren't emulated.
enum { __NV_E4M3 };
struct __nv_fp8_e4m3 {
    uint8_t __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float) { emu::fail("numbers of 8 bits aren't emulated"); }
};
inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { emu::fail("numbers of 8 bits aren't emulated"); }

namespace cuda::std {
using ::std::numeric_limits;
}
