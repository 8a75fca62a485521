"""Two ranks' rows against each other on the native path, in one call of the compiled kernels.

All rows of both ranks are stacked, and what is compared makes up a few rectangles of one rank's rows against the
other's; one whose logits are the same both ways serves the anchors of both ranks at once. What the kernels decline, and
sides in double precision, the torch path takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..native import library
from ..native.engine import DTYPES, FEW_ENTRIES, NEGATIVES, spare, symmetric
from ..problem import Batch, Problem, Shape
from ..torch_path.engine import Held, release, scaled
from ..torch_path.layout import FEW_ROWS
from ..torch_path.logits import LOG2E
from . import Anchors, Sums, torch_path


def meet(own: Batch, other: Batch, problem: Problem, *, mutual: bool, moment: bool) -> tuple[Sums, Sums | None]:
    """z of each anchor over the other rank's rows and candidates.

    Args:
        own: one rank's batch.
        other: another's.
        problem: the loss call's options, the same on both ranks.
        mutual: also find the sums of the other rank's anchors, over own's rows and candidates.
        moment: also find Σ_j P_ij s_ij − s⁺_i.

    Returns:
        The :class:`~ctloss.kernels.blocks.Sums` of own's anchors and, if mutual, of the other's.

    Example:
        >>> eye = torch.eye(2)
        >>> batch = Batch(eye, eye, temperature=1.0)
        >>> meet(batch, batch, Problem(), mutual=False, moment=False)[0].z
        tensor([1.0064, 1.0064, 1.0064, 1.0064], dtype=torch.float64)
    """
    found = _sums(own, other, problem, mutual=mutual, moment=moment)
    if found is None:
        return torch_path.meet(own, other, problem, mutual=mutual, moment=moment)
    return found[0], found[1] if mutual else None


def meet_and_keep(own: Batch, other: Batch, problem: Problem, *, moment: bool) -> tuple[Sums, Tensor] | None:
    """z of own's anchors, and the exponentials of the whole block for :func:`pull`.

    Arguments are those of :func:`meet`.

    Returns:
        The sums and the exponentials, or ``None`` if these do not fit the workspace or the kernels decline.

    Example:
        >>> batch = Batch(torch.eye(2), torch.eye(2), temperature=1.0)
        >>> sums, exponentials = meet_and_keep(batch, batch, Problem(), moment=False)
        >>> torch.equal(sums.z, meet(batch, batch, Problem(), mutual=False, moment=False)[0].z)
        True
    """
    assert library.kernels is not None
    of_candidates = [sum(batch.sizes[2:]) for batch in (own, other)]
    once = symmetric(own.shape, problem) and symmetric(other.shape, problem)
    once = once and isinstance(_temperature((own, other), problem), float)
    num_bytes = library.kernels.size(
        own.x.shape[0],
        of_candidates[0],
        NEGATIVES[problem.negatives],
        problem.num_directions,
        once,
        other.x.shape[0],
        of_candidates[1],
    )
    if num_bytes > spare(_shape(own, other), problem):
        return None
    entries = torch.empty(num_bytes // 4, dtype=torch.float32, device="cpu")
    found = _sums(own, other, problem, mutual=True, moment=moment, entries=entries)
    return None if found is None else (found[0], entries)


def _shape(own: Batch, other: Batch) -> Shape:
    """The sizes of both ranks' rows together."""
    return Shape(own.x.shape[0] + other.x.shape[0], own.x.shape[1], (*own.sizes[2:], *other.sizes[2:]))


def _sums(
    own: Batch, other: Batch, problem: Problem, *, mutual: bool, moment: bool, entries: Tensor | None = None
) -> list[Sums] | None:
    """The sums of own's anchors and, if mutual, of the other's; ``None`` if the kernels decline."""
    batches = (own, other) if mutual else (own,)
    sizes = [problem.num_directions * batch.x.shape[0] for batch in batches]
    z, deviation = torch.empty((2, sum(sizes)), dtype=torch.float64, device="cpu").unbind()
    wanted = deviation if moment else None
    temperature = _temperature(batches, problem)
    done = _call(own, other, problem, temperature, mutual, problem.by_row, z=z, moment=wanted, entries=entries)
    if done is None:
        return None
    moments = deviation.split(sizes) if moment else [None] * len(sizes)
    return [Sums(*both) for both in zip(z.split(sizes), moments, strict=True)]


def pull(
    own: Batch,
    other: Batch,
    problem: Problem,
    of_own: Anchors,
    of_other: Anchors,
    needs: tuple[bool, ...],
    entries: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of Σ a_i lse_i over the block's pairs with respect to own's sides.

    Args:
        own: one rank's batch.
        other: another's.
        problem: the loss call's options, the same on both ranks.
        of_own: a and lse of own's anchors.
        of_other: those of the other's.
        needs: which of own's sides need a gradient.
        entries: the block's exponentials, if they were kept.

    Returns:
        One float32 tensor per side of own; ``None`` where not needed.

    Example:
        >>> eye = torch.eye(2)
        >>> batch = Batch(eye, eye, temperature=1.0)
        >>> anchors = Anchors(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        >>> pull(batch, batch, Problem(negatives="cross", directions="x"), anchors, anchors, (True, False))[0]
        tensor([[0.0000, 0.3679],
                [0.3679, 0.0000]])
    """
    if not any(needs):
        return [None] * len(needs)
    temperature = _temperature((own, other), problem)
    a = torch.cat([of_own.a, of_other.a])
    weights, _, bits = scaled(a, a, temperature, None)
    assert isinstance(weights, Tensor)
    assert isinstance(bits, int)
    lse = torch.cat([of_own.lse, of_other.lse])
    held = _call(own, other, problem, temperature, True, False, needs, a=weights, lse=lse, entries=entries)
    if held is None:
        return torch_path.pull(own, other, problem, of_own, of_other, needs)
    return release(held._replace(bits=bits), 1.0, (torch.float32,) * len(needs), last=True)


def _temperature(batches: tuple[Batch, ...], problem: Problem) -> float | Tensor:
    """The temperature of all anchors, or each anchor's: of both ranks' own."""
    given = [batch.temperature for batch in batches]
    if not any(isinstance(one, Tensor) and one.dim() for one in given):
        numbers = {one.item() if isinstance(one, Tensor) else one for one in given}
        if len(numbers) == 1:
            return float(numbers.pop())
    each = [torch.as_tensor(one, dtype=torch.float64, device="cpu").detach() for one in given]
    sizes = [problem.num_directions * batch.x.shape[0] for batch in batches]
    return torch.cat([one.expand(size) for one, size in zip(each, sizes, strict=True)])


def _call(
    own: Batch,
    other: Batch,
    problem: Problem,
    temperature: float | Tensor,
    mutual: bool,
    precise: bool,
    needs: tuple[bool, ...] = (),
    *,
    z: Tensor | None = None,
    moment: Tensor | None = None,
    a: Tensor | None = None,
    lse: Tensor | None = None,
    entries: Tensor | None = None,
    rescaled: bool = False,
) -> Held | None:
    """Write the outputs that are given and return the gradients that are needed; ``None`` if the kernels decline."""
    d = own.x.shape[1]
    # Copies must live as long as their addresses are used.
    keep: list[Tensor] = []
    arguments: list[Any] = []
    gradients: list[Tensor | None] = []
    for index, batch in enumerate((own, other)):
        of_candidates = batch.candidate_ids or (None,) * len(batch.candidates)
        for side, ids in zip(batch.sides, (batch.ids, batch.ids, *of_candidates), strict=True):
            if side.dtype not in DTYPES:
                return None
            side = library.readable_rows(side)
            keep.append(side)
            of_ids = of_gradient = 0
            if ids is not None:
                keep.append(library.readable(ids))
                of_ids = keep[-1].data_ptr()
            if needs and index == 0:
                need, gradient = needs[len(gradients)], None
                if need:
                    gradient = torch.empty(side.shape, dtype=torch.float32, device="cpu")
                    of_gradient = gradient.data_ptr()
                gradients.append(gradient)
            arguments += (side.data_ptr(), side.shape[0], side.stride(0), DTYPES[side.dtype], of_ids, of_gradient)
    sizes = [*own.sizes, *other.sizes]
    count = sum(sizes)
    scales = None
    if isinstance(temperature, Tensor):
        scales = LOG2E / temperature
    exponents = torch.empty((count, 1), dtype=torch.float32, device="cpu") if rescaled else None
    margin = problem.margin
    assert library.kernels is not None
    code = library.kernels.block(
        len(own.sizes),
        d,
        NEGATIVES[problem.negatives],
        problem.num_directions,
        mutual,
        problem.normalize,
        # A sum over few negatives averages no rounding out.
        2 if precise or 2 * min(own.x.shape[0], other.x.shape[0]) <= FEW_ROWS else int(count * d <= FEW_ENTRIES),
        any(ids is not None for batch in (own, other) for ids in (batch.ids, *batch.candidate_ids)),
        margin is not None,
        0.0 if margin is None else float(margin),
        LOG2E / temperature if scales is None else 0.0,
        0 if scales is None else scales.data_ptr(),
        0 if a is None else a.data_ptr(),
        0 if lse is None else lse.data_ptr(),
        0 if z is None else z.data_ptr(),
        0 if moment is None else moment.data_ptr(),
        0 if exponents is None else exponents.data_ptr(),
        0 if entries is None else entries.data_ptr(),
        spare(_shape(own, other), problem) if needs else 0,
        torch.get_num_threads(),
        *arguments,
    )
    if code < 0:
        return None
    if code and needs and exponents is None:
        # Rows were rescaled, which is rare: ask again, this time for their powers of two.
        again = {"a": a, "lse": lse, "entries": entries}
        return _call(own, other, problem, temperature, mutual, precise, needs, **again, rescaled=True)
    return Held(gradients, None if exponents is None else list(exponents.split(sizes)[: len(own.sizes)]), 0)
