// Products and attention for serving many short sequences at once, in place of ggml's own where the processor has AVX2.
// Never changes what is stored: weights are laid out anew beside the mapped file, and give the same sums but for their order.
//
// ggml multiplies Q4_1 and Q8_0 by one token after the other, and its attention looks at every cell of the cache that the sequences
// share, those of others too. Here as many rows as a vector has lanes are multiplied at once by several tokens, and only the cells
// of the token's own sequence are looked at. What comes out for a token doesn't depend, to the last bit, on which others are in the batch, nor on the
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
void apa_kernels_leave_out_here(void) noexcept;
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
void apa_kernels_leave_out_here(void) noexcept {
    try {
        auto & types = ggml_backend_cpu_get_extra_buffer_types();
        types.resize(apa_kernels_leave_out(types.data(), types.size()));
    } catch (...) {
        // Without memory for a list of one, there is none for a model.
    }
}

#if defined(APA_KERNELS) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "ggml-cpu.h"
#include "ggml.h"
#include "vectors.h"

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
constexpr int64_t ROWS = LANES;  // rows of one group
constexpr int TOKENS = REGISTERS / 4;  // tokens that are multiplied at once: two registers for each, and what is left for weights

// ---- packed weights ----
//
// A group is ROWS rows, block after block. Of a block: for each four weights, ROWS times 4 bytes (4-bit: the low halves are the first
// 16 weights, the high ones the last), then the rows' scales as f16, for Q4_1 also their minima. As long as the original.

constexpr size_t quads(bool wide) { return (wide ? 8 : 4) * ROWS * 4; }  // bytes of a block's weights
constexpr size_t block_bytes(bool wide) { return quads(wide) + ROWS * (wide ? 2 : 4); }
size_t block_bytes(ggml_type type) { return block_bytes(type == GGML_TYPE_Q8_0); }

void pack_group(ggml_type type, const uint8_t * rows, size_t row_bytes, int64_t blocks, uint8_t * out) {
    const size_t in_bytes = type == GGML_TYPE_Q4_1 ? 20 : 34;
    for (int64_t b = 0; b < blocks; b++, out += block_bytes(type)) {
        for (int64_t r = 0; r < ROWS; r++) {
            const uint8_t * in = rows + r * row_bytes + b * in_bytes;
            if (type == GGML_TYPE_Q4_1) {
                for (int q = 0; q < 4; q++) std::memcpy(out + (q * ROWS + r) * 4, in + 4 + q * 4, 4);
                std::memcpy(out + quads(false) + r * 2, in, 2);
                std::memcpy(out + quads(false) + (ROWS + r) * 2, in + 2, 2);
            } else {
                // VNNI multiplies unsigned by signed: BIAS is added here and taken off by a minimum of -BIAS scales.
                for (int i = 0; i < 32; i++) out[(i / 4 * ROWS + r) * 4 + i % 4] = (uint8_t) (in[2 + i] + BIAS);
                std::memcpy(out + quads(true) + r * 2, in, 2);
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

// A group of rows by C tokens. A lane's sum takes the blocks in their order, whatever C is.
template <bool WIDE, int C>
void multiply(const uint8_t * w, int64_t blocks, const int8_t * y, int64_t y_step, const float * ds, int64_t ds_step, float * out,
              int64_t out_step) {
    // Few tokens leave the multipliers waiting for their own sums; integers may be summed in parts.
    constexpr int PARTS = C * 4 <= TOKENS ? 4 : C * 2 <= TOKENS ? 2 : 1;
    Floats acc[C];
    for (int c = 0; c < C; c++) acc[c] = zero();
    for (int64_t b = 0; b < blocks; b++) {
        Ints sum[C][PARTS];
        for (int c = 0; c < C; c++)
            for (int p = 0; p < PARTS; p++) sum[c][p] = no_ints();
        const int8_t * yb = y + b * BLOCK;
        auto four = [&](int c, int at) {
            int32_t value;
            std::memcpy(&value, yb + c * y_step + at, 4);
            return four_bytes(value);
        };
        if (WIDE) {
#pragma GCC unroll 8
            for (int q = 0; q < 8; q++) {
                const Ints v = load_bytes(w + q * ROWS * 4);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sum[c][q % PARTS] = dot_bytes(sum[c][q % PARTS], v, four(c, 4 * q));
            }
        } else {
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                const Ints v = load_bytes(w + q * ROWS * 4);
                const Ints low = low_halves(v), high = high_halves(v);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) {
                    sum[c][(2 * q) % PARTS] = dot_small(sum[c][(2 * q) % PARTS], low, four(c, 4 * q));
                    sum[c][(2 * q + 1) % PARTS] = dot_small(sum[c][(2 * q + 1) % PARTS], high, four(c, 4 * q + 16));
                }
            }
        }
        const uint8_t * scales = w + quads(WIDE);
        const Floats d = load_half(scales);
        const Floats m = WIDE ? mul(d, all(-BIAS)) : load_half(scales + 2 * ROWS);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            Ints total = sum[c][0];
            for (int p = 1; p < PARTS; p++) total = WIDE ? add_ints(total, sum[c][p]) : add_small(total, sum[c][p]);
            if (!WIDE) total = sum_small(total);
            const float * of = ds + c * ds_step + 2 * b;
            acc[c] = fma(floats(total), mul(d, all(of[0])), acc[c]);
            if (!WIDE || BIAS) acc[c] = fma(m, all(of[1]), acc[c]);
        }
        w += block_bytes(WIDE);
    }
    for (int c = 0; c < C; c++) store(out + c * out_step, acc[c]);
}

using Multiply = void (*)(const uint8_t *, int64_t, const int8_t *, int64_t, const float *, int64_t, float *, int64_t);
template <bool WIDE, int... C> Multiply by_tokens(int count, std::integer_sequence<int, C...>) {
    static constexpr Multiply all[] = {multiply<WIDE, C + 1>...};
    return all[count - 1];
}

// 32 values in 8 bits, their scale, and the sum that the minima are multiplied by.
void quantize(const float * x, int8_t * q, float * ds) {
    constexpr int N = BLOCK / LANES;
    Floats most_of = zero();
    for (int i = 0; i < N; i++) most_of = max(most_of, abs(load(x + i * LANES)));
    const float top = most(most_of), d = top / 127.0f;
    const Floats inverse = all(top > 0.0f ? 127.0f / top : 0.0f);
    Ints rounded[N], sum = no_ints();
    for (int i = 0; i < N; i++) {
        rounded[i] = ints(mul(load(x + i * LANES), inverse));
        sum = add_ints(sum, rounded[i]);
    }
    store_bytes(q, rounded);
    ds[0] = d;
    ds[1] = d * (float) total_ints(sum);
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
                    constexpr std::make_integer_sequence<int, TOKENS> UP_TO = {};
                    const Multiply run = wide ? by_tokens<true>(count, UP_TO) : by_tokens<false>(count, UP_TO);
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
Floats exp_of(Floats x) {
    const Floats least = max(x, all(-104.0f));
    const Floats n = round(mul(least, all(1.44269504088896341f)));
    Floats r = fnma(n, all(0.693359375f), least);
    r = fnma(n, all(-2.12194440e-4f), r);
    Floats p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = fma(p, r, all(c));
    p = add(fma(p, mul(r, r), r), all(1.0f));
    return power(p, n, x);
}

struct Heads {
    const char *k, *v;  // of the head that they share, cell 0
    size_t k_step, v_step;
    const float * q[HEADS];
    float * out[HEADS];
    float scale;
};

// Adds up values of the cells, weighted by `scores`: COLS vectors from column `at` on.
template <int G, int COLS>
void mix(const Heads & h, const int32_t * cells, int64_t count, const float * scores, int64_t room, int at, const float * norm) {
    Floats acc[G][COLS];
    for (int g = 0; g < G; g++)
        for (int i = 0; i < COLS; i++) acc[g][i] = zero();
    for (int64_t c = 0; c < count; c++) {
        const char * v = h.v + cells[c] * h.v_step + 2 * at;
        Floats p[G];
        for (int g = 0; g < G; g++) p[g] = all(scores[g * room + c]);
        for (int i = 0; i < COLS; i++) {
            const Floats value = load_half(v + 2 * LANES * i);
            for (int g = 0; g < G; g++) acc[g][i] = fma(p[g], value, acc[g][i]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int i = 0; i < COLS; i++) store(h.out[g] + at + LANES * i, mul(acc[g][i], all(norm[g])));
}

// A token's heads over the cells of its sequence. `cells` and `bias` have room for three more.
template <int D, int G>
void attend(const Heads & h, int32_t * cells, float * bias, int64_t count, float * scores, int64_t room) {
    constexpr int W = D / LANES;
    Floats q[G][W];
    for (int g = 0; g < G; g++)
        for (int i = 0; i < W; i++) q[g][i] = mul(load(h.q[g] + LANES * i), all(h.scale));
    for (int i = 0; i < 3; i++) {
        cells[count + i] = count ? cells[0] : 0;
        bias[count + i] = -INFINITY;
    }
    for (int64_t at = 0; at < count; at += 4) {
        Floats dot[G][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const char * k = h.k + cells[at + j] * h.k_step;
            for (int i = 0; i < W; i++) {
                const Floats value = load_half(k + 2 * LANES * i);
                for (int g = 0; g < G; g++) dot[g][j] = i ? fma(q[g][i], value, dot[g][j]) : mul(q[g][i], value);
            }
        }
        for (int g = 0; g < G; g++)
            _mm_storeu_ps(scores + g * room + at,
                          _mm_add_ps(totals(dot[g][0], dot[g][1], dot[g][2], dot[g][3]), _mm_loadu_ps(bias + at)));
    }
    const int64_t padded = (count + LANES - 1) / LANES * LANES;
    float norm[G];
    for (int g = 0; g < G; g++) {
        float * s = scores + g * room;
        for (int64_t i = count; i < padded; i++) s[i] = -INFINITY;
        Floats largest = all(-INFINITY), sum = zero();
        for (int64_t i = 0; i < padded; i += LANES) largest = max(largest, load(s + i));
        const Floats top = all(most(largest));
        for (int64_t i = 0; i < padded; i += LANES) {
            const Floats p = exp_of(sub(load(s + i), top));
            store(s + i, p);
            sum = add(sum, p);
        }
        const float whole = total(sum);
        norm[g] = whole > 0.0f ? 1.0f / whole : 0.0f;
    }
    // As many columns at once as there are registers for their sums.
    constexpr int COLS = std::min(W, REGISTERS / 2 / (G == 3 ? 4 : G));
    for (int i = 0; i < W; i += COLS) mix<G, COLS>(h, cells, count, scores, room, i * LANES, norm);
}

using Attend = void (*)(const Heads &, int32_t *, float *, int64_t, float *, int64_t);
template <int D> constexpr Attend BY_HEADS[HEADS + 1] = {nullptr, attend<D, 1>, attend<D, 2>, attend<D, 3>, attend<D, 4>};

// Cells that the row of the mask lets through, and what it adds to their scores.
int64_t cells_of(const uint16_t * mask, int64_t n, int32_t * cells, float * bias) {
    constexpr uint16_t CLOSED = 0xFC00;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 32) {
        uint32_t open = 0;
        if (n - i >= 32) {
            open = unequal(mask + i, CLOSED);
        } else {
            for (int64_t j = 0; j < n - i; j++) open |= (uint32_t) (mask[i + j] != CLOSED) << j;
        }
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
                const Attend run = q->ne[0] == 64 ? BY_HEADS<64>[n] : BY_HEADS<128>[n];
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
        apa_kernels_leave_out_here();
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

void apa_kernels_install(void) noexcept { apa_kernels_leave_out_here(); }
void apa_kernels_owner(const void *) noexcept {}
void apa_kernels_forget(const void *) noexcept {}

#endif
