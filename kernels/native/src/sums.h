// z and the positives' logits of all anchors, and what the gradient needs of each. The pairs that are compared make up
// a few rectangles of stacked rows against stacked rows. Each is cut into strips of TILE columns and these into square
// tiles, which become logits, then exponentials less a common shift, kept for the gradient where they fit the memory.
// Sums of such exponentials simply add up; if one leaves the range of normal numbers, the batch is left to another
// path.
#pragma once
#include "products.h"
#include "rows.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

// Exponentials of cosines stay below 2^WINDOW.
constexpr double WINDOW = 100.0, NORMAL = 0x1p124, LARGEST_LOGIT = 124.0;
// Rows of a tile whose sums along columns are added up in single precision.
constexpr int SUMMED_ROWS = 16;
// Bytes of exponentials that are kept at a time where not all can be: a cache's worth.
constexpr int64_t BAND = 32 << 20;
constexpr int64_t GROUPS = 32;
// Products below which a second thread costs more than it does.
constexpr int64_t WORTH_A_THREAD = 1 << 21;

// Which anchors a rectangle serves: those of its rows; those of its columns too; or, a side with itself, both, of which
// only the tiles on and above the diagonal are formed.
enum Kind { PLAIN, MIRRORED, TRIANGLE };

struct Rectangle {
    int64_t row, rows, column, columns;
    Kind kind;
    int64_t strips;
    int64_t first, last;  // the columns whose exponentials are kept at the moment
    float* entries;       // those exponentials, strip by strip: (rows, TILE) each, of a triangle down to the diagonal
    double* row_sums;     // (groups, rows) what each group of strips adds to its rows' sums
    double* column_sums;  // (columns,) unless plain
    double* row_moments;
    double* column_moments;
};

struct Sums {
    const Problem& problem;
    Rows rows;
    Rectangle rectangles[6];
    int num_rectangles = 0;
    int64_t base;        // the stacked rows before another rank's
    int64_t reach;       // one past the last anchor's row
    double longest = 0;  // length of a block's rows
    int parts = 1;
    bool moment;
    double *total, *moments, *pull;
    // Whatever belongs to an anchor lies at its stacked row, except for the caller's tensors.
    float *scale, *shift, *limit;
    float *weight, *inverse;  // of all stacked rows; the weights are 0 where it is no anchor
    float* centred = nullptr;
    bool paired;    // the processor multiplies pairs of bfloat16 numbers, and all rows are such
    uint16_t* raw;  // (count, 2 · paired_stride), the rows as they were given, if so
    int64_t paired_width, paired_stride;
    bool kept =
        false;  // all exponentials, from the sums until the gradient is formed; else a band of columns at a time
    float* band;
    float* products;      // (rows of all sides, stride) and
    double* weight_sums;  // (rows of all sides,) what the bands add up to
    char* working;        // each part's memory
    unsigned long working_size = 0;
    const int64_t** ids;  // each side's
    int64_t* offsets;

    explicit Sums(const Problem& given)
        : problem(given), rows(given.d, given.count()), moment(given.moment != nullptr) {
        paired = MULTIPLIES_PAIRS && !given.precise;
        rows.wide = given.precise > 1 && given.normalize;
        for (int side = 0; side < given.num_sides; ++side) paired = paired && given.sides[side].dtype == BFLOAT16;
        paired_width = up((given.d + 1) / 2, LANES);
        paired_stride = paired_width % 256 == 0 ? paired_width + 16 : paired_width;
        base = rows.count;
        for (int side = given.own_sides; given.others > 0 && side < given.num_sides; ++side)
            base -= given.sides[side].count;
        const int64_t own = given.n * given.num_directions;
        reach = given.mutual ? base + given.anchors() - own : own;
        lay_out();
    }

    int64_t row_of(int64_t anchor) const {
        const int64_t own = problem.n * problem.num_directions;
        return anchor < own ? anchor : base + anchor - own;
    }
    int64_t anchor_of(int64_t row) const { return row < base ? row : row - base + problem.n * problem.num_directions; }
    // The pair that an anchor's row belongs to; the other rank's come after the first's.
    int64_t pair_of(int64_t row) const {
        if (row < base) return row < problem.n ? row : row - problem.n;
        const int64_t place = row - base;
        return problem.n + (place < problem.others ? place : place - problem.others);
    }

    void add(int64_t row, int64_t end_row, int64_t column, int64_t end_column, Kind kind) {
        if (row >= end_row || column >= end_column) return;
        // What is kept lies where the call for the sums has put it.
        if (problem.lse != nullptr && !problem.formed && !wanted(row, end_row) && !wanted(column, end_column)) return;
        Rectangle& added = rectangles[num_rectangles++];
        added = {row,     end_row - row,
                 column,  end_column - column,
                 kind,    (end_column - column + TILE - 1) / TILE,
                 0,       0,
                 nullptr, nullptr,
                 nullptr, nullptr,
                 nullptr};
    }

    // Whether the gradient of any of some stacked rows is wanted.
    bool wanted(int64_t first, int64_t last) const {
        int64_t begin = 0;
        for (int side = 0; side < problem.num_sides; begin += problem.sides[side++].count)
            if (problem.sides[side].gradient != nullptr && begin < last && first < begin + problem.sides[side].count)
                return true;
        return false;
    }

    // Strips are summed in groups, every so many of them, and each group one strip after the other: so sums are the
    // same whoever does what, and take little memory.
    static int64_t groups_of(const Rectangle& r) { return least(r.strips, GROUPS); }

    // Entries of the strips before one.
    static int64_t entries_before(const Rectangle& r, int64_t strip) {
        return r.kind == TRIANGLE ? TILE * TILE * (strip * (strip + 1) / 2) : strip * up(r.rows, BLOCK_ROWS) * TILE;
    }
    static float* strip_of(const Rectangle& r, int64_t strip) {
        return r.entries + (entries_before(r, strip) - entries_before(r, r.first / TILE));
    }

    // One rectangle serves both of its sides only where a logit is the same both ways.
    void lay_out() {
        const int64_t n = problem.n, m = rows.count, anchors = n * problem.num_directions;
        const bool both = problem.num_directions == 2, once = problem.scales == nullptr && !problem.bounded;
        if (problem.others > 0) {
            if (once && problem.mutual) {
                lay_out_block();
                return;
            }
            add_plain(0, n, base, problem.others, m);
            if (problem.mutual) add_plain(base, problem.others, 0, n, base);
            return;
        }
        if (!once) {
            add_plain(0, n, 0, n, m);
            return;
        }
        int64_t first = 2 * n;  // of the columns that only serve rows
        switch (problem.negatives) {
            case BOTH:
                add(0, anchors, 0, anchors, TRIANGLE);
                first = anchors;
                break;
            case CROSS:
                if (both)
                    add(0, n, n, 2 * n, MIRRORED);
                else
                    first = n;
                break;
            case OWN:
                add(0, n, 0, n, TRIANGLE);
                if (both) add(n, 2 * n, n, 2 * n, TRIANGLE);
                break;
            case NONE:
                break;
        }
        add(0, anchors, first, m, PLAIN);
    }

    // The anchors among the n pairs from `row` against what lies from `column` to `end`: `others` pairs, then
    // candidates.
    void add_plain(int64_t row, int64_t n, int64_t column, int64_t others, int64_t end) {
        const int64_t y = row + n, of_y = column + others, candidates = column + 2 * others;
        const bool both = problem.num_directions == 2;
        switch (problem.negatives) {
            case BOTH:
                add(row, both ? y + n : y, column, end, PLAIN);
                break;
            case CROSS:
                add(row, y, of_y, end, PLAIN);
                if (both) add(y, y + n, column, of_y, PLAIN), add(y, y + n, candidates, end, PLAIN);
                break;
            case OWN:
                add(row, y, column, of_y, PLAIN), add(row, y, candidates, end, PLAIN);
                if (both) add(y, y + n, of_y, end, PLAIN);
                break;
            case NONE:
                add(row, both ? y + n : y, candidates, end, PLAIN);
                break;
        }
    }

    // Two ranks' rows whose logits are the same both ways.
    void lay_out_block() {
        const int64_t n = problem.n, k = problem.others, y = base + k;
        const int64_t anchors = n * problem.num_directions, of_other = base + k * problem.num_directions;
        const bool both = problem.num_directions == 2;
        // The first of each rank's columns that only serve rows.
        int64_t first = 2 * n, of_others = base + 2 * k;
        switch (problem.negatives) {
            case BOTH:
                add(0, anchors, base, of_other, MIRRORED);
                first = anchors, of_others = of_other;
                break;
            case CROSS:
                if (both)
                    add(0, n, y, y + k, MIRRORED), add(n, 2 * n, base, y, MIRRORED);
                else
                    first = n, of_others = y;
                break;
            case OWN:
                add(0, n, base, y, MIRRORED);
                if (both) add(n, 2 * n, y, y + k, MIRRORED);
                break;
            case NONE:
                break;
        }
        add(0, anchors, of_others, rows.count, PLAIN);
        add(base, of_other, first, base, PLAIN);
    }

    void place(Plan& plan) {
        const int64_t pairs = problem.n + problem.others;
        rows.place(plan, pairs, problem.gradient);
        total = plan.take<double>(reach);
        moments = plan.take<double>(moment ? reach : 0);
        pull = plan.take<double>(problem.gradient ? pairs : 0);
        scale = plan.take<float>(reach);
        shift = plan.take<float>(reach);
        limit = plan.take<float>(problem.bounded ? reach : 0);
        weight = plan.take<float>(problem.gradient ? rows.count + TILE : 0);
        centred = plan.take<float>(problem.gradient ? rows.count * rows.stride + BLOCK_COLUMNS : 0);
        inverse = plan.take<float>(paired ? rows.count + TILE : 0);
        raw = plan.take<uint16_t>(paired ? 2 * ((rows.count + 16) * paired_stride + 64) : 0);
        ids = plan.take<const int64_t*>(problem.num_sides);
        offsets = plan.take<int64_t>(problem.num_sides + 1);
        float* given = problem.entries;
        for (int index = 0; index < num_rectangles; ++index) {
            Rectangle& r = rectangles[index];
            const int64_t shared = r.kind == PLAIN ? 0 : up(r.columns, TILE);
            r.row_sums = plan.take<double>(groups_of(r) * r.rows);
            r.column_sums = plan.take<double>(shared);
            r.row_moments = plan.take<double>(moment ? groups_of(r) * r.rows : 0);
            r.column_moments = plan.take<double>(moment ? shared : 0);
            if (!kept) continue;
            const int64_t taken = entries_before(r, r.strips) + TILE;
            r.entries = given != nullptr ? given : plan.take<float>(taken);
            if (given != nullptr) given += taken;
            r.last = r.columns;
        }
        if (problem.gradient && !kept) {
            int64_t largest = 0;
            for (int index = 0; index < num_rectangles; ++index) {
                const Rectangle& r = rectangles[index];
                for (int64_t strip = 0; strip < r.strips; strip = end_of_band(r, strip))
                    largest = most(largest, entries_before(r, end_of_band(r, strip)) - entries_before(r, strip));
            }
            band = plan.take<float>(largest + TILE);
            products = plan.take<float>(rows.count * rows.stride);
            weight_sums = plan.take<double>(rows.count);
        }
        Plan own;
        place_working(own);
        working_size = own.used;
        working = plan.take<char>(static_cast<int64_t>(working_size) * parts);
    }

    // One past the last of the strips that are kept together with one, where not all can be.
    int64_t end_of_band(const Rectangle& r, int64_t strip) const {
        // What the bands add up to takes part of the memory.
        const int64_t room =
            least(BAND, problem.workspace - rows.count * rows.stride * static_cast<int64_t>(sizeof(float)));
        const int64_t limit = room / static_cast<int64_t>(sizeof(float)) + entries_before(r, strip);
        int64_t end = strip + 1;
        while (end < r.strips && entries_before(r, end + 1) <= limit) ++end;
        return end;
    }

    struct Working {
        float* columns;    // (d, TILE)
        float* tile;       // (TILE, TILE)
        double* precise;   // (TILE, TILE)
        float* unshifted;  // (TILE,) base-2 logits as they are: the shift would cancel in a mean of small ones
        float* rest;       // (TILE,) what rounding took from the logits
        float* product;    // (TILE, stride)
        float* pairs;      // (TILE / 2, TILE) weights in bfloat16
        float* others;     // (TILE / 2, stride) the rows they are multiplied by, two at a time
        double* sums;      // (TILE,)
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
        found.unshifted = own.take<float>(moment ? TILE : 0);
        found.rest = own.take<float>(problem.precise ? TILE : 0);
        found.product = own.take<float>(problem.gradient ? TILE * rows.stride + BLOCK_COLUMNS : 0);
        found.pairs = own.take<float>(paired && problem.gradient ? TILE * TILE / 2 + LANES : 0);
        found.others = own.take<float>(paired && problem.gradient ? TILE / 2 * rows.stride + BLOCK_COLUMNS : 0);
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

    // Bytes of all exponentials.
    int64_t size() const {
        int64_t entries = 0;
        for (int index = 0; index < num_rectangles; ++index)
            entries += entries_before(rectangles[index], rectangles[index].strips) + TILE;
        return entries * static_cast<int64_t>(sizeof(float));
    }

    // Everything up to the sums, the losses and what the gradient needs of each anchor.
    Status sum() {
        int64_t work = rows.count * problem.d;
        for (int index = 0; index < num_rectangles; ++index)
            work += rectangles[index].rows * rectangles[index].columns * problem.d * (problem.gradient ? 3 : 1);
        kept = problem.entries != nullptr || (problem.gradient && size() <= problem.workspace);
        parts = static_cast<int>(most(1, least(problem.threads, work / WORTH_A_THREAD)));
        if (!place_in_scratch(*this)) return NO_MEMORY;
        const int second = problem.others > 0 ? problem.own_sides : problem.num_sides;
        if (!prepare(rows, problem.sides, problem.num_sides, second, problem.normalize, problem.exponents, parts))
            return NOT_FINITE;
        *problem.rescaled = rows.rescaled;
        // Rescaled rows are no longer the numbers that were given.
        paired = paired && !rows.rescaled;
        per_anchor();
        if (paired) copy_raw();
        if (problem.lse == nullptr) {
            form_exponentials(true);
            return finish_sums();
        }
        const Status status = weigh_anchors();
        if (status == DONE && kept && !problem.formed) form_exponentials(false);
        return status;
    }

    void per_anchor() {
        for (int64_t i = 0; problem.others > 0 && i < rows.count; ++i)
            longest = rows.length[i] > longest ? rows.length[i] : longest;
        offsets[0] = 0;
        for (int side = 0; side < problem.num_sides; ++side) {
            ids[side] = problem.sides[side].ids;
            offsets[side + 1] = offsets[side] + problem.sides[side].count;
        }
        for (int64_t i = 0; i < problem.anchors(); ++i) {
            const int64_t row = row_of(i);
            const double own = scale_of(row);
            scale[row] = static_cast<float>(own);
            shift[row] = problem.normalize && own > WINDOW ? static_cast<float>(own - WINDOW) : 0.0f;
            if (problem.bounded) limit[row] = static_cast<float>(rows.positive[pair_of(row)] + problem.margin);
        }
    }

    void copy_raw() {
        for (int64_t i = 0; i < rows.count; ++i) inverse[i] = static_cast<float>(rows.inverse[i]);
        for (int side = 0; side < problem.num_sides; ++side)
            for (int64_t i = 0; i < problem.sides[side].count; ++i) {
                uint16_t* to = raw + (offsets[side] + i) * 2 * paired_stride;
                memcpy(to, static_cast<const uint16_t*>(problem.sides[side].rows) + i * problem.sides[side].stride,
                       2 * problem.d);
                memset(to + problem.d, 0, 2 * (2 * paired_width - problem.d));
            }
    }

    // A stacked row as the products take it, and the entries from one to the next.
    const float* factor(int64_t row) const {
        if (paired) return reinterpret_cast<const float*>(raw) + row * paired_stride;
        return (rows.originals != nullptr ? rows.originals : rows.units) + row * rows.stride;
    }
    int64_t factor_stride() const { return paired ? paired_stride : rows.stride; }
    int64_t factor_width() const { return paired ? paired_width : rows.padded; }

    double scale_of(int64_t row) const {
        return problem.scales != nullptr ? problem.scales[anchor_of(row)] : problem.scale;
    }

    // All exponentials, for their sums, to be kept, or both.
    void form_exponentials(bool sum) {
        int64_t groups = 0;
        for (int index = 0; index < num_rectangles; ++index) groups += groups_of(rectangles[index]);
        Queue queue(groups);
        auto work = [&](int part) {
            const Working memory = working_of(part);
            for (int64_t taken = queue.take(); taken < groups; taken = queue.take()) {
                int64_t group = taken;
                int index = 0;
                while (group >= groups_of(rectangles[index])) group -= groups_of(rectangles[index++]);
                const Rectangle& r = rectangles[index];
                // The last strips of a triangle are the longest.
                if (r.kind == TRIANGLE) group = groups_of(r) - 1 - group;
                if (sum) memset(r.row_sums + group * r.rows, 0, sizeof(double) * r.rows);
                if (moment) memset(r.row_moments + group * r.rows, 0, sizeof(double) * r.rows);
                for (int64_t strip = group; strip < r.strips; strip += groups_of(r))
                    form_strip(r, strip, sum, kept, memory);
            }
        };
        parallel(parts, work);
    }

    // Exponentials of a strip, added to their sums and kept, each if so wished.
    void form_strip(const Rectangle& r, int64_t strip, bool sum, bool keep, const Working& memory) const {
        const int64_t group = strip % groups_of(r);
        const int64_t first = strip * TILE, columns = least(TILE, r.columns - first);
        const int64_t stride_in = factor_stride(), width = factor_width();
        transpose(factor(r.column + first), stride_in, columns, width, memory.columns);
        memset(memory.wide_sums, 0, sizeof(double) * TILE);
        memset(memory.wide_moments, 0, sizeof(double) * TILE);
        const int64_t end = r.kind == TRIANGLE ? first + columns : r.rows;
        for (int64_t start = 0; start < end; start += TILE) {
            const int64_t height = least(TILE, r.rows - start);
            const bool mirrored = sum && (r.kind == MIRRORED || (r.kind == TRIANGLE && start < first));
            float* tile = keep ? strip_of(r, strip) + start * TILE : memory.tile;
            const float* left = factor(r.row + start);
            const bool own = r.kind == TRIANGLE && start == first;
            if (problem.precise)
                multiply<SINGLES>(left, stride_in, height, memory.columns, columns, width,
                                  precise_chunk(width, problem.precise), own, memory.precise, TILE);
            else if (paired)
                multiply<PAIRS>(left, stride_in, height, memory.columns, columns, width, CHUNK / 2, own, tile, TILE);
            else
                multiply<SINGLES>(left, stride_in, height, memory.columns, columns, width, CHUNK, own, tile, TILE);
            for (int64_t from = 0; from < height; from += SUMMED_ROWS) {
                if (mirrored) {
                    memset(memory.column_sums, 0, sizeof(float) * TILE);
                    memset(memory.column_moments, 0, sizeof(float) * TILE);
                }
                for (int64_t i = from; i < least(from + SUMMED_ROWS, height); ++i) {
                    float* line = tile + i * TILE;
                    const int64_t anchor = r.row + start + i;
                    to_logits(line, memory.precise + i * TILE, anchor, r.column + first, columns, memory.unshifted,
                              memory.rest);
                    leave_out(line, anchor, r.column + first, columns);
                    Floats sums{}, of_logits{};
                    for (int64_t j = 0; j < columns; j += LANES) {
                        Floats value = exp2(load(line + j));
                        // Of a pair that is left out, the logit may be anything.
                        const Floats none{};
                        if (problem.precise) {
                            const Floats rest = load(memory.rest + j) * static_cast<float>(LN2);
                            value = value > none ? value + value * rest : none;
                        }
                        store(line + j, value);
                        sums += value;
                        if (mirrored) store(memory.column_sums + j, load(memory.column_sums + j) + value);
                        if (moment) {
                            const Floats product = value > none ? value * load(memory.unshifted + j) : none;
                            of_logits += product;
                            if (mirrored) store(memory.column_moments + j, load(memory.column_moments + j) + product);
                        }
                    }
                    if (!sum) continue;
                    r.row_sums[group * r.rows + start + i] += sum_wide(sums);
                    if (moment) r.row_moments[group * r.rows + start + i] += sum_wide(of_logits);
                }
                if (mirrored)
                    for (int64_t j = 0; j < columns; ++j) {
                        memory.wide_sums[j] += memory.column_sums[j];
                        memory.wide_moments[j] += memory.column_moments[j];
                    }
            }
        }
        if (!sum || r.kind == PLAIN) return;
        memcpy(r.column_sums + first, memory.wide_sums, sizeof(double) * columns);
        if (moment) memcpy(r.column_moments + first, memory.wide_moments, sizeof(double) * columns);
    }

    // Similarities to base-2 logits less the shift; for the moment, without it too.
    void to_logits(float* line, const double* precise, int64_t anchor, int64_t first, int64_t columns, float* unshifted,
                   float* rest) const {
        const Floats excluded = all(EXCLUDED), bound = all(problem.bounded ? limit[anchor] : INFINITY);
        if (problem.precise) {
            const Doubles factor = all_doubles(scale_of(anchor)), less = all_doubles(shift[anchor]);
            const double* others = rows.inverse + first;
            for (int64_t j = 0; j < columns; j += LANES) {
                Doubles low_half = load(precise + j), high_half = load(precise + j + LANES / 2);
                if (rows.originals != nullptr) {
                    low_half *= load(others + j) * rows.inverse[anchor];
                    high_half *= load(others + j + LANES / 2) * rows.inverse[anchor];
                }
                const Doubles low_logits = low_half * factor - less, high_logits = high_half * factor - less;
                const Floats logits = joined(low_logits, high_logits);
                const auto left_out = joined(low_half, high_half) > bound;
                store(line + j, left_out ? excluded : logits);
                // What rounding took from the logits is a factor of their exponentials.
                store(rest + j, left_out ? Floats{} : joined(low_logits - low(logits), high_logits - high(logits)));
                if (moment) store(unshifted + j, joined(low_half * factor, high_half * factor));
            }
        } else {
            const Floats factor = all(scale[anchor]), less = all(shift[anchor]);
            if (paired && problem.normalize) {
                const Floats own = all(static_cast<float>(rows.inverse[anchor]));
                for (int64_t j = 0; j < columns; j += LANES)
                    store(line + j, load(line + j) * (own * load(inverse + first + j)));
            }
            for (int64_t j = 0; j < columns; j += LANES) {
                const Floats similarity = load(line + j);
                store(line + j, similarity > bound ? excluded : similarity * factor - less);
                if (moment) store(unshifted + j, similarity * factor);
            }
        }
        for (int64_t j = columns; j % LANES != 0; ++j) {
            line[j] = EXCLUDED;
            if (problem.precise) rest[j] = 0;
            if (moment) unshifted[j] = 0;
        }
    }

    // The pairs of a row that are no negatives: the row itself, its positive, and rows of the same id.
    void leave_out(float* line, int64_t anchor, int64_t first, int64_t columns) const {
        if (problem.others > 0) {
            leave_out_ids(line, anchor, first, columns);
            return;
        }
        const int64_t n = problem.n, place = pair_of(anchor);
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

    // Of two ranks' pairs, those of one id; rows without ids are like no other.
    void leave_out_ids(float* line, int64_t anchor, int64_t first, int64_t columns) const {
        const int own = anchor < base ? 0 : problem.own_sides;
        if (!problem.masked || ids[own] == nullptr) return;
        const int64_t id = ids[own][pair_of(anchor) - (own == 0 ? 0 : problem.n)];
        for (int side = 0; side < problem.num_sides; ++side) {
            const int64_t from = most(first, offsets[side]), to = least(first + columns, offsets[side + 1]);
            if (from >= to || ids[side] == nullptr) continue;
            float* out = line + (from - first);
            const int64_t* others = ids[side] + (from - offsets[side]);
            for (int64_t j = 0; j < to - from; ++j) out[j] = others[j] == id ? EXCLUDED : out[j];
        }
    }

    // The sums of all anchors, from their shares.
    void add_up() {
        memset(total, 0, sizeof(double) * reach);
        if (moment) memset(moments, 0, sizeof(double) * reach);
        for (int index = 0; index < num_rectangles; ++index) {
            const Rectangle& r = rectangles[index];
            for (int64_t group = 0; group < groups_of(r); ++group) {
                for (int64_t i = 0; i < r.rows; ++i) total[r.row + i] += r.row_sums[group * r.rows + i];
                if (moment)
                    for (int64_t i = 0; i < r.rows; ++i) moments[r.row + i] += r.row_moments[group * r.rows + i];
            }
            if (r.kind == PLAIN) continue;
            for (int64_t j = 0; j < r.columns; ++j) total[r.column + j] += r.column_sums[j];
            if (moment)
                for (int64_t j = 0; j < r.columns; ++j) moments[r.column + j] += r.column_moments[j];
        }
    }

    Status finish_sums() {
        add_up();
        if (problem.gradient) clear_weights();
        double value = 0;
        for (int64_t i = 0; i < problem.anchors(); ++i) {
            const int64_t row = row_of(i), pair = pair_of(row);
            const bool none = has_none(row);
            if (!none && !trusted(total[row])) return OUT_OF_RANGE;
            const double own = scale_of(row), positive = rows.positive[pair] * own;
            const double z = none ? -INFINITY : (std::log2(total[row]) + shift[row] - positive) * LN2;
            const double mean = moment && !none ? (moments[row] / total[row] - positive) * LN2 : 0;
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
            // Factors that are given are divided by their temperatures already.
            const double per_logit =
                problem.held * (problem.scales != nullptr && problem.loss != CONTRAST ? own * LN2 : 1.0);
            pull[pair] += b * per_logit;
            if (!weigh_anchor(row, a * per_logit)) return OUT_OF_RANGE;
        }
        if (problem.loss_value != nullptr) *problem.loss_value = static_cast<float>(value);
        return DONE;
    }

    // The weights of anchors whose sums are known, from all their blocks.
    Status weigh_anchors() {
        clear_weights();
        for (int64_t i = 0; i < problem.anchors(); ++i) {
            const int64_t row = row_of(i);
            if (problem.b != nullptr) pull[pair_of(row)] += problem.b[i] * problem.held;
            if (problem.a[i] == 0) {
                // No sum bounds the exponentials that are multiplied by this 0.
                if (!problem.formed && largest_logit(row) - shift[row] > LARGEST_LOGIT) return OUT_OF_RANGE;
                continue;
            }
            total[row] = std::exp2(problem.lse[i] * LOG2E - shift[row]);
            if (!trusted(total[row]) || !weigh_anchor(row, problem.a[i] * problem.held)) return OUT_OF_RANGE;
        }
        return DONE;
    }

    void clear_weights() {
        memset(weight, 0, sizeof(float) * (rows.count + TILE));
        memset(pull, 0, sizeof(double) * (problem.n + problem.others));
    }

    // False where what is to be multiplied by exponentials is out of range.
    bool weigh_anchor(int64_t row, double a) {
        weight[row] = static_cast<float>(a / total[row]);
        const float size = __builtin_fabs(weight[row]);
        return a == 0 || (size >= 1 / NORMAL && size <= NORMAL);
    }

    // How far from 0 the base-2 logits of a block may be.
    double largest_logit(int64_t row) const { return scale_of(row) * rows.length[row] * longest; }

    // Whether an anchor meets no negative in a block, and not only such whose exponentials vanish: nothing is compared
    // with it, or its logits are too small for that.
    bool has_none(int64_t row) const {
        if (problem.others == 0 || total[row] != 0) return false;
        if (largest_logit(row) + shift[row] <= LARGEST_LOGIT) return true;
        for (int index = 0; index < num_rectangles; ++index) {
            const Rectangle& r = rectangles[index];
            if (row >= r.row && row < r.row + r.rows) return false;
            if (r.kind != PLAIN && row >= r.column && row < r.column + r.columns) return false;
        }
        return true;
    }

    // Exponentials below the normal numbers count as 0: all of them together must be less than a sum's rounding.
    bool trusted(double sum) const { return sum >= static_cast<double>(rows.count) * 0x1p-100 && sum <= NORMAL; }
};

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
