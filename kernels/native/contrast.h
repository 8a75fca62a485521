// z and the positives' logits of all anchors, and the gradient of Σ a_i lse_i − b_i s⁺_i: for batches whose exponentials
// fit in memory. The pairs that are compared make up a few rectangles of stacked rows against stacked rows. Each is cut
// into strips of TILE columns and these into square tiles, which become logits, then exponentials less a common shift,
// then, in the second pass, weights. Sums of such exponentials simply add up; if one leaves the range of normal numbers,
// the batch is left to another path.
#pragma once
#include "products.h"
#include "rows.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

// Exponentials of cosines stay below 2^WINDOW.
constexpr double WINDOW = 100.0, NORMAL = 0x1p124;
// Rows of a tile whose sums along columns are added up in single precision.
constexpr int SUMMED_ROWS = 16;
// Products below which a second thread costs more than it does.
constexpr int64_t WORTH_A_THREAD = 1 << 21;

// Which anchors a rectangle serves: those of its rows; those of its columns too; or, a side with itself, both, of which
// only the tiles on and above the diagonal are formed.
enum Kind { PLAIN, MIRRORED, TRIANGLE };

struct Rectangle {
    int64_t row, rows, column, columns;
    Kind kind;
    int64_t strips, stride;
    float* entries;      // (rows, stride) exponentials, if a gradient is wanted
    double* row_sums;    // (strips, rows) each strip's share of its rows' sums
    double* column_sums; // (columns,) unless plain
    double* row_moments;
    double* column_moments;
};

struct Contrast {
    const Problem& problem;
    Rows rows;
    Rectangle rectangles[4];
    int num_rectangles = 0;
    int parts = 1;
    bool moment;
    double *total, *moments, *pull;
    float *scale, *shift, *limit, *weight;  // per anchor; weight for every stacked row, 0 where it is no anchor
    float* centred = nullptr;
    char* working;         // each part's memory
    unsigned long working_size = 0;
    const int64_t** ids;   // each side's
    int64_t* offsets;

    explicit Contrast(const Problem& given) : problem(given), rows(given.d, given.count()), moment(given.moment != nullptr) {
        lay_out();
    }

    void add(int64_t row, int64_t end_row, int64_t column, int64_t end_column, Kind kind) {
        if (row >= end_row || column >= end_column) return;
        Rectangle& added = rectangles[num_rectangles++];
        added = {row, end_row - row, column, end_column - column, kind, (end_column - column + TILE - 1) / TILE, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
        const int64_t padded = up(added.columns, TILE);
        added.stride = padded % 256 == 0 ? padded + 16 : padded;
    }

    // One rectangle serves both of its sides only where a logit is the same both ways.
    void lay_out() {
        const int64_t n = problem.n, m = rows.count, anchors = problem.anchors();
        const bool both = problem.num_directions == 2;
        if (problem.scales != nullptr || problem.bounded) {
            switch (problem.negatives) {
                case BOTH: add(0, anchors, 0, m, PLAIN); break;
                case CROSS:
                    add(0, n, n, m, PLAIN);
                    if (both) add(n, 2 * n, 0, n, PLAIN), add(n, 2 * n, 2 * n, m, PLAIN);
                    break;
                case OWN:
                    add(0, n, 0, n, PLAIN), add(0, n, 2 * n, m, PLAIN);
                    if (both) add(n, 2 * n, n, m, PLAIN);
                    break;
                case NONE: add(0, anchors, 2 * n, m, PLAIN); break;
            }
            return;
        }
        int64_t first = 2 * n;  // of the columns that only serve rows
        switch (problem.negatives) {
            case BOTH:
                add(0, anchors, 0, anchors, TRIANGLE);
                first = anchors;
                break;
            case CROSS:
                if (both) add(0, n, n, 2 * n, MIRRORED);
                else first = n;
                break;
            case OWN:
                add(0, n, 0, n, TRIANGLE);
                if (both) add(n, 2 * n, n, 2 * n, TRIANGLE);
                break;
            case NONE: break;
        }
        add(0, anchors, first, m, PLAIN);
    }

    void place(Plan& plan) {
        const int64_t anchors = problem.anchors();
        rows.place(plan, problem.n, problem.gradient);
        total = plan.take<double>(anchors);
        moments = plan.take<double>(moment ? anchors : 0);
        pull = plan.take<double>(problem.gradient ? problem.n : 0);
        scale = plan.take<float>(anchors);
        shift = plan.take<float>(anchors);
        limit = plan.take<float>(problem.bounded ? anchors : 0);
        weight = plan.take<float>(problem.gradient ? rows.count + TILE : 0);
        centred = plan.take<float>(problem.gradient ? rows.count * rows.stride + BLOCK_COLUMNS : 0);
        ids = plan.take<const int64_t*>(problem.num_sides);
        offsets = plan.take<int64_t>(problem.num_sides + 1);
        for (int index = 0; index < num_rectangles; ++index) {
            Rectangle& r = rectangles[index];
            const int64_t shared = r.kind == PLAIN ? 0 : up(r.columns, TILE);
            r.row_sums = plan.take<double>(r.strips * r.rows);
            r.column_sums = plan.take<double>(shared);
            r.row_moments = plan.take<double>(moment ? r.strips * r.rows : 0);
            r.column_moments = plan.take<double>(moment ? shared : 0);
            r.entries = plan.take<float>(problem.gradient ? up(r.rows, BLOCK_ROWS) * r.stride + TILE : 0);
        }
        Plan own;
        place_working(own);
        working_size = own.used;
        working = plan.take<char>(static_cast<int64_t>(working_size) * parts);
    }

    struct Working {
        float* columns;   // (d, TILE)
        float* tile;      // (TILE, TILE)
        double* precise;  // (TILE, TILE)
        float* product;   // (TILE, stride)
        double* sums;     // (TILE,)
        float* column_sums;
        float* column_moments;
        double* wide_sums;
        double* wide_moments;
    };

    Working place_working(Plan& own) const {
        Working found;
        found.columns = own.take<float>(rows.padded * TILE);
        found.tile = own.take<float>((TILE + BLOCK_ROWS) * TILE);
        found.precise = own.take<double>(problem.precise ? TILE * TILE : 0);
        found.product = own.take<float>(problem.gradient ? TILE * rows.stride + BLOCK_COLUMNS : 0);
        found.sums = own.take<double>(TILE);
        found.column_sums = own.take<float>(TILE);
        found.column_moments = own.take<float>(TILE);
        found.wide_sums = own.take<double>(TILE);
        found.wide_moments = own.take<double>(TILE);
        return found;
    }

    Working working_of(int part) const {
        Plan own;
        own.start = working + working_size * static_cast<unsigned long>(part);
        return place_working(own);
    }

    Status solve() {
        int64_t products = rows.count * problem.d;
        for (int index = 0; index < num_rectangles; ++index)
            products += rectangles[index].rows * rectangles[index].columns * problem.d * (problem.gradient ? 3 : 1);
        parts = static_cast<int>(most(1, least(problem.threads, products / WORTH_A_THREAD)));
        Plan plan;
        place(plan);
        plan.start = static_cast<char*>(scratch(plan.used));
        if (plan.start == nullptr) return NO_MEMORY;
        plan.used = 0;
        place(plan);
        if (!prepare(rows, problem.sides, problem.num_sides, problem.n, problem.normalize, problem.exponents, parts)) return NOT_FINITE;
        *problem.rescaled = rows.rescaled;
        per_anchor();
        sum_exponentials();
        const Status status = finish_sums();
        if (status != DONE || !problem.gradient) return status;
        return differentiate();
    }

    void per_anchor() {
        const int64_t n = problem.n, anchors = problem.anchors();
        offsets[0] = 0;
        for (int side = 0; side < problem.num_sides; ++side) {
            ids[side] = problem.sides[side].ids;
            offsets[side + 1] = offsets[side] + problem.sides[side].count;
        }
        for (int64_t i = 0; i < anchors; ++i) {
            const double own = problem.scales != nullptr ? problem.scales[i] : problem.scale;
            scale[i] = static_cast<float>(own);
            shift[i] = problem.normalize && own > WINDOW ? static_cast<float>(own - WINDOW) : 0.0f;
            if (problem.bounded) limit[i] = static_cast<float>(rows.positive[i < n ? i : i - n] + problem.margin);
        }
    }

    double scale_of(int64_t anchor) const { return problem.scales != nullptr ? problem.scales[anchor] : problem.scale; }

    void sum_exponentials() {
        int64_t strips = 0;
        for (int index = 0; index < num_rectangles; ++index) strips += rectangles[index].strips;
        Queue queue(strips);
        auto work = [&](int part) {
            const Working memory = working_of(part);
            for (int64_t taken = queue.take(); taken < strips; taken = queue.take()) {
                int64_t strip = taken;
                int index = 0;
                while (strip >= rectangles[index].strips) strip -= rectangles[index++].strips;
                const Rectangle& r = rectangles[index];
                // The last strips of a triangle are the longest.
                sum_strip(r, r.kind == TRIANGLE ? r.strips - 1 - strip : strip, memory);
            }
        };
        parallel(parts, work);
    }

    void sum_strip(const Rectangle& r, int64_t strip, const Working& memory) {
        const int64_t first = strip * TILE, columns = least(TILE, r.columns - first);
        transpose(rows.units + (r.column + first) * rows.stride, rows.stride, columns, rows.padded, memory.columns);
        memset(memory.wide_sums, 0, sizeof(double) * TILE);
        memset(memory.wide_moments, 0, sizeof(double) * TILE);
        const int64_t end = r.kind == TRIANGLE ? first + columns : r.rows;
        for (int64_t start = 0; start < end; start += TILE) {
            const int64_t height = least(TILE, r.rows - start);
            const bool mirrored = r.kind == MIRRORED || (r.kind == TRIANGLE && start < first);
            float* tile = problem.gradient ? r.entries + start * r.stride + first : memory.tile;
            const int64_t stride = problem.gradient ? r.stride : TILE;
            const float* left = rows.units + (r.row + start) * rows.stride;
            const bool own = r.kind == TRIANGLE && start == first;
            if (problem.precise) multiply(left, rows.stride, height, memory.columns, columns, rows.padded, own, memory.precise, TILE);
            else multiply(left, rows.stride, height, memory.columns, columns, rows.padded, own, tile, stride);
            for (int64_t from = 0; from < height; from += SUMMED_ROWS) {
                if (mirrored) {
                    memset(memory.column_sums, 0, sizeof(float) * TILE);
                    memset(memory.column_moments, 0, sizeof(float) * TILE);
                }
                for (int64_t i = from; i < least(from + SUMMED_ROWS, height); ++i) {
                    float* line = tile + i * stride;
                    const int64_t anchor = r.row + start + i;
                    to_logits(line, memory.precise + i * TILE, anchor, columns);
                    leave_out(line, anchor, r.column + first, columns);
                    Floats sums{}, of_logits{};
                    for (int64_t j = 0; j < columns; j += LANES) {
                        const Floats logit = load(line + j), value = exp2(logit);
                        store(line + j, value);
                        sums += value;
                        if (mirrored) store(memory.column_sums + j, load(memory.column_sums + j) + value);
                        if (moment) {
                            const Floats product = value * logit;
                            of_logits += product;
                            if (mirrored) store(memory.column_moments + j, load(memory.column_moments + j) + product);
                        }
                    }
                    r.row_sums[strip * r.rows + start + i] = sum_wide(sums);
                    if (moment) r.row_moments[strip * r.rows + start + i] = sum_wide(of_logits);
                }
                if (mirrored)
                    for (int64_t j = 0; j < columns; ++j) {
                        memory.wide_sums[j] += memory.column_sums[j];
                        memory.wide_moments[j] += memory.column_moments[j];
                    }
            }
        }
        if (r.kind != PLAIN) memcpy(r.column_sums + first, memory.wide_sums, sizeof(double) * columns);
        if (r.kind != PLAIN && moment) memcpy(r.column_moments + first, memory.wide_moments, sizeof(double) * columns);
    }

    // Similarities to base-2 logits less the shift.
    void to_logits(float* line, const double* precise, int64_t anchor, int64_t columns) const {
        const Floats excluded = all(EXCLUDED), bound = all(problem.bounded ? limit[anchor] : INFINITY);
        if (problem.precise) {
            const Doubles factor = all_doubles(scale_of(anchor)), less = all_doubles(shift[anchor]);
            for (int64_t j = 0; j < columns; j += LANES) {
                const Doubles first = load(precise + j), second = load(precise + j + LANES / 2);
                const Floats logits = joined(first * factor - less, second * factor - less);
                store(line + j, joined(first, second) > bound ? excluded : logits);
            }
        } else {
            const Floats factor = all(scale[anchor]), less = all(shift[anchor]);
            for (int64_t j = 0; j < columns; j += LANES) {
                const Floats similarity = load(line + j);
                store(line + j, similarity > bound ? excluded : similarity * factor - less);
            }
        }
        for (int64_t j = columns; j % LANES != 0; ++j) line[j] = EXCLUDED;
    }

    // The pairs of a row that are no negatives: the row itself, its positive, and rows of the same id.
    void leave_out(float* line, int64_t anchor, int64_t first, int64_t columns) const {
        const int64_t n = problem.n, place = anchor < n ? anchor : anchor - n;
        if (!problem.masked) {
            const int64_t own = place - first, other = own + n;
            if (own >= 0 && own < columns) line[own] = EXCLUDED;
            if (other >= 0 && other < columns) line[other] = EXCLUDED;
            return;
        }
        const int64_t id = ids[0] != nullptr ? ids[0][place] : place;
        for (int side = 0; side < problem.num_sides; ++side) {
            const int64_t from = most(first, offsets[side]), to = least(first + columns, offsets[side + 1]);
            if (from >= to) continue;
            float* out = line + (from - first);
            const int64_t count = to - from, begin = from - offsets[side];
            if (ids[side] != nullptr) {
                const int64_t* others = ids[side] + begin;
                for (int64_t j = 0; j < count; ++j) out[j] = others[j] == id ? EXCLUDED : out[j];
            } else if (side < 2 && id - begin >= 0 && id - begin < count) {
                out[id - begin] = EXCLUDED;
            }
        }
    }

    // The sums of all anchors, from their shares.
    void add_up() {
        const int64_t anchors = problem.anchors();
        memset(total, 0, sizeof(double) * anchors);
        if (moment) memset(moments, 0, sizeof(double) * anchors);
        for (int index = 0; index < num_rectangles; ++index) {
            const Rectangle& r = rectangles[index];
            for (int64_t strip = 0; strip < r.strips; ++strip) {
                const int64_t end = r.kind == TRIANGLE ? least(r.rows, (strip + 1) * TILE) : r.rows;
                for (int64_t i = 0; i < end; ++i) total[r.row + i] += r.row_sums[strip * r.rows + i];
                if (moment)
                    for (int64_t i = 0; i < end; ++i) moments[r.row + i] += r.row_moments[strip * r.rows + i];
            }
            if (r.kind == PLAIN) continue;
            for (int64_t j = 0; j < r.columns; ++j) total[r.column + j] += r.column_sums[j];
            if (moment)
                for (int64_t j = 0; j < r.columns; ++j) moments[r.column + j] += r.column_moments[j];
        }
    }

    Status finish_sums() {
        const int64_t n = problem.n, anchors = problem.anchors();
        add_up();
        if (problem.gradient) memset(weight, 0, sizeof(float) * (rows.count + TILE));
        if (problem.gradient) memset(pull, 0, sizeof(double) * n);
        double value = 0;
        for (int64_t i = 0; i < anchors; ++i) {
            if (!(total[i] >= 1 / NORMAL && total[i] <= NORMAL)) return OUT_OF_RANGE;
            const double own = scale_of(i), positive = rows.positive[i < n ? i : i - n] * own;
            const double z = (std::log2(total[i]) + shift[i] - positive) * LN2;
            const double mean = moment ? (moments[i] / total[i] + shift[i] - positive) * LN2 : 0;
            if (problem.z != nullptr) problem.z[i] = z;
            if (problem.positive != nullptr) problem.positive[i] = positive * LN2;
            if (problem.moment != nullptr) problem.moment[i] = mean;
            const double share = problem.shares != nullptr ? problem.shares[i] : problem.share;
            double a, b;
            if (problem.loss == CONTRAST) {
                a = problem.a != nullptr ? problem.a[i] : 0;
                b = problem.b != nullptr ? problem.b[i] : 0;
            } else {
                double row = z, slope = 1;
                if (problem.loss == INFO_NCE) {
                    const double small = std::exp(z > 0 ? -z : z);
                    row = std::log1p(small) + (z > 0 ? z : 0);
                    slope = (z > 0 ? 1 : small) / (1 + small);
                }
                value += share * row;
                a = b = share * slope;
            }
            if (!problem.gradient) continue;
            const double per_logit = problem.held * (problem.scales != nullptr ? own * LN2 : 1.0);
            pull[i < n ? i : i - n] += b * per_logit;
            weight[i] = static_cast<float>(a * per_logit / total[i]);
            const float size = std::fabs(weight[i]);
            if (a != 0 && !(size >= 1 / NORMAL && size <= NORMAL)) return OUT_OF_RANGE;
        }
        if (problem.loss_value != nullptr) *problem.loss_value = static_cast<float>(value);
        return DONE;
    }

    // Stacked rows that are tiled together: a triangle's, or those of one side.
    struct Stretch {
        int64_t first, last;
    };

    Status differentiate() {
        centre_rows(rows, problem.normalize, centred);
        int64_t pieces = 0;
        const bool joined_pair = num_rectangles > 0 && rectangles[0].kind == TRIANGLE && rectangles[0].rows == 2 * problem.n;
        auto stretch = [&](int side) {
            if (!joined_pair || side > 1) return Stretch{offsets[side], offsets[side + 1]};
            return side == 0 ? Stretch{0, 2 * problem.n} : Stretch{0, 0};
        };
        for (int side = 0; side < problem.num_sides; ++side) pieces += (stretch(side).last - stretch(side).first + TILE - 1) / TILE;
        Queue queue(pieces);
        auto work = [&](int part) {
            const Working memory = working_of(part);
            for (int64_t taken = queue.take(); taken < pieces; taken = queue.take()) {
                int64_t piece = taken;
                for (int side = 0; side < problem.num_sides; ++side) {
                    const Stretch here = stretch(side);
                    const int64_t own = (here.last - here.first + TILE - 1) / TILE;
                    if (piece < own) {
                        const int64_t first = here.first + piece * TILE;
                        differentiate_rows(first, least(first + TILE, here.last), memory);
                        break;
                    }
                    piece -= own;
                }
            }
        };
        parallel(parts, work);
        return DONE;
    }

    int side_of(int64_t row) const {
        int side = 0;
        while (row >= offsets[side + 1]) ++side;
        return side;
    }

    void differentiate_rows(int64_t first, int64_t last, const Working& memory) const {
        bool wanted = false;
        for (int side = side_of(first); side <= side_of(last - 1); ++side) wanted |= problem.sides[side].gradient != nullptr;
        if (!wanted) return;
        memset(memory.sums, 0, sizeof(double) * TILE);
        add_all(first, last, memory);
        for (int64_t i = 0; i < last - first; ++i) {
            const int64_t row = first + i, n = problem.n;
            const int side = side_of(row);
            if (problem.sides[side].gradient == nullptr) continue;
            const int64_t place = row - offsets[side], partner = side == 0 ? n + place : side == 1 ? place : -1;
            float* out = problem.sides[side].gradient + place * problem.d;
            finish_gradient(rows, row, partner, side < 2 ? pull[place] : 0, memory.sums[i], problem.normalize, memory.product + i * rows.stride, out);
        }
    }

    // What all rectangles add to the gradient of some rows.
    void add_all(int64_t first, int64_t last, const Working& memory) const {
        const int64_t count = last - first;
        bool add = false;
        for (int index = 0; index < num_rectangles; ++index) {
            const Rectangle& r = rectangles[index];
            if (r.row <= first && last <= r.row + r.rows) {
                const int64_t own = first - r.row;
                for (int64_t k = r.kind == TRIANGLE ? own : 0; k < r.columns; k += TILE, add = true)
                    add_rows(r, own, count, k, least(TILE, r.columns - k), add, memory);
            }
            if (r.column <= first && last <= r.column + r.columns) {
                const int64_t own = first - r.column, end = r.kind == TRIANGLE ? own : r.rows;
                for (int64_t k = 0; k < end; k += TILE, add = true) add_columns(r, own, count, k, least(TILE, end - k), add, memory);
            }
        }
        if (!add) memset(memory.product, 0, sizeof(float) * count * rows.stride);
    }

    // Weights of some rows of a rectangle times its columns' rows.
    void add_rows(const Rectangle& r, int64_t first, int64_t count, int64_t k, int64_t terms, bool add, const Working& memory) const {
        const float *of_rows = weight + r.row + first, *of_columns = weight + r.column + k;
        for (int64_t i = 0; i < count; ++i) {
            const float* entries = r.entries + (first + i) * r.stride + k;
            float* line = memory.tile + i * TILE;
            const Floats own = all(of_rows[i]);
            if (r.kind == PLAIN) {
                for (int64_t j = 0; j < terms; j += LANES) store(line + j, load(entries + j) * own);
            } else {
                for (int64_t j = 0; j < terms; j += LANES) store(line + j, load(entries + j) * (own + load(of_columns + j)));
            }
            if (rows.centre != nullptr) {
                double sum = 0;
                for (int64_t j = 0; j < terms; ++j) sum += line[j];
                memory.sums[i] += sum;
            }
        }
        accumulate(memory.tile, {TILE, 1}, count, rows.centred + (r.column + k) * rows.stride, rows.stride, terms, rows.padded, memory.product, rows.stride, add);
    }

    // Weights of some columns of a rectangle times its rows.
    void add_columns(const Rectangle& r, int64_t first, int64_t count, int64_t k, int64_t terms, bool add, const Working& memory) const {
        const float *of_rows = weight + r.row + k, *of_columns = weight + r.column + first;
        for (int64_t i = 0; i < terms; ++i) {
            const float* entries = r.entries + (k + i) * r.stride + first;
            float* line = memory.tile + i * TILE;
            const Floats own = all(of_rows[i]);
            if (r.kind == PLAIN) {
                for (int64_t j = 0; j < count; j += LANES) store(line + j, load(entries + j) * own);
            } else {
                for (int64_t j = 0; j < count; j += LANES) store(line + j, load(entries + j) * (own + load(of_columns + j)));
            }
            if (rows.centre != nullptr)
                for (int64_t j = 0; j < count; ++j) memory.sums[j] += line[j];
        }
        accumulate(memory.tile, {1, TILE}, count, rows.centred + (r.row + k) * rows.stride, rows.stride, terms, rows.padded, memory.product, rows.stride, add);
    }
};

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
