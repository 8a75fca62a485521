// The supervised contrastive loss. Rows are sorted by their label, so that a class is a stretch of rows. The sums over
// negatives are those of contrast.h, with a whole class left out; a class's own logits are formed in double precision.
#pragma once
#include "contrast.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

// Rows whose positives are weighed at a time.
constexpr int64_t SHARED_ROWS = 16;
// Classes up to this size are weighed in double precision. In larger ones a row's loss is so large that single
// precision serves, and products pay to be formed tile by tile.
constexpr int64_t SMALL_CLASS = 32;
constexpr double HELD_WEIGHTS = 1 << 30;

struct ClassLoss {
    const Classes& given;
    const int64_t n;
    Side side;
    Problem problem;
    Contrast core;
    int64_t *order, *spare;     // (n,) the caller's row at each place
    int64_t* labels;            // (n,) sorted
    int64_t *first, *last;      // (n,) the class of a row, as places
    double** of_class;          // (n,) a row's logits with its class, in base 2, which become their weights
    double* own_logits;         // room for all pairs, of which those of one class are used
    double *peak, *sum, *mean;  // (n,) of a row's logits with its class: lse is peak + log2 sum; the mean less the peak
    double *sigma, *factor;     // (n,) the derivative of a row's loss by its negatives' lse, and the loss's own factor
    double* moment;             // (n,) Σ of a row's weights times logits, less the peak
    double* tiles;              // each part's tile of products
    double wanted = 0;          // what says that moments are wanted

    explicit ClassLoss(const Classes& from)
        : given(from), n(from.n), side(from.x), problem(as_contrast(from, &side, &wanted)), core(problem) {
        core.paired = false;
        core.kept = problem.gradient;
    }

    static Problem as_contrast(const Classes& given, const Side* side, double* moment) {
        Problem made{};
        made.sides = side;
        made.num_sides = 1;
        made.n = given.n;
        made.d = given.d;
        made.negatives = OWN;
        made.num_directions = 1;
        made.normalize = given.normalize;
        made.precise = given.precise ? 1 : 0;
        made.masked = true;
        made.scale = given.scale;
        made.gradient = side->gradient != nullptr;
        made.moment = given.slope != nullptr ? moment : nullptr;
        made.exponents = given.exponents;
        made.rescaled = given.rescaled;
        made.threads = given.threads;
        return made;
    }

    void place(Plan& plan) {
        core.place(plan);
        order = plan.take<int64_t>(n);
        spare = plan.take<int64_t>(n);
        labels = plan.take<int64_t>(n);
        first = plan.take<int64_t>(n);
        last = plan.take<int64_t>(n);
        peak = plan.take<double>(n);
        sum = plan.take<double>(n);
        mean = plan.take<double>(n);
        sigma = plan.take<double>(n);
        factor = plan.take<double>(n);
        moment = plan.take<double>(n);
        tiles = plan.take<double>(core.parts * TILE * TILE);
        of_class = plan.take<double*>(n);
        own_logits = plan.take<double>(n * up(n, LANES));
    }

    Status solve() {
        const int64_t products = (2 + n * (problem.gradient ? 2 : 1)) * n * problem.d;
        core.parts = static_cast<int>(most(1, least(problem.threads, products / WORTH_A_THREAD)));
        if (!place_in_scratch(*this)) return NO_MEMORY;
        sort();
        if (!prepare_rows()) return NOT_FINITE;
        core.per_anchor();
        core.form_exponentials(true);
        compare_classes();
        const Status status = finish();
        if (status == DONE && problem.gradient) differentiate();
        return status;
    }

    // Sort rows by label, those of one label by place: runs of doubled length are merged until one is left.
    void sort() {
        for (int64_t i = 0; i < n; ++i) order[i] = i;
        const int64_t* names = given.x.ids;
        for (int64_t run = 1; run < n; run *= 2) {
            for (int64_t start = 0; start < n; start += 2 * run) {
                const int64_t middle = least(start + run, n), end = least(start + 2 * run, n);
                int64_t a = start, b = middle;
                for (int64_t to = start; to < end; ++to)
                    spare[to] =
                        a < middle && (b >= end || names[order[a]] <= names[order[b]]) ? order[a++] : order[b++];
            }
            int64_t* sorted = spare;
            spare = order;
            order = sorted;
        }
        for (int64_t i = 0; i < n; ++i) labels[i] = names[order[i]];
        side.ids = labels;
        double* next = own_logits;
        for (int64_t start = 0, end = 0; start < n; start = end) {
            while (end < n && labels[end] == labels[start]) ++end;
            for (int64_t i = start; i < end; ++i, next += up(end - start, LANES)) {
                first[i] = start;
                last[i] = end;
                of_class[i] = next;
            }
        }
    }

    bool prepare_rows() {
        int bad = 0, rescaled = 0;
        const Rows& rows = core.rows;
        auto work = [&](int part) {
            for (int64_t i = n * part / core.parts; i < n * (part + 1) / core.parts; ++i) {
                const int exponent = prepare_row(rows, given.x, order[i], i, given.normalize);
                if (exponent != 0) __atomic_store_n(&rescaled, 1, __ATOMIC_RELAXED);
                if (!__builtin_isfinite(rows.inverse[i]) || !__builtin_isfinite(rows.length[i]))
                    __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
                if (given.exponents != nullptr) given.exponents[order[i]] = static_cast<float>(exponent);
                if (given.normalize) normalise_row(rows, i);
            }
        };
        parallel(core.parts, work);
        core.rows.rescaled = *given.rescaled = rescaled;
        return !bad;
    }

    template <class Function>
    void by_pieces(int64_t size, Function each) {
        Queue queue((n + size - 1) / size);
        auto work = [&](int part) {
            for (int64_t taken = queue.take(); taken < queue.size; taken = queue.take())
                each(part, taken * size, least((taken + 1) * size, n));
        };
        parallel(core.parts, work);
    }

    void compare_classes() {
        by_pieces(TILE, [&](int part, int64_t from, int64_t to) {
            for (int64_t start = from; start < to; start = least(to, last[start])) {
                if (last[start] - first[start] > SMALL_CLASS)
                    multiply_large(part, start, least(to, last[start]));
                else
                    for (int64_t i = start; i < least(to, last[start]); ++i) multiply_small(i);
            }
        });
        // Only now is every logit of a row there.
        by_pieces(SHARED_ROWS, [&](int, int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) sum_row(i);
        });
    }

    void multiply_small(int64_t i) {
        const Rows& rows = core.rows;
        const int64_t start = first[i];
        for (int64_t j = i + 1; j < last[i]; ++j) {
            const double logit =
                dot(rows.units + i * rows.stride, rows.units + j * rows.stride, rows.padded) * problem.scale;
            of_class[i][j - start] = of_class[j][i - start] = logit;
        }
    }

    // Some rows of one class with all of it.
    void multiply_large(int part, int64_t from, int64_t to) {
        const Rows& rows = core.rows;
        const int64_t start = first[from], end = last[from];
        float* columns = core.working_of(part).columns;
        double* tile = tiles + part * TILE * TILE;
        for (int64_t k = start; k < end; k += TILE) {
            const int64_t count = least(TILE, end - k);
            transpose(rows.units + k * rows.stride, rows.stride, count, rows.padded, columns);
            multiply<SINGLES>(rows.units + from * rows.stride, rows.stride, to - from, columns, count, rows.padded,
                              precise_chunk(rows.padded, 1), false, tile, TILE);
            for (int64_t i = from; i < to; ++i)
                for (int64_t j = 0; j < count; ++j)
                    of_class[i][k - start + j] = tile[(i - from) * TILE + j] * problem.scale;
        }
    }

    // The exponentials of a large class's logits, less the peak.
    Floats exponentials(int64_t i, int64_t j) const {
        const Doubles less = all_doubles(peak[i]);
        return exp2(joined(load(of_class[i] + j) - less, load(of_class[i] + j + LANES / 2) - less));
    }

    void fill(int64_t i, double value) {
        const int64_t size = last[i] - first[i];
        of_class[i][i - first[i]] = value;
        for (int64_t j = size; j < up(size, LANES); ++j) of_class[i][j] = value;
    }

    void sum_row(int64_t i) {
        const int64_t size = last[i] - first[i], padded = up(size, LANES), own = i - first[i];
        double* logits = of_class[i];
        peak[i] = mean[i] = sum[i] = 0;
        if (size == 1) return;
        constexpr int HALF = LANES / 2;
        double largest = -INFINITY;
        // The row itself, and what lies beyond its class, must neither be the largest nor count.
        fill(i, -INFINITY);
        Doubles peaks = all_doubles(-INFINITY), total{};
        for (int64_t j = 0; j < padded; j += HALF) peaks = peaks > load(logits + j) ? peaks : load(logits + j);
        for (int lane = 0; lane < HALF; ++lane) largest = peaks[lane] > largest ? peaks[lane] : largest;
        peak[i] = largest;
        fill(i, largest);
        for (int64_t j = 0; j < padded; j += HALF) total += load(logits + j) - largest;
        mean[i] = CTLOSS_ISA::sum(total) / static_cast<double>(size - 1);
        fill(i, EXCLUDED);
        if (size > SMALL_CLASS) {
            for (int64_t j = 0; j < padded; j += LANES) sum[i] += sum_wide(exponentials(i, j));
        } else {
            for (int64_t j = 0; j < size; ++j)
                if (j != own) sum[i] += std::exp2(logits[j] - largest);
        }
    }

    // Turn a row's logits with its class into weights, once the negatives' share is known.
    void weigh_row(int64_t i) {
        const int64_t size = last[i] - first[i], own = i - first[i];
        double* logits = of_class[i];
        moment[i] = 0;
        if (size == 1) {
            logits[0] = 0;
            return;
        }
        const double even = 1 / static_cast<double>(size - 1), by = 1 / sum[i], held = factor[i] * HELD_WEIGHTS;
        if (size > SMALL_CLASS) {
            Doubles moments{};
            for (int64_t j = 0; j < size; j += LANES) {
                const Floats all_of_them = exponentials(i, j);
                for (int half = 0; half < 2; ++half) {
                    double* here = logits + j + half * (LANES / 2);
                    const Doubles share = (half == 0 ? low(all_of_them) : high(all_of_them)) * by, logit = load(here);
                    const Doubles weight = share - even - sigma[i] * share;
                    moments += logit == all_doubles(EXCLUDED) ? Doubles{} : weight * (logit - peak[i]);
                    store(here, weight * held);
                }
            }
            moment[i] = CTLOSS_ISA::sum(moments);
        } else {
            for (int64_t j = 0; j < size; ++j) {
                if (j == own) continue;
                const double share = std::exp2(logits[j] - peak[i]) * by;
                const double weight = (share - even) - sigma[i] * share;
                moment[i] += weight * (logits[j] - peak[i]);
                logits[j] = weight * held;
            }
        }
        logits[own] = 0;
    }

    Status finish() {
        core.add_up();
        const bool weighs = problem.gradient || given.slope != nullptr;
        int64_t paired = 0;
        double total = 0, of_temperature = 0;
        if (problem.gradient) {
            memset(core.weight, 0, sizeof(float) * (n + TILE));
            memset(core.pull, 0, sizeof(double) * n);
        }
        for (int64_t i = 0; i < n; ++i) {
            const int64_t size = last[i] - first[i];
            if (!__builtin_isfinite(core.total[i])) return OUT_OF_RANGE;
            factor[i] = given.weights != nullptr ? given.weights[order[i]] : 1.0;
            sigma[i] = 0;
            if (size == 1) {
                if (given.losses != nullptr) given.losses[order[i]] = 0;
                continue;
            }
            ++paired;
            const double of_sum = std::log2(sum[i]), of_negatives = core.total[i];
            double loss = (of_sum - mean[i]) * LN2;
            if (size < n) {
                if (!core.trusted(of_negatives)) return OUT_OF_RANGE;
                const double z = (std::log2(of_negatives) + core.shift[i] - peak[i] - of_sum) * LN2,
                             small = std::exp(z > 0 ? -z : z);
                loss += std::log1p(small) + (z > 0 ? z : 0);
                sigma[i] = (z > 0 ? 1 : small) / (1 + small);
            }
            if (!__builtin_isfinite(loss)) return OUT_OF_RANGE;
            if (given.losses != nullptr) given.losses[order[i]] = loss;
            total += loss;
            if (size == n || !weighs) continue;
            const double a = sigma[i] * factor[i];
            if (core.moment) of_temperature += a * (core.moments[i] / of_negatives - peak[i]);
            if (!problem.gradient) continue;
            core.weight[i] = static_cast<float>(a * HELD_WEIGHTS / of_negatives);
            const float magnitude = __builtin_fabs(core.weight[i]);
            if (a != 0 && !(magnitude >= 1 / NORMAL && magnitude <= NORMAL)) return OUT_OF_RANGE;
        }
        if (weighs) {
            by_pieces(SHARED_ROWS, [&](int, int64_t from, int64_t to) {
                for (int64_t i = from; i < to; ++i) weigh_row(i);
            });
            for (int64_t i = 0; i < n; ++i) of_temperature += factor[i] * moment[i];
        }
        *given.paired = paired;
        if (given.total != nullptr)
            *given.total = static_cast<float>(given.mean && paired > 0 ? total / static_cast<double>(paired) : total);
        if (given.slope != nullptr) *given.slope = -of_temperature * LN2;
        return DONE;
    }

    void differentiate() {
        centre_rows(core.rows, given.normalize, core.centred);
        by_pieces(TILE,
                  [&](int part, int64_t from, int64_t to) { differentiate_rows(from, to, core.working_of(part)); });
    }

    void differentiate_rows(int64_t from, int64_t to, const Contrast::Working& memory) const {
        const Rows& rows = core.rows;
        const int64_t count = to - from;
        memset(memory.sums, 0, sizeof(double) * TILE);
        if (!core.add_products(from, to, memory)) memset(memory.product, 0, sizeof(float) * count * rows.stride);
        for (int64_t k = first[from]; k < last[to - 1]; k += TILE)
            add_own(from, count, k, least(TILE, last[to - 1] - k), memory);
        for (int64_t i = 0; i < count; ++i) {
            float* out = side.gradient + order[from + i] * problem.d;
            finish_gradient(rows, from + i, -1, 0, memory.sums[i], given.normalize, memory.product + i * rows.stride,
                            out);
        }
    }

    // Weights of some rows with those of their classes, both ways, times the latter.
    void add_own(int64_t from, int64_t count, int64_t k, int64_t terms, const Contrast::Working& memory) const {
        const Rows& rows = core.rows;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = from + i, start = first[row];
            float* line = memory.tile + i * TILE;
            memset(line, 0, sizeof(float) * terms);
            for (int64_t j = most(start, k); j < least(last[row], k + terms); ++j) {
                line[j - k] = static_cast<float>(of_class[row][j - start] + of_class[j][row - start]);
                memory.sums[i] += line[j - k];
            }
        }
        accumulate<SINGLES>(memory.tile, {TILE, 1}, count, rows.centred + k * rows.stride, rows.stride, terms,
                            rows.padded, memory.product, rows.stride, true);
    }
};

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
