"""The native path's entry points: compiled kernels for the CPU that take a whole batch in one call.

Exponentials of all pairs less one common shift are formed and kept until the gradient is, so this path is for batches
whose exponentials fit the workspace. Where their sums leave the range of normal numbers, where an anchor has no
negative, and where a row is not finite, the kernels say so, and the torch path does the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch, Forward, Problem, Shape
from ..torch_path import engine as torch_engine
from ..torch_path.engine import Held, pack, packed_shapes, release, scaled, unpack
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
    "solve",
    "unpack",
    "unsupported",
]

# As the kernels number them.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NEGATIVES = {"both": 0, "cross": 1, "own": 2, "none": 3}
LOSSES = {"contrast": 0, "cz_nce": 1, "info_nce": 2}
LOG2E = math.log2(math.e)
# Up to this many rows of all sides, rounding hardly averages out over a row's negatives.
FEW_ROWS = 64
SCALE = 2.0**30
"""The largest weight, so that even infoNCE's weights at φ = 1e-36 stay normal numbers."""


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
    needed = memory(shape, problem)
    if needed > problem.workspace:
        return (
            f"the exponentials of all pairs take {needed >> 20} MiB, more than the {problem.workspace >> 20} MiB of "
            "the workspace"
        )
    return None


def entries(shape: Shape, problem: Problem) -> int:
    """How many exponentials are kept: of every anchor and every row it is compared with, self and positive included.

    Example:
        >>> entries(Shape(4, 8), Problem(negatives="cross")), entries(Shape(4, 8, (6,)), Problem(negatives="none"))
        (16, 48)
    """
    n, anchors = shape.n, problem.num_directions * shape.n
    mirrored = problem.negatives == "cross" and problem.num_directions == 2 and symmetric(shape, problem)
    sides = {"both": 2, "cross": 1, "own": 1, "none": 0}[problem.negatives]
    return (n * n if mirrored else anchors * n * sides) + anchors * sum(shape.candidates)


def symmetric(shape: Shape, problem: Problem) -> bool:
    """Whether a logit is the same both ways, so that one serves both of its rows."""
    return not shape.per_row and problem.margin is None


def memory(shape: Shape, problem: Problem) -> int:
    """Bytes of temporary memory: two copies of the rows, and the exponentials."""
    rows = 2 * shape.n + sum(shape.candidates)
    return 4 * (2 * rows * shape.d + entries(shape, problem))


def describe(shape: Shape, problem: Problem) -> dict[str, object]:
    """The configuration that would run.

    Example:
        >>> describe(Shape(512, 256), Problem())["logits"]
        'tiles of 96 x 96'
    """
    return {
        "accumulated in": "float32, float64 over few rows and where single rows are returned",
        "instructions": "none" if library.kernels is None else library.kernels.capability(),
        "logits": "tiles of 96 x 96",
        "gradient": "from exponentials kept",
        "maximum": "none, guarded by their range",
    }


class State(NamedTuple):
    """What the backward needs of the forward: everything is formed again."""

    batch: Batch
    problem: Problem


def forward(batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
    """z and the positives' logits of all anchors; see the torch path's ``forward``.

    Example:
        >>> eye = torch.eye(2)
        >>> forward(Batch(eye, eye, temperature=1.0), Problem(), moment=False, gradient=False).z
        tensor([-0.3069, -0.3069, -0.3069, -0.3069], dtype=torch.float64)
    """
    rows = problem.num_directions * batch.x.shape[0]
    outputs = torch.empty((3 if moment else 2, rows), dtype=torch.float64)
    z, positive, *rest = outputs.unbind()
    call = _Call(batch, problem, precise=problem.by_row)
    if call.run(z=z, positive=positive, moment=rest[0] if moment else None) is None:
        return torch_engine.forward(batch, problem, moment=moment, gradient=gradient)
    return Forward(z, positive, rest[0] if moment else None, State(batch, problem))


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
    batch, problem = state
    if not any(needs):
        return Held([None] * len(needs), None, 0)
    rows = problem.num_directions * batch.x.shape[0]
    if not isinstance(a, Tensor):
        same, a = b is a, torch.full((rows,), a, dtype=torch.float64)
        b = a if same else b
    if not isinstance(b, Tensor):
        b = torch.full((rows,), b, dtype=torch.float64)
    weights, pulls, bits = scaled(a, b, batch.temperature, largest)
    assert isinstance(weights, Tensor)
    assert isinstance(pulls, Tensor)
    assert isinstance(bits, int)
    call = _Call(batch, problem, precise=problem.by_row)
    found = call.run(needs=needs, a=weights.contiguous(), b=pulls.contiguous())
    if found is None:
        again = torch_engine.forward(batch, problem, moment=False, gradient=True)
        return torch_engine.hold(again.state, a, b, needs, largest)
    return found._replace(bits=bits)


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
    outputs = torch.empty((2, problem.num_directions * batch.x.shape[0]), dtype=torch.float64) if moment else None
    z, deviation = (None, None) if outputs is None else outputs.unbind()
    loss = torch.empty(())
    call = _Call(batch, problem, precise=False)
    held = call.run(loss=loss, z=z, moment=deviation, shares=shares, needs=needs)
    return None if held is None else Solved(loss, held, z, deviation)


class _Call:
    """One call of the kernels; it keeps every tensor alive whose address it passes."""

    def __init__(self, batch: Batch, problem: Problem, *, precise: bool) -> None:
        self.batch, self.problem = batch, problem
        self.sides = [side if side.stride(1) == 1 or side.shape[1] == 1 else side.contiguous() for side in batch.sides]
        self.precise = precise or sum(side.shape[0] for side in self.sides) <= FEW_ROWS

    def run(
        self,
        *,
        needs: tuple[bool, ...] = (),
        loss: Tensor | None = None,
        z: Tensor | None = None,
        positive: Tensor | None = None,
        moment: Tensor | None = None,
        shares: float | Tensor = 1.0,
        a: Tensor | None = None,
        b: Tensor | None = None,
    ) -> Held | None:
        """Run it, write the outputs that are given, and return the gradients; ``None`` where the kernels decline."""
        batch, problem = self.batch, self.problem
        n, d = batch.x.shape
        temperature = batch.temperature
        scales, scale = None, 0.0
        if isinstance(temperature, Tensor) and temperature.dim():
            scales = LOG2E / temperature.detach().double()
        else:
            scale = LOG2E / float(temperature)
        held, bits = 1.0, 0
        if loss is not None and needs:
            held, bits = _held_scale(batch, shares)
        gradients: list[Tensor | None] = [None] * len(self.sides)
        for index, need in enumerate(needs):
            if need:
                gradients[index] = torch.empty(self.sides[index].shape)
        ids = (batch.ids, *(batch.candidate_ids or (None,) * len(batch.candidates)))
        of_sides: list[int] = []
        for index, side in enumerate(self.sides):
            own, gradient = ids[max(0, index - 1)], gradients[index]
            of_sides += (
                side.data_ptr(),
                side.shape[0],
                side.stride(0),
                DTYPES[side.dtype],
                0 if own is None else own.data_ptr(),
                0 if gradient is None else gradient.data_ptr(),
            )
        exponents = torch.empty(sum(side.shape[0] for side in self.sides)) if needs else None
        assert library.kernels is not None
        code = library.kernels.contrast(
            n,
            d,
            NEGATIVES[problem.negatives],
            problem.num_directions,
            problem.normalize,
            self.precise,
            batch.ids is not None or any(one is not None for one in batch.candidate_ids),
            problem.margin is not None,
            0.0 if problem.margin is None else float(problem.margin),
            scale,
            _address(scales),
            0 if loss is None else LOSSES[problem.loss],
            _address(a),
            _address(b),
            _address(shares) if isinstance(shares, Tensor) else 0,
            0.0 if isinstance(shares, Tensor) else shares,
            held,
            _address(z),
            _address(positive),
            _address(moment),
            _address(loss),
            _address(exponents),
            torch.get_num_threads(),
            *of_sides,
        )
        if code < 0:
            return None
        powers = None if code == 0 or exponents is None else list(exponents.unsqueeze(1).split(batch.sizes))
        return Held(gradients, powers, bits)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _held_scale(batch: Batch, shares: float | Tensor) -> tuple[float, int]:
    """What weights are multiplied by so that the largest is about 2^30, and the power of two that undoes it."""
    temperature = batch.temperature
    if isinstance(temperature, Tensor) and temperature.dim():
        size = 1 / temperature.detach().amin().item()
        divisor = 1.0
    else:
        divisor = float(temperature)
        size = 1 / divisor
    if isinstance(shares, Tensor):
        size *= shares.abs().amax().item()
    else:
        divisor *= shares
    bits = math.frexp(size)[1] if 0 < size < math.inf else 0
    return 2.0 ** (30 - bits) / divisor, bits - 30


def save(state: State) -> list[Tensor]:
    """The tensors that :func:`restore` needs: none."""
    return []


def restore(tensors: list[Tensor], batch: Batch, problem: Problem) -> State:
    """The state of a forward, from the same batch."""
    return State(batch, problem)


def saved_shapes(shape: Shape, problem: Problem, *, gradient: bool) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and dtypes of what :func:`save` returns."""
    return []
