// Of cuBLAS, the matrix products: plainly, with sums in float, or in double where those are asked for.
#include "machine.h"
#include "numbers.h"
#include <algorithm>
#include <vector>

namespace {

enum Status : int { success = 0, not_initialized = 1, invalid_value = 7, not_supported = 15 };
enum Type : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 14 };
enum Compute : int { in_f16 = 64, in_f32 = 68, in_f64 = 70, fast_f16 = 74, fast_bf16 = 75, fast_tf32 = 77 };

struct Matrix {
    const void *values;
    Type type;
    bool transposed;
    long rows, columns, leading, stride;
};

size_t size(Type type) { return type == f64 ? 8 : type == f32 ? 4 : 2; }

double value(const void *values, Type type, long i) {
    switch (type) {
        case f64: return static_cast<const double *>(values)[i];
        case f32: return static_cast<const float *>(values)[i];
        case f16: return static_cast<const __half *>(values)[i];
        default: return static_cast<const __nv_bfloat16 *>(values)[i];
    }
}

void store(void *values, Type type, long i, double x) {
    switch (type) {
        case f64: static_cast<double *>(values)[i] = x; break;
        case f32: static_cast<float *>(values)[i] = static_cast<float>(x); break;
        case f16: static_cast<__half *>(values)[i] = x; break;
        default: static_cast<__nv_bfloat16 *>(values)[i] = x;
    }
}

// The nearest value with the mantissa of a tensor core's TF32.
float tf32(float x) {
    return emu::bits<float>((emu::bits<uint32_t>(x) + 0xFFF + (emu::bits<uint32_t>(x) >> 13 & 1)) & ~0x1FFFu);
}

// The values with the inner index first: `inner` by `outer`, the outer one contiguous and filled up to `width` with
// zeros.
template <class T>
std::vector<T> packed(const Matrix &m, long batch, bool inner_is_column, long width, int compute) {
    long inner = inner_is_column ? m.columns : m.rows, outer = inner_is_column ? m.rows : m.columns;
    std::vector<T> out(static_cast<size_t>(inner * width), T{});
    for (long i = 0; i < inner; i++)
        for (long o = 0; o < outer; o++) {
            long row = inner_is_column ? o : i, column = inner_is_column ? i : o;
            long at = m.transposed ? column + row * m.leading : row + column * m.leading;
            T x = static_cast<T>(value(m.values, m.type, at + batch * m.stride));
            out[static_cast<size_t>(i * width + o)] =
                compute == fast_tf32 ? static_cast<T>(tf32(static_cast<float>(x))) : x;
        }
    return out;
}

template <class T>
void multiply(const Matrix &a, const Matrix &b, void *c, Type type, long ldc, long stride, double alpha, double beta,
              long batches, int compute) {
    constexpr long tall = 32, wide = 4;
    long m = a.rows, n = b.columns, k = a.columns, height = (m + tall - 1) / tall * tall,
         width = (n + wide - 1) / wide * wide;
    for (long batch = 0; batch < batches; batch++) {
        std::vector<T> left = packed<T>(a, batch, true, height, compute),
                       right = packed<T>(b, batch, false, width, compute);
        for (long j = 0; j < n; j += wide)
            for (long i = 0; i < m; i += tall) {
                T sums[wide][tall] = {};
                for (long p = 0; p < k; p++) {
                    const T *x = &left[static_cast<size_t>(p * height + i)],
                            *y = &right[static_cast<size_t>(p * width + j)];
                    for (long q = 0; q < wide; q++)
                        for (long r = 0; r < tall; r++) sums[q][r] += x[r] * y[q];
                }
                for (long q = 0; q < std::min(wide, n - j); q++)
                    for (long r = 0; r < std::min(tall, m - i); r++) {
                        long at = i + r + (j + q) * ldc + batch * stride;
                        store(c, type, at, alpha * sums[q][r] + (beta == 0 ? 0 : beta * value(c, type, at)));
                    }
            }
    }
}

double scalar(const void *pointer, int compute) {
    return value(pointer, compute == in_f64 ? f64 : compute == in_f16 ? f16 : f32, 0);
}

Status product(const char *who, int transa, int transb, long m, long n, long k, const void *alpha, const void *a,
               int type_a, long lda, long stride_a, const void *b, int type_b, long ldb, long stride_b,
               const void *beta, void *c, int type_c, long ldc, long stride_c, long batches, int compute) {
    bool halves = type_a == f16 || type_a == bf16,
         plain = compute == in_f32 || (compute >= fast_f16 && compute <= fast_tf32);
    bool known =
        type_a == type_b && ((compute == in_f64 && type_a == f64 && type_c == f64) ||
                             (compute == in_f16 && type_a == f16 && type_c == f16) ||
                             (plain && (halves || type_a == f32) && (type_c == f32 || (halves && type_c == type_a))));
    if (!known) return not_supported;
    if (m < 0 || n < 0 || k < 0 || batches < 0 || transa > 1 || transb > 1 || lda < std::max(1l, transa ? k : m) ||
        ldb < std::max(1l, transb ? n : k) || ldc < std::max(1l, m))
        return invalid_value;
    if (!m || !n || !batches) return success;
    auto extent = [&](long rows, long columns, long leading, long stride, int type) {
        return ((columns ? (columns - 1) * leading + rows : 0) + (batches - 1) * stride) *
               size(static_cast<Type>(type));
    };
    emu::check_range(who, a, extent(transa ? k : m, transa ? m : k, lda, stride_a, type_a));
    emu::check_range(who, b, extent(transb ? n : k, transb ? k : n, ldb, stride_b, type_b));
    emu::check_range(who, c, extent(m, n, ldc, stride_c, type_c));
    Matrix left{a, static_cast<Type>(type_a), transa == 1, m, k, lda, stride_a};
    Matrix right{b, static_cast<Type>(type_b), transb == 1, k, n, ldb, stride_b};
    auto *run = compute == in_f64 ? multiply<double> : multiply<float>;
    run(left, right, c, static_cast<Type>(type_c), ldc, stride_c, scalar(alpha, compute), scalar(beta, compute),
        batches, compute);
    return success;
}

}  // namespace

extern "C" {

Status cublasCreate_v2(void **handle) { return *handle = new char, success; }
Status cublasDestroy_v2(void *handle) { return delete static_cast<char *>(handle), success; }
Status cublasSetStream_v2(void *, void *) { return success; }
Status cublasSetMathMode(void *, int) { return success; }
Status cublasSetWorkspace_v2(void *, void *, size_t) { return success; }

Status cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                                  int type_a, int lda, long long sa, const void *b, int type_b, int ldb, long long sb,
                                  const void *beta, void *c, int type_c, int ldc, long long sc, int batches,
                                  int compute, int) {
    return product("cublasGemmStridedBatchedEx", ta, tb, m, n, k, alpha, a, type_a, lda, sa, b, type_b, ldb, sb, beta,
                   c, type_c, ldc, sc, batches, compute);
}
Status cublasGemmEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                    const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute,
                    int) {
    return product("cublasGemmEx", ta, tb, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc,
                   0, 1, compute);
}
Status cublasSgemmStridedBatched(void *, int ta, int tb, int m, int n, int k, const float *alpha, const float *a,
                                 int lda, long long sa, const float *b, int ldb, long long sb, const float *beta,
                                 float *c, int ldc, long long sc, int batches) {
    return product("cublasSgemmStridedBatched", ta, tb, m, n, k, alpha, a, f32, lda, sa, b, f32, ldb, sb, beta, c, f32,
                   ldc, sc, batches, in_f32);
}
Status cublasDgemmStridedBatched(void *, int ta, int tb, int m, int n, int k, const double *alpha, const double *a,
                                 int lda, long long sa, const double *b, int ldb, long long sb, const double *beta,
                                 double *c, int ldc, long long sc, int batches) {
    return product("cublasDgemmStridedBatched", ta, tb, m, n, k, alpha, a, f64, lda, sa, b, f64, ldb, sb, beta, c, f64,
                   ldc, sc, batches, in_f64);
}
Status cublasSgemm_v2(void *, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                      const float *b, int ldb, const float *beta, float *c, int ldc) {
    return product("cublasSgemm", ta, tb, m, n, k, alpha, a, f32, lda, 0, b, f32, ldb, 0, beta, c, f32, ldc, 0, 1,
                   in_f32);
}
Status cublasDgemm_v2(void *, int ta, int tb, int m, int n, int k, const double *alpha, const double *a, int lda,
                      const double *b, int ldb, const double *beta, double *c, int ldc) {
    return product("cublasDgemm", ta, tb, m, n, k, alpha, a, f64, lda, 0, b, f64, ldb, 0, beta, c, f64, ldc, 0, 1,
                   in_f64);
}

}  // extern "C"
