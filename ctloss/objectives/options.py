"""Checks of the objectives' arguments. Every error says what was expected, what it got and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from ..contrast import Contrast
from ..core import checks
from ..core.ops import unwatched

__all__: list[str] = []


def checked(c: object, name: str = "c") -> Contrast:
    """Refuse anything but a contrast with one z per row; ``name`` is the argument's, for the message.

    Raises:
        TypeError: for another type, such as the tuple that slicing a contrast gives.
        ValueError: for several widths, or z and positives of different shapes.

    Example:
        >>> checked(Contrast(torch.zeros(2), torch.ones(2)).rows([0]))
        Contrast(z=tensor([0.]), positive=tensor([1.]))
    """
    if not isinstance(c, Contrast):
        raise TypeError(
            f"{name}: expected a ctloss.Contrast, got {type(c).__name__}; ctloss.contrast(x, y) returns one, and its "
            "method rows(index) one with some of its rows"
        )
    for part, rows in zip(("z", "positive"), c, strict=True):
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"{name}.{part}: expected a floating-point tensor, got {got}; convert it with .float()")
    if c.z.ndim != 1:
        raise ValueError(
            f"{name}: expected a contrast of shape (rows,), got {tuple(c.z.shape)}; with dims, call it once per width, "
            "with ctloss.Contrast(c.z[k], c.positive[k])"
        )
    if c.positive.shape != c.z.shape:
        raise ValueError(
            f"{name}: expected a positive's logit for each of {c.z.shape[0]} rows, got shape "
            f"{tuple(c.positive.shape)}; c.rows(index) takes the same rows of both"
        )
    return c


def number(name: str, value: object, holds: Callable[[float], bool], wanted: str, advice: str) -> float:
    """Refuse an option that is not a number, or not an allowed one.

    Args:
        name: the option's name.
        value: the option.
        holds: whether a number is allowed.
        wanted: what the number should be, for the message.
        advice: what to do, for the message.

    Raises:
        TypeError: for a tensor, which would lose its gradient here, and other types.
        ValueError: for another number.

    Example:
        >>> number("gamma", 2, lambda gamma: gamma > 0, "a positive number", "2 is usual")
        2
    """
    if isinstance(value, Tensor):
        raise TypeError(f"{name}: expected {wanted}, got a tensor; pass a number, {name}.item(): it has no gradient")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {wanted}, got {value!r}; pass a number, for example float() of it")
    given: float = value  # type: ignore[assignment]
    if not holds(given):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}; {advice}")
    return given


def per_row(name: str, values: object, c: Contrast) -> float | Tensor:
    """A number as it is; a tensor in float64, with one element or one per row. Entries per pair serve both its rows.

    So ``()`` and ``(1,)`` become ``()``; ``(rows,)`` and ``(rows / 2,)`` become ``(rows,)``.

    Raises:
        TypeError: for other types.
        ValueError: for other shapes, or several elements on another device.

    Example:
        >>> per_row("weight", torch.tensor([1.0, 2.0]), Contrast(torch.zeros(4), torch.zeros(4)))
        tensor([1., 2., 1., 2.], dtype=torch.float64)
    """
    rows = checked(c).z.shape[0]
    if not isinstance(values, Tensor):
        if isinstance(values, bool) or not isinstance(values, Real):
            raise TypeError(
                f"{name}: expected a number or a tensor, got {values!r}; pass a number, or torch.as_tensor of it"
            )
        given: float = values  # type: ignore[assignment]
        return given
    if values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {values.dtype}; convert it with .float()")
    if values.ndim == 0 or values.shape == (1,):
        return values.double().reshape(())
    if values.ndim != 1 or (values.shape[0] != rows and 2 * values.shape[0] != rows):
        raise ValueError(
            f"{name}: expected one element, or a tensor of shape ({rows},), one per row, or half as many, one per "
            f"pair, got shape {tuple(values.shape)}; .flatten() makes a vector of a column"
        )
    checks.same_device(name, values, c.z)
    wide = values.double()
    return wide if wide.shape[0] == rows else wide.repeat(2)


def vector(name: str, values: object, c: Contrast) -> Tensor:
    """Refuse anything but one number per row; return ``(rows,)`` float64, differentiable.

    Raises:
        TypeError: for something other than a floating-point tensor.
        ValueError: for another shape or device.

    Example:
        >>> vector("mean_logit", torch.ones(2), Contrast(torch.zeros(2), torch.zeros(2)))
        tensor([1., 1.], dtype=torch.float64)
    """
    rows = checked(c).z.shape[0]
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(
            f"{name}: expected a floating-point tensor, one number per row, got {got}; convert with .float()"
        )
    if values.shape != (rows,):
        raise ValueError(
            f"{name}: expected shape ({rows},), one number per row, got {tuple(values.shape)}; "
            ".flatten() makes a vector of a column, .expand(rows) one of a single number"
        )
    checks.same_device(name, values, c.z)
    return values.double()


def temperature(value: object, c: Contrast) -> float | Tensor:
    """The temperature that a contrast was formed with, as :func:`per_row`; refused if it is known not to be positive.

    Raises:
        TypeError, ValueError: as :func:`per_row`; for a number or a CPU tensor that is not positive and finite.

    Example:
        >>> temperature(0.07, Contrast(torch.zeros(2), torch.zeros(2)))
        0.07
    """
    tau = per_row("temperature", value, c)
    if not isinstance(tau, Tensor):
        checks.positive(tau)
    elif tau.device.type == "cpu" and tau.numel() and unwatched(tau):
        checks.positive(tau.detach().amin().item())
        checks.positive(tau.detach().amax().item())
    return tau


def log_count(value: object, c: Contrast) -> Tensor:
    """The logarithm of the number M of a row's negatives, in float64 on the device of ``c``; 0 for a row without any.

    The number is given as for :func:`per_row`.

    Raises:
        TypeError, ValueError: as :func:`per_row`; for a number or a CPU tensor that is below 0 or not finite.

    Example:
        >>> log_count(1, Contrast(torch.zeros(2), torch.zeros(2)))
        tensor(0., dtype=torch.float64)
    """
    given = per_row("num_negatives", value, c)
    count = torch.as_tensor(given, dtype=torch.float64, device=c.z.device)
    if not isinstance(given, Tensor) or (given.device.type == "cpu" and given.numel() and unwatched(given)):
        for extreme in (given, given) if not isinstance(given, Tensor) else given.detach().aminmax():
            if not 0 <= float(extreme) < math.inf:
                raise ValueError(
                    f"num_negatives: expected the number of a row's negatives, got {float(extreme):g}; with "
                    "negatives='both' it is 2 (n - 1), with 'cross' n - 1, plus the candidates"
                )
    return count.masked_fill(count == 0, 1.0).log()
