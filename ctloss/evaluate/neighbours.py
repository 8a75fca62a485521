"""Nearest neighbours by cosine, and how close unrelated vectors lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns the rows at length 1, float32; a row of zeros stays."""
    import numpy as np

    rows = vectors.astype(np.float64)
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)).astype(np.float32)


def centred(vectors: np.ndarray) -> np.ndarray:
    """Returns the vectors less their mean: what is left once a language's common direction is taken out."""
    import numpy as np

    return (vectors - vectors.mean(axis=0, dtype=np.float64)).astype(np.float32)


def nearest(queries: np.ndarray, candidates: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosines (m, k) float32 and rows (m, k) int64 of each query's k nearest candidates, the nearest first.

    Exact, by faiss. With fewer than k candidates it is as many as there are.

    Args:
        queries: (m, d).
        candidates: (n, d).
        k: how many.

    Example:
        >>> import numpy as np
        >>> cosines, rows = nearest(np.array([[2.0, 0.1]]), np.array([[0.0, 1.0], [3.0, 0.0]]), k=2)
        >>> rows, cosines.round(3)
        (array([[1, 0]]), array([[0.999, 0.05 ]], dtype=float32))
    """
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(np.ascontiguousarray(unit(candidates)))
    cosines, rows = index.search(np.ascontiguousarray(unit(queries)), min(k, len(candidates)))
    return cosines, rows


def random_pair_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Mean cosine of x's rows with y's rows of another index, over all n (n - 1) of them.

    Near 0 the vectors use their whole space; near 1 they crowd in a cone. Computed from the sums of the unit rows, so
    exactly and without the n × n cosines.

    Args:
        x, y: (n, d), n ≥ 2; row i of y translates row i of x.

    Example:
        >>> import numpy as np
        >>> round(random_pair_cosine(np.eye(2), np.ones((2, 2))), 4)
        0.7071
    """
    import numpy as np

    x, y = (unit(side).astype(np.float64) for side in (x, y))
    return float((x.sum(axis=0) @ y.sum(axis=0) - (x * y).sum()) / (len(x) * (len(x) - 1)))
