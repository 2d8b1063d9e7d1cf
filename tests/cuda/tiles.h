// nvcuda::wmma, products of tiles by a warp, as mma.h has it. Which element lies in which lane is not as on a device.
#pragma once
#include "device.h"
#include <array>
#include <tuple>

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
    static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m, columns = std::is_same_v<Use, matrix_a> ? k : n;
    static constexpr int num_elements = rows * columns / 32;
    using element_type = T;
    T x[num_elements];
};

// A tile's address, the same in every lane and aligned as the device needs it.
template <class T>
void check_tile(const T *tile, unsigned leading) {
    const emu::Collective &told = emu::collective(~0u, reinterpret_cast<uint64_t>(tile));
    if (told.lanes != ~0u) emu::fail("only lanes %08x take part in an operation on a tile", told.lanes);
    for (uint64_t other : told.values)
        if (other != told.values[0]) emu::fail("lanes name different tiles");
    if (told.values[0] % 32) emu::fail("a tile at %p isn't aligned to 32 bytes", static_cast<const void *>(tile));
    if (leading * sizeof(T) % 16)
        emu::fail("rows of a tile are %u elements apart, which aren't multiples of 16 bytes", leading);
}

template <class F, class A>
__attribute__((no_sanitize("bounds"))) void each_element(bool by_row, unsigned leading, F &fragment, A action) {
    for (int e = 0; e < F::num_elements; e++) {
        unsigned i = e * 32 + emu::lane(), row = i / F::columns, column = i % F::columns;
        action(fragment.x[e], by_row ? row * leading + column : column * leading + row);
    }
}

template <class Use, int m, int n, int k, class T, class Layout>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout> &to, const T *from, unsigned leading) {
    check_tile(from, leading);
    each_element(std::is_same_v<Layout, row_major>, leading, to, [=](T &x, unsigned at) { x = from[at]; });
}
template <int m, int n, int k, class T>
void load_matrix_sync(fragment<accumulator, m, n, k, T> &to, const T *from, unsigned leading, layout_t layout) {
    check_tile(from, leading);
    each_element(layout == mem_row_major, leading, to, [=](T &x, unsigned at) { x = from[at]; });
}
template <int m, int n, int k, class T>
void store_matrix_sync(T *to, const fragment<accumulator, m, n, k, T> &from, unsigned leading, layout_t layout) {
    check_tile(to, leading);
    each_element(layout == mem_row_major, leading, from, [=](const T &x, unsigned at) { to[at] = x; });
    __syncwarp();
}
template <class Use, int m, int n, int k, class T, class Layout>
void fill_fragment(fragment<Use, m, n, k, T, Layout> &fragment, emu::same<T> value) {
    for (T &x : fragment.x) x = value;
}
template <int m, int n, int k, class S, class T, class A, class B>
__attribute__((no_sanitize("bounds"))) void mma_sync(fragment<accumulator, m, n, k, S> &d,
                                                     const fragment<matrix_a, m, n, k, T, A> &a,
                                                     const fragment<matrix_b, m, n, k, T, B> &b,
                                                     const fragment<accumulator, m, n, k, S> &c) {
    auto own = std::make_tuple(&a, &b, &c, &d);
    const emu::Collective &told = emu::collective(~0u, reinterpret_cast<uint64_t>(&own));
    if (told.lanes != ~0u) emu::fail("only lanes %08x take part in a product of tiles", told.lanes);
    // One lane multiplies for all, who wait for it.
    if (emu::lane() == 0) {
        std::array<decltype(own), 32> of;
        for (int i = 0; i < 32; i++) of[i] = *reinterpret_cast<const decltype(own) *>(told.values[i]);
        S left[m * k], right[k * n], sums[m * n];
        for (int i = 0; i < m * k; i++) left[i] = static_cast<S>(std::get<0>(of[i % 32])->x[i / 32]);
        for (int i = 0; i < k * n; i++) right[i] = static_cast<S>(std::get<1>(of[i % 32])->x[i / 32]);
        for (int i = 0; i < m * n; i++) sums[i] = std::get<2>(of[i % 32])->x[i / 32];
        for (int row = 0; row < m; row++)
            for (int p = 0; p < k; p++)
                for (int column = 0; column < n; column++)
                    sums[row * n + column] += left[row * k + p] * right[p * n + column];
        for (int i = 0; i < m * n; i++) std::get<3>(of[i % 32])->x[i / 32] = sums[i];
    }
    emu::collective(~0u, 0);
}

}  // namespace nvcuda::wmma
