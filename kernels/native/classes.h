// The supervised contrastive loss. Rows are sorted by their label, so that a class is a stretch of rows. The sums over
// negatives are those of contrast.h, with a whole class left out; a class's own logits are formed in double precision.
#pragma once
#include "contrast.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

// Rows whose positives are found at a time.
constexpr int64_t SHARED_ROWS = 16;
constexpr double HELD_WEIGHTS = 1 << 30;

struct ClassLoss {
    const Classes& given;
    const int64_t n;
    Side side;
    Problem problem;
    Contrast core;
    int64_t *order, *spare;  // (n,) the caller's row at each place
    int64_t* labels;         // (n,) sorted
    int64_t *first, *last;   // (n,) the class of a row, as places
    double** of_class;       // (n,) a row's logits with its class, in base 2, which become their weights
    double* own_logits;      // room for all pairs, of which those of one class are used
    double *peak, *sum;      // (n,) lse over the positives is peak + log2 sum
    double wanted = 0;       // what says that moments are wanted

    explicit ClassLoss(const Classes& from) : given(from), n(from.n), side(from.x), problem(as_contrast(from, &side, &wanted)), core(problem) {}

    static Problem as_contrast(const Classes& given, const Side* side, double* moment) {
        Problem made{};
        made.sides = side;
        made.num_sides = 1;
        made.n = given.n;
        made.d = given.d;
        made.negatives = OWN;
        made.num_directions = 1;
        made.normalize = given.normalize;
        made.precise = given.precise;
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
        of_class = plan.take<double*>(n);
        own_logits = plan.take<double>(n * n);
    }

    Status solve() {
        const int64_t products = (2 + n * (problem.gradient ? 2 : 1)) * n * problem.d;
        core.parts = static_cast<int>(most(1, least(problem.threads, products / WORTH_A_THREAD)));
        Plan plan;
        place(plan);
        plan.start = static_cast<char*>(scratch(plan.used));
        if (plan.start == nullptr) return NO_MEMORY;
        plan.used = 0;
        place(plan);
        sort();
        if (!prepare_rows()) return NOT_FINITE;
        core.per_anchor();
        core.sum_exponentials();
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
                    spare[to] = a < middle && (b >= end || names[order[a]] <= names[order[b]]) ? order[a++] : order[b++];
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
            for (int64_t i = start; i < end; ++i, next += end - start) {
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
                if (!std::isfinite(rows.inverse[i]) || !std::isfinite(rows.length[i])) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
                if (given.exponents != nullptr) given.exponents[order[i]] = static_cast<float>(exponent);
                if (given.normalize) normalise_row(rows, i);
            }
        };
        parallel(core.parts, work);
        core.rows.rescaled = *given.rescaled = rescaled;
        return !bad;
    }

    void by_rows(void (ClassLoss::*each)(int64_t)) {
        Queue queue((n + SHARED_ROWS - 1) / SHARED_ROWS);
        auto work = [&](int) {
            for (int64_t taken = queue.take(); taken < queue.size; taken = queue.take())
                for (int64_t i = taken * SHARED_ROWS; i < least((taken + 1) * SHARED_ROWS, n); ++i) (this->*each)(i);
        };
        parallel(core.parts, work);
    }

    void compare_classes() {
        by_rows(&ClassLoss::multiply_row);
        by_rows(&ClassLoss::sum_row);
    }

    void multiply_row(int64_t i) {
        const Rows& rows = core.rows;
        const int64_t start = first[i];
        for (int64_t j = i + 1; j < last[i]; ++j) {
            const double logit = dot(rows.units + i * rows.stride, rows.units + j * rows.stride, rows.padded) * problem.scale;
            of_class[i][j - start] = of_class[j][i - start] = logit;
        }
    }

    void sum_row(int64_t i) {
        const int64_t start = first[i], size = last[i] - start;
        double largest = -INFINITY, total = 0;
        for (int64_t j = 0; j < size; ++j)
            if (j != i - start && of_class[i][j] > largest) largest = of_class[i][j];
        for (int64_t j = 0; j < size; ++j)
            if (j != i - start) total += std::exp2(of_class[i][j] - largest);
        peak[i] = largest;
        sum[i] = total;
    }

    Status finish() {
        core.add_up();
        int64_t paired = 0;
        for (int64_t i = 0; i < n; ++i) paired += last[i] - first[i] > 1;
        *given.paired = paired;
        if (problem.gradient) {
            memset(core.weight, 0, sizeof(float) * (n + TILE));
            memset(core.pull, 0, sizeof(double) * n);
        }
        double total = 0, of_temperature = 0;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t start = first[i], size = last[i] - start, own = i - start;
            double* logits = of_class[i];
            if (size == 1) {
                if (given.losses != nullptr) given.losses[order[i]] = 0;
                logits[0] = 0;
                continue;
            }
            const bool alone = size == n;
            if (!alone && !(core.total[i] >= 1 / NORMAL && core.total[i] <= NORMAL)) return OUT_OF_RANGE;
            double mean = 0;
            for (int64_t j = 0; j < size; ++j)
                if (j != own) mean += logits[j] - peak[i];
            mean /= static_cast<double>(size - 1);
            const double of_sum = std::log2(sum[i]);
            const double z = alone ? -INFINITY : (std::log2(core.total[i]) + core.shift[i] - peak[i] - of_sum) * LN2;
            const double small = std::exp(z > 0 ? -z : z), sigma = (z > 0 ? 1 : small) / (1 + small);
            const double loss = std::log1p(small) + (z > 0 ? z : 0) + (of_sum - mean) * LN2;
            if (!std::isfinite(loss)) return OUT_OF_RANGE;
            if (given.losses != nullptr) given.losses[order[i]] = loss;
            total += loss;
            if (!problem.gradient && given.slope == nullptr) continue;
            const double factor = given.weights != nullptr ? given.weights[order[i]] : 1.0;
            // Of the negatives, and of the positives relative to the largest.
            double moment = alone ? 0 : sigma * (core.moment ? core.moments[i] / core.total[i] + core.shift[i] - peak[i] : 0);
            for (int64_t j = 0; j < size; ++j) {
                if (j == own) {
                    logits[j] = 0;
                    continue;
                }
                const double share = std::exp2(logits[j] - peak[i]) / sum[i];
                const double weight = (share - 1 / static_cast<double>(size - 1)) - sigma * share;
                moment += weight * (logits[j] - peak[i]);
                logits[j] = weight * factor * HELD_WEIGHTS;
            }
            of_temperature += factor * moment;
            if (!problem.gradient || alone) continue;
            const double a = sigma * factor * HELD_WEIGHTS;
            core.weight[i] = static_cast<float>(a / core.total[i]);
            const float magnitude = std::fabs(core.weight[i]);
            if (a != 0 && !(magnitude >= 1 / NORMAL && magnitude <= NORMAL)) return OUT_OF_RANGE;
        }
        if (given.total != nullptr) *given.total = static_cast<float>(given.mean && paired > 0 ? total / static_cast<double>(paired) : total);
        if (given.slope != nullptr) *given.slope = -of_temperature * LN2;
        return DONE;
    }

    void differentiate() {
        centre_rows(core.rows, given.normalize, core.centred);
        Queue queue((n + TILE - 1) / TILE);
        auto work = [&](int part) {
            const Contrast::Working memory = core.working_of(part);
            for (int64_t taken = queue.take(); taken < queue.size; taken = queue.take())
                differentiate_rows(taken * TILE, least((taken + 1) * TILE, n), memory);
        };
        parallel(core.parts, work);
    }

    void differentiate_rows(int64_t from, int64_t to, const Contrast::Working& memory) const {
        const Rows& rows = core.rows;
        const int64_t count = to - from;
        memset(memory.sums, 0, sizeof(double) * TILE);
        core.add_all(from, to, memory);
        for (int64_t k = first[from]; k < last[to - 1]; k += TILE) add_own(from, count, k, least(TILE, last[to - 1] - k), memory);
        for (int64_t i = 0; i < count; ++i) {
            float* out = side.gradient + order[from + i] * problem.d;
            finish_gradient(rows, from + i, -1, 0, memory.sums[i], given.normalize, memory.product + i * rows.stride, out);
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
        accumulate(memory.tile, {TILE, 1}, count, rows.centred + k * rows.stride, rows.stride, terms, rows.padded, memory.product, rows.stride, true);
    }
};

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
