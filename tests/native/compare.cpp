// Compares the compiled kernels with plain loops in double precision, for every instruction set that is linked in and
// that the processor has. Every buffer is as large as it must be and no larger, so that AddressSanitizer sees what is
// read or written beyond it. Prints a line for each set; ends with status 1 after the first answer that is wrong.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "problem.h"
#include "threads.h"

namespace ctloss {

#define CTLOSS_DECLARE(isa)                        \
    namespace isa {                                \
    Status solve_contrast(const Problem& problem); \
    }
CTLOSS_DECLARE(portable)
CTLOSS_DECLARE(avx2)
CTLOSS_DECLARE(avx512)
CTLOSS_DECLARE(avx512bf16)

}  // namespace ctloss

namespace {

using namespace ctloss;

using Solve = Status (*)(const Problem&);

struct Call {
    int64_t n, d;
    Dtype dtype = FLOAT32;
    Negatives negatives = BOTH;
    int directions = 2;
    std::vector<int64_t> candidates = {};
    bool ids = false, per_row = false, normalize = true, precise = false, gradient = true;
    Loss loss = INFO_NCE;
    int threads = 1;
    double temperature = 0.1;
    int64_t workspace = int64_t{1} << 30;
};

std::mt19937_64 generator(7);

double normal() { return std::normal_distribution<double>()(generator); }

uint16_t random_float16() {
    // Subnormal numbers too, and nothing above 8.
    return static_cast<uint16_t>((generator() & 0x83ff) | (generator() % 18) << 10);
}

double value_of_float16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return bits & 0x8000 ? -size : size;
}

// One side as the kernels take it, and its rows in double precision.
struct Rows {
    int64_t count, d, stride;
    std::vector<char> memory;
    std::vector<std::vector<double>> values;
    std::vector<int64_t> ids;
    std::vector<float> gradient;

    Rows(const Call& call, int64_t rows, const Rows* near) : count(rows), d(call.d), stride(call.d + 3), values(rows) {
        const int64_t size = call.dtype == FLOAT32 ? 4 : 2;
        memory.resize(size * ((rows - 1) * stride + d));
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t k = 0; k < d; ++k) {
                char* entry = memory.data() + size * (i * stride + k);
                // Positives are near their anchors, so that they stand out.
                float value = static_cast<float>(normal() * 0.3 + (near != nullptr ? near->values[i][k] : 0));
                uint32_t bits;
                std::memcpy(&bits, &value, sizeof bits);
                uint16_t half = static_cast<uint16_t>(bits >> 16);
                if (call.dtype == FLOAT16) half = random_float16();
                bits = static_cast<uint32_t>(half) << 16;
                if (call.dtype == BFLOAT16) std::memcpy(&value, &bits, sizeof value);
                if (call.dtype == FLOAT32)
                    std::memcpy(entry, &value, sizeof value);
                else
                    std::memcpy(entry, &half, sizeof half);
                values[i].push_back(call.dtype == FLOAT16 ? value_of_float16(half) : value);
            }
            ids.push_back(call.ids ? static_cast<int64_t>(generator() % 5) : i);
        }
        gradient.assign(call.gradient ? rows * d : 0, NAN);
    }

    Side side(const Call& call) {
        return {memory.data(),
                count,
                stride,
                call.dtype,
                call.ids ? ids.data() : nullptr,
                call.gradient ? gradient.data() : nullptr};
    }
};

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double total = 0;
    for (size_t k = 0; k < a.size(); ++k) total += a[k] * b[k];
    return total;
}

std::string described(const Call& call) {
    return "n=" + std::to_string(call.n) + " d=" + std::to_string(call.d) + " dtype=" + std::to_string(call.dtype) +
           " negatives=" + std::to_string(call.negatives) + " directions=" + std::to_string(call.directions) +
           " candidates=" + std::to_string(call.candidates.size()) + " ids=" + std::to_string(call.ids) +
           " per_row=" + std::to_string(call.per_row) + " normalize=" + std::to_string(call.normalize) +
           " precise=" + std::to_string(call.precise) + " gradient=" + std::to_string(call.gradient) +
           " loss=" + std::to_string(call.loss) + " threads=" + std::to_string(call.threads) +
           " workspace=" + std::to_string(call.workspace);
}

void expect(bool good, const char* isa, const Call& call, const char* what) {
    if (good) return;
    std::printf("%s, %s: %s\n", isa, described(call).c_str(), what);
    std::exit(1);
}

void expect_near(double found, double wanted, double bound, const char* isa, const Call& call, const char* what) {
    if (std::fabs(found - wanted) <= bound) return;
    std::printf("%s, %s: %s is %.9g, not %.9g within %.2g\n", isa, described(call).c_str(), what, found, wanted, bound);
    std::exit(1);
}

// The definition: all pairs, one after the other.
void compare(const char* isa, Solve solve, const Call& call) {
    const int64_t n = call.n, anchors = n * call.directions;
    std::vector<Rows> given;
    given.emplace_back(call, n, nullptr);
    given.emplace_back(call, n, &given[0]);
    given[1].ids = given[0].ids;
    for (int64_t count : call.candidates) given.emplace_back(call, count, nullptr);
    std::vector<Side> sides;
    std::vector<const std::vector<double>*> raw;
    std::vector<int64_t> ids;
    for (Rows& rows : given) {
        sides.push_back(rows.side(call));
        for (const auto& row : rows.values) raw.push_back(&row);
        ids.insert(ids.end(), rows.ids.begin(), rows.ids.end());
    }
    const int64_t m = static_cast<int64_t>(raw.size());

    std::vector<double> temperatures(anchors, call.temperature), scales(anchors), shares(anchors);
    for (int64_t i = 0; i < anchors; ++i) {
        if (call.per_row) temperatures[i] *= 1 + 0.5 * static_cast<double>(generator() % 100) / 100;
        scales[i] = 1.44269504088896340736 / temperatures[i];
        shares[i] = (1.0 + static_cast<double>(i % 3)) / static_cast<double>(anchors);
    }
    std::vector<double> a(anchors), b(anchors);
    for (int64_t i = 0; i < anchors; ++i) a[i] = normal(), b[i] = normal();

    std::vector<double> length(m);
    std::vector<std::vector<double>> units(m);
    double longest = 0;
    for (int64_t i = 0; i < m; ++i) {
        length[i] = call.normalize ? std::sqrt(dot(*raw[i], *raw[i])) : 1.0;
        for (double value : *raw[i]) units[i].push_back(value / length[i]);
        longest = std::fmax(longest, dot(units[i], units[i]));
    }
    // What rounding may do. A product's terms are summed 64 at a time, and its two rows are rounded first; a logit's
    // error is every exponential's relative error, and so that of a sum of them, and of each share of such a sum.
    const double unit = std::ldexp(1, -24);
    const double terms = std::fmin(static_cast<double>(call.d), 64) + static_cast<double>(call.d) / 64 + 8;
    const double of_logit = (terms * longest / call.temperature + 8) * unit;
    double of_weight = 4 * of_logit + (96 + static_cast<double>(m) / 96 + 8) * unit;
    // That set multiplies bfloat16 rows by weights that are rounded to bfloat16 too.
    if (call.dtype == BFLOAT16 && std::strcmp(isa, "avx512bf16") == 0) of_weight += std::ldexp(1, -8);

    double loss = 0;
    std::vector<double> z(anchors), positive(anchors), moment(anchors), sizes(m);
    std::vector<std::vector<double>> of_units(m, std::vector<double>(call.d));
    auto pull = [&](int64_t i, int64_t j, double weight) {
        for (int64_t k = 0; k < call.d; ++k) {
            of_units[i][k] += weight * units[j][k];
            of_units[j][k] += weight * units[i][k];
        }
        sizes[i] += std::fabs(weight), sizes[j] += std::fabs(weight);
    };
    for (int64_t i = 0; i < anchors; ++i) {
        const int64_t partner = i < n ? i + n : i - n;
        const double inverse = 1 / temperatures[i];
        std::vector<double> exponentials(m);
        double total = 0, weighted = 0;
        for (int64_t j = 0; j < m; ++j) {
            const bool of_anchors = j < 2 * n, own = (j < n) == (i < n);
            if (of_anchors && (call.negatives == NONE || (call.negatives == (own ? CROSS : OWN)))) continue;
            if (j == i || j == partner || (call.ids && ids[j] == ids[i])) continue;
            const double logit = dot(units[i], units[j]) * inverse;
            total += exponentials[j] = std::exp(logit);
            weighted += exponentials[j] * logit;
        }
        positive[i] = dot(units[i], units[partner]) * inverse;
        z[i] = std::log(total) - positive[i];
        moment[i] = weighted / total - positive[i];
        double up = a[i], down = b[i];
        if (call.loss != CONTRAST) {
            up = down = shares[i] * (call.loss == INFO_NCE ? 1 / (1 + std::exp(-z[i])) : 1);
            loss += shares[i] * (call.loss == INFO_NCE ? std::log1p(std::exp(z[i])) : z[i]);
        }
        for (int64_t j = 0; j < m; ++j)
            if (exponentials[j] > 0) pull(i, j, up * inverse * exponentials[j] / total);
        pull(i, partner, -down * inverse);
    }

    std::vector<double> found_z(anchors, NAN), found_positive(anchors, NAN), found_moment(anchors, NAN);
    std::vector<float> exponents(m, NAN);
    float value = NAN;
    bool rescaled = false;
    Problem problem{};
    problem.sides = sides.data();
    problem.num_sides = static_cast<int>(sides.size());
    problem.n = n;
    problem.d = call.d;
    problem.negatives = call.negatives;
    problem.num_directions = call.directions;
    problem.normalize = call.normalize;
    problem.precise = call.precise ? 2 : 0;
    problem.masked = call.ids;
    problem.scale = scales[0];
    problem.scales = call.per_row ? scales.data() : nullptr;
    problem.loss = call.loss;
    problem.gradient = call.gradient;
    // With a temperature for each row, theirs are by the cosines.
    std::vector<double> given_a(a), given_b(b);
    for (int64_t i = 0; i < anchors && call.per_row; ++i) given_a[i] /= temperatures[i], given_b[i] /= temperatures[i];
    problem.a = given_a.data();
    problem.b = given_b.data();
    problem.shares = shares.data();
    // The gradient with one temperature is by the cosines, and what it is held at makes it one by the logits.
    problem.held = call.per_row ? 1 : 1 / call.temperature;
    problem.z = found_z.data();
    problem.positive = found_positive.data();
    problem.moment = found_moment.data();
    problem.loss_value = call.loss == CONTRAST ? nullptr : &value;
    problem.exponents = exponents.data();
    problem.rescaled = &rescaled;
    problem.threads = call.threads;
    problem.workspace = call.workspace;
    expect(solve(problem) == DONE, isa, call, "declined");
    release_scratch();

    double largest = 0;
    for (int64_t i = 0; i < anchors; ++i) {
        expect_near(found_z[i], z[i], 2 * of_logit, isa, call, "z");
        expect_near(found_positive[i], positive[i], of_logit, isa, call, "the positive's logit");
        // Its terms are logits of either sign, the largest of them 1/temperature.
        expect_near(found_moment[i], moment[i], 4 * of_logit * (1 + longest / call.temperature), isa, call,
                    "the moment");
        largest = std::fmax(largest, std::fabs(z[i]));
    }
    if (call.loss != CONTRAST)
        expect_near(value, loss, 3 * (2 * of_logit + unit * (1 + largest)), isa, call, "the loss");
    expect(!rescaled, isa, call, "rescaled rows of usual length");
    if (!call.gradient) return;
    int64_t row = 0;
    for (const Rows& rows : given) {
        for (int64_t i = 0; i < rows.count; ++i, ++row) {
            const double radial = call.normalize ? dot(of_units[row], units[row]) : 0;
            const double bound = 2 * of_weight * sizes[row] * std::sqrt(longest) / length[row];
            for (int64_t k = 0; k < call.d; ++k) {
                const double wanted = (of_units[row][k] - radial * units[row][k]) / length[row];
                expect_near(rows.gradient[i * call.d + k], wanted, bound, isa, call, "the gradient");
            }
        }
    }
}

// Batches that are left to another path.
void decline(const char* isa, Solve solve) {
    const float rows[4] = {1, 2, 3, 1}, infinite[4] = {1, 2, INFINITY, 1};
    double z[4];
    bool rescaled = false;
    auto solved = [&](int64_t n, const float* candidates) {
        const Side side{rows, n, 2, FLOAT32, nullptr, nullptr}, last{candidates, 2, 2, FLOAT32, nullptr, nullptr};
        const Side sides[3] = {side, side, last};
        Problem problem{};
        problem.sides = sides;
        problem.num_sides = candidates == nullptr ? 2 : 3;
        problem.n = n, problem.d = 2, problem.num_directions = 2, problem.normalize = true, problem.scale = 14;
        problem.z = z;
        problem.rescaled = &rescaled;
        problem.threads = 1;
        return solve(problem);
    };
    expect(solved(2, rows) == DONE, isa, {2, 2}, "declined a usual batch");
    expect(solved(1, nullptr) == OUT_OF_RANGE, isa, {1, 2}, "took anchors without negatives");
    expect(solved(2, infinite) == NOT_FINITE, isa, {2, 2}, "took an infinite row");
}

void compare_all(const char* isa, Solve solve) {
    int calls = 0;
    auto run = [&](Call call) {
        compare(isa, solve, call);
        ++calls;
        if (!call.gradient) return;
        // Exponentials that are not kept are formed again.
        call.workspace = 0;
        compare(isa, solve, call);
        ++calls;
    };
    for (Dtype dtype : {FLOAT32, BFLOAT16, FLOAT16})
        for (Negatives negatives : {BOTH, CROSS, OWN})
            for (bool gradient : {true, false}) {
                run({3, 40, dtype, negatives, 2, {}, false, false, true, true, gradient});
                run({101, 33, dtype, negatives, 1, {}, false, false, true, false, gradient, CZ_NCE, 2});
                run({130, 71, dtype, negatives, 2, {50, 7}, true, false, true, false, gradient, INFO_NCE, 3});
                run({67, 256, dtype, negatives, 2, {9}, false, true, true, false, gradient, CONTRAST, 2});
                run({40,
                     19,
                     dtype,
                     negatives,
                     2,
                     {3},
                     false,
                     false,
                     false,
                     false,
                     gradient,
                     CONTRAST,
                     1,
                     dtype == FLOAT16 ? 40.0 : 1.0});
            }
    run({5, 1, FLOAT32, BOTH, 2, {1}, false, false, false});
    run({30, 9, FLOAT32, NONE, 2, {17}});
    run({30, 9, FLOAT32, NONE, 1, {100, 1}, true});
    decline(isa, solve);
    std::printf("%s: %d calls\n", isa, calls);
}

}  // namespace

int main() {
    compare_all("portable", ctloss::portable::solve_contrast);
#ifdef CTLOSS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        compare_all("avx2", ctloss::avx2::solve_contrast);
#endif
#ifdef CTLOSS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        compare_all("avx512", ctloss::avx512::solve_contrast);
#ifdef CTLOSS_AVX512BF16
        if (__builtin_cpu_supports("avx512bf16")) compare_all("avx512bf16", ctloss::avx512bf16::solve_contrast);
#endif
    }
#endif
    return 0;
}
