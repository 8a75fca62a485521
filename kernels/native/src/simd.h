// Vectors of the width that this file is compiled for, in the compiler's own vector types: one source for all
// processors. Everything lies in a namespace of its own for each instruction set (see isa.cpp), and no inline
// function of the standard library is used, so that no function compiled for one processor can be linked in place of
// another's.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "problem.h"

#if defined(__AVX512F__)
#define CTLOSS_LANES 16
#elif defined(__AVX2__)
#define CTLOSS_LANES 8
#else
#define CTLOSS_LANES 4
#endif

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

constexpr int LANES = CTLOSS_LANES;
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef float FloatsAnywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Shorts __attribute__((vector_size(LANES * 2)));
typedef uint16_t ShortsAnywhere __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef float HalfFloats __attribute__((vector_size(LANES * 2)));
typedef double Doubles __attribute__((vector_size(LANES * 4)));
typedef double DoublesAnywhere __attribute__((vector_size(LANES * 4), aligned(8), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const FloatsAnywhere*>(from); }
inline void store(float* to, Floats value) { *reinterpret_cast<FloatsAnywhere*>(to) = value; }
inline Doubles load(const double* from) { return *reinterpret_cast<const DoublesAnywhere*>(from); }
inline void store(double* to, Doubles value) { *reinterpret_cast<DoublesAnywhere*>(to) = value; }
inline Floats all(float value) { return Floats{} + value; }
// One entry in every lane, whatever its bits stand for.
inline Floats repeated(const float* from) {
    Bits bits{};
    uint32_t one;
    memcpy(&one, from, sizeof one);
    return (Floats)(bits + one);
}
inline Doubles all_doubles(double value) { return Doubles{} + value; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The lanes' numbers, for shuffles that take them one by one.
#if CTLOSS_LANES == 16
#define CTLOSS_LOW 0, 1, 2, 3, 4, 5, 6, 7
#define CTLOSS_HIGH 8, 9, 10, 11, 12, 13, 14, 15
#elif CTLOSS_LANES == 8
#define CTLOSS_LOW 0, 1, 2, 3
#define CTLOSS_HIGH 4, 5, 6, 7
#else
#define CTLOSS_LOW 0, 1
#define CTLOSS_HIGH 2, 3
#endif

inline Doubles low(Floats v) { return __builtin_convertvector(__builtin_shufflevector(v, v, CTLOSS_LOW), Doubles); }
inline Doubles high(Floats v) { return __builtin_convertvector(__builtin_shufflevector(v, v, CTLOSS_HIGH), Doubles); }
inline Floats joined(Doubles first, Doubles second) {
    const HalfFloats a = __builtin_convertvector(first, HalfFloats), b = __builtin_convertvector(second, HalfFloats);
    return __builtin_shufflevector(a, b, CTLOSS_LOW, CTLOSS_HIGH);
}

inline float sum(Floats v) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += v[lane];
    return total;
}
inline double sum(Doubles v) {
    double total = 0;
    for (int lane = 0; lane < LANES / 2; ++lane) total += v[lane];
    return total;
}
inline double sum_wide(Floats v) { return sum(low(v) + high(v)); }

inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// 2^x to a unit in the last place; 0 below the normal numbers, 2^127 above them and for what is not a number.
inline Floats exp2(Floats x) {
    const Floats magic =
        all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number, which its low bits then hold
    const Floats capped = minimum(x, all(127.0f));
    const Floats shifted = capped + magic;
    const Floats f = capped - (shifted - magic);
    Floats p = all(1.5461445e-4f);
    p = p * f + 1.3400428e-3f;
    p = p * f + 9.618057e-3f;
    p = p * f + 5.550327e-2f;
    p = p * f + 0.2402265f;
    p = p * f + 0.6931472f;
    p = p * f + 1.0f;
    // Unsigned, because below the normal numbers, where the result is replaced, these may wrap.
    const Bits raised = (Bits)p + (((Bits)shifted - (Bits)magic) << 23);
    // Not by x ≥ −126: what is not a number must not pass for a small one.
    return (Floats)(raised & ~(Bits)(x < all(-126.0f)));
}

// A number whose exponential is 0: the logit of a pair that is not a negative.
constexpr float EXCLUDED = -1e30f;

inline Floats widened_bfloat16(const uint16_t* from) {
    const Shorts raw = *reinterpret_cast<const ShortsAnywhere*>(from);
    return (Floats)(__builtin_convertvector(raw, Bits) << 16);
}

inline Floats widened_float16(const uint16_t* from) {
#if CTLOSS_LANES == 16
    __m256i raw;
    memcpy(&raw, from, sizeof raw);
    return (Floats)_mm512_cvtph_ps(raw);
#elif defined(__F16C__)
    __m128i raw;
    memcpy(&raw, from, sizeof raw);
    return (Floats)_mm256_cvtph_ps(raw);
#else
    const Bits raw = __builtin_convertvector(*reinterpret_cast<const ShortsAnywhere*>(from), Bits);
    const Bits sign = (raw & 0x8000) << 16, rest = (raw & 0x7fff) << 13;
    // The exponent's bias differs by 112; infinities and NaN keep all bits of theirs set.
    const Floats value = (Floats)rest * 5.192296858534828e33f;
    const Bits special = (Bits)((raw & 0x7c00) == 0x7c00);
    const Bits bits = (special & (rest | 0x7f800000)) | (~special & (Bits)value);
    return (Floats)(bits | sign);
#endif
}

// Nearest bfloat16 numbers, ties to even, in the upper halves; for finite numbers.
inline Bits rounded_bfloat16(Floats value) {
    const Bits bits = (Bits)value;
    return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
}

// A row in single precision; entries beyond d become 0 up to `padded`.
inline void widen(const void* rows, int64_t first, Dtype dtype, int64_t d, float* to, int64_t padded) {
    int64_t k = 0;
    if (dtype == FLOAT32) {
        const float* from = static_cast<const float*>(rows) + first;
        memcpy(to, from, sizeof(float) * d);
        k = d;
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(rows) + first;
        for (; k + LANES <= d; k += LANES) {
            store(to + k, dtype == BFLOAT16 ? widened_bfloat16(from + k) : widened_float16(from + k));
        }
        if (k < d) {
            uint16_t rest[LANES] = {};
            memcpy(rest, from + k, sizeof(uint16_t) * (d - k));
            const Floats last = dtype == BFLOAT16 ? widened_bfloat16(rest) : widened_float16(rest);
            memcpy(to + k, &last, sizeof(float) * (d - k));
            k = d;
        }
    }
    for (; k < padded; ++k) to[k] = 0;
}

// Σ a_k b_k for d a multiple of the lanes. So many sums run side by side, in single precision, and are added up in
// double precision so often, that rounding stays a tenth of a unit in the last place.
inline double dot(const float* a, const float* b, int64_t d) {
    constexpr int SUMS = 32 / LANES;
    constexpr int64_t CHUNK_OF_DOT = 256;
    double total = 0;
    for (int64_t start = 0; start < d; start += CHUNK_OF_DOT) {
        const int64_t stop = least(start + CHUNK_OF_DOT, d);
        Floats sums[SUMS] = {};
        int64_t k = start;
        for (; k + SUMS * LANES <= stop; k += SUMS * LANES)
#pragma GCC unroll 8
            for (int s = 0; s < SUMS; ++s) sums[s] += load(a + k + s * LANES) * load(b + k + s * LANES);
        for (; k < stop; k += LANES) sums[0] += load(a + k) * load(b + k);
        Doubles wide{};
#pragma GCC unroll 8
        for (int s = 0; s < SUMS; ++s) wide += low(sums[s]) + high(sums[s]);
        total += sum(wide);
    }
    return total;
}

// The same in double precision throughout.
inline double wide_dot(const float* a, const float* b, int64_t d) {
    Doubles first{}, second{};
    for (int64_t k = 0; k < d; k += LANES) {
        const Floats left = load(a + k), right = load(b + k);
        first += low(left) * low(right);
        second += high(left) * high(right);
    }
    return sum(first + second);
}

inline float largest(const float* row, int64_t d) {
    Floats found{};
    const Bits magnitude = Bits{} + 0x7fffffffu;
    for (int64_t k = 0; k < d; k += LANES) found = maximum(found, (Floats)((Bits)load(row + k) & magnitude));
    float size = 0;
    for (int lane = 0; lane < LANES; ++lane) size = found[lane] > size ? found[lane] : size;
    return size;
}

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
