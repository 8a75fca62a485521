"""Two ranks' rows against each other: what each path's ``meet`` and ``pull`` take and return.

A block holds the pairs of one rank's rows with another's. Which of them are compared is as within one batch, except
that no pair is left out for its place: rows of two ranks are only left out by their ids.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor


class Sums(NamedTuple):
    """What a block adds to the sums of one rank's anchors.

    Attributes:
        z: ``(anchors,)`` float64, lse over the block's negatives less the anchor's own positive; −inf without any.
        moment: ``(anchors,)`` float64, Σ_j P_ij s_ij − s⁺_i with P the softmax within the block, 0 without negatives;
            ``None`` unless requested.
    """

    z: Tensor
    moment: Tensor | None


class Anchors(NamedTuple):
    """What one rank's anchors bring to a gradient.

    Attributes:
        a: ``(anchors,)`` float64, the loss's derivative with respect to ``lse``; 0 for an anchor without negatives.
        lse: ``(anchors,)`` float64, natural log-sum-exp over the negatives of all ranks; finite.
    """

    a: Tensor
    lse: Tensor


def path(name: str) -> Any:
    """The module of a path, by the path's name; imported where it is used."""
    return import_module(f"{__name__}.{name if name == 'native' else f'{name}_path'}")
