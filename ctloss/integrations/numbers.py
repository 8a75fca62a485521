"""Scalars and rows as the integrations take them."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor


def positive(name: str, value: object, advice: str, *, or_zero: bool = False) -> float:
    """A scale or a temperature, refused when the loss is made rather than when it is called.

    Args:
        name: the argument's.
        value: what was given for it.
        advice: what to do about another.
        or_zero: whether 0 is one too.

    Raises:
        TypeError, ValueError: for what is not a finite number above 0.
    """
    wanted = "a finite number of at least 0" if or_zero else "a positive number"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}; {advice}")
    number = float(value)
    if not (0 < number < math.inf or (or_zero and number == 0)):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}; {advice}")
    return number


def finite(name: str, value: object, advice: str) -> float:
    """A number of any sign, refused when the loss is made rather than when it is called.

    Raises:
        TypeError, ValueError: for what is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a finite number, got {value!r}; {advice}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}; {advice}")
    return float(value)


def one_element(name: str, scale: object, advice: str) -> None:
    """Refuse a tensor of several numbers, such as a scale for each pair.

    Raises:
        ValueError: for one.
    """
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"{name}: expected one element, got shape {tuple(scale.shape)}; {advice}")


def widened(rows: Tensor) -> Tensor:
    """Rows in float32, or in their own dtype if that is wider."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
