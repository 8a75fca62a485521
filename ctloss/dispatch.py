"""Which path computes a loss, why, and within how much temporary memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from . import checks
from .kernels.problem import Problem
from .kernels.torch_path import engine as torch_engine
from .kernels.triton_path import engine as triton_engine

ENGINES = {"torch": torch_engine, "triton": triton_engine}

# A GPU's arithmetic outruns its memory: there, panels tall enough for it cost more workspace.
DEFAULT_WORKSPACE = {"cuda": 1 << 30}
OTHER_WORKSPACE = 256 << 20

_workspace_limit: int | None = None


def set_workspace_limit(num_bytes: int | None) -> None:
    """Bound the temporary memory of every later loss call.

    The limit covers what a fused path holds beyond its inputs, its outputs and vectors of length 2n: blocks of logits
    and weights, and the torch path's working copies of the rows (two in the dtype it accumulates in, twice that for
    ``reduction="none"``), without which that path cannot run at all: where the copies alone exceed the limit, blocks
    shrink to their smallest and the copies stand. The Triton path holds one packed copy of x and y beside the limit.
    A larger limit lets either path keep logits for the gradient, on the Triton path until each call's backward, if x or
    y is to be differentiated; a smaller one makes it form them again. It does not bound ``impl="reference"``, which
    holds several N × N matrices.

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

    Args:
        device_type: ``"cpu"``, ``"cuda"``, …

    Example:
        >>> get_workspace_limit(), get_workspace_limit("cuda")
        (268435456, 1073741824)
    """
    if _workspace_limit is not None:
        return _workspace_limit
    return DEFAULT_WORKSPACE.get(device_type, OTHER_WORKSPACE)


@dataclass(frozen=True)
class Explanation:
    """Which path would run and why.

    Attributes:
        path: ``"reference"``, ``"torch"`` or ``"triton"``.
        reason: why this one.
        configuration: what the path would choose for this shape, dtype and device.
    """

    path: str
    reason: str
    configuration: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        details = "".join(f"\n  {name}: {value}" for name, value in self.configuration.items())
        return f"{self.path}: {self.reason}{details}"


def choose(x: Tensor, problem: Problem, impl: str) -> tuple[str, str]:
    """The path for these inputs and the reason, a named path being taken or refused, never replaced.

    Args:
        x: the anchors; their shape, dtype and device decide.
        problem: the loss call's options.
        impl: ``"auto"`` or a path's name.

    Returns:
        ``(path, reason)``.

    Raises:
        RuntimeError: if the named path cannot run, saying why.

    Example:
        >>> problem = Problem("cz_nce", "both", True, "mean", "highest", 1 << 28)
        >>> import torch
        >>> choose(torch.zeros(4, 8), problem, "reference")
        ('reference', 'asked for by name')
    """
    if impl == "reference":
        return "reference", "asked for by name"
    n, d = x.shape
    if impl != "auto":
        why_not = ENGINES[impl].unsupported(x.dtype, x.device.type, n, d, problem)
        if why_not is not None:
            raise RuntimeError(f"impl={impl!r} cannot run here: {why_not}; impl='auto' takes a path that can")
        return impl, "asked for by name"
    if x.device.type == "cpu":
        return "torch", "the embeddings are on the CPU"
    why_not = triton_engine.unsupported(x.dtype, x.device.type, n, d, problem)
    if why_not is None:
        return "triton", f"the embeddings are on {x.device.type} and Triton can run"
    return "torch", f"Triton cannot run: {why_not}"


def explain(
    x: Tensor,
    y: Tensor,
    *,
    loss: str = "cz_nce",
    temperature: float | Tensor = 0.07,
    negatives: str = "both",
    normalize: bool = True,
    reduction: str = "mean",
    form: str = "log",
    precision: str = "highest",
    impl: str = "auto",
) -> Explanation:
    """Tell which path and configuration a loss call with these arguments would run, and why; nothing is computed.

    Args:
        x: ``(n, d)`` anchors.
        y: ``(n, d)`` translations.
        loss: ``"cz_nce"`` or ``"info_nce"``.
        temperature: as for the loss.
        negatives: as for the loss.
        normalize: as for the loss.
        reduction: as for the loss.
        form: as for the loss.
        precision: as for the loss.
        impl: as for the loss.

    Returns:
        An :class:`Explanation`, readable when printed.

    Raises:
        TypeError, ValueError, RuntimeError: as the loss itself would.

    Example:
        >>> import torch
        >>> print(explain(torch.zeros(4, 8), torch.zeros(4, 8), impl="reference"))
        reference: asked for by name
          computed in: float64
          memory: several 8 x 8 matrices
    """
    problem = problem_from(
        x,
        y,
        loss=loss,
        temperature=temperature,
        negatives=negatives,
        normalize=normalize,
        reduction=reduction,
        form=form,
        precision=precision,
        impl=impl,
    )
    path, reason = choose(x, problem, impl)
    n, d = x.shape
    if path == "reference":
        configuration: dict[str, object] = {
            "computed in": "float64",
            "memory": f"several {2 * n} x {2 * n} matrices",
        }
    else:
        configuration = ENGINES[path].describe(x.dtype, x.device.type, n, d, problem)
    return Explanation(path, reason, configuration)


def problem_from(
    x: Tensor,
    y: Tensor,
    *,
    loss: str,
    temperature: float | Tensor,
    negatives: str,
    normalize: bool,
    reduction: str,
    form: str,
    precision: str,
    impl: str,
) -> Problem:
    """Check every argument of a loss call and gather its options into a :class:`Problem`.

    Raises:
        TypeError, ValueError: see :mod:`ctloss.checks`.

    Example:
        >>> import torch
        >>> x = torch.zeros(4, 8)
        >>> problem_from(x, x, loss="cz_nce", temperature=0.07, negatives="both", normalize=True, reduction="mean",
        ...              form="log", precision="highest", impl="auto").reduction
        'mean'
    """
    checks.option("loss", loss, checks.LOSSES)
    checks.option("negatives", negatives, checks.NEGATIVES)
    checks.flag("normalize", normalize)
    checks.option("reduction", reduction, checks.REDUCTIONS)
    checks.option("form", form, checks.FORMS)
    checks.option("precision", precision, checks.PRECISIONS)
    checks.option("impl", impl, checks.IMPLS)
    if loss == "info_nce" and form == "ratio":
        raise ValueError("form: expected 'log' for info_nce, got 'ratio'; the ratio form belongs to cz_nce")
    checks.pair(x, y)
    checks.temperature(temperature, x.device)
    return Problem(loss, negatives, normalize, reduction, precision, get_workspace_limit(x.device.type))  # type: ignore[arg-type]
