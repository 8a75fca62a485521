"""The sigmoid loss, ``ctloss.sig_lip``: every pair of rows told apart on its own, no pair's logit kept."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from . import checks, rows
from .kernels.problem import Impl, Precision, Reduction
from .losses import choose
from .ops import output_dtype, unwatched
from .plan import problem_for
from .reference.sig_lip import row_losses
from .sig_lip_operator import fused


def sig_lip(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    ids: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    precision: Precision = "highest",
    impl: Impl = "auto",
) -> Tensor:
    r"""The sigmoid loss of pairs: is y_j the partner of x_i, asked of all n² pairs.

    .. math:: L = -\frac{1}{n} \sum_{ij} \log \sigma(\pm_{ij} (s_{ij} + b)), \qquad
              s_{ij} = \frac{\cos(x_i, y_j)}{\tau}

    with + for i = j and − for all others. Source: SigLIP, arXiv 2303.15343, algorithm 1, whose t is 1/τ.

    Value and gradient come from one pass over the logits, a panel of rows at a time: memory grows with n, not n².
    Logits, losses and weights are float32 or better whatever the rows are; a positive's logit is formed in float64, and
    no weight is one minus a probability, so that a pair which is nearly certain still pulls by what is left. With S the
    largest |s| + |b| and A_i = Σ_j |W_ij| ‖u_j‖ / (n τ ‖x_i‖), W being the pairs' weights and u the unit rows (without
    ``normalize`` the raw ones, and ‖x_i‖ = 1), the gradient's error is at most ‖A‖ (5e-7 + 1e-7 S) and one rounding to
    the rows' dtype; that of a row loss is at most L (5e-7 + 1e-7 S).

    Args:
        x: ``(n, d)`` float32, float64, bfloat16 or float16.
        y: ``(n, d)``; row i is the partner of row i of x.
        temperature: τ, a positive number or a tensor of one element, which may ask for its gradient.
        bias: b, likewise.
        ids: ``(n,)`` integers; pairs i ≠ j whose ids are equal are left out, neither partners nor strangers.
        normalize: cosines if true, else dot products.
        reduction: ``"mean"`` over the n rows of x, ``"sum"``, or ``"none"`` for ``(n,)`` row losses, whose
            gradient needs a second pass over the logits: only then is it known how much each row's is worth.
        precision: as for :func:`ctloss.info_nce`; ``"highest"`` is what the bounds above hold for.
        impl: ``"auto"``, or the path to take: ``"torch"``, ``"triton"`` or ``"reference"``. Under transforms of
            ``torch.func`` and forward-mode differentiation ``"auto"`` takes the reference.

    Returns:
        The loss: ``()``, or ``(n,)`` for ``reduction="none"``; float32, or float64 if x or y is.

    Raises:
        TypeError, ValueError: for arguments of another type, shape, device or value.
        RuntimeError: if the path named by ``impl`` cannot run; in the backward of a backward, on a fused
            path.

    Example:
        >>> import torch, ctloss
        >>> ctloss.sig_lip(torch.eye(2), torch.eye(2), temperature=1.0, bias=-1.0)
        tensor(1.0064)
    """
    given = {"normalize": normalize, "reduction": reduction, "precision": precision, "impl": impl}
    problem = problem_for("sig_lip", x.device.type if isinstance(x, Tensor) else "cpu", given)
    batch = checks.batch(
        x,
        y,
        problem,
        temperature_given=temperature,
        candidates_given=None,
        ids_given=ids,
        candidate_ids_given=None,
        read=not isinstance(temperature, Tensor) or unwatched(temperature),
    )
    for name, option in (("temperature", temperature), ("bias", bias)):
        _check_scalar(name, option, x)
    if choose(batch, problem).path == "reference":
        options = batch._asdict() | {"bias": bias, "normalize": normalize}
        del options["candidates"], options["candidate_ids"]
        with torch.autocast(x.device.type, enabled=False):
            return rows.reduce(problem, row_losses(**options), None).to(output_dtype(batch.shape.dtype))
    return fused(batch, bias, problem)


def _check_scalar(name: str, value: object, x: Tensor) -> None:
    if isinstance(value, Tensor):
        if value.dtype not in checks.DTYPES:
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}; convert it with .float()")
        if value.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(value.shape)}; one serves all pairs")
        if value.device.type != "cpu":
            checks.same_device(name, value, x)
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a float or a tensor, got {type(value).__name__}; convert it with float()")
    elif not -math.inf < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a finite number, got {value}")
