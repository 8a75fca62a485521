"""What a loss call is refused for, and how it is told: expected, got, what to do."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

LOSSES = ("cz_nce", "info_nce")
NEGATIVES = ("both", "cross")
REDUCTIONS = ("mean", "sum", "none")
FORMS = ("log", "ratio")
PRECISIONS = ("highest", "high", "medium")
IMPLS = ("auto", "reference", "torch", "triton")
# Cosines over less than this are logits in the millions, whose float32 differences mean nothing.
SMALLEST_TEMPERATURE = 1e-6
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def option(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the allowed words.

    Args:
        name: the option's name, for the message.
        value: what was given.
        allowed: the words it may be.

    Raises:
        ValueError: naming the option, what is allowed and what was given.

    Example:
        >>> option("reduction", "mean", REDUCTIONS)
    """
    if value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise ValueError(f"{name}: expected one of {words}, got {value!r}")


def flag(name: str, value: object) -> None:
    """Refuse anything but True or False.

    Raises:
        TypeError: naming the option and what was given.

    Example:
        >>> flag("normalize", True)
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}; pass one of them")


def pair(x: Tensor, y: Tensor) -> None:
    """Refuse a batch of pairs that has no loss.

    Args:
        x: anchors.
        y: translations.

    Raises:
        TypeError: for something other than a real floating-point tensor, or two different dtypes.
        ValueError: for another shape than ``(n, d)`` with n ≥ 2 and d ≥ 1, two shapes, or two devices.

    Example:
        >>> pair(torch.zeros(2, 3), torch.zeros(2, 3))
    """
    for name, rows in (("x", x), ("y", y)):
        if not isinstance(rows, Tensor):
            raise TypeError(
                f"{name}: expected a torch.Tensor of shape (n, d), got {type(rows).__name__}; "
                "torch.as_tensor converts lists and arrays"
            )
        if rows.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got {rows.layout}; convert it with .to_dense()")
        if rows.dtype.is_complex:
            raise TypeError(
                f"{name}: expected real numbers, got {rows.dtype}; "
                "torch.view_as_real(rows).flatten(1) lays real and imaginary parts side by side"
            )
        if rows.dtype not in DTYPES:
            raise TypeError(
                f"{name}: expected float32, float64, bfloat16 or float16, got {rows.dtype}; convert it with .float()"
            )
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(
            f"x and y: expected two tensors of one shape (n, d), got {tuple(x.shape)} and {tuple(y.shape)}; "
            "row i of y must be the translation of row i of x"
        )
    if x.shape[0] < 2 or x.shape[1] < 1:
        raise ValueError(
            f"x and y: expected at least 2 rows and 1 column, got {tuple(x.shape)}; "
            "a single pair has no negatives, so skip the batch or make it larger"
        )
    if x.dtype != y.dtype:
        raise TypeError(f"x and y: expected one dtype, got {x.dtype} and {y.dtype}; convert one with .to(other.dtype)")
    if x.device != y.device:
        raise ValueError(
            f"x and y: expected one device, got {x.device} and {y.device}; move one with .to(other.device)"
        )


def temperature(value: float | Real | Tensor, device: torch.device) -> None:
    """Refuse a temperature that is not a positive number, or not on a device that can be used.

    A tensor's value is not looked at here: :func:`positive` checks one on the CPU, and one on another device is never
    read on the host.

    Args:
        value: a float, or a tensor of one element.
        device: where the embeddings are.

    Raises:
        TypeError: for anything but a number or a real floating-point tensor.
        ValueError: for a number that is not positive and finite, a tensor of several elements, or one on a third
            device.

    Example:
        >>> temperature(0.07, torch.device("cpu"))
    """
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES:
            raise TypeError(
                f"temperature: expected a floating-point tensor, got {value.dtype}; convert it with .float()"
            )
        if value.numel() != 1:
            raise ValueError(
                f"temperature: expected one element, got shape {tuple(value.shape)}; one temperature serves all rows"
            )
        if value.device.type != "cpu" and value.device != device:
            raise ValueError(
                f"temperature: expected a tensor on {device} or on the CPU, got one on {value.device}; "
                "move it with .to(x.device)"
            )
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"temperature: expected a float or a tensor of one element, got {type(value).__name__}; "
            "convert it with float()"
        )
    else:
        positive(value)


def positive(value: float | Real) -> None:
    """Refuse a temperature that is not a positive, finite number, or so small that logits leave single precision.

    Raises:
        ValueError: naming what was given.

    Example:
        >>> positive(0.07)
    """
    if not SMALLEST_TEMPERATURE <= value < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"temperature: expected a positive, finite number of at least {SMALLEST_TEMPERATURE}, got {value}; "
            "0.07 is usual, and a learnable one is best kept as the exponential of a parameter"
        )
