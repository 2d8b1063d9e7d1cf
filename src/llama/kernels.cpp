// Products and attention for serving many short sequences at once, in place of ggml's own where the processor has AVX-512 with VNNI.
// Never changes what is stored: weights are laid out anew beside the mapped file, and give the same sums but for their order.
//
// ggml multiplies Q4_1 and Q8_0 by one token after the other, and its attention looks at every cell of the cache that the sequences
// share, those of others too. Here sixteen rows are multiplied at once by up to eight tokens, and only the cells of the token's
// own sequence are looked at. What comes out for a token doesn't depend, to the last bit, on which others are in the batch, nor on the
// number of threads. And on every machine: ggml's kernels that may not serve are taken out of its list.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ggml-backend.h"

extern "C" {
void apa_kernels_install(void) noexcept;
void apa_kernels_owner(const void * model) noexcept;
void apa_kernels_forget(const void * model) noexcept;
size_t apa_kernels_leave_out(ggml_backend_buffer_type_t * types, size_t count) noexcept;
}

std::vector<ggml_backend_buffer_type_t> & ggml_backend_cpu_get_extra_buffer_types();

// Takes what may not serve out of a list and returns how many are left. ggml's AMX kernels end the process with an illegal
// instruction where a GCC compiled them whose _tile_loadconfig names 8 of the 64 bytes that it reads (12 is one: the stores that
// fill the configuration are dropped as dead). Which compiler it was can't be seen from here, so they serve nowhere.
size_t apa_kernels_leave_out(ggml_backend_buffer_type_t * types, size_t count) noexcept {
    auto faulty = [](ggml_backend_buffer_type_t type) { return type && !std::strcmp(ggml_backend_buft_name(type), "AMX"); };
    return std::remove_if(types, types + count, faulty) - types;
}

// Before the first use of ggml's list of places for weights: those in AMX's own layout could be read by nothing else.
static void leave_out() {
    auto & types = ggml_backend_cpu_get_extra_buffer_types();
    types.resize(apa_kernels_leave_out(types.data(), types.size()));
}

#if defined(APA_KERNELS) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include <immintrin.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "ggml-cpu.h"
#include "ggml.h"

// What ggml's own sources declare in headers that it doesn't install; of the pinned version of llama-cpp-sys-2.
struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void * wdata;
    struct ggml_threadpool * threadpool;
    bool use_ref;
};

struct ggml_backend_buffer_type {
    void * functions[8];
    ggml_backend_dev_t device;
    void * context;
};

extern "C" {
void ggml_barrier(struct ggml_threadpool * pool);
void ggml_threadpool_chunk_set(struct ggml_threadpool * pool, int value);
int ggml_threadpool_chunk_add(struct ggml_threadpool * pool, int value);
}

namespace ggml::cpu {
class tensor_traits {
  public:
    virtual ~tensor_traits();
    virtual bool work_size(int n_threads, const struct ggml_tensor * op, size_t & size) = 0;
    virtual bool compute_forward(struct ggml_compute_params * params, struct ggml_tensor * op) = 0;
};

class extra_buffer_type {
  public:
    virtual ~extra_buffer_type();
    virtual bool supports_op(ggml_backend_dev_t dev, const struct ggml_tensor * op) = 0;
    virtual tensor_traits * get_tensor_traits(const struct ggml_tensor * op) = 0;
};
}  // namespace ggml::cpu

namespace {

constexpr int64_t BLOCK = 32;  // weights that share a scale, in all formats here
constexpr int64_t ROWS = 16;   // rows of one group: a lane each
constexpr int TOKENS = 8;      // tokens that are multiplied at once

// ---- packed weights ----
//
// A group is 16 rows, block after block. Of a block: for each four weights, 16 rows of 4 bytes (4-bit: the low halves are the first 16
// weights, the high ones the last), then 16 scales as f16, for Q4_1 also 16 minima. As long as the original.

size_t block_bytes(ggml_type type) { return type == GGML_TYPE_Q4_1 ? 256 + 64 : 512 + 32; }

void pack_group(ggml_type type, const uint8_t * rows, size_t row_bytes, int64_t blocks, uint8_t * out) {
    const size_t in_bytes = type == GGML_TYPE_Q4_1 ? 20 : 34;
    for (int64_t b = 0; b < blocks; b++, out += block_bytes(type)) {
        for (int64_t r = 0; r < ROWS; r++) {
            const uint8_t * in = rows + r * row_bytes + b * in_bytes;
            if (type == GGML_TYPE_Q4_1) {
                for (int q = 0; q < 4; q++) std::memcpy(out + q * 64 + r * 4, in + 4 + q * 4, 4);
                std::memcpy(out + 256 + r * 2, in, 2);
                std::memcpy(out + 288 + r * 2, in + 2, 2);
            } else {
                // The instruction multiplies unsigned by signed: 128 is added here and taken off by a minimum of -128 scales.
                for (int i = 0; i < 32; i++) out[(i / 4) * 64 + r * 4 + i % 4] = in[2 + i] ^ 0x80;
                std::memcpy(out + 512 + r * 2, in, 2);
            }
        }
    }
}

std::mutex packing;
std::map<const void *, std::vector<void *>> packed_of;  // by model
thread_local const void * owner = nullptr;              // the model that this thread decodes
char refused;                                           // what `extra` points to where memory ran out

bool weights(const ggml_tensor * w) {
    return (w->type == GGML_TYPE_Q4_1 || w->type == GGML_TYPE_Q8_0) && w->op == GGML_OP_NONE && !w->view_src && w->buffer &&
           ggml_backend_buffer_get_usage(w->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS &&
           ggml_backend_buffer_is_host(w->buffer) && w->ne[2] == 1 && w->ne[3] == 1 && w->ne[0] % BLOCK == 0 && w->ne[1] % ROWS == 0 &&
           ggml_is_contiguous(w);
}

// The file's pages of a tensor that is packed aren't read any more; they come back from the file if they are.
void give_back(const ggml_tensor * w) {
#if defined(__linux__)
    if (std::strcmp(ggml_backend_buffer_name(w->buffer), "CPU_Mapped") != 0) return;
    const uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t) w->data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t) w->data + ggml_nbytes(w)) / page * page;
    if (begin < end) madvise((void *) begin, end - begin, MADV_DONTNEED);
#endif
}

// Called by the one thread that plans a graph, before any computes it: all of them then see the same.
const uint8_t * pack(ggml_tensor * w) {
    std::lock_guard<std::mutex> lock(packing);
    if (!w->extra && owner) {
        const int64_t blocks = w->ne[0] / BLOCK, groups = w->ne[1] / ROWS;
        const size_t group_bytes = blocks * block_bytes(w->type);
        auto * out = (uint8_t *) std::aligned_alloc(64, (groups * group_bytes + 63) / 64 * 64);
        bool kept = false;
        if (out) {
            try {
                packed_of[owner].push_back(out);
                kept = true;
            } catch (...) {
                std::free(out);
            }
        }
        if (kept) {
            for (int64_t g = 0; g < groups; g++) {
                pack_group(w->type, (const uint8_t *) w->data + g * ROWS * w->nb[1], w->nb[1], blocks, out + g * group_bytes);
            }
            give_back(w);
        }
        w->extra = kept ? (void *) out : (void *) &refused;
    }
    return w->extra == &refused ? nullptr : (const uint8_t *) w->extra;
}

// ---- products ----

// Sixteen rows by C tokens. A lane's sum takes the blocks in their order, whatever C is.
template <int C, bool WIDE>
void multiply(const uint8_t * w, int64_t blocks, const int8_t * y, int64_t y_step, const float * ds, int64_t ds_step, float * out,
              int64_t out_step) {
    // Few tokens leave the multipliers waiting for their own sums; integers may be summed in parts.
    constexpr int PARTS = C <= 2 ? 4 : C <= 4 ? 2 : 1;
    const __m512i low = _mm512_set1_epi8(15);
    __m512 acc[C];
    for (int c = 0; c < C; c++) acc[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < blocks; b++) {
        __m512i sum[C][PARTS];
        for (int c = 0; c < C; c++)
            for (int p = 0; p < PARTS; p++) sum[c][p] = _mm512_setzero_si512();
        const int8_t * yb = y + b * BLOCK;
        auto four = [&](int c, int at) {
            int32_t value;
            std::memcpy(&value, yb + c * y_step + at, 4);
            return _mm512_set1_epi32(value);
        };
        if (WIDE) {
#pragma GCC unroll 8
            for (int q = 0; q < 8; q++) {
                const __m512i v = _mm512_loadu_si512(w + q * 64);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sum[c][q % PARTS] = _mm512_dpbusd_epi32(sum[c][q % PARTS], v, four(c, 4 * q));
            }
        } else {
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                const __m512i v = _mm512_loadu_si512(w + q * 64);
                const __m512i lo = _mm512_and_si512(v, low), hi = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) {
                    sum[c][(2 * q) % PARTS] = _mm512_dpbusd_epi32(sum[c][(2 * q) % PARTS], lo, four(c, 4 * q));
                    sum[c][(2 * q + 1) % PARTS] = _mm512_dpbusd_epi32(sum[c][(2 * q + 1) % PARTS], hi, four(c, 4 * q + 16));
                }
            }
        }
        const uint8_t * scales = w + (WIDE ? 512 : 256);
        const __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) scales));
        const __m512 m = WIDE ? _mm512_mul_ps(d, _mm512_set1_ps(-128.0f))
                              : _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) (scales + 32)));
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            __m512i total = sum[c][0];
            for (int p = 1; p < PARTS; p++) total = _mm512_add_epi32(total, sum[c][p]);
            const float * of = ds + c * ds_step + 2 * b;
            acc[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_mul_ps(d, _mm512_set1_ps(of[0])), acc[c]);
            acc[c] = _mm512_fmadd_ps(m, _mm512_set1_ps(of[1]), acc[c]);
        }
        w += WIDE ? 512 + 32 : 256 + 64;
    }
    for (int c = 0; c < C; c++) _mm512_storeu_ps(out + c * out_step, acc[c]);
}

using Multiply = void (*)(const uint8_t *, int64_t, const int8_t *, int64_t, const float *, int64_t, float *, int64_t);
template <bool WIDE>
constexpr Multiply BY_TOKENS[TOKENS + 1] = {nullptr,           multiply<1, WIDE>, multiply<2, WIDE>, multiply<3, WIDE>, multiply<4, WIDE>,
                                            multiply<5, WIDE>, multiply<6, WIDE>, multiply<7, WIDE>, multiply<8, WIDE>};

// 32 values in 8 bits, their scale, and the sum that the minima are multiplied by.
void quantize(const float * x, int8_t * q, float * ds) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const float d = most / 127.0f;
    const __m512 inverse = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
    const __m512i ia = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), ib = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    _mm_storeu_si128((__m128i *) q, _mm512_cvtsepi32_epi8(ia));
    _mm_storeu_si128((__m128i *) (q + 16), _mm512_cvtsepi32_epi8(ib));
    ds[0] = d;
    ds[1] = d * (float) _mm512_reduce_add_epi32(_mm512_add_epi32(ia, ib));
}

struct Product : ggml::cpu::tensor_traits {
    static bool fits(const ggml_tensor * op) {
        const ggml_tensor *w = op->src[0], *x = op->src[1];
        return weights(w) && x->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[2] == 1 &&
               x->ne[3] == 1 && op->nb[0] == sizeof(float);
    }

    bool work_size(int, const ggml_tensor * op, size_t & size) override {
        if (!fits(op) || !pack(op->src[0])) return false;
        const ggml_tensor * x = op->src[1];
        size = x->ne[1] * (x->ne[0] + x->ne[0] / BLOCK * 2 * sizeof(float)) + 64;
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor *w = op->src[0], *x = op->src[1];
        if (!fits(op) || !w->extra || w->extra == &refused) return false;
        const int64_t blocks = w->ne[0] / BLOCK, groups = w->ne[1] / ROWS, tokens = x->ne[1];
        auto * q = (int8_t *) params->wdata;
        auto * ds = (float *) (q + tokens * w->ne[0]);

        const int64_t all = tokens * blocks;
        for (int64_t i = all * params->ith / params->nth; i < all * (params->ith + 1) / params->nth; i++) {
            const int64_t t = i / blocks, b = i % blocks;
            quantize((const float *) ((const char *) x->data + t * x->nb[1]) + b * BLOCK, q + i * BLOCK, ds + 2 * i);
        }
        // Threads take what is left, so that one that lost its core holds up little.
        const int64_t step = std::max<int64_t>(1, groups / (params->nth * 4));
        if (params->ith == 0) ggml_threadpool_chunk_set(params->threadpool, params->nth);
        ggml_barrier(params->threadpool);

        const bool wide = w->type == GGML_TYPE_Q8_0;
        const size_t group_bytes = blocks * block_bytes(w->type);
        for (int64_t chunk = params->ith; chunk * step < groups; chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            for (int64_t g = chunk * step; g < std::min(groups, (chunk + 1) * step); g++) {
                for (int64_t t = 0; t < tokens; t += TOKENS) {
                    const int count = (int) std::min<int64_t>(TOKENS, tokens - t);
                    const Multiply run = wide ? BY_TOKENS<true>[count] : BY_TOKENS<false>[count];
                    auto * out = (float *) ((char *) op->data + t * op->nb[1]) + g * ROWS;
                    run((const uint8_t *) w->extra + g * group_bytes, blocks, q + t * w->ne[0], w->ne[0], ds + t * blocks * 2,
                        blocks * 2, out, op->nb[1] / sizeof(float));
                }
            }
        }
        return true;
    }
};

// ---- attention ----

constexpr int HEADS = 4;  // heads that share keys and values and are computed at once

// e^x for x <= 0, to 2e-7; -inf gives 0.
__m512 exp_of(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// The sums of four vectors.
__m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

struct Heads {
    const char *k, *v;  // of the head that they share, cell 0
    size_t k_step, v_step;
    const float * q[HEADS];
    float * out[HEADS];
    float scale;
};

// A token's heads over the cells of its sequence. `cells` and `bias` have room for three more.
template <int W, int G>
void attend(const Heads & h, int32_t * cells, float * bias, int64_t count, float * scores, int64_t room) {
    __m512 q[G][W];
    for (int g = 0; g < G; g++)
        for (int i = 0; i < W; i++) q[g][i] = _mm512_mul_ps(_mm512_loadu_ps(h.q[g] + 16 * i), _mm512_set1_ps(h.scale));
    for (int i = 0; i < 3; i++) {
        cells[count + i] = count ? cells[0] : 0;
        bias[count + i] = -INFINITY;
    }
    for (int64_t at = 0; at < count; at += 4) {
        __m512 dot[G][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const char * k = h.k + cells[at + j] * h.k_step;
            for (int i = 0; i < W; i++) {
                const __m512 value = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) k + i));
                for (int g = 0; g < G; g++)
                    dot[g][j] = i ? _mm512_fmadd_ps(q[g][i], value, dot[g][j]) : _mm512_mul_ps(q[g][i], value);
            }
        }
        for (int g = 0; g < G; g++)
            _mm_storeu_ps(scores + g * room + at,
                          _mm_add_ps(sums(dot[g][0], dot[g][1], dot[g][2], dot[g][3]), _mm_loadu_ps(bias + at)));
    }
    const int64_t padded = (count + 15) / 16 * 16;
    float norm[G];
    for (int g = 0; g < G; g++) {
        float * s = scores + g * room;
        for (int64_t i = count; i < padded; i++) s[i] = -INFINITY;
        __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < padded; i += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(s + i));
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        for (int64_t i = 0; i < padded; i += 16) {
            const __m512 p = exp_of(_mm512_sub_ps(_mm512_loadu_ps(s + i), top));
            _mm512_storeu_ps(s + i, p);
            sum = _mm512_add_ps(sum, p);
        }
        const float total = _mm512_reduce_add_ps(sum);
        norm[g] = total > 0.0f ? 1.0f / total : 0.0f;
    }
    __m512 acc[G][W];
    for (int g = 0; g < G; g++)
        for (int i = 0; i < W; i++) acc[g][i] = _mm512_setzero_ps();
    for (int64_t at = 0; at < count; at++) {
        const char * v = h.v + cells[at] * h.v_step;
        __m512 p[G];
        for (int g = 0; g < G; g++) p[g] = _mm512_set1_ps(scores[g * room + at]);
        for (int i = 0; i < W; i++) {
            const __m512 value = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) v + i));
            for (int g = 0; g < G; g++) acc[g][i] = _mm512_fmadd_ps(p[g], value, acc[g][i]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int i = 0; i < W; i++)
            _mm512_storeu_ps(h.out[g] + 16 * i, _mm512_mul_ps(acc[g][i], _mm512_set1_ps(norm[g])));
}

using Attend = void (*)(const Heads &, int32_t *, float *, int64_t, float *, int64_t);
template <int W> constexpr Attend BY_HEADS[HEADS + 1] = {nullptr, attend<W, 1>, attend<W, 2>, attend<W, 3>, attend<W, 4>};

// Cells that the row of the mask lets through, and what it adds to their scores.
int64_t cells_of(const uint16_t * mask, int64_t n, int32_t * cells, float * bias) {
    const __m512i closed = _mm512_set1_epi16((short) 0xFC00);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 32) {
        const __mmask32 in = n - i >= 32 ? ~0u : (1u << (n - i)) - 1;
        uint32_t open = _mm512_mask_cmpneq_epi16_mask(in, _mm512_maskz_loadu_epi16(in, mask + i), closed);
        for (; open; open &= open - 1) {
            const int64_t cell = i + __builtin_ctz(open);
            cells[count] = (int32_t) cell;
            bias[count++] = mask[cell] ? _cvtsh_ss(mask[cell]) : 0.0f;
        }
    }
    return count;
}

struct Attention : ggml::cpu::tensor_traits {
    static bool fits(const ggml_tensor * op) {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        float of[3];
        std::memcpy(of, op->op_params, sizeof(of));  // scale, ALiBi's bias, soft cap
        return mask && !op->src[4] && of[1] == 0.0f && of[2] == 0.0f && q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 &&
               v->type == GGML_TYPE_F16 && mask->type == GGML_TYPE_F16 && (q->ne[0] == 64 || q->ne[0] == 128) && v->ne[0] == q->ne[0] &&
               q->ne[3] == 1 && k->ne[3] == 1 && v->ne[2] == k->ne[2] && q->ne[2] % k->ne[2] == 0 && mask->ne[0] >= k->ne[1] &&
               mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 && mask->ne[3] == 1 && q->nb[0] == 4 && k->nb[0] == 2 && v->nb[0] == 2 &&
               mask->nb[0] == 2 && op->nb[0] == 4;
    }

    // Of one thread: cells, biases, scores.
    static int64_t room(const ggml_tensor * op) { return (op->src[1]->ne[1] + 3 + 15) / 16 * 16; }
    static size_t scratch(const ggml_tensor * op) { return room(op) * (2 + HEADS) * 4; }

    bool work_size(int threads, const ggml_tensor * op, size_t & size) override {
        if (!fits(op)) return false;
        size = threads * scratch(op);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (!fits(op)) return false;
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        const int64_t tokens = q->ne[1], cells = k->ne[1], shared = q->ne[2] / k->ne[2];
        auto * list = (int32_t *) ((char *) params->wdata + params->ith * scratch(op));
        auto * bias = (float *) (list + room(op));
        float * scores = bias + room(op);

        // Heads at once: those that share keys, unless that left threads without work.
        const bool few = tokens * k->ne[2] < 4 * params->nth;
        const int64_t at_once = few ? 1 : std::min<int64_t>(HEADS, shared);
        const int64_t parts = (shared + at_once - 1) / at_once, of_token = k->ne[2] * parts, items = tokens * of_token;
        const int64_t step = std::max<int64_t>(1, items / (params->nth * 16));
        if (params->ith == 0) ggml_threadpool_chunk_set(params->threadpool, params->nth);
        ggml_barrier(params->threadpool);

        int64_t listed = -1, count = 0;
        for (int64_t chunk = params->ith; chunk * step < items; chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            for (int64_t item = chunk * step; item < std::min(items, (chunk + 1) * step); item++) {
                const int64_t t = item / of_token, kv = item % of_token / parts, part = item % parts;
                if (t != listed) {
                    count = cells_of((const uint16_t *) ((const char *) mask->data + t * mask->nb[1]), cells, list, bias);
                    listed = t;
                }
                Heads heads = {(const char *) k->data + kv * k->nb[2], (const char *) v->data + kv * v->nb[2], k->nb[1], v->nb[1], {}, {}, 0};
                std::memcpy(&heads.scale, op->op_params, sizeof(float));
                const int64_t first = part * at_once, n = std::min(at_once, shared - first);
                for (int64_t g = 0; g < n; g++) {
                    const int64_t head = kv * shared + first + g;
                    heads.q[g] = (const float *) ((const char *) q->data + t * q->nb[1] + head * q->nb[2]);
                    heads.out[g] = (float *) ((char *) op->data + head * op->nb[1] + t * op->nb[2]);
                }
                const Attend run = q->ne[0] == 64 ? BY_HEADS<4>[n] : BY_HEADS<8>[n];
                run(heads, list, bias, count, scores, room(op));
            }
        }
        return true;
    }
};

// ---- the way in: ggml asks each of these for every operation ----

struct Kernels : ggml::cpu::extra_buffer_type {
    Product product;
    Attention attention;

    bool supports_op(ggml_backend_dev_t, const ggml_tensor *) override { return false; }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        switch (op->op) {
            case GGML_OP_MUL_MAT: return Product::fits(op) ? &product : nullptr;
            case GGML_OP_FLASH_ATTN_EXT: return Attention::fits(op) ? &attention : nullptr;
            default: return nullptr;
        }
    }
};

}  // namespace

void apa_kernels_install(void) noexcept {
    try {
        leave_out();
        ggml_backend_reg_t cpu = ggml_backend_cpu_reg();
        ggml_backend_dev_t device = ggml_backend_reg_dev_get(cpu, 0);
        // Its list of places for weights is made at the first call. Ours is none, and must not be among them.
        auto places = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(cpu, "ggml_backend_dev_get_extra_bufts");
        if (!places) return;
        places(device);
        static Kernels kernels;
        static ggml_backend_buffer_type type = {{}, device, &kernels};
        ggml_backend_cpu_get_extra_buffer_types().push_back(&type);
    } catch (...) {
        // Without memory for a list of one, ggml's own kernels serve.
    }
}

// Whose weights the graphs are that this thread plans from now on.
void apa_kernels_owner(const void * model) noexcept { owner = model; }

// The model is about to be freed.
void apa_kernels_forget(const void * model) noexcept {
    std::lock_guard<std::mutex> lock(packing);
    auto found = packed_of.find(model);
    if (found == packed_of.end()) return;
    for (void * packed : found->second) std::free(packed);
    packed_of.erase(found);
}

#else

void apa_kernels_install(void) noexcept { leave_out(); }
void apa_kernels_owner(const void *) noexcept {}
void apa_kernels_forget(const void *) noexcept {}

#endif
