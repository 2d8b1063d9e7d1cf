// CUDA's numbers of 16 and 8 bits for the CPU: rounded to nearest even as it rounds them, computed with in float.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emu {

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// A parameter whose type is told by the others.
template <class T>
struct Same {
    using type = T;
};
template <class T>
using same = typename Same<T>::type;

struct Half {
    static float wide(uint16_t x) { return bits<_Float16>(x); }
    static uint16_t narrow(float x) { return bits<uint16_t>(static_cast<_Float16>(x)); }
};

struct Brain {
    static float wide(uint16_t x) { return bits<float>(uint32_t{x} << 16); }
    static uint16_t narrow(float x) {
        uint32_t u = bits<uint32_t>(x);
        if (std::isnan(x)) return 0x7FFF;
        return static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16);
    }
};

template <class Format>
struct Small {
    uint16_t __x;
    Small() = default;
    template <class A, class = std::enable_if_t<std::is_arithmetic_v<A>>>
    Small(A a) : __x(Format::narrow(static_cast<float>(a))) {}
    operator float() const { return Format::wide(__x); }
};

#define EMU_ARITHMETIC(op)                                              \
    template <class F>                                                  \
    inline Small<F> operator op(Small<F> a, Small<F> b) {               \
        return static_cast<float>(a) op static_cast<float>(b);          \
    }                                                                   \
    template <class F>                                                  \
    inline Small<F> &operator op## = (Small<F> & a, same<Small<F>> b) { \
        return a = a op b;                                              \
    }
EMU_ARITHMETIC(+)
EMU_ARITHMETIC(-)
EMU_ARITHMETIC(*)
EMU_ARITHMETIC(/)
#define EMU_COMPARISON(op)                                     \
    template <class F>                                         \
    inline bool operator op(Small<F> a, Small<F> b) {          \
        return static_cast<float>(a) op static_cast<float>(b); \
    }
EMU_COMPARISON(==)
EMU_COMPARISON(!=)
EMU_COMPARISON(<)
EMU_COMPARISON(<=)
EMU_COMPARISON(>)
EMU_COMPARISON(>=)
template <class F>
inline Small<F> operator-(Small<F> a) {
    return -static_cast<float>(a);
}

template <class F>
struct SmallPair {
    Small<F> x, y;
};

}  // namespace emu

using __half = emu::Small<emu::Half>;
using half = __half;
using __half2 = emu::SmallPair<emu::Half>;
using half2 = __half2;
using __nv_bfloat16 = emu::Small<emu::Brain>;
using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = emu::SmallPair<emu::Brain>;
using nv_bfloat162 = __nv_bfloat162;
