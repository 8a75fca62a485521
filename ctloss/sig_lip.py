"""The sigmoid loss, ``ctloss.sig_lip``: every pair of rows told apart on its own, no pair's logit kept."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from .kernels.problem import Impl, Precision, Problem, Reduction
from .reference.sig_lip import row_losses
from .sig_lip_operator import ONLY_FIRST_DERIVATIVES, check_positive, fused, loss_dtype, reduced

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    ``normalize`` the raw ones, and ‖x_i‖ = 1), the gradient's error is at most ‖A‖ (5e-7 + 1e-7 S), and that of a row
    loss the same factor times max(1, L).

    Args:
        x: ``(n, d)`` float32, float64, bfloat16 or float16.
        y: ``(n, d)``; row i is the partner of row i of x.
        temperature: τ, a positive number or a tensor of one element, which may ask for its gradient.
        bias: b, likewise.
        ids: ``(n,)`` integers; pairs i ≠ j whose ids are equal are left out, neither partners nor strangers.
        normalize: cosines if true, else dot products.
        reduction: ``"mean"`` over the n rows of x, ``"sum"``, or ``"none"`` for ``(n,)`` row losses.
        precision: as for :func:`ctloss.info_nce`; ``"highest"`` is what the bounds above hold for.
        impl: ``"auto"``, or the path to take: ``"torch"``, ``"triton"`` or ``"reference"``.

    Returns:
        The loss: ``()``, or ``(n,)`` for ``reduction="none"``; float32, or float64 if x or y is.

    Raises:
        TypeError, ValueError: for arguments of another type, shape, device or value.
        RuntimeError: if the path named by ``impl`` cannot run; for derivatives that fused paths do not have.

    Example:
        >>> import torch
        >>> from ctloss.sig_lip import sig_lip
        >>> sig_lip(torch.eye(2), torch.eye(2), temperature=1.0, bias=-1.0)
        tensor(1.0064)
    """
    problem = Problem(normalize=normalize, reduction=reduction, precision=precision, impl=impl)
    _check_rows(x, y, ids)
    _check_number("temperature", temperature, x)
    _check_number("bias", bias, x)
    if not isinstance(temperature, Tensor):
        check_positive(temperature)
    if impl == "reference":
        with torch.autocast(x.device.type, enabled=False):
            rows = row_losses(x, y, temperature=temperature, bias=bias, ids=ids, normalize=normalize)
            return reduced(rows, reduction).to(loss_dtype(x, y))
    _refuse_transforms()
    return fused(x, y, temperature, bias, ids, problem)


def _check_rows(x: Tensor, y: Tensor, ids: Tensor | None) -> None:
    for name, rows in (("x", x), ("y", y)):
        if not isinstance(rows, Tensor) or rows.dtype not in DTYPES:
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"{name}: expected a float32, float64, bfloat16 or float16 tensor, got {got}")
    if x.dim() != 2 or x.shape != y.shape or x.shape[1] == 0:
        raise ValueError(
            f"x and y: expected two tensors of one shape (n, d), got {tuple(x.shape)} and {tuple(y.shape)}; "
            "row i of y must be the partner of row i of x"
        )
    # A size that is known at run time alone cannot be asked while it is traced.
    if not torch.compiler.is_compiling() and x.shape[0] == 0:
        raise ValueError("x and y: expected at least one row, got none; skip the batch")
    if x.device != y.device:
        raise ValueError(f"x and y: expected one device, got {x.device} and {y.device}")
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids: expected a tensor of integers, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.shape != x.shape[:1] or ids.device != x.device:
        raise ValueError(
            f"ids: expected shape ({x.shape[0]},) on {x.device}, got {tuple(ids.shape)} on {ids.device}; one id a pair"
        )


def _check_number(name: str, value: object, x: Tensor) -> None:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}; convert it with .float()")
        if value.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(value.shape)}")
        if value.device.type != "cpu" and value.device != x.device:
            raise ValueError(f"{name}: expected a tensor on {x.device} or on the CPU, got one on {value.device}")
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number or a tensor of one element, got {type(value).__name__}")
    elif not -math.inf < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a finite number, got {value}")


def _refuse_transforms() -> None:
    """Refuse function transforms and forward mode, which would be silently wrong."""
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        raise RuntimeError(ONLY_FIRST_DERIVATIVES)
