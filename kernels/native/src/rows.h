// The rows of all sides as the products need them: stacked, in single precision, of unit length if normalised.
#pragma once
#ifdef CTLOSS_SANITIZE
#include <sanitizer/asan_interface.h>
#endif

#include "simd.h"
#include "threads.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

constexpr double LN2 = 0.693147180559945309417, LOG2E = 1.44269504088896340736;
constexpr int LARGEST_EXPONENT = 30;
// How much centring must take off the squares of unit rows to pay.
constexpr double GAIN = 0.5;

template <class Function>
void parallel(int parts, Function& function) {
    share(parts, [](void* context, int part) { (*static_cast<Function*>(context))(part); }, &function);
}

// Work is handed out piece by piece. Every piece has a place of its own for its results, so that these are the same bit
// for bit whoever does it.
struct Queue {
    int64_t next = 0, size;
    explicit Queue(int64_t count) : size(count) {}
    int64_t take() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }
};

// Memory for one call, parted by cache lines, and by more that AddressSanitizer watches: sizes first, then places.
struct Plan {
    unsigned long used = 0;
    char* start = nullptr;
    template <class Entry>
    Entry* take(int64_t count) {
        Entry* found = reinterpret_cast<Entry*>(start + used);
        used += (static_cast<unsigned long>(count) * sizeof(Entry) + 63) & ~63ul;
#ifdef CTLOSS_SANITIZE
        if (start != nullptr) __asan_poison_memory_region(start + used, 64);
        used += 64;
#endif
        return found;
    }
};

// Everything that a call places, in this thread's memory; false if there is none.
template <class Call>
bool place_in_scratch(Call& call) {
    Plan plan;
    call.place(plan);
    plan.start = static_cast<char*>(scratch(plan.used));
    if (plan.start == nullptr) return false;
    plan.used = 0;
    call.place(plan);
    return true;
}

struct Rows {
    int64_t d, padded, stride, count;
    float* units;      // (count, stride), 0 from d to `padded`
    double* inverse;   // (count,) one over the length of the rescaled row; 0 for a zero row
    double* length;    // (count,) of the rows as they are multiplied
    double* positive;  // (n,) similarities of the pairs
    float*
        originals;   // (count, stride) rescaled rows before they are normalised, which rounds them; null unless wanted
    float* centre;   // (padded,) the mean row; null where subtracting it does not pay
    float* centred;  // (count, stride) rows less the centre, or the units themselves
    bool rescaled;
    bool wide = false;  // every product in double precision where it is added up, from rows that are not rounded

    double product(const float* a, const float* b) const { return wide ? wide_dot(a, b, padded) : dot(a, b, padded); }

    Rows(int64_t width, int64_t total) : d(width), padded(up(width, LANES)), count(total) {
        // Rows a multiple of 4 KiB apart would all contend for the same lines of the cache.
        stride = padded % 256 == 0 ? padded + 16 : padded;
    }

    void place(Plan& plan, int64_t n, bool gradient) {
        // Blocks of products read a few rows more, and vectors a few columns.
        units = plan.take<float>((count + 16) * stride + 64);
        originals = wide ? plan.take<float>((count + 16) * stride + 64) : nullptr;
        inverse = plan.take<double>(count + LANES);
        length = plan.take<double>(count);
        positive = plan.take<double>(n);
        centre = gradient ? plan.take<float>(padded) : nullptr;
        centred = units;
    }
};

// A row times a power of two, in halves: 2^140, say, is not a float, although a product with it may be one.
inline void rescale(float* row, int64_t padded, int exponent) {
    const int half = exponent / 2;
    const Floats first = all(__builtin_ldexpf(1.0f, half)), second = all(__builtin_ldexpf(1.0f, exponent - half));
    for (int64_t k = 0; k < padded; k += LANES) store(row + k, load(row + k) * first * second);
}

// Make one row; return the power of two it was multiplied by.
inline int prepare_row(const Rows& rows, const Side& side, int64_t place, int64_t index, bool normalize) {
    float* row = rows.units + index * rows.stride;
    widen(side.rows, place * side.stride, side.dtype, rows.d, row, rows.padded);
    int exponent = 0;
    if (normalize) {
        const float size = largest(row, rows.padded);
        int own = 0;
        if (size > 0 && __builtin_isfinite(size)) __builtin_frexpf(size, &own);
        if (own > LARGEST_EXPONENT || own < -LARGEST_EXPONENT) {
            exponent = -own;
            rescale(row, rows.padded, exponent);
        }
    }
    const double norm = std::sqrt(rows.product(row, row));
    rows.length[index] = normalize ? (norm > 0) : norm;
    // One over an infinite length would pass for a zero row.
    rows.inverse[index] = !normalize ? 1.0 : norm == 0 ? 0.0 : __builtin_isfinite(norm) ? 1.0 / norm : norm;
    return exponent;
}

inline void normalise_row(const Rows& rows, int64_t index) {
    float* row = rows.units + index * rows.stride;
    if (rows.originals != nullptr) memcpy(rows.originals + index * rows.stride, row, sizeof(float) * rows.padded);
    // In two parts, so that the factor's own rounding does not tilt the whole row.
    const Floats factor = all(static_cast<float>(rows.inverse[index]));
    const Floats rest = all(static_cast<float>(rows.inverse[index] - static_cast<float>(rows.inverse[index])));
    for (int64_t k = 0; k < rows.padded; k += LANES) {
        const Floats value = load(row + k);
        store(row + k, value * factor + value * rest);
    }
}

// Stack, rescale and normalise all rows, and multiply the pairs: of the first two sides and, if `second` is one of the
// sides, of that and the next. False where a row is not finite.
inline bool prepare(Rows& rows, const Side* sides, int num_sides, int second, bool normalize, float* exponents,
                    int parts) {
    int bad = 0, rescaled = 0;
    auto work = [&](int part) {
        int64_t offset = 0;
        for (int side = 0; side < num_sides; offset += sides[side].count, ++side) {
            if (side == 1 || side == second + 1) continue;  // with x, pair by pair
            const bool pairs = side == 0 || side == second;
            double* positive = rows.positive + (side == 0 ? 0 : sides[0].count);
            const int64_t count = sides[side].count, last = count * (part + 1) / parts;
            for (int64_t i = count * part / parts; i < last; ++i) {
                for (int of_pair = 0; of_pair < (pairs ? 2 : 1); ++of_pair) {
                    const int64_t index = offset + i + of_pair * count;
                    const int exponent = prepare_row(rows, sides[side + of_pair], i, index, normalize);
                    if (exponent != 0) __atomic_store_n(&rescaled, 1, __ATOMIC_RELAXED);
                    if (!__builtin_isfinite(rows.inverse[index]) || !__builtin_isfinite(rows.length[index]))
                        __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
                    if (exponents != nullptr) exponents[index] = static_cast<float>(exponent);
                }
                const int64_t index = offset + i;
                if (pairs) {
                    const int64_t partner = index + count;
                    const double product =
                        rows.product(rows.units + index * rows.stride, rows.units + partner * rows.stride);
                    positive[i] = product * (rows.inverse[index] * rows.inverse[partner]);
                    if (normalize) normalise_row(rows, partner);
                }
                if (normalize) normalise_row(rows, index);
            }
        }
    };
    parallel(parts, work);
    rows.rescaled = rescaled;
    return !bad;
}

// Find the mean row, and subtract it from all rows where that makes them shorter: each row of weights nearly sums to
// the positive's, so in a collapsed batch almost the whole product cancels, and only its rounding stays.
inline void centre_rows(Rows& rows, bool normalize, float* centred) {
    float* mean = rows.centre;
    memset(mean, 0, sizeof(float) * rows.padded);
    for (int64_t i = 0; i < rows.count; ++i)
        for (int64_t k = 0; k < rows.padded; k += LANES)
            store(mean + k, load(mean + k) + load(rows.units + i * rows.stride + k));
    const Floats share = all(1.0f / static_cast<float>(rows.count));
    for (int64_t k = 0; k < rows.padded; k += LANES) store(mean + k, load(mean + k) * share);
    bool pays;
    if (normalize && !rows.rescaled) {
        // The squared distances of unit rows from their mean average to 1 − |mean|².
        pays = dot(mean, mean, rows.padded) > GAIN;
    } else {
        double shortest = INFINITY, longest = 0;
        for (int64_t i = 0; i < rows.count; ++i) {
            shortest = rows.length[i] < shortest ? rows.length[i] : shortest;
            longest = rows.length[i] > longest ? rows.length[i] : longest;
        }
        pays = 2 * shortest > longest;
    }
    if (!pays) {
        rows.centre = nullptr;
        return;
    }
    rows.centred = centred;
    for (int64_t i = 0; i < rows.count; ++i)
        for (int64_t k = 0; k < rows.padded; k += LANES)
            store(centred + i * rows.stride + k, load(rows.units + i * rows.stride + k) - load(mean + k));
}

// Carry a unit row's gradient through the normalisation, and add what centring and the positive took from it:
// out = (g − ⟨g, u⟩ u) / |row| with g = product + sum · centre − pull · (positive's row, centred or not).
inline void finish_gradient(const Rows& rows, int64_t index, int64_t partner, double pull, double sum, bool normalize,
                            float* product, float* out) {
    const float* unit = rows.units + index * rows.stride;
    if (partner >= 0 && pull != 0) {
        const Floats factor = all(static_cast<float>(-pull));
        const float* other = rows.centred + partner * rows.stride;
        for (int64_t k = 0; k < rows.padded; k += LANES)
            store(product + k, load(product + k) + factor * load(other + k));
    }
    if (rows.centre != nullptr) {
        const Floats factor = all(static_cast<float>(sum - (partner >= 0 ? pull : 0)));
        for (int64_t k = 0; k < rows.padded; k += LANES)
            store(product + k, load(product + k) + factor * load(rows.centre + k));
    }
    if (normalize) {
        const Floats radial = all(static_cast<float>(dot(product, unit, rows.padded)));
        const Floats inverse = all(static_cast<float>(rows.inverse[index]));
        for (int64_t k = 0; k < rows.padded; k += LANES)
            store(product + k, (load(product + k) - radial * load(unit + k)) * inverse);
    }
    memcpy(out, product, sizeof(float) * rows.d);
}

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
