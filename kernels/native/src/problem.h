// One loss call as the compiled kernels take it: raw pointers to the caller's tensors, checked by the caller.
#pragma once
#include <cstdint>

namespace ctloss {

enum Dtype { FLOAT32, BFLOAT16, FLOAT16 };
enum Negatives { BOTH, CROSS, OWN, NONE };
enum Loss { CONTRAST, CZ_NCE, INFO_NCE };

// What a call returns. A batch that is out of the ordinary is left to another path, with nothing promised of the
// outputs.
enum Status { DONE, NOT_FINITE, OUT_OF_RANGE, NO_MEMORY };

struct Side {
    const void* rows;  // (count, d), entries of a row adjacent
    int64_t count;
    int64_t stride;  // entries from one row to the next
    Dtype dtype;
    const int64_t* ids;  // (count,); null: none of the rows is left out by its id
    float* gradient;     // (count, d); null: not wanted
};

struct Problem {
    const Side* sides;  // x, y, then candidates
    int num_sides;
    int64_t n, d;
    Negatives negatives;
    int num_directions;
    bool normalize;
    int precise;   // products added up in float64: 1 for few rows, 2 for results returned row by row; else 0
    bool masked;   // ids decide which pairs are left out; else places do
    bool bounded;  // leave out negatives that exceed their positive by more than the margin
    double margin;
    double scale;          // log2(e) / temperature
    const double* scales;  // (anchors,) one each; null: `scale` serves all

    // Two ranks' rows against each other, and neither's against its own: the sides are those of both, one rank's x, y
    // and candidates, then the other's.
    int64_t others;     // pairs of the other rank; 0: a batch by itself
    int own_sides;      // sides before the other rank's
    bool mutual;        // the other rank's rows are anchors too, after the first's
    const double* lse;  // (anchors,) natural log-sum-exp over all negatives, wherever these are; null: sums are formed

    // Exponentials that are kept from a call for the sums to one for the gradient; null: not kept.
    float* entries;
    bool formed;  // they are there

    // What the gradient is of: Σ a_i lse_i − b_i s⁺_i with a and b given, or those of a loss.
    Loss loss;
    bool gradient;
    const double* a;  // (anchors,), with CONTRAST
    const double* b;
    const double* shares;  // (anchors,) factors of the row losses; null: `share` serves all
    double share;
    double held;  // what a and b are multiplied by, to be divided out by the caller

    double* z;  // (anchors,) outputs; null: not wanted
    double* positive;
    double* moment;
    float* loss_value;  // Σ shares_i · value_i
    float* exponents;   // (rows of all sides,) powers of two that raw rows were multiplied by
    bool* rescaled;     // whether any of them is not 0
    int64_t workspace;  // bytes of exponentials to keep at most; what does not fit is formed again
    int threads;

    int64_t count() const {
        int64_t total = 0;
        for (int side = 0; side < num_sides; ++side) total += sides[side].count;
        return total;
    }
    int64_t anchors() const { return (n + (mutual ? others : 0)) * num_directions; }
};

// The supervised contrastive loss: rows of one label are each other's positives.
struct Classes {
    Side x;  // its ids are the labels
    int64_t n, d;
    bool normalize, precise;
    double scale;           // log2(e) / temperature
    const double* weights;  // (n,) factors of the row losses in what is differentiated, less than 2 in size; null: ones
    bool mean;              // the total is a mean over the rows with a positive

    double* losses;  // (n,) outputs; null: not wanted. Gradients are times temperature and 2^30
    float* total;
    double* slope;     // with respect to the temperature, times it
    float* exponents;  // (n,) powers of two that raw rows were multiplied by
    bool* rescaled;    // whether any of them is not 0
    int64_t* paired;   // how many rows have a positive
    int threads;
};

struct Sigmoid {
    Side x, y;    // (n, d) and (m, d); pairs of equal ids are left out, but for a row's own
    bool paired;  // row i of y is the positive of row i of x, and m = n; else all pairs are negatives
    int64_t n, m, d;
    bool normalize, precise;
    double inverse, bias;   // logits are similarity · inverse + bias
    const double* weights;  // (n,) factors of the row losses in what is differentiated, less than 2 in size; null: ones

    double* losses;  // (n,) outputs; null: not wanted. Gradients are times 2^30, those of rows times temperature
    float* total;    // share · Σ losses
    double share;
    double* slope;     // with respect to the temperature
    double* offset;    // with respect to the bias
    float* exponents;  // (n + m,) powers of two that raw rows were multiplied by
    bool* rescaled;    // whether any of them is not 0
    int threads;
};

}  // namespace ctloss
