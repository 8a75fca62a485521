"""The native path's entry points: compiled kernels for the CPU that take a whole batch in one call.

Exponentials of all pairs, less one common shift, are formed a tile at a time and kept until the gradient is; if they do
not fit the workspace, they are formed again. Where their sums leave the range of normal numbers, where an anchor has no
negative, and where a row is not finite, the kernels say so, and the torch path does the batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import Batch, Forward, Problem, Shape
from ..torch_path import engine as torch_engine
from ..torch_path.engine import LEAST_BITS, SCALE_BITS, Held, pack, packed_shapes, scaled, unpack
from ..torch_path.layout import FEW_ROWS
from ..torch_path.logits import LOG2E
from . import library

__all__ = [
    "Held",
    "backward",
    "describe",
    "forward",
    "hold",
    "pack",
    "packed_shapes",
    "release",
    "restore",
    "save",
    "saved_shapes",
    "slower",
    "solve",
    "unpack",
    "unsupported",
]

# As the kernels number them.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NEGATIVES = {"both": 0, "cross": 1, "own": 2, "none": 3}
LOSSES = {"contrast": 0, "cz_nce": 1, "info_nce": 2}
# Entries that are scaled here rather than in PyTorch, which has threads for more.
SMALL = 1 << 16
# Bytes of the sigmoid loss's weights beyond which panels of them, overwritten one by the other, are as fast.
KEPT_WEIGHTS = 64 << 20
LEAST_FACTOR = 2.0**-100
# Up to this many entries of all sides, the care that few rows need costs little.
FEW_ENTRIES = 1 << 14
# Entries of the widest vector.
VECTOR = 16
# Rows of all sides beyond which exact sums of single rows cost more than the torch path, which repairs a few.
MANY_ROWS = 512


def unsupported(shape: Shape, problem: Problem) -> str | None:
    """Why this path cannot run, or ``None``.

    Example:
        >>> unsupported(Shape(2, 1, dtype=torch.float64), Problem()) is None
        False
    """
    missing = library.missing()
    if missing is not None:
        return missing
    if shape.device_type != "cpu":
        return f"the compiled kernels run on the CPU, not on {shape.device_type}"
    if shape.dtype not in DTYPES:
        return f"the compiled kernels take float32, bfloat16 and float16, not {str(shape.dtype).removeprefix('torch.')}"
    if problem.dims is not None:
        return "the compiled kernels take one width at a time, and dims has several at once on the torch path"
    limit = min(KEPT_WEIGHTS, problem.workspace)
    if problem.loss == "sig_lip" and 4 * shape.n**2 > limit:
        return f"the weights of all pairs take more than the {limit >> 20} MiB that may be kept"
    return None


def slower(shape: Shape, problem: Problem) -> str | None:
    """Why the torch path is the faster one, or ``None``.

    Example:
        >>> slower(Shape(2000, 8), Problem(loss="cz_nce")), slower(Shape(2000, 8), Problem()) is None
        (None, False)
    """
    if problem.by_row and 2 * shape.n + sum(shape.candidates) > MANY_ROWS:
        return "where single rows of many are returned, the torch path is exact at less cost"
    return None


def exponentials(shape: Shape, problem: Problem) -> int:
    """Bytes of all exponentials: of every anchor and every row it is compared with, one for both ways if possible."""
    assert library.kernels is not None
    once, others = symmetric(shape, problem), sum(shape.candidates)
    return library.kernels.size(shape.n, others, NEGATIVES[problem.negatives], problem.num_directions, once, 0, 0)


def symmetric(shape: Shape, problem: Problem) -> bool:
    """Whether a logit is the same both ways, so that one serves both of its rows."""
    return not shape.per_row and problem.margin is None


def spare(shape: Shape, problem: Problem) -> int:
    """Bytes of the workspace that two copies of the rows, padded to whole vectors, leave for exponentials."""
    padded = -(-shape.d // VECTOR) * VECTOR + VECTOR
    return max(0, problem.workspace - 8 * (2 * shape.n + sum(shape.candidates)) * padded)


def describe(shape: Shape, problem: Problem) -> dict[str, object]:
    """The configuration that would run.

    Example:
        >>> describe(Shape(512, 256), Problem())["logits"]
        'tiles of 96 x 96'
    """
    instructions = "none" if library.kernels is None else library.kernels.capability()
    if problem.loss == "sig_lip":
        return {"instructions": instructions, "logits": "tiles of 96 x 96", "gradient": "from weights kept"}
    kept = library.kernels is not None and exponentials(shape, problem) <= spare(shape, problem)
    return {
        "accumulated in": "float32, float64 over few rows and where single rows are returned",
        "instructions": instructions,
        "logits": "tiles of 96 x 96",
        "gradient": f"from exponentials {'kept' if kept else 'formed again'}",
        "maximum": "none, guarded by their range",
    }


class State(NamedTuple):
    """What the backward needs of the forward.

    Attributes:
        batch: the inputs.
        problem: the options.
        entries: all exponentials, if they fit the workspace; else they are formed again.
        lse: ``(rows,)`` float64, what goes with them.
    """

    batch: Batch
    problem: Problem
    entries: Tensor | None = None
    lse: Tensor | None = None


def forward(batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
    """z and the positives' logits of all anchors; see the torch path's ``forward``.

    Example:
        >>> eye = torch.eye(2)
        >>> forward(Batch(eye, eye, temperature=1.0), Problem(), moment=False, gradient=False).z
        tensor([-0.3069, -0.3069, -0.3069, -0.3069], dtype=torch.float64)
    """
    outputs = torch.empty((3, problem.num_directions * batch.x.shape[0]), dtype=torch.float64, device="cpu")
    z, positive, deviation = outputs.unbind()
    wanted, entries = deviation if moment else None, None
    if gradient:
        num_bytes = exponentials(batch.shape, problem)
        if num_bytes <= spare(batch.shape, problem):
            entries = torch.empty(num_bytes // 4, dtype=torch.float32, device="cpu")
    done = _call(batch, problem, problem.by_row, z=z, positive=positive, moment=wanted, entries=entries)
    if done is None:
        return torch_engine.forward(batch, problem, moment=moment, gradient=gradient)
    state = State(batch, problem) if entries is None else State(batch, problem, entries, z + positive)
    return Forward(z, positive, wanted, state)


def hold(
    state: State | torch_engine.State,
    a: float | Tensor,
    b: float | Tensor,
    needs: tuple[bool, ...],
    largest: float | None = None,
) -> Held:
    """What :func:`backward` returns, before a factor that is only known later; see the torch path's ``hold``."""
    if isinstance(state, torch_engine.State):
        return torch_engine.hold(state, a, b, needs, largest)
    batch, problem, entries, lse = state
    if not any(needs):
        return Held([None] * len(needs), None, 0)
    rows = problem.num_directions * batch.x.shape[0]
    if not isinstance(a, Tensor):
        same, a = b is a, torch.full((rows,), a, dtype=torch.float64, device="cpu")
        b = a if same else b
    if not isinstance(b, Tensor):
        b = torch.full((rows,), b, dtype=torch.float64, device="cpu")
    weights, pulls, bits = scaled(a, b, batch.temperature, largest)
    assert isinstance(weights, Tensor)
    assert isinstance(pulls, Tensor)
    assert isinstance(bits, int)
    # Only z is returned row by row; errors of weights average out.
    numbers = weights.contiguous(), pulls.contiguous()
    found = _call(batch, problem, False, needs, a=numbers[0], b=numbers[1], entries=entries, lse=lse)
    if found is None:
        again = torch_engine.forward(batch, problem, moment=False, gradient=True)
        return torch_engine.hold(again.state, a, b, needs, largest)
    return found._replace(bits=bits)


def release(
    held: Held, factor: float | Tensor, dtypes: tuple[torch.dtype, ...], *, last: bool = False
) -> list[Tensor | None]:
    """Held gradients times a factor; see the torch path's ``release``."""
    if (
        last
        and held.exponents is None
        and isinstance(factor, float)
        and isinstance(held.bits, int)
        and library.kernels is not None
    ):
        number = factor * math.ldexp(1.0, held.bits)
        some = [one for one in held.gradients if one is not None]
        small = sum([one.numel() for one in some]) <= SMALL
        if small and LEAST_FACTOR < abs(number) < 1 / LEAST_FACTOR and all(one.dtype == torch.float32 for one in some):
            library.kernels.scale(number, *[argument for one in some for argument in (one.data_ptr(), one.numel())])
            both = zip(held.gradients, dtypes, strict=True)
            return [one if one is None or dtype == torch.float32 else one.to(dtype) for one, dtype in both]
    return torch_engine.release(held, factor, dtypes, last=last)


def backward(
    state: State | torch_engine.State, a: float | Tensor, b: float | Tensor, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of ``Σ_i a_i lse_i − b_i s⁺_i`` with respect to the sides' rows; see the torch path's ``backward``."""
    batch = state.batch
    return release(hold(state, a, b, needs), 1.0, tuple(side.dtype for side in batch.sides))


class Solved(NamedTuple):
    """A loss, and its held gradient.

    Attributes:
        loss: ``()`` float32.
        held: the gradients of the sides, of a loss whose row losses' share is 1 unless shares were given.
        z: ``(rows,)`` float64, if the moment was requested.
        moment: ``(rows,)`` float64, if requested.
    """

    loss: Tensor
    held: Held
    z: Tensor | None
    moment: Tensor | None


def solve(
    batch: Batch, problem: Problem, shares: float | Tensor, needs: tuple[bool, ...], *, moment: bool
) -> Solved | None:
    """A loss that is the sum of its row losses times their shares, and its gradient, in one call.

    Args:
        batch: the sides, their temperature and ids.
        problem: ``cz_nce`` or ``info_nce``, in ``log`` form.
        shares: one factor for all row losses, left out of the held gradient; or ``(rows,)`` float64.
        needs: which sides need a gradient.
        moment: also find z and Σ_j P_ij s_ij − s⁺_i.

    Returns:
        The :class:`Solved`, or ``None`` for a batch that must go another way.
    """
    z = deviation = None
    if moment:
        rows = problem.num_directions * batch.x.shape[0]
        z, deviation = torch.empty((2, rows), dtype=torch.float64, device="cpu").unbind()
    loss = torch.empty((), dtype=torch.float32, device="cpu")
    held = _call(batch, problem, False, needs, loss, z=z, moment=deviation, shares=shares)
    return None if held is None else Solved(loss, held, z, deviation)


def _call(
    batch: Batch,
    problem: Problem,
    precise: bool,
    needs: tuple[bool, ...] = (),
    loss: Tensor | None = None,
    z: Tensor | None = None,
    positive: Tensor | None = None,
    moment: Tensor | None = None,
    shares: float | Tensor = 1.0,
    a: Tensor | None = None,
    b: Tensor | None = None,
    entries: Tensor | None = None,
    lse: Tensor | None = None,
    *,
    rescaled: bool = False,
) -> Held | None:
    """Write the outputs that are given and return the gradients that are needed; ``None`` if the kernels decline."""
    x, y, candidates, temperature, ids, candidate_ids = batch
    n, d = x.shape
    scales, scale = None, 0.0
    if isinstance(temperature, Tensor):
        if temperature.dim():
            scales = LOG2E / temperature.detach().double()
        else:
            scale = LOG2E / temperature.item()
    else:
        scale = LOG2E / temperature
    # Copies must live as long as their addresses are used.
    keep: list[Tensor] = []

    gradients: list[Tensor | None] = [None] * (2 + len(candidates))
    arguments: list[Any] = []
    count = 0
    for index, side in enumerate((x, y, *candidates)):
        side = library.readable_rows(side)
        keep.append(side)
        rows = side.shape[0]
        count += rows
        own = ids if index < 2 else candidate_ids[index - 2] if candidate_ids else None
        address = 0
        if needs and needs[index]:
            usual = side.dtype == torch.float32 and side.is_contiguous()
            gradient = torch.empty_like(side) if usual else torch.empty((rows, d), dtype=torch.float32, device="cpu")
            gradients[index], address = gradient, gradient.data_ptr()
        own = None if own is None else library.readable(own)
        of_ids = 0
        if own is not None:
            keep.append(own)
            of_ids = own.data_ptr()
        arguments += (side.data_ptr(), rows, side.stride(0), DTYPES[side.dtype], of_ids, address)
    held, bits, exponents = 1.0, 0, None
    if rescaled:
        exponents = torch.empty((count, 1), dtype=torch.float32, device="cpu")
    if loss is not None and True in needs:
        held, bits = _held_scale(temperature, shares)
    of_shares = 0
    if isinstance(shares, Tensor):
        keep.append(library.readable(shares))
        of_shares = keep[-1].data_ptr()
    margin = problem.margin
    assert library.kernels is not None
    code = library.kernels.contrast(
        n,
        d,
        NEGATIVES[problem.negatives],
        problem.num_directions,
        problem.normalize,
        2 if precise else int(count <= FEW_ROWS or count * d <= FEW_ENTRIES),
        ids is not None or any(one is not None for one in candidate_ids),
        margin is not None,
        0.0 if margin is None else float(margin),
        scale,
        0 if scales is None else scales.data_ptr(),
        0 if loss is None else LOSSES[problem.loss],
        0 if a is None else a.data_ptr(),
        0 if b is None else b.data_ptr(),
        of_shares,
        0.0 if of_shares else shares,
        held,
        0 if z is None else z.data_ptr(),
        0 if positive is None else positive.data_ptr(),
        0 if moment is None else moment.data_ptr(),
        0 if loss is None else loss.data_ptr(),
        0 if exponents is None else exponents.data_ptr(),
        0 if lse is None else lse.data_ptr(),
        0 if entries is None else entries.data_ptr(),
        spare(batch.shape, problem) if True in needs else 0,
        torch.get_num_threads(),
        *arguments,
    )
    if code < 0:
        return None
    if code == 0 or not needs:
        return Held(gradients, None, bits)
    if exponents is None:
        # Rows were rescaled, which is rare: ask again, this time for their powers of two.
        given = loss, z, positive, moment, shares, a, b, entries, lse
        return _call(batch, problem, precise, needs, *given, rescaled=True)
    return Held(gradients, list(exponents.split(batch.sizes)), bits)


def _held_scale(temperature: float | Tensor, shares: float | Tensor) -> tuple[float, int]:
    """What weights are multiplied by so that the largest is about 2^30, and the power of two that undoes it."""
    # Each row's own temperature is divided by in the kernels.
    divisor = 1.0
    if isinstance(temperature, Tensor) and temperature.dim():
        size = 1 / temperature.detach().amin().item()
    else:
        divisor = float(temperature)
        size = 1 / divisor
    if isinstance(shares, Tensor):
        size *= shares.abs().amax().item()
    else:
        divisor *= shares
    bits = max(math.frexp(size)[1], LEAST_BITS) if 0 < size < math.inf else 0
    return 2.0 ** (SCALE_BITS - bits) / divisor, bits - SCALE_BITS


def save(state: State) -> list[Tensor]:
    """The tensors that :func:`restore` needs: none."""
    return []


def restore(tensors: list[Tensor], batch: Batch, problem: Problem) -> State:
    """The state of a forward, from the same batch."""
    return State(batch, problem)


def saved_shapes(shape: Shape, problem: Problem, *, gradient: bool) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and dtypes of what :func:`save` returns."""
    return []
