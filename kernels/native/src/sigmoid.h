// The sigmoid loss of all pairs of rows. The rectangle of logits is cut into strips of TILE columns and these into
// tiles, which become losses and, if a gradient is wanted, weights, in one pass. The weights are kept, so that the
// second pass, their products with the rows, only reads: every piece of a gradient adds up its terms in one order
// whoever does it.
#pragma once
#include "products.h"
#include "rows.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

constexpr int SIGMOID_BITS = 30;
constexpr float HELD = 1 << SIGMOID_BITS;
// Weights of a collapsed batch are all alike, and so are its rows. Then every addition to a sum errs the same way, so
// that the error grows with the number of terms: short sums keep it below that of the logits.
constexpr int64_t SHORT_SUM = 32;

// log1p(e) / e for e from 0 to 1.
inline Floats log1p_over(Floats e) {
    Floats p = all(2.8738838e-3f);
    p = p * e - 1.7512243e-2f;
    p = p * e + 4.9931180e-2f;
    p = p * e - 9.2029631e-2f;
    p = p * e + 0.13071328f;
    p = p * e - 0.16378509f;
    p = p * e + 0.19959356f;
    p = p * e - 0.24997024f;
    p = p * e + 0.33333248f;
    p = p * e - 0.5f;
    return p * e + 1.0f;
}

struct SigmoidLoss {
    const Sigmoid& problem;
    const int64_t n, m, strips, stride;
    Rows rows;
    Side sides[2];
    int parts = 1;
    // Base-2 logits are similarity · scale + offset, each constant in two parts.
    float scale, scale_rest, offset, offset_rest;
    double wide_scale, wide_offset;
    float* weights;      // (n, stride), if a gradient is wanted
    double* row_losses;  // (strips, n) each strip's shares
    double* row_weights;
    double* row_moments;
    double *positive_loss, *pull;  // (n,)
    char* working;
    unsigned long working_size = 0;

    explicit SigmoidLoss(const Sigmoid& given)
        : problem(given),
          n(given.n),
          m(given.m),
          strips((given.m + TILE - 1) / TILE),
          stride(padded(given.m)),
          rows(given.d, given.n + given.m),
          sides{given.x, given.y} {
        wide_scale = problem.inverse * LOG2E;
        wide_offset = problem.bias * LOG2E;
        scale = static_cast<float>(wide_scale);
        scale_rest = static_cast<float>(wide_scale - scale);
        offset = static_cast<float>(wide_offset);
        offset_rest = static_cast<float>(wide_offset - offset);
    }

    static int64_t padded(int64_t count) {
        const int64_t whole = up(count, TILE);
        return whole % 256 == 0 ? whole + 16 : whole;
    }

    bool weighs() const { return problem.x.gradient != nullptr || problem.y.gradient != nullptr || scalars(); }
    bool scalars() const { return problem.slope != nullptr || problem.offset != nullptr; }
    bool keeps() const { return problem.x.gradient != nullptr || problem.y.gradient != nullptr; }

    struct Working {
        float* columns;   // (d, TILE)
        float* tile;      // (TILE, TILE)
        double* precise;  // (TILE, TILE)
        float* product;   // (TILE, stride)
    };

    void place(Plan& plan) {
        rows.place(plan, n, false);
        row_losses = plan.take<double>(strips * n);
        row_weights = plan.take<double>(scalars() ? strips * n : 0);
        row_moments = plan.take<double>(scalars() ? strips * n : 0);
        positive_loss = plan.take<double>(n);
        pull = plan.take<double>(n);
        weights = plan.take<float>(keeps() ? up(n, BLOCK_ROWS) * stride + TILE : 0);
        Plan own;
        place_working(own);
        working_size = own.used;
        working = plan.take<char>(static_cast<int64_t>(working_size) * parts);
    }

    Working place_working(Plan& own) const {
        Working found;
        found.columns = own.take<float>(rows.padded * TILE);
        found.tile = own.take<float>((TILE + BLOCK_ROWS) * TILE);
        found.precise = own.take<double>(problem.precise ? TILE * TILE : 0);
        found.product = own.take<float>(keeps() ? TILE * rows.stride + BLOCK_COLUMNS : 0);
        return found;
    }

    Working working_of(int part) const {
        Plan own;
        own.start = working + working_size * static_cast<unsigned long>(part);
        return place_working(own);
    }

    Status solve() {
        // A bias or a temperature beyond single precision makes logits that are not numbers.
        if (!__builtin_isfinite(scale) || !__builtin_isfinite(offset)) return OUT_OF_RANGE;
        const int64_t products = (n + m + n * m * (keeps() ? 3 : 1)) * problem.d;
        parts = static_cast<int>(most(1, least(problem.threads, products / WORTH_A_THREAD)));
        if (!place_in_scratch(*this)) return NO_MEMORY;
        // Without pairs, both sides are further rows.
        const Side further[4] = {{}, {}, sides[0], sides[1]};
        if (!prepare(rows, problem.paired ? sides : further, problem.paired ? 2 : 4, 4, problem.normalize,
                     problem.exponents, parts))
            return NOT_FINITE;
        *problem.rescaled = rows.rescaled;
        for (int64_t i = 0; problem.paired && i < n; ++i) {
            const double logit = rows.positive[i] * problem.inverse + problem.bias;
            const double small = std::exp(-__builtin_fabs(logit));
            positive_loss[i] = std::log1p(small) + (logit < 0 ? -logit : 0);
            pull[i] = -HELD * (logit < 0 ? 1 : small) / (1 + small);
        }
        Queue queue(strips);
        auto work = [&](int part) {
            const Working memory = working_of(part);
            for (int64_t strip = queue.take(); strip < strips; strip = queue.take()) classify(strip, memory);
        };
        parallel(parts, work);
        if (!add_up()) return OUT_OF_RANGE;
        if (keeps()) differentiate();
        return DONE;
    }

    void classify(int64_t strip, const Working& memory) {
        const int64_t first = strip * TILE, columns = least(TILE, m - first);
        transpose(rows.units + (n + first) * rows.stride, rows.stride, columns, rows.padded, memory.columns);
        for (int64_t start = 0; start < n; start += TILE) {
            const int64_t height = least(TILE, n - start);
            float* tile = keeps() ? weights + start * stride + first : memory.tile;
            const int64_t tile_stride = keeps() ? stride : TILE;
            const float* left = rows.units + start * rows.stride;
            if (problem.precise)
                multiply<SINGLES>(left, rows.stride, height, memory.columns, columns, rows.padded,
                                  precise_chunk(rows.padded, 1), false, memory.precise, TILE);
            else
                multiply<SINGLES>(left, rows.stride, height, memory.columns, columns, rows.padded, CHUNK, false, tile,
                                  tile_stride);
            for (int64_t i = 0; i < height; ++i) {
                float* line = tile + i * tile_stride;
                const double* precise = memory.precise + i * TILE;
                if (!weighs())
                    classify_row<false, false>(line, precise, start + i, first, columns, strip);
                else if (!scalars())
                    classify_row<true, false>(line, precise, start + i, first, columns, strip);
                else
                    classify_row<true, true>(line, precise, start + i, first, columns, strip);
            }
        }
    }

    // A row of a tile: similarities become base-2 logits, then losses, which are added up, and weights.
    template <bool WEIGHS, bool SCALARS>
    void classify_row(float* line, const double* precise, int64_t row, int64_t first, int64_t columns, int64_t strip) {
        float logits[TILE];
        if (problem.precise) {
            const Doubles by = all_doubles(wide_scale), plus = all_doubles(wide_offset);
            for (int64_t j = 0; j < columns; j += LANES) {
                const Doubles a = load(precise + j), b = load(precise + j + LANES / 2);
                store(logits + j, joined(a * by + plus, b * by + plus));
                if (SCALARS) store(line + j, joined(a, b));
            }
        } else {
            const Floats by = all(scale), rest = all(scale_rest), plus = all(offset), plus_rest = all(offset_rest);
            for (int64_t j = 0; j < columns; j += LANES) {
                const Floats similarity = load(line + j);
                store(logits + j, (similarity * by + plus) + (similarity * rest + plus_rest));
            }
        }
        leave_out(logits, row, first, columns);
        const Floats zero{}, held = all(HELD), to_losses = all(HELD * static_cast<float>(LN2));
        const double own = problem.weights != nullptr ? problem.weights[row] : 1.0;
        const Floats share = all(static_cast<float>(own));
        Floats losses{}, sums{}, moments{};
        for (int64_t j = 0; j < columns; j += LANES) {
            const Floats logit = load(logits + j);
            const Floats size = maximum(logit, zero - logit);
            // Times 2^30, so that even the exponentials of a fully trained batch are normal numbers.
            const Floats large = exp2(SIGMOID_BITS - size), small = large * (1 / HELD);
            losses += large * log1p_over(small) + maximum(logit, zero) * to_losses;
            if (WEIGHS) {
                const Floats weight = share * ((logit > zero ? held : large) / (small + 1.0f));
                if (SCALARS) {
                    sums += weight;
                    moments += weight * load(line + j);
                }
                store(line + j, weight);
            }
        }
        double loss = sum_wide(losses) * (1 / static_cast<double>(HELD));
        double weight = SCALARS ? sum_wide(sums) : 0, moment = SCALARS ? sum_wide(moments) : 0;
        const int64_t place = row - first;
        if (problem.paired && place >= 0 && place < columns) {
            loss += positive_loss[row];
            const double of_positive = own * pull[row];
            if (WEIGHS) line[place] = static_cast<float>(of_positive);
            weight += of_positive;
            moment += of_positive * rows.positive[row];
        }
        row_losses[strip * n + row] = loss;
        if (SCALARS) {
            row_weights[strip * n + row] = weight;
            row_moments[strip * n + row] = moment;
        }
    }

    // The positive, which is done in double precision, pairs of one id, and what lies beyond the last column.
    void leave_out(float* logits, int64_t row, int64_t first, int64_t columns) const {
        if (problem.x.ids != nullptr) {
            const int64_t id = problem.x.ids[row], *others = problem.y.ids + first;
            for (int64_t j = 0; j < columns; ++j) logits[j] = others[j] == id ? EXCLUDED : logits[j];
        }
        if (problem.paired && row >= first && row < first + columns) logits[row - first] = EXCLUDED;
        for (int64_t j = columns; j % LANES != 0; ++j) logits[j] = EXCLUDED;
    }

    // False where a result is not finite: a logit has left the range of single precision.
    bool add_up() {
        double total = 0, of_weights = 0, of_moments = 0;
        for (int64_t i = 0; i < n; ++i) {
            double loss = 0;
            for (int64_t strip = 0; strip < strips; ++strip) {
                loss += row_losses[strip * n + i];
                if (scalars()) of_weights += row_weights[strip * n + i], of_moments += row_moments[strip * n + i];
            }
            if (problem.losses != nullptr) problem.losses[i] = loss;
            total += loss;
        }
        if (problem.total != nullptr) *problem.total = static_cast<float>(total * problem.share);
        if (problem.slope != nullptr) *problem.slope = -of_moments * problem.inverse * problem.inverse;
        if (problem.offset != nullptr) *problem.offset = of_weights;
        return __builtin_isfinite(total + of_weights + of_moments);
    }

    void differentiate() {
        const int64_t of_x = (n + TILE - 1) / TILE;
        Queue queue(of_x + strips);
        auto work = [&](int part) {
            const Working memory = working_of(part);
            for (int64_t taken = queue.take(); taken < queue.size; taken = queue.take()) {
                const bool of_y = taken >= of_x;
                differentiate_rows(of_y, (of_y ? taken - of_x : taken) * TILE, memory);
            }
        };
        parallel(parts, work);
    }

    void differentiate_rows(bool of_y, int64_t first, const Working& memory) const {
        float* gradient = sides[of_y].gradient;
        if (gradient == nullptr) return;
        const int64_t count = least(TILE, (of_y ? m : n) - first), terms = of_y ? n : m;
        for (int64_t k = 0; k < terms; k += SHORT_SUM) {
            const float* from = of_y ? weights + k * stride + first : weights + first * stride + k;
            const Strides at = of_y ? Strides{1, stride} : Strides{stride, 1};
            const float* others = rows.units + (of_y ? k : n + k) * rows.stride;
            accumulate<SINGLES>(from, at, count, others, rows.stride, least(SHORT_SUM, terms - k), rows.padded,
                                memory.product, rows.stride, k > 0);
        }
        for (int64_t i = 0; i < count; ++i) {
            float* out = gradient + (first + i) * problem.d;
            finish_gradient(rows, of_y * n + first + i, -1, 0, 0, problem.normalize, memory.product + i * rows.stride,
                            out);
        }
    }
};

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
