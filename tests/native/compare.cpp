// Compares the compiled kernels with plain loops in double precision, for every instruction set that is linked in and
// that the processor has. Every buffer is as large as it must be and no larger, so that AddressSanitizer sees what is
// read or written beyond it. Prints a line for each set; ends with status 1 after the first answer that is wrong.
#include <algorithm>
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
    Status solve_sigmoid(const Sigmoid& problem);  \
    }
CTLOSS_DECLARE(portable)
CTLOSS_DECLARE(avx2)
CTLOSS_DECLARE(avx512)
CTLOSS_DECLARE(avx512bf16)

}  // namespace ctloss

namespace {

using namespace ctloss;

using Solve = Status (*)(const Problem&);
using SolveSigmoid = Status (*)(const Sigmoid&);

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
    int64_t others = 0;  // pairs of another rank that this one's are compared with, instead of with each other
    std::vector<int64_t> other_candidates = {};
    bool bounded = false;
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
           " loss=" + std::to_string(call.loss) + " others=" + std::to_string(call.others) +
           " bounded=" + std::to_string(call.bounded) + " threads=" + std::to_string(call.threads) +
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

// All rows, one after the other, of unit length if they are normalised.
struct Stacked {
    std::vector<const std::vector<double>*> raw;
    std::vector<int64_t> ids;
    std::vector<double> length;
    std::vector<std::vector<double>> units;
    double longest = 0;

    Stacked(const Call& call, const std::vector<Rows>& given) {
        for (const Rows& rows : given) {
            for (const auto& row : rows.values) raw.push_back(&row);
            ids.insert(ids.end(), rows.ids.begin(), rows.ids.end());
        }
        for (const auto* row : raw) {
            length.push_back(call.normalize ? std::sqrt(dot(*row, *row)) : 1.0);
            units.emplace_back();
            for (double value : *row) units.back().push_back(value / length.back());
            longest = std::fmax(longest, dot(units.back(), units.back()));
        }
    }
};

// What rounding may do. A product's terms are summed 64 at a time, and its two rows are rounded first; a logit's
// error is every exponential's relative error, and so that of a sum of them, and of each share of such a sum.
struct Errors {
    double of_logit, of_weight;

    Errors(const char* isa, const Call& call, const Stacked& rows) {
        const double unit = std::ldexp(1, -24), m = static_cast<double>(rows.units.size());
        const double terms = std::fmin(static_cast<double>(call.d), 64) + static_cast<double>(call.d) / 64 + 8;
        of_logit = (terms * rows.longest / call.temperature + 8) * unit;
        of_weight = 4 * of_logit + (96 + m / 96 + 8) * unit;
        // That set multiplies bfloat16 rows by weights that are rounded to bfloat16 too.
        if (call.dtype == BFLOAT16 && std::strcmp(isa, "avx512bf16") == 0) of_weight += std::ldexp(1, -8);
    }
};

// Weights times rows, and what the weights of each row add up to in size.
struct Gradient {
    const Stacked& rows;
    std::vector<double> sizes;
    std::vector<std::vector<double>> of_units;

    explicit Gradient(const Stacked& all)
        : rows(all), sizes(all.units.size()), of_units(all.units.size(), std::vector<double>(all.units[0].size())) {}

    void pull(int64_t i, int64_t j, double weight) {
        for (size_t k = 0; k < of_units[i].size(); ++k) {
            of_units[i][k] += weight * rows.units[j][k];
            of_units[j][k] += weight * rows.units[i][k];
        }
        sizes[i] += std::fabs(weight), sizes[j] += std::fabs(weight);
    }

    // What the kernels found for one side, whose first row is the given one of all.
    void check(const Rows& side, int64_t row, const Errors& errors, const char* isa, const Call& call) const {
        for (int64_t i = 0; i < side.count; ++i, ++row) {
            const double radial = call.normalize ? dot(of_units[row], rows.units[row]) : 0;
            const double bound = 2 * errors.of_weight * sizes[row] * std::sqrt(rows.longest) / rows.length[row];
            for (int64_t k = 0; k < call.d; ++k) {
                const double wanted = (of_units[row][k] - radial * rows.units[row][k]) / rows.length[row];
                expect_near(side.gradient[i * call.d + k], wanted, bound, isa, call, "the gradient");
            }
        }
    }
};

// The definition: all pairs, one after the other.
void compare(const char* isa, Solve solve, const Call& call) {
    const int64_t n = call.n, anchors = n * call.directions;
    std::vector<Rows> given;
    given.emplace_back(call, n, nullptr);
    given.emplace_back(call, n, &given[0]);
    given[1].ids = given[0].ids;
    for (int64_t count : call.candidates) given.emplace_back(call, count, nullptr);
    std::vector<Side> sides;
    for (Rows& rows : given) sides.push_back(rows.side(call));
    const Stacked all(call, given);
    const Errors errors(isa, call, all);
    Gradient gradient(all);
    const auto& units = all.units;
    const auto& ids = all.ids;
    const double longest = all.longest, of_logit = errors.of_logit, unit = std::ldexp(1, -24);
    const int64_t m = static_cast<int64_t>(units.size());

    std::vector<double> temperatures(anchors, call.temperature), scales(anchors), shares(anchors);
    for (int64_t i = 0; i < anchors; ++i) {
        if (call.per_row) temperatures[i] *= 1 + 0.5 * static_cast<double>(generator() % 100) / 100;
        scales[i] = 1.44269504088896340736 / temperatures[i];
        shares[i] = (1.0 + static_cast<double>(i % 3)) / static_cast<double>(anchors);
    }
    std::vector<double> a(anchors), b(anchors);
    for (int64_t i = 0; i < anchors; ++i) a[i] = normal(), b[i] = normal();

    double loss = 0;
    std::vector<double> z(anchors), positive(anchors), moment(anchors);
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
            if (exponentials[j] > 0) gradient.pull(i, j, up * inverse * exponentials[j] / total);
        gradient.pull(i, partner, -down * inverse);
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
        gradient.check(rows, row, errors, isa, call);
        row += rows.count;
    }
}

// Two ranks' rows against each other: sums of one rank's anchors and of both's, then the gradient of the first's rows.
void compare_block(const char* isa, Solve solve, const Call& call) {
    const double margin = 0.1;
    std::vector<Rows> given;
    std::vector<int> rank_of, side_of;  // of all stacked rows; candidates are a side 2
    int64_t own_rows = 0;
    for (int rank = 0; rank < 2; ++rank) {
        const int64_t n = rank == 0 ? call.n : call.others;
        std::vector<int64_t> counts = rank == 0 ? call.candidates : call.other_candidates;
        counts.insert(counts.begin(), {n, n});
        const size_t first = given.size();
        for (size_t side = 0; side < counts.size(); ++side) {
            Rows made(call, counts[side], side == 1 ? &given[first] : nullptr);
            if (side == 1) made.ids = given[first].ids;
            given.push_back(std::move(made));
            rank_of.insert(rank_of.end(), counts[side], rank);
            side_of.insert(side_of.end(), counts[side], side < 2 ? static_cast<int>(side) : 2);
            if (rank == 0) own_rows += counts[side];
        }
    }
    const Stacked all(call, given);
    const Errors errors(isa, call, all);
    const int64_t m = static_cast<int64_t>(all.units.size());
    std::vector<int64_t> anchors, partners;
    for (int64_t i = 0; i < m; ++i) {
        const int64_t n = rank_of[i] == 0 ? call.n : call.others;
        if (side_of[i] >= call.directions) continue;
        anchors.push_back(i);
        partners.push_back(side_of[i] == 0 ? i + n : i - n);
    }
    const int64_t count = static_cast<int64_t>(anchors.size()), own = call.n * call.directions;

    Gradient gradient(all);
    std::vector<double> z(count), moment(count), a(count), given_a(count), lse(count), scales(count);
    for (int64_t k = 0; k < count; ++k) {
        const int64_t i = anchors[k];
        const double temperature =
            call.temperature * (call.per_row ? 1 + 0.5 * static_cast<double>(generator() % 100) / 100 : 1.0);
        scales[k] = 1.44269504088896340736 / temperature;
        const double similarity = dot(all.units[i], all.units[partners[k]]), positive = similarity / temperature;
        std::vector<double> exponentials(m);
        double total = 0, weighted = 0;
        for (int64_t j = 0; j < m; ++j) {
            if (rank_of[j] == rank_of[i] || (call.ids && all.ids[j] == all.ids[i])) continue;
            const bool same = side_of[i] == side_of[j];
            if (side_of[j] < 2 && (call.negatives == NONE || call.negatives == (same ? CROSS : OWN))) continue;
            const double found = dot(all.units[i], all.units[j]);
            if (call.bounded && found > similarity + margin) continue;
            total += exponentials[j] = std::exp(found / temperature);
            weighted += exponentials[j] * found / temperature;
        }
        z[k] = std::log(total) - positive;
        moment[k] = total > 0 ? weighted / total - positive : 0;
        // Negatives of other ranks make the sum larger than what this block adds to it.
        lse[k] = total > 0 ? std::log(total) + static_cast<double>(generator() % 3) : 0;
        a[k] = total > 0 && generator() % 5 != 0 ? normal() : 0;
        given_a[k] = a[k] / temperature;
        for (int64_t j = 0; j < m; ++j)
            if (exponentials[j] > 0) gradient.pull(i, j, given_a[k] * exponentials[j] * std::exp(-lse[k]));
    }

    std::vector<Side> sides;
    for (Rows& rows : given) sides.push_back(rows.side(call));
    for (Side& side : sides) side.gradient = nullptr;
    std::vector<float> exponents(m, NAN);
    bool rescaled = false;
    Problem problem{};
    problem.sides = sides.data();
    problem.num_sides = static_cast<int>(sides.size());
    problem.n = call.n;
    problem.others = call.others;
    problem.own_sides = 2 + static_cast<int>(call.candidates.size());
    problem.d = call.d;
    problem.negatives = call.negatives;
    problem.num_directions = call.directions;
    problem.normalize = call.normalize;
    problem.precise = call.precise ? 2 : 0;
    problem.masked = call.ids;
    problem.bounded = call.bounded;
    problem.margin = margin;
    problem.scale = scales[0];
    problem.held = 1;
    problem.exponents = exponents.data();
    problem.rescaled = &rescaled;
    problem.threads = call.threads;
    problem.workspace = call.workspace;
    for (bool mutual : {true, false}) {
        const int64_t some = mutual ? count : own;
        std::vector<double> some_scales(scales.begin(), scales.begin() + some), found_z(some, 7), found_moment(some, 7);
        problem.mutual = mutual;
        problem.scales = call.per_row ? some_scales.data() : nullptr;
        problem.z = found_z.data();
        problem.moment = found_moment.data();
        expect(solve(problem) == DONE, isa, call, "declined");
        release_scratch();
        for (int64_t k = 0; k < some; ++k) {
            if (found_z[k] == z[k] && found_moment[k] == moment[k]) continue;  // without negatives
            expect_near(found_z[k], z[k], 2 * errors.of_logit, isa, call, "z");
            expect_near(found_moment[k], moment[k], 4 * errors.of_logit * (1 + all.longest / call.temperature), isa,
                        call, "the moment");
        }
    }
    if (!call.gradient) return;
    for (int side = 0; side < problem.own_sides; ++side) sides[side].gradient = given[side].gradient.data();
    problem.mutual = problem.gradient = true;
    problem.scales = call.per_row ? scales.data() : nullptr;
    problem.a = given_a.data();
    problem.lse = lse.data();
    problem.z = problem.moment = nullptr;
    for (bool first : {true, false}) {
        // Of all sides, then of x alone.
        for (int side = 1; side < problem.own_sides && !first; ++side) sides[side].gradient = nullptr;
        expect(solve(problem) == DONE, isa, call, "declined the gradient");
        release_scratch();
        int64_t row = 0;
        for (int side = 0; side < problem.own_sides; row += given[side++].count) {
            if (sides[side].gradient == nullptr) continue;
            gradient.check(given[side], row, errors, isa, call);
            std::fill(given[side].gradient.begin(), given[side].gradient.end(), NAN);
        }
        expect(row == own_rows, isa, call, "left rows out");
    }
    expect(!rescaled, isa, call, "rescaled rows of usual length");
}

// Blocks that are left to another path, and anchors without negatives that are not.
void decline_block(const char* isa, Solve solve) {
    const float rows[4] = {1, 2, 3, 1}, opposite[4] = {-1, -2, -3, -1};
    const int64_t ids[2] = {0, 1}, apart[2] = {0, 2};
    float gradient[4];
    double z[8], a[8] = {1, 1, 1, 1, 1, 1, 1, 1}, lse[8] = {};
    bool rescaled = false;
    auto solved = [&](double scale, const int64_t* own, bool normalize, bool of_sums) {
        Side sides[4];
        for (int side = 0; side < 4; ++side)
            sides[side] = {side < 2 ? rows : opposite, 1, 2, FLOAT32, own, side == 0 && of_sums ? gradient : nullptr};
        Problem problem{};
        problem.sides = sides;
        problem.num_sides = 4, problem.own_sides = 2;
        problem.n = problem.others = 1, problem.d = 2, problem.num_directions = 2;
        problem.mutual = true, problem.masked = own != nullptr;
        problem.normalize = normalize, problem.scale = scale, problem.held = 1;
        if (of_sums)
            problem.a = a, problem.lse = lse, problem.gradient = true;
        else
            problem.z = z;
        problem.rescaled = &rescaled;
        problem.threads = 1;
        const Status status = solve(problem);
        release_scratch();
        return status;
    };
    expect(solved(14, apart + 1, true, false) == DONE && z[0] == -INFINITY, isa, {1, 2}, "missed that there are none");
    expect(solved(300, ids, true, false) == OUT_OF_RANGE, isa, {1, 2}, "took none for what may have vanished");
    expect(solved(300, nullptr, true, false) == OUT_OF_RANGE, isa, {1, 2}, "took logits that vanish");
    expect(solved(300, nullptr, false, false) == OUT_OF_RANGE, isa, {1, 2}, "took logits out of range");
    expect(solved(14, nullptr, true, true) == DONE, isa, {1, 2}, "declined a usual gradient");
    lse[2] = 800;
    expect(solved(14, nullptr, true, true) == OUT_OF_RANGE, isa, {1, 2}, "took a sum out of range");
    lse[2] = -800;
    expect(solved(14, nullptr, true, true) == OUT_OF_RANGE, isa, {1, 2}, "took a sum that is too small");
    a[2] = 0;
    expect(solved(14, nullptr, true, true) == DONE, isa, {1, 2}, "declined for the sum of no anchor");
    expect(solved(300, nullptr, false, true) == OUT_OF_RANGE, isa, {1, 2}, "took a factor 0 of infinity");
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

// The sigmoid loss of two ranks' rows: all pairs but those of one id are negatives.
void compare_sigmoid(const char* isa, SolveSigmoid solve, const Call& call) {
    std::vector<Rows> given;
    given.emplace_back(call, call.n, nullptr);
    given.emplace_back(call, call.others, nullptr);
    const Stacked all(call, given);
    const Errors errors(isa, call, all);
    Gradient gradient(all);
    std::vector<double> weights(call.n), losses(call.n), found(call.n, NAN);
    const double bias = -1, held = std::ldexp(1, 30);
    for (int64_t i = 0; i < call.n; ++i) {
        weights[i] = static_cast<double>(1 + i % 3) / 2;
        for (int64_t j = call.n; j < call.n + call.others; ++j) {
            if (call.ids && all.ids[i] == all.ids[j]) continue;
            const double logit = dot(all.units[i], all.units[j]) / call.temperature + bias;
            losses[i] += std::log1p(std::exp(logit));
            gradient.pull(i, j, held * weights[i] / (1 + std::exp(-logit)));
        }
    }
    Sigmoid problem{};
    problem.x = given[0].side(call);
    problem.y = given[1].side(call);
    problem.n = call.n, problem.m = call.others, problem.d = call.d;
    problem.normalize = call.normalize;
    problem.precise = call.precise;
    problem.inverse = 1 / call.temperature, problem.bias = bias;
    problem.weights = weights.data();
    problem.losses = found.data();
    bool rescaled = false;
    problem.rescaled = &rescaled;
    problem.threads = call.threads;
    expect(solve(problem) == DONE, isa, call, "declined");
    release_scratch();
    for (int64_t i = 0; i < call.n; ++i)
        expect_near(found[i], losses[i], 4 * errors.of_logit * (losses[i] + 1), isa, call, "a sigmoid loss");
    gradient.check(given[0], 0, errors, isa, call);
    gradient.check(given[1], call.n, errors, isa, call);
}

void compare_all(const char* isa, Solve solve, SolveSigmoid solve_sigmoid) {
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
    for (Dtype dtype : {FLOAT32, BFLOAT16})
        for (Negatives negatives : {BOTH, CROSS, OWN, NONE})
            for (int directions : {2, 1})
                for (int kind = 0; kind < 4; ++kind) {
                    // Without candidates some anchors have no negatives.
                    Call call{kind == 0 ? 3 : 40, 19, dtype, negatives, directions};
                    call.others = kind == 0 ? 110 : 37;
                    if (kind > 0) call.candidates = {5}, call.other_candidates = {100, 1};
                    call.precise = kind == 0, call.ids = kind == 2, call.per_row = kind == 3;
                    call.bounded = kind == 2 && directions == 1;
                    call.normalize = kind != 1;
                    if (!call.normalize) call.temperature = 1;
                    call.loss = CONTRAST;
                    call.threads = 1 + kind % 2;
                    if (dtype == BFLOAT16) call.workspace = 0;
                    compare_block(isa, solve, call);
                    ++calls;
                    if (dtype == BFLOAT16) continue;
                    call.workspace = 0;
                    compare_block(isa, solve, call);
                    ++calls;
                }
    decline_block(isa, solve);
    for (int kind = 0; kind < 4; ++kind) {
        Call call{kind == 0 ? 3 : 130, 19, kind == 2 ? BFLOAT16 : FLOAT32};
        call.others = kind == 0 ? 110 : kind == 3 ? 1 : 40;
        call.ids = kind == 1, call.precise = kind == 0, call.threads = 1 + kind % 2;
        compare_sigmoid(isa, solve_sigmoid, call);
        ++calls;
    }
    std::printf("%s: %d calls\n", isa, calls);
}

}  // namespace

int main() {
    compare_all("portable", ctloss::portable::solve_contrast, ctloss::portable::solve_sigmoid);
#ifdef CTLOSS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        compare_all("avx2", ctloss::avx2::solve_contrast, ctloss::avx2::solve_sigmoid);
#endif
#ifdef CTLOSS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        compare_all("avx512", ctloss::avx512::solve_contrast, ctloss::avx512::solve_sigmoid);
#ifdef CTLOSS_AVX512BF16
        if (__builtin_cpu_supports("avx512bf16"))
            compare_all("avx512bf16", ctloss::avx512bf16::solve_contrast, ctloss::avx512bf16::solve_sigmoid);
#endif
    }
#endif
    return 0;
}
