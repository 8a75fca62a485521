"""A part of a tile: which pairs count, and their logits. What the plain kernels share is said again in Gluon here."""

from __future__ import annotations

from .names import gl, jit

# As in ..tiles and ..layout, which stand above this package: the largest log2(e)/τ whose logits have 0 for a common
# peak, the peak of rows without logits, and how many steps a cosine of 1 is kept as.
COMMON_PEAK_RATE, LOWEST, STEPS = gl.constexpr(40.0), gl.constexpr(-3.0e38), gl.constexpr(32767.0)
# Added to a smaller number, this leaves its nearest integer in the lowest bits, without a slow conversion.
SHIFT = gl.constexpr(1.5 * 2.0**23)


@jit
def exp2(x):
    """2^x; what is below float32's normal numbers is 0, which saves two instructions."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@jit
def stem_of(first, padded):
    """As in :mod:`..tiles`: a tile's first row within its side; x and y share numbers, candidates keep theirs."""
    return gl.where((first >= padded) & (first < 2 * padded), first - padded, first)


@jit
def rows_inside(stem, num_pairs, num_candidates, padded):
    """As in :mod:`..tiles`: the number of rows from a tile's first row on that are not padding."""
    return gl.where(stem >= padded, 2 * padded + num_candidates, num_pairs) - stem


@jit
def outline(first_a, first_b, num_pairs, num_candidates, padded):
    """How far a tile's rows lie behind its columns within their sides, and how many of either are not padding."""
    a = stem_of(first_a, padded)
    b = stem_of(first_b, padded)
    inside_a = rows_inside(a, num_pairs, num_candidates, padded)
    inside_b = rows_inside(b, num_pairs, num_candidates, padded)
    return a - b, inside_a, inside_b


@jit
def needs_mask(ids_ptr, lag, inside_a, inside_b, BLOCK: gl.constexpr):
    """Whether any pair of a BLOCK x BLOCK tile is left out."""
    masked = (inside_a < BLOCK) | (inside_b < BLOCK) | (lag == 0)
    if ids_ptr is not None:
        # Always so, but not for the compiler to know: see tile_logits.
        masked = inside_a + inside_b > 0
    return masked


@jit
def counted(ids_ptr, first_a, first_b, rows, columns, lag, inside_a, inside_b):
    """The pairs with different identities, neither of them padding, among some rows and columns of a tile."""
    if ids_ptr is not None:
        id_a = gl.load(ids_ptr + first_a + rows)[:, None]
        id_b = gl.load(ids_ptr + first_b + columns)[None, :]
        found = (id_a != id_b) & (id_a >= 0) & (id_b >= 0)
    else:
        apart = (rows + lag)[:, None] != columns[None, :]
        found = apart & (rows < inside_a)[:, None] & (columns < inside_b)[None, :]
    return found


@jit
def logits(product, factor_ptr, plane, rows, columns, rate, NORMALIZE: gl.constexpr, EXACT: gl.constexpr):
    """Products to logits in units of log 2, with one rounding as in :mod:`..tiles` or, without EXACT, with two."""
    if NORMALIZE:
        row = gl.load(factor_ptr + rows)[:, None]
        column = gl.load(factor_ptr + columns)[None, :]
        part = product * row
        if EXACT:
            row_residue = gl.load(factor_ptr + plane + rows)[:, None]
            column_residue = gl.load(factor_ptr + plane + columns)[None, :]
            residue = gl.fma(product, row_residue, gl.fma(product, row, -part))
            logit = gl.fma(part, column, gl.fma(part, column_residue, residue * column))
        else:
            logit = part * column
    else:
        logit = product * rate
    return logit


@jit
def in_steps(logit, rate):
    """Cosines in 16 bits, as :func:`..tiles.keep_logits` has them."""
    steps = gl.minimum(logit * ((1.0 / rate) * STEPS), STEPS)
    return (steps + SHIFT).to(gl.int32, bitcast=True).to(gl.int16)


@jit
def left_and_right(x):
    """The columns of either half of a tile, which lie in other registers of the same threads."""
    parts = gl.reshape(x, [x.shape[0], 2, x.shape[1] // 2])
    return gl.split(gl.permute(parts, [0, 2, 1]))


@jit
def quarters(x):
    """The columns of a tile in four parts."""
    left, right = left_and_right(x)
    first, second = left_and_right(left)
    third, fourth = left_and_right(right)
    return first, second, third, fourth
