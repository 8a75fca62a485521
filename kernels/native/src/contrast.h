// The gradient of Σ a_i lse_i − b_i s⁺_i from the exponentials that sums.h leaves, which become weights: each piece of
// rows adds up its own part of weights times rows, from the rectangles that hold it as rows and from those that hold it
// as columns.
#pragma once
#include "sums.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

struct Contrast : Sums {
    using Sums::Sums;

    Status solve() {
        const Status status = sum();
        return status != DONE || !problem.gradient ? status : differentiate();
    }

    // Stacked rows that are tiled together: a triangle's, or those of one side.
    struct Stretch {
        int64_t first, last;
        int64_t pieces() const { return (last - first + TILE - 1) / TILE; }
    };

    Stretch stretch(int side) const {
        const bool joined = num_rectangles > 0 && rectangles[0].kind == TRIANGLE && rectangles[0].rows == 2 * problem.n;
        if (!joined || side > 1) return {offsets[side], offsets[side + 1]};
        return side == 0 ? Stretch{0, 2 * problem.n} : Stretch{0, 0};
    }

    // Call a function on every piece of rows whose gradient is wanted.
    template <class Function>
    void for_pieces(Function& function) {
        int64_t pieces = 0;
        for (int side = 0; side < problem.num_sides; ++side) pieces += stretch(side).pieces();
        Queue queue(pieces);
        auto work = [&](int part) {
            const Working memory = working_of(part);
            for (int64_t taken = queue.take(); taken < pieces; taken = queue.take()) {
                int64_t piece = taken;
                int side = 0;
                while (piece >= stretch(side).pieces()) piece -= stretch(side++).pieces();
                const int64_t first = stretch(side).first + piece * TILE,
                              last = least(first + TILE, stretch(side).last);
                bool wanted = false;
                for (int own = side_of(first); own <= side_of(last - 1); ++own)
                    wanted |= problem.sides[own].gradient != nullptr;
                if (wanted) function(first, last, memory);
            }
        };
        parallel(parts, work);
    }

    Status differentiate() {
        centre_rows(rows, problem.normalize, centred);
        if (kept) {
            auto whole = [&](int64_t first, int64_t last, const Working& memory) {
                memset(memory.sums, 0, sizeof(double) * TILE);
                if (!add_products(first, last, memory))
                    memset(memory.product, 0, sizeof(float) * (last - first) * rows.stride);
                finish(first, last, memory.product, memory.sums);
            };
            for_pieces(whole);
            return DONE;
        }
        memset(products, 0, sizeof(float) * rows.count * rows.stride);
        memset(weight_sums, 0, sizeof(double) * rows.count);
        auto within_or_beyond = [&](int64_t first, int64_t last, const Working& memory) {
            if (first == last) return;
            memset(memory.sums, 0, sizeof(double) * TILE);
            if (!add_products(first, last, memory)) return;
            for (int64_t i = 0; i < last - first; ++i) {
                float* to = products + (first + i) * rows.stride;
                for (int64_t k = 0; k < rows.padded; k += LANES)
                    store(to + k, load(to + k) + load(memory.product + i * rows.stride + k));
                weight_sums[first + i] += memory.sums[i];
            }
        };
        int64_t begin = 0, end = 0;
        auto of_band = [&](int64_t first, int64_t last, const Working& memory) {
            // Tiles of a side need not begin where a band does.
            const int64_t left = least(most(first, begin), last), right = least(most(first, end), last);
            within_or_beyond(first, left, memory);
            within_or_beyond(left, right, memory);
            within_or_beyond(right, last, memory);
        };
        for (int index = 0; index < num_rectangles; ++index) {
            Rectangle& r = rectangles[index];
            r.entries = band;
            for (r.first = 0; r.first < r.columns; r.first = r.last) {
                r.last = least(r.columns, end_of_band(r, r.first / TILE) * TILE);
                begin = r.column + r.first, end = r.column + r.last;
                form_band(r);
                for_pieces(of_band);
            }
            r.first = r.last = 0;
        }
        auto done = [&](int64_t first, int64_t last, const Working&) {
            finish(first, last, products + first * rows.stride, weight_sums + first);
        };
        for_pieces(done);
        return DONE;
    }

    void form_band(const Rectangle& r) {
        const int64_t first = r.first / TILE, strips = (r.last - r.first + TILE - 1) / TILE;
        Queue queue(strips);
        auto work = [&](int part) {
            const Working memory = working_of(part);
            for (int64_t taken = queue.take(); taken < strips; taken = queue.take())
                form_strip(r, first + strips - 1 - taken, false, true, memory);
        };
        parallel(parts, work);
    }

    int side_of(int64_t row) const {
        int side = 0;
        while (row >= offsets[side + 1]) ++side;
        return side;
    }

    // Weights times rows for the exponentials that are kept; returns whether there were any.
    bool add_products(int64_t first, int64_t last, const Working& memory) const {
        const int64_t count = last - first;
        bool add = false;
        // Nothing outweighs the rounding of candidates' weights, as the positive does for the pairs.
        const bool halves = paired && first < 2 * problem.n;
        for (int index = 0; index < num_rectangles; ++index) {
            const Rectangle& r = rectangles[index];
            if (r.row <= first && last <= r.row + r.rows) {
                const int64_t own = first - r.row, begin = r.kind == TRIANGLE ? most(own, r.first) : r.first;
                for (int64_t k = begin; k < r.last; k += TILE, add = true)
                    add_rows(r, own, count, k, least(TILE, r.last - k), add, halves, memory);
            }
            if (r.column + r.first <= first && last <= r.column + r.last) {
                const int64_t own = first - r.column, end = r.kind == TRIANGLE ? own : r.rows;
                for (int64_t k = 0; k < end; k += TILE, add = true)
                    add_columns(r, own, count, k, least(TILE, end - k), add, halves, memory);
            }
        }
        return add;
    }

    void finish(int64_t first, int64_t last, float* product, const double* sums) const {
        for (int64_t row = first; row < last; ++row) {
            const int side = side_of(row);
            if (problem.sides[side].gradient == nullptr) continue;
            const int64_t place = row - offsets[side], partner = side == 0 ? problem.n + place : side == 1 ? place : -1;
            float* out = problem.sides[side].gradient + place * problem.d;
            finish_gradient(rows, row, partner, side < 2 ? pull[place] : 0, sums[row - first], problem.normalize,
                            product + (row - first) * rows.stride, out);
        }
    }

    // Weights of some rows of a rectangle times its columns' rows.
    void add_rows(const Rectangle& r, int64_t first, int64_t count, int64_t k, int64_t terms, bool add, bool halves,
                  const Working& memory) const {
        for (int64_t i = 0; i < count; ++i) {
            float* line = memory.tile + i * TILE;
            weigh(r, first + i, k, terms, line);
            if (rows.centre != nullptr) memory.sums[i] += sum_of(line, terms);
        }
        const int64_t others = r.column + k;
        if (!halves) {
            accumulate<SINGLES>(memory.tile, {TILE, 1}, count, rows.centred + others * rows.stride, rows.stride, terms,
                                rows.padded, memory.product, rows.stride, add);
            return;
        }
        for (int64_t i = 0; i < count; ++i) {
            uint16_t* to = reinterpret_cast<uint16_t*>(memory.pairs + i * (TILE / 2));
            for (int64_t j = 0; j < terms; j += LANES) {
                const Bits bits = rounded_bfloat16(over_lengths(load(memory.tile + i * TILE + j), others + j)) >> 16;
                *reinterpret_cast<ShortsAnywhere*>(to + j) = __builtin_convertvector(bits, Shorts);
            }
            for (int64_t j = terms; j % 2 != 0; ++j) to[j] = 0;
        }
        pair_rows(others, terms, memory.others);
        accumulate<PAIRS>(memory.pairs, {TILE / 2, 1}, count, memory.others, rows.stride, (terms + 1) / 2, rows.padded,
                          memory.product, rows.stride, add);
    }

    // Weights of some columns of a rectangle times its rows.
    void add_columns(const Rectangle& r, int64_t first, int64_t count, int64_t k, int64_t terms, bool add, bool halves,
                     const Working& memory) const {
        for (int64_t i = 0; i < terms; ++i) {
            float* line = memory.tile + i * TILE;
            weigh(r, k + i, first, count, line);
            if (rows.centre != nullptr)
                for (int64_t j = 0; j < count; ++j) memory.sums[j] += line[j];
        }
        const int64_t others = r.row + k;
        if (!halves) {
            accumulate<SINGLES>(memory.tile, {1, TILE}, count, rows.centred + others * rows.stride, rows.stride, terms,
                                rows.padded, memory.product, rows.stride, add);
            return;
        }
        for (int64_t i = 0; i < terms; i += 2) {
            const bool alone = i + 1 == terms;
            const float *upper = memory.tile + i * TILE, *lower = upper + TILE;
            const Floats of_first = all(own_length(others + i)),
                         of_second = all(alone ? 0 : own_length(others + i + 1));
            for (int64_t j = 0; j < count; j += LANES) {
                const Bits first_bits = rounded_bfloat16(load(upper + j) * of_first) >> 16;
                const Bits second_bits = alone ? Bits{} : rounded_bfloat16(load(lower + j) * of_second);
                store(memory.pairs + i / 2 * TILE + j, (Floats)(first_bits | second_bits));
            }
        }
        pair_rows(others, terms, memory.others);
        accumulate<PAIRS>(memory.pairs, {1, TILE}, count, memory.others, rows.stride, (terms + 1) / 2, rows.padded,
                          memory.product, rows.stride, add);
    }

    // The weights of one row of a rectangle.
    void weigh(const Rectangle& r, int64_t row, int64_t first, int64_t columns, float* line) const {
        const float* of_columns = weight + r.column;
        const Floats own = all(weight[r.row + row]);
        // Columns may begin within a strip and end in the next; what is written too much is written again.
        for (int64_t column = first; column < first + columns;) {
            const int64_t strip = column / TILE, offset = column - strip * TILE,
                          count = least(TILE - offset, first + columns - column);
            const float* entries = strip_of(r, strip) + row * TILE + offset;
            if (r.kind == PLAIN) {
                for (int64_t j = 0; j < count; j += LANES) store(line + j, load(entries + j) * own);
            } else {
                for (int64_t j = 0; j < count; j += LANES)
                    store(line + j, load(entries + j) * (own + load(of_columns + column + j)));
            }
            column += count;
            line += count;
        }
    }

    static double sum_of(const float* line, int64_t count) {
        double sum = 0;
        for (int64_t j = 0; j < count; ++j) sum += line[j];
        return sum;
    }

    // Raw rows are multiplied by weights over the rows' lengths; rows less their centre are not raw.
    bool multiplies_raw() const { return rows.centre == nullptr; }
    float own_length(int64_t row) const { return multiplies_raw() ? inverse[row] : 1; }
    Floats over_lengths(Floats weights, int64_t first) const {
        return multiplies_raw() ? weights * load(inverse + first) : weights;
    }

    // Two rows of the right factor at a time, entry by entry.
    void pair_rows(int64_t first, int64_t count, float* to) const {
        for (int64_t i = 0; i < count; i += 2, to += rows.stride) {
            const bool alone = i + 1 == count;
            if (multiplies_raw()) {
                const uint16_t *upper = raw + (first + i) * 2 * paired_stride, *lower = upper + 2 * paired_stride;
                for (int64_t k = 0; k < rows.padded; k += LANES) {
                    const Bits one = __builtin_convertvector(*reinterpret_cast<const ShortsAnywhere*>(upper + k), Bits);
                    const Bits other =
                        alone ? Bits{}
                              : __builtin_convertvector(*reinterpret_cast<const ShortsAnywhere*>(lower + k), Bits);
                    store(to + k, (Floats)(one | other << 16));
                }
            } else {
                const float *upper = rows.centred + (first + i) * rows.stride, *lower = upper + rows.stride;
                for (int64_t k = 0; k < rows.padded; k += LANES) {
                    const Bits other = alone ? Bits{} : rounded_bfloat16(load(lower + k));
                    store(to + k, (Floats)(rounded_bfloat16(load(upper + k)) >> 16 | other));
                }
            }
        }
    }
};

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
