"""Checks of a loss call's tensors. Every error says what was expected, what it got and what to do.

Options that are words or numbers are checked by :class:`ctloss.kernels.problem.Problem` itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..kernels.problem import Batch, Problem

# Cosines over a smaller temperature are logits in the millions, whose float32 differences mean nothing.
SMALLEST_TEMPERATURE = 1e-6
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def must(condition: Any, short: str, message: Callable[[], str]) -> None:
    """Refuse sizes that do not fit, including those that a compiler only knows at run time.

    ``short`` is the message where the sizes are not known yet, and ``message`` makes it otherwise.

    Raises:
        ValueError: with the message; RuntimeError at run time of a compiled graph.
    """
    if condition is True:
        return
    if torch.compiler.is_compiling():
        torch._check(condition, lambda: short)
    elif not condition:
        raise ValueError(message())


def embeddings(name: str, rows: object) -> Tensor:
    """Refuse anything but a dense matrix of real floating-point rows; ``name`` is the argument's, for the message.

    Raises:
        TypeError: for another type, layout or dtype.
        ValueError: for another shape than ``(n, d)`` with d ≥ 1.

    Example:
        >>> embeddings("x", torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"{name}: expected a torch.Tensor of shape (n, d), got {type(rows).__name__}; "
            "torch.as_tensor converts lists and arrays"
        )
    local(name, rows)
    if rows.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {rows.layout}; convert it with .to_dense()")
    if rows.dtype.is_complex:
        raise TypeError(
            f"{name}: expected real numbers, got {rows.dtype}; "
            "torch.view_as_real(rows).flatten(1) lays real and imaginary parts side by side"
        )
    if rows.dtype not in DTYPES:
        if rows.ndim == 1:
            raise TypeError(
                f"{name}: expected embeddings of shape (n, d), got a vector of {rows.dtype}, which looks like labels; "
                "ctloss.sup_con(x, labels) takes labels, and ids=labels keeps rows of one label from being negatives"
            )
        raise TypeError(
            f"{name}: expected float32, float64, bfloat16 or float16, got {rows.dtype}; convert it with .float()"
        )
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"{name}: expected shape (n, d) with d at least 1, got {tuple(rows.shape)}; reshape it")
    return rows


def pair(x: object, y: object, *, empty: bool = False) -> tuple[Tensor, Tensor]:
    """Refuse anything but a batch of pairs: anchors x and their positives y; ``empty`` allows none.

    Raises:
        TypeError: see :func:`embeddings`.
        ValueError: for different shapes or devices, or no rows.

    Example:
        >>> pair(torch.zeros(2, 3), torch.zeros(2, 3))[0].shape
        torch.Size([2, 3])
    """
    if type(x) is type(y) is Tensor and not torch.compiler.is_compiling():
        # What nearly every call brings, accepted in few steps: a small batch costs little more than its checks.
        shape, dtype = x.shape, x.dtype
        usual = y.shape == shape and y.dtype == dtype and dtype in DTYPES and x.layout == y.layout == torch.strided
        if usual and len(shape) == 2 and shape[0] and shape[1] and x.device == y.device:
            return x, y
    x, y = embeddings("x", x), embeddings("y", y)
    first, second = x, y

    def message() -> str:
        return (
            f"x and y: expected two tensors of one shape (n, d), got {tuple(first.shape)} and {tuple(second.shape)}; "
            "row i of y must be the positive of row i of x"
        )

    must(x.shape[0] == y.shape[0], "x and y: expected the same number of rows", message)
    must(x.shape[1] == y.shape[1], "x and y: expected the same number of columns", message)
    must(
        empty or x.shape[0] >= 1,
        "x and y: expected at least 1 row",
        lambda: f"x and y: expected at least 1 row, got {tuple(first.shape)}; skip an empty batch",
    )
    same_device("y", y, x)
    return x, y


def local(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is spread over ranks.

    Raises:
        TypeError: for a DTensor.
    """
    if hasattr(tensor, "placements") and hasattr(tensor, "to_local"):
        raise TypeError(
            f"{name}: expected a plain tensor, got a DTensor; pass {name}.to_local() for the loss of this rank's rows, "
            f"or {name}.full_tensor() for that of all rows"
        )


def same_device(name: str, tensor: Tensor, x: Tensor) -> None:
    """Refuse a tensor that is not on x's device, or is spread over ranks.

    Raises:
        TypeError: for a DTensor.
        ValueError: naming both devices.
    """
    local(name, tensor)
    if tensor.device != x.device:
        raise ValueError(
            f"{name}: expected a tensor on x's device, {x.device}, got one on {tensor.device}; "
            f"move it with .to({str(x.device)!r})"
        )


def candidates(x: Tensor, given: object) -> tuple[Tensor, ...]:
    """Refuse candidates that rows cannot be compared with; lay each set out as ``(m, d)``.

    They are given as ``None``, ``(m, d)``, ``(n, k, d)``, or a sequence of these.

    Raises:
        TypeError: see :func:`embeddings`.
        ValueError: for another shape, width or device.

    Example:
        >>> [rows.shape[0] for rows in candidates(torch.zeros(2, 3), [torch.zeros(5, 3), torch.zeros(2, 4, 3)])]
        [5, 8]
    """
    if given is None:
        return ()
    sets: Sequence[object] = [given] if isinstance(given, Tensor) else given  # type: ignore[assignment]
    if not isinstance(sets, list | tuple):
        raise TypeError(
            "candidates: expected a tensor of shape (m, d) or (n, k, d), or a list of these, "
            f"got {type(given).__name__}; torch.as_tensor converts arrays"
        )
    found = []
    for rows in sets:
        if isinstance(rows, Tensor) and rows.ndim == 3:
            if rows.shape[0] != x.shape[0]:
                raise ValueError(
                    f"candidates: expected (n, k, d) with k rows for each of {x.shape[0]} pairs, got "
                    f"{tuple(rows.shape)}; rows that belong to no pair are (m, d), as flatten(0, 1) makes them"
                )
            rows = rows.flatten(0, 1)
        rows = embeddings("candidates", rows)
        if rows.shape[1] != x.shape[1]:
            raise ValueError(
                f"candidates: expected rows as wide as x, of {x.shape[1]} columns, got {rows.shape[1]}; "
                "embed them with the same model"
            )
        same_device("candidates", rows, x)
        found.append(rows)
    return tuple(found)


def ids(name: str, given: object, count: Any, x: Tensor) -> Tensor:
    """Refuse ids that are not one integer for each of ``count`` rows; return them as ``(count,)`` int64.

    Raises:
        TypeError: for something other than a tensor of integers.
        ValueError: for another number of ids, or another device.

    Example:
        >>> ids("ids", torch.tensor([3, 4]), 2, torch.zeros(2, 3))
        tensor([3, 4])
    """
    if not isinstance(given, Tensor) or given.dtype not in INTEGERS:
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(
            f"{name}: expected a tensor of integers, one per row, got {got}; torch.as_tensor(list) makes one"
        )
    must(
        given.numel() == count,
        f"{name}: expected one id per row",
        lambda: f"{name}: expected one id per row, {count} in all, got shape {tuple(given.shape)}",
    )
    same_device(name, given, x)
    if type(given) is Tensor and given.dtype == torch.int64 and given.ndim == 1 and given.is_contiguous():
        return given
    return given.detach().reshape(-1).to(torch.int64).contiguous()


def vector(name: str, given: Tensor, x: Tensor, num_directions: int) -> Tensor:
    """Refuse anything but one number per pair or per anchor; repeat the former for both directions, into ``(rows,)``.

    Raises:
        ValueError: for another shape or device.

    Example:
        >>> vector("weights", torch.tensor([1.0, 2.0]), torch.zeros(2, 3), 2)
        tensor([1., 2., 1., 2.])
    """
    n = x.shape[0]
    same_device(name, given, x)
    if given.ndim == 1 and num_directions == 2 and given.shape[0] == n:
        return given.repeat(2)
    wanted = f"({n},)" if num_directions == 1 else f"({n},) or ({2 * n},)"
    if given.ndim != 1 or given.shape[0] != n * num_directions:
        raise ValueError(
            f"{name}: expected shape {wanted}, one number per pair or per anchor, got {tuple(given.shape)}; "
            ".flatten() makes a vector of a column"
        )
    return given


def weights(given: object, x: Tensor, num_directions: int) -> Tensor | None:
    """Refuse weights that are not one number per pair or per anchor; return ``(rows,)``, or ``None`` if there are none.

    Raises:
        TypeError: for something other than a real floating-point tensor.
        ValueError: for another shape or device.
    """
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.dtype not in DTYPES:
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(
            f"weights: expected a floating-point tensor, one number per row, got {got}; convert with .float()"
        )
    return vector("weights", given, x, num_directions)


def temperature(value: object, x: Tensor, num_directions: int, *, read: bool) -> float | Tensor:
    """Refuse a temperature that is not positive, or on a device that does not fit.

    Args:
        value: a number, or a tensor of one element, one per pair or one per anchor.
        x: anchors.
        num_directions: 1 or 2.
        read: look at the values of a tensor on the CPU; a tensor elsewhere is never read on the host.

    Returns:
        A float, a 0-d tensor, or ``(rows,)``.

    Raises:
        TypeError: for anything but a number or a real floating-point tensor.
        ValueError: for one that is not positive and finite, another shape, or a third device.

    Example:
        >>> temperature(torch.tensor([0.07]), torch.zeros(2, 3), 2, read=True)
        tensor(0.0700)
    """
    if not isinstance(value, Tensor):
        if type(value) is float and SMALLEST_TEMPERATURE <= value < math.inf:
            return value
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"temperature: expected a float or a tensor, got {type(value).__name__}; convert it with float()"
            )
        positive(value)
        # A compiler's symbolic number stays symbolic, so that it is not compiled in.
        number: Any = value
        return number if torch.compiler.is_compiling() else float(number)  # type: ignore[no-any-return]
    if value.dtype not in DTYPES:
        raise TypeError(f"temperature: expected a floating-point tensor, got {value.dtype}; convert it with .float()")
    if value.ndim == 0 or (value.ndim == 1 and value.shape[0] == 1):
        wanted = (x.device,) if x.device.type == "meta" else (x.device, torch.device("cpu"))
        if value.device not in wanted:
            raise ValueError(
                f"temperature: expected a tensor on {' or '.join(map(str, wanted))}, got one on {value.device}; "
                "move it with .to(x.device)"
            )
        if value.ndim:
            value = value.reshape(())
        if read and value.device.type == "cpu":
            positive(value.item())
        return value
    value = vector("temperature", value, x, num_directions)
    if read and value.device.type == "cpu" and value.numel():
        positive(value.detach().amin().item())
        positive(value.detach().amax().item())
    return value


def positive(value: Any) -> None:
    """Refuse a temperature that is not positive and finite, or so small that logits exceed single precision.

    Raises:
        ValueError: naming the value.
    """
    if not SMALLEST_TEMPERATURE <= value < math.inf:
        raise ValueError(
            f"temperature: expected a positive, finite number of at least {SMALLEST_TEMPERATURE}, got {value}; "
            "0.07 is usual, and a loss module with learnable_temperature=True keeps a learnt one positive"
        )


def batch(
    x: object,
    y: object,
    problem: Problem,
    *,
    temperature_given: object,
    candidates_given: object,
    ids_given: object,
    candidate_ids_given: object,
    read: bool,
    empty: bool = False,
) -> Batch:
    """Check the tensors of a loss call and lay them out as the paths take them; ``empty`` allows no pairs.

    Raises:
        TypeError, ValueError: see the functions above.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> batch(x, x, Problem(), temperature_given=0.1, candidates_given=None, ids_given=torch.tensor([1, 1]),
        ...       candidate_ids_given=None, read=True).shape.masked
        True
    """
    x, y = pair(x, y, empty=empty)
    if candidates_given is None and problem.negatives == "none":
        raise ValueError(
            "candidates: expected some with negatives='none', which only compares rows with candidates, got None; "
            "pass a queue or hard negatives, or choose other negatives"
        )
    tau = temperature(temperature_given, x, problem.num_directions, read=read)
    if candidates_given is None and ids_given is None and candidate_ids_given is None:
        return Batch(x, y, (), tau)
    sets = candidates(x, candidates_given)
    own = None if ids_given is None else ids("ids", ids_given, x.shape[0], x)
    return Batch(x, y, sets, tau, own, _candidate_ids(candidate_ids_given, candidates_given, sets, x))


def _candidate_ids(given: object, candidates_given: object, sets: tuple[Tensor, ...], x: Tensor) -> tuple[Any, ...]:
    if given is None:
        return (None,) * len(sets)
    if isinstance(candidates_given, Tensor) or candidates_given is None:
        given = [given]
    if not isinstance(given, list | tuple) or len(given) != len(sets):
        raise ValueError(
            f"candidate_ids: expected one tensor of ids for each of {len(sets)} sets of candidates (or None for a set "
            f"whose rows are never left out), got {len(given) if isinstance(given, list | tuple) else given!r}"
        )
    raw: Any = [candidates_given] if isinstance(candidates_given, Tensor) else candidates_given or ()
    shapes = [rows.shape[:-1] for rows in raw]
    for own, shape in zip(given, shapes, strict=True):
        if isinstance(own, Tensor) and own.shape != shape:
            raise ValueError(
                f"candidate_ids: expected one id per candidate, of shape {tuple(shape)}, got {tuple(own.shape)}; "
                "ids have the candidates' shape without its last dimension"
            )
    return tuple(
        None if own is None else ids("candidate_ids", own, rows.shape[0], x)
        for own, rows in zip(given, sets, strict=True)
    )
