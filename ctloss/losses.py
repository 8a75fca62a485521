"""The losses as functions: ``ctloss.cz_nce(x, y)`` and ``ctloss.info_nce(x, y)``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from . import checks
from .dispatch import problem_from
from .kernels.problem import Negatives, Precision, Problem, Reduction
from .ops import fused
from .reference import row_losses

Form = Literal["log", "ratio"]
Impl = Literal["auto", "reference", "torch", "triton"]


class _OnceDifferentiable(torch.autograd.Function):
    """The identity; its gradient is the identity too, but refuses to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result: Tensor = _Refused.apply(gradient)
        return result


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError(
            "ctloss: form='ratio' has no second derivative; use form='log', which has the same first one, "
            "with impl='reference'"
        )


def _reference(x: Tensor, y: Tensor, temperature: float | Tensor, problem: Problem, form: str) -> Tensor:
    if isinstance(temperature, Tensor) and temperature.device.type == "cpu" and not torch.compiler.is_compiling():
        checks.positive(float(temperature.detach()))
    if form == "ratio":
        x, y = _OnceDifferentiable.apply(x), _OnceDifferentiable.apply(y)
        if isinstance(temperature, Tensor):
            temperature = _OnceDifferentiable.apply(temperature)
    with torch.autocast(x.device.type, enabled=False):
        rows = row_losses(
            x,
            y,
            loss=problem.loss,
            temperature=temperature,
            negatives=problem.negatives,
            normalize=problem.normalize,
        )
        if form == "ratio":
            rows = rows - rows.detach() + 1
        if problem.reduction != "none":
            rows = rows.mean() if problem.reduction == "mean" else rows.sum()
        return rows.to(torch.promote_types(x.dtype, torch.float32))


def _loss(
    loss: str, x: Tensor, y: Tensor, *, form: str, impl: str, temperature: float | Tensor, **options: Any
) -> Tensor:
    problem = problem_from(x, y, loss=loss, temperature=temperature, form=form, impl=impl, **options)
    if impl == "reference":
        return _reference(x, y, temperature, problem, form)
    return fused(x, y, temperature, problem, form, impl)


def cz_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    negatives: Negatives = "both",
    normalize: bool = True,
    reduction: Reduction = "mean",
    form: Form = "log",
    precision: Precision = "highest",
    impl: Impl = "auto",
) -> Tensor:
    r"""CZ-NCE, the contrastive loss that crosses zero: the positive leaves the denominator.

    For the 2n rows of ``[x; y]``, with p(i) the positive of row i and s = cos / τ,

    .. math:: L_i = -\log \frac{e^{s_{i,p(i)}}}{\sum_{j \text{ negative}} e^{s_{ij}}} = z_i,

    equations (4) and (5) of Chen et al. 2022 (arXiv 2202.13083), averaged over both directions as in equation (2). The
    gradient is the stop-gradient ratio form (6): ∂L_i/∂s_ij is the softmax over the negatives and ∂L_i/∂s_i,p(i) is
    -1, at full size however small φ = e^z becomes. Also known as DCL (Yeh et al. 2022) and FlatNCE (Chen et al. 2021).

    Args:
        x: ``(n, d)`` anchors, n ≥ 2; float32, float64, bfloat16 or float16; any strides; CPU or CUDA.
        y: ``(n, d)`` translations: row i of y is the positive of row i of x. Same dtype and device.
        temperature: τ > 0, a float or a tensor of one element, which receives its gradient. A CUDA tensor is not read
            on the host: a value ≤ 0 there gives NaN.
        negatives: ``"both"``: every other row of both languages, 2n - 2 of them (the paper). ``"cross"``: the other
            language's n - 1 rows alone (CLIP).
        normalize: cosine similarity if true (a zero row has cosine 0), the rows' plain dot products otherwise.
        reduction: ``"mean"`` over the 2n rows, ``"sum"``, or ``"none"``: all 2n, x's first.
        form: ``"log"`` returns z; ``"ratio"`` returns φ/sg(φ) of equation (6): 1, with the same gradient, bit for bit.
        precision: how carefully float32 products are formed on a GPU; the CPU is always at ``"highest"``.
        impl: ``"auto"``, or a path by name: ``"reference"``, ``"torch"``, ``"triton"``. A named path that cannot run
            says why; :func:`ctloss.explain` tells what would run.

    Returns:
        The loss in float32 (float64 for float64 inputs): a scalar, or ``(2n,)`` for ``"none"``.

    Raises:
        TypeError: for integer or complex inputs, or two dtypes.
        ValueError: for n < 2, two shapes or devices, a temperature that is not positive, or an unknown option.
        RuntimeError: if a path asked for by name cannot run; or, in the backward of a backward, on a fused path.

    Example:
        >>> import torch, ctloss
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = ctloss.cz_nce(x, x.detach(), temperature=0.5)
        >>> loss
        tensor(-1.3069, grad_fn=<ContrastiveBackward>)
        >>> loss.backward()
        >>> x.grad
        tensor([[0., 1.],
                [1., 0.]])
    """
    return _loss(
        "cz_nce",
        x,
        y,
        temperature=temperature,
        negatives=negatives,
        normalize=normalize,
        reduction=reduction,
        form=form,
        precision=precision,
        impl=impl,
    )


def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    negatives: Negatives = "both",
    normalize: bool = True,
    reduction: Reduction = "mean",
    precision: Precision = "highest",
    impl: Impl = "auto",
) -> Tensor:
    r"""infoNCE over a batch of pairs, exact where the usual softmax-minus-one-hot loses the positive.

    For the 2n rows of ``[x; y]``, with p(i) the positive of row i and s = cos / τ,

    .. math:: L_i = -\log \frac{e^{s_{i,p(i)}}}{e^{s_{i,p(i)}} + \sum_{j \text{ negative}} e^{s_{ij}}}
              = \operatorname{softplus}(z_i),

    equation (1) of Chen et al. 2022 (arXiv 2202.13083), averaged over both directions as in equation (2). With
    ``negatives="both"`` this is NT-Xent (SimCLR); with ``negatives="cross"`` it is CLIP's loss.

    Args:
        x: ``(n, d)`` anchors, n ≥ 2; float32, float64, bfloat16 or float16; any strides; CPU or CUDA.
        y: ``(n, d)`` translations: row i of y is the positive of row i of x. Same dtype and device.
        temperature: τ > 0, a float or a tensor of one element, which receives its gradient. A CUDA tensor is not read
            on the host: a value ≤ 0 there gives NaN.
        negatives: ``"both"``: every other row of both languages. ``"cross"``: the other language's alone (CLIP).
        normalize: cosine similarity if true (a zero row has cosine 0), the rows' plain dot products otherwise.
        reduction: ``"mean"`` over the 2n rows, ``"sum"``, or ``"none"``: all 2n, x's first.
        precision: how carefully float32 products are formed on a GPU; the CPU is always at ``"highest"``.
        impl: ``"auto"``, or a path by name: ``"reference"``, ``"torch"``, ``"triton"``.

    Returns:
        The loss in float32 (float64 for float64 inputs): a scalar, or ``(2n,)`` for ``"none"``.

    Raises:
        TypeError: for integer or complex inputs, or two dtypes.
        ValueError: for n < 2, two shapes or devices, a temperature that is not positive, or an unknown option.
        RuntimeError: if a path asked for by name cannot run; or, in the backward of a backward, on a fused path.

    Example:
        >>> import torch, ctloss
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> ctloss.info_nce(x, x, temperature=0.5, reduction="none")
        tensor([0.2395, 0.2395, 0.2395, 0.2395])
    """
    return _loss(
        "info_nce",
        x,
        y,
        temperature=temperature,
        negatives=negatives,
        normalize=normalize,
        reduction=reduction,
        form="log",
        precision=precision,
        impl=impl,
    )
