// Products of small matrices, held in registers a block at a time.
#pragma once
#include "simd.h"

namespace ctloss {
namespace CTLOSS_ISA {
namespace {

// Rows and vectors of a block: as many accumulators as the registers hold beside what they are formed from.
#if CTLOSS_LANES == 16
constexpr int BLOCK_ROWS = 12;
#elif CTLOSS_LANES == 8
constexpr int BLOCK_ROWS = 6;
#elif defined(__aarch64__)
constexpr int BLOCK_ROWS = 8;
#else
constexpr int BLOCK_ROWS = 4;
#endif
constexpr int BLOCK_VECTORS = 2, BLOCK_COLUMNS = BLOCK_VECTORS * LANES;
// Side of a tile of logits: a whole number of blocks both ways, and small enough for the first cache.
constexpr int TILE = 96;
static_assert(TILE % BLOCK_ROWS == 0 && TILE % BLOCK_COLUMNS == 0, "tiles are made of blocks");
// Products that are added up in single precision before they are added to the rest. In one go, cosines near 1 err by up
// to 6e-7; in chunks that are added up in single precision too, by a third of that, and else by a tenth of it.
constexpr int64_t CHUNK = 64;
// How many, where the rest is added up in double precision: the fewer, the less a single product errs.
inline int64_t precise_chunk(int64_t d, int precise) {
    const int64_t chunk = d >= 512 ? 64 : d >= 128 ? 32 : 16;
    return precise > 1 ? chunk / 4 : chunk;
}

// How the entries of a left factor lie: from one row, and from one term of the sum, to the next.
struct Strides {
    int64_t row, term;
};

// Single-precision numbers, or pairs of bfloat16 numbers in their place, whose products are added up in single
// precision.
enum Terms { SINGLES, PAIRS };
#if defined(__AVX512BF16__)
constexpr bool MULTIPLIES_PAIRS = true;
#else
constexpr bool MULTIPLIES_PAIRS = false;
#endif

template <Terms TERMS>
inline Floats add_product(Floats sum, Floats left, Floats right) {
#if defined(__AVX512BF16__)
    if constexpr (TERMS == PAIRS) return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
#endif
    return sum + left * right;
}

template <Terms TERMS, int VECTORS>
inline void form_block(const float* left, Strides at, const float* right, int64_t right_stride, int64_t terms,
                       Floats (&block)[BLOCK_ROWS][VECTORS]) {
    for (int i = 0; i < BLOCK_ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v) block[i][v] = Floats{};
    for (int64_t k = 0; k < terms; ++k) {
        Floats columns[VECTORS];
        for (int v = 0; v < VECTORS; ++v) columns[v] = load(right + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK_ROWS; ++i) {
            const Floats row = repeated(left + i * at.row);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) block[i][v] = add_product<TERMS>(block[i][v], row, columns[v]);
        }
        left += at.term;
        right += right_stride;
    }
}

// Add a block's products to what is there, or write them.
template <Terms TERMS, int VECTORS>
inline void add_block(const float* left, Strides at, const float* right, int64_t right_stride, int64_t terms,
                      float* out, int64_t out_stride, bool add) {
    Floats block[BLOCK_ROWS][VECTORS];
    form_block<TERMS, VECTORS>(left, at, right, right_stride, terms, block);
    for (int i = 0; i < BLOCK_ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v) {
            float* to = out + i * out_stride + v * LANES;
            store(to, add ? load(to) + block[i][v] : block[i][v]);
        }
}

inline void add_block_precisely(const float* left, Strides at, const float* right, int64_t right_stride, int64_t terms,
                                double* out, int64_t out_stride, bool add) {
    Floats block[BLOCK_ROWS][BLOCK_VECTORS];
    form_block<SINGLES, BLOCK_VECTORS>(left, at, right, right_stride, terms, block);
    for (int i = 0; i < BLOCK_ROWS; ++i)
        for (int v = 0; v < BLOCK_VECTORS; ++v) {
            double* to = out + i * out_stride + v * LANES;
            const Doubles first = low(block[i][v]), second = high(block[i][v]);
            store(to, add ? load(to) + first : first);
            store(to + LANES / 2, add ? load(to + LANES / 2) + second : second);
        }
}

// The entries of two vectors by turns: of their first halves, and of their second.
#if CTLOSS_LANES == 16
#define CTLOSS_FIRST 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define CTLOSS_SECOND 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif CTLOSS_LANES == 8
#define CTLOSS_FIRST 0, 8, 1, 9, 2, 10, 3, 11
#define CTLOSS_SECOND 4, 12, 5, 13, 6, 14, 7, 15
#else
#define CTLOSS_FIRST 0, 4, 1, 5
#define CTLOSS_SECOND 2, 6, 3, 7
#endif

// LANES rows of LANES entries become columns: by turns, as often as halving LANES leaves 1.
inline void transpose_square(Floats (&v)[LANES]) {
#pragma GCC unroll 4
    for (int width = 1; width < LANES; width *= 2) {
        Floats by_turns[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            by_turns[2 * i] = __builtin_shufflevector(v[i], v[i + LANES / 2], CTLOSS_FIRST);
            by_turns[2 * i + 1] = __builtin_shufflevector(v[i], v[i + LANES / 2], CTLOSS_SECOND);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) v[i] = by_turns[i];
    }
}

// Columns as the products take them: term by term, TILE entries each, 0 beyond the last one up to a whole block.
inline void transpose(const float* rows, int64_t stride, int64_t count, int64_t d, float* to) {
    const int64_t wanted = up(count, BLOCK_COLUMNS);
    for (int64_t start = 0; start < wanted; start += LANES)
        for (int64_t k = 0; k < d; k += LANES) {
            Floats square[LANES];
            for (int j = 0; j < LANES; ++j)
                square[j] = start + j < count ? load(rows + (start + j) * stride + k) : Floats{};
            transpose_square(square);
            for (int j = 0; j < LANES; ++j) store(to + (k + j) * TILE + start, square[j]);
        }
}

// rows · columnsᵀ into a tile, `tile_stride` entries from one of its rows to the next; whole blocks are written. Of
// rows with themselves only the blocks that touch the diagonal or lie above it are formed; the others are their mirror
// image.
template <Terms TERMS, class Entry>
inline void multiply(const float* rows, int64_t stride, int64_t num_rows, const float* columns, int64_t num_columns,
                     int64_t d, int64_t chunk, bool symmetric, Entry* tile, int64_t tile_stride) {
    constexpr bool PRECISE = sizeof(Entry) == sizeof(double);
    for (int64_t k = 0; k < d; k += chunk) {
        const int64_t terms = least(chunk, d - k);
        for (int64_t j = 0; j < num_columns; j += BLOCK_COLUMNS)
            for (int64_t i = 0; i < (symmetric ? least(num_rows, j + BLOCK_COLUMNS) : num_rows); i += BLOCK_ROWS) {
                const float *left = rows + i * stride + k, *right = columns + k * TILE + j;
                Entry* out = tile + i * tile_stride + j;
                if constexpr (PRECISE) {
                    add_block_precisely(left, {stride, 1}, right, TILE, terms, out, tile_stride, k > 0);
                } else {
                    add_block<TERMS, BLOCK_VECTORS>(left, {stride, 1}, right, TILE, terms, out, tile_stride, k > 0);
                }
            }
    }
    if (symmetric)
        for (int64_t j = 0; j < num_columns; j += BLOCK_COLUMNS)
            for (int64_t i = up(j + BLOCK_COLUMNS, BLOCK_ROWS); i < num_rows; ++i)
                for (int64_t c = j; c < least(j + BLOCK_COLUMNS, num_columns); ++c)
                    tile[i * tile_stride + c] = tile[c * tile_stride + i];
}

// Add weights · rows to some rows of a gradient. The weights' rows beyond `count` are read up to a whole block.
template <Terms TERMS>
inline void accumulate(const float* weights, Strides at, int64_t count, const float* rows, int64_t stride,
                       int64_t terms, int64_t d, float* out, int64_t out_stride, bool add) {
    int64_t k = 0;
    for (; k + BLOCK_COLUMNS <= d; k += BLOCK_COLUMNS)
        for (int64_t i = 0; i < count; i += BLOCK_ROWS)
            add_block<TERMS, BLOCK_VECTORS>(weights + i * at.row, at, rows + k, stride, terms, out + i * out_stride + k,
                                            out_stride, add);
    for (; k < d; k += LANES)
        for (int64_t i = 0; i < count; i += BLOCK_ROWS)
            add_block<TERMS, 1>(weights + i * at.row, at, rows + k, stride, terms, out + i * out_stride + k, out_stride,
                                add);
}

}  // namespace
}  // namespace CTLOSS_ISA
}  // namespace ctloss
