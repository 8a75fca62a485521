"""Vectors compared by cosine: nearest neighbours, centring, and how close unrelated vectors lie.

All functions take NumPy arrays or PyTorch tensors on the CPU, one vector a row, and return NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Vectors = np.ndarray | Tensor

# Cosines held at a time, which bounds the memory: 256 MiB.
AT_A_TIME = 1 << 26


def unit(vectors: Vectors) -> np.ndarray:
    """Returns the rows at length 1, float32; a row of zeros stays."""
    import numpy as np

    rows = np.asarray(vectors).astype(np.float64)
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)).astype(np.float32)


def centred(vectors: Vectors) -> np.ndarray:
    """Returns the rows less their mean, float32: what is left once a language's common direction is taken out."""
    import numpy as np

    rows = np.asarray(vectors)
    return (rows - rows.mean(axis=0, dtype=np.float64)).astype(np.float32)


def nearest(
    queries: Vectors, candidates: Vectors, k: int = 1, *, removed: Sequence[Collection[int]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosines (m, k) float32 and rows (m, k) int64 of each query's k nearest candidates, the nearest first.

    Exact; the first of equally near candidates comes first. With fewer than k candidates there is one column for each.

    Args:
        queries, candidates: (m, d) and (n, d).
        removed: rows that each query leaves out; at least k of the candidates must be left to it.

    Example:
        >>> import numpy as np
        >>> candidates = np.array([[0.0, 1.0], [3.0, 0.0]])
        >>> cosines, rows = nearest(np.array([[2.0, 0.1]]), candidates, k=2)
        >>> rows, cosines.round(3)
        (array([[1, 0]]), array([[0.999, 0.05 ]], dtype=float32))
        >>> nearest(np.array([[2.0, 0.1]]), candidates, removed=[{1}])[1]
        array([[0]])
    """
    import numpy as np

    x, y = unit(queries), unit(candidates)
    k = min(k, len(y))
    cosines, rows = np.empty((len(x), k), dtype=np.float32), np.empty((len(x), k), dtype=np.int64)
    step = max(1, AT_A_TIME // max(1, len(y)))
    for start in range(0, len(x), step):
        part = x[start : start + step] @ y.T
        for row, left_out in zip(part, (removed or ())[start : start + step], strict=False):
            row[list(left_out)] = -np.inf
        cosines[start : start + step], rows[start : start + step] = largest(part, k)
    return cosines, rows


def largest(cosines: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k largest of each row (m, n), the first of equal ones first, and their columns; fewer if n is less.

    It overwrites what it has found, so that the array is not to be used again.
    """
    import numpy as np

    k, each = min(k, cosines.shape[1]), np.arange(len(cosines))
    values, columns = np.empty((len(cosines), k), dtype=cosines.dtype), np.empty((len(cosines), k), dtype=np.int64)
    for place in range(k):
        found = cosines.argmax(axis=1)
        values[:, place], columns[:, place] = cosines[each, found], found
        cosines[each, found] = -np.inf
    return values, columns


def retrieval_accuracy(
    queries: Vectors,
    candidates: Vectors,
    right: Sequence[Collection[int]] | None = None,
    removed: Sequence[Collection[int]] | None = None,
) -> float:
    """Returns the share of the queries whose nearest candidate, among those not removed for it, is a right one.

    By default row i is right for query i.
    """
    found = nearest(queries, candidates, removed=removed)[1][:, 0].tolist()
    return sum(row == i if right is None else row in right[i] for i, row in enumerate(found)) / len(found)


def random_pair_cosine(x: Vectors, y: Vectors) -> float:
    """Returns the mean cosine of x's rows with y's rows of another index, over all n (n - 1) such pairs.

    Near 0 the vectors use their whole space; near 1 they crowd in a cone. Computed from the sums of the unit rows, so
    exactly and without the n × n cosines.

    Args:
        x, y: (n, d), n ≥ 2; row i of y translates row i of x.
    """
    import numpy as np

    a, b = (unit(side).astype(np.float64) for side in (x, y))
    return float((a.sum(axis=0) @ b.sum(axis=0) - (a * b).sum()) / (len(a) * (len(a) - 1)))
