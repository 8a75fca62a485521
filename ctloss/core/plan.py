"""Which path computes a loss, why, and within how much temporary memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, get_type_hints

import torch

from ..kernels.native import engine as native_engine
from ..kernels.problem import CZOptions, LossOptions, PairOptions, Problem, Shape
from ..kernels.torch_path import engine as torch_engine
from ..kernels.torch_path import nested as torch_nested
from ..kernels.triton_path import engine as triton_engine
from .keywords import BY_NAME, unknown

# The options of each loss.
OPTIONS: dict[str, frozenset[str]] = {
    "contrast": frozenset(get_type_hints(PairOptions)),
    "info_nce": frozenset(get_type_hints(LossOptions)),
    "cz_nce": frozenset(get_type_hints(CZOptions)),
    "sig_lip": frozenset({"normalize", "reduction", "precision", "impl"}),
}
ENGINES = {"native": native_engine, "torch": torch_engine, "triton": triton_engine}
# Engines that serve all widths of ``dims`` at once.
NESTED = {"torch": torch_nested}

# A GPU computes so fast for its memory that it needs taller panels, and so more workspace.
DEFAULT_WORKSPACE = {"cuda": 1 << 30}
OTHER_WORKSPACE = 256 << 20

_workspace_limit: int | None = None


def set_workspace_limit(num_bytes: int | None) -> None:
    """Bound the temporary memory of every later loss call.

    The limit covers what a fused path holds beyond its inputs, its outputs and vectors with one entry per row: blocks
    of logits and weights, and the torch path's two working copies of all sides' rows. That path cannot run without
    the copies: if they alone exceed the limit, blocks shrink to their smallest size and the copies remain. The Triton
    path holds one packed copy of all sides on top of the limit. With a larger limit either path keeps logits for the
    gradient; with a smaller one it forms them again. Where the gradient is formed in the backward
    (``reduction="none"``, :func:`ctloss.contrast`, and the Triton path), they are kept until then. The limit does not
    apply to ``impl="reference"``, which forms matrices of all anchors by all rows in float64.

    Args:
        num_bytes: at least 1 MiB; or None for the default, 1 GiB on CUDA and 256 MiB elsewhere.

    Raises:
        TypeError: for something other than an int.
        ValueError: below 1 MiB.

    Example:
        >>> set_workspace_limit(64 << 20)
        >>> get_workspace_limit()
        67108864
        >>> set_workspace_limit(None)
    """
    global _workspace_limit
    if num_bytes is None:
        _workspace_limit = None
        return
    if isinstance(num_bytes, bool) or not isinstance(num_bytes, int):
        raise TypeError(f"num_bytes: expected an int or None, got {type(num_bytes).__name__}; 256 << 20 is 256 MiB")
    if num_bytes < 1 << 20:
        raise ValueError(f"num_bytes: expected at least {1 << 20} (1 MiB), got {num_bytes}; raise it")
    _workspace_limit = num_bytes


def get_workspace_limit(device_type: str = "cpu") -> int:
    """The bytes of temporary memory a loss call on such a device may use; see :func:`set_workspace_limit`.

    Example:
        >>> get_workspace_limit(), get_workspace_limit("cuda")
        (268435456, 1073741824)
    """
    if _workspace_limit is not None:
        return _workspace_limit
    return DEFAULT_WORKSPACE.get(device_type, OTHER_WORKSPACE)


@dataclass(frozen=True)
class Plan:
    """What would run, and why.

    Attributes:
        path: ``"reference"``, ``"native"``, ``"torch"`` or ``"triton"``.
        reason: why this one.
        problem: the options.
        shape: the sizes, dtypes and devices it is for.
        across: how rows get from rank to rank, for a call with ``group=``.

    Example:
        >>> print(plan(Shape(4, 8), Problem(impl="reference")))
        reference: named explicitly
          computed in: float64
          memory: several matrices of 8 x 8
    """

    path: str
    reason: str
    problem: Problem
    shape: Shape
    across: str | None = None

    @cached_property
    def engine(self) -> Any:
        """The module that runs a fused path."""
        return NESTED[self.path] if self.nested else ENGINES[self.path]

    @cached_property
    def solves(self) -> bool:
        """Whether the engine finds the loss and its gradient in one call."""
        return not self.problem.by_row and hasattr(self.engine, "solve")

    @cached_property
    def nested(self) -> bool:
        """Whether one call serves all of ``dims``; otherwise there is one call per width."""
        return self.problem.dims is not None and self.path in NESTED and self.shape.device_type == "cpu"

    @property
    def configuration(self) -> dict[str, object]:
        """The path's choices for this shape, dtype, device and problem."""
        if self.path == "reference":
            rows = self.problem.num_directions * self.shape.n
            columns = 2 * self.shape.n + sum(self.shape.candidates)
            found: dict[str, object] = {
                "computed in": "float64",
                "memory": f"several matrices of {rows} x {columns}",
            }
        else:
            found = self.engine.describe(self.shape, self.problem)
        if self.problem.dims is not None and not self.nested:
            found = {**found, "widths": "one call each"}
        if self.across is not None:
            found = {**found, "negatives of": self.across}
        return found

    def __str__(self) -> str:
        details = "".join(f"\n  {name}: {value}" for name, value in self.configuration.items())
        return f"{self.path}: {self.reason}{details}"


def plan(shape: Shape, problem: Problem) -> Plan:
    """The path for a problem of this shape: a path named explicitly either runs or raises an error saying why.

    Raises:
        RuntimeError: if the named path cannot run.

    Example:
        >>> plan(Shape(4, 8, dtype=torch.float64), Problem()).path
        'torch'
    """
    if problem.impl == "reference":
        return Plan("reference", "named explicitly", problem, shape)
    if problem.impl != "auto":
        why_not = ENGINES[problem.impl].unsupported(shape, problem)
        if why_not is not None:
            raise RuntimeError(f"impl={problem.impl!r} cannot run here: {why_not}; impl='auto' takes a path that can")
        return Plan(problem.impl, "named explicitly", problem, shape)
    if shape.device_type == "cpu":
        why_not = native_engine.unsupported(shape, problem) or native_engine.slower(shape, problem)
        if why_not is None:
            return Plan("native", "the embeddings are on the CPU, and compiled kernels take them", problem, shape)
        return Plan("torch", f"the embeddings are on the CPU; {why_not}", problem, shape)
    why_not = triton_engine.unsupported(shape, problem)
    if why_not is None:
        return Plan("triton", f"the embeddings are on {shape.device_type} and Triton can run", problem, shape)
    return Plan("torch", f"Triton cannot run: {why_not}", problem, shape)


def holds(problem: Problem, engine: Any) -> bool:
    """Whether a path forms the gradient in its forward, to be multiplied by the single upstream number later.

    Example:
        >>> holds(Problem(loss="cz_nce"), torch_engine), holds(Problem(loss="contrast"), torch_engine)
        (True, False)
    """
    return not problem.by_row and hasattr(engine, "hold")


# Symbolic sizes under a compiler cannot be looked up, and go through the function itself.
cached_plan = lru_cache(maxsize=4096)(plan)


def problem_for(loss: str, device_type: str, options: dict[str, Any]) -> Problem:
    """The checked problem of a loss's options, made once per set of options; the device's type decides the workspace.

    Raises:
        TypeError, ValueError: for an unknown option, or one with a wrong value.

    Example:
        >>> problem_for("cz_nce", "cpu", {"negatives": "own"}).negatives
        'own'
    """
    limit = get_workspace_limit(device_type)
    if torch.compiler.is_compiling():
        return _problem.__wrapped__(loss, limit, tuple(options.items()), ())
    try:
        return _problem(loss, limit, tuple(options.items()), tuple(map(type, options.values())))
    except TypeError:
        # A list, for example, cannot be looked up; the problem's own checks say what is expected.
        return _problem.__wrapped__(loss, limit, tuple(options.items()), ())


@lru_cache(maxsize=1024)
def _problem(loss: str, workspace: int, options: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> Problem:
    known = OPTIONS.get(loss)
    others = [] if known is None else [name for name, _ in options if name not in known]
    if others:
        weighted = () if loss == "contrast" else ("weights",)
        raise unknown(loss, others, {*OPTIONS[loss], *BY_NAME, *weighted})
    return Problem(loss=loss, workspace=workspace, **dict(options))  # type: ignore[arg-type]
