"""What a distillation loss has beyond a contrastive one: a teacher's probabilities in place of the positives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core import checks
from ..core.ops import WithoutAutocast, unwatched
from .numbers import one_element, positive, widened
from .processes import check_even, gathered, gathered_with_gradient

SCALE = "models pass logit_scale.exp()"
ROWS = 256
"""Rows of the teacher's matrix that are formed at a time."""


def checked_teacher(
    student: Tensor, of_images: Tensor, of_texts: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor, float | Tensor]:
    """The teacher's rows and scale, 0-d if it is a tensor.

    Args:
        student: ``(n, d)`` its rows of one side.
        of_images: the teacher's images.
        of_texts: its texts.
        scale: what its products are multiplied by.

    Raises:
        TypeError, ValueError: for rows that are no matrices of the student's number, on another device or with a
            gradient, and for a scale that is no number or has a gradient.
    """
    if not isinstance(scale, Tensor):
        scale = positive("dist_logit_scale", scale, SCALE, or_zero=True)
    one_element("dist_logit_scale", scale, "one serves all pairs")
    rows = {"dist_image_features": of_images, "dist_text_features": of_texts}
    for name, side in rows.items():
        checks.embeddings(name, side)
        checks.same_device(name, side, student)
        if len(side) != len(student) or side.shape[1] != of_images.shape[1]:
            wanted = (len(student), of_images.shape[1])
            raise ValueError(
                f"{name}: expected the teacher's rows of the student's batch, {wanted}, got {tuple(side.shape)}; run "
                "one teacher on the same batch"
            )
    for name, given in {**rows, "dist_logit_scale": scale}.items():
        if isinstance(given, Tensor) and given.requires_grad:
            raise ValueError(
                f"{name}: expected a teacher's tensor without a gradient, got one that requires it; run the teacher "
                "under torch.no_grad()"
            )
    return of_images, of_texts, scale.reshape(()) if isinstance(scale, Tensor) else scale


def beyond_positives(
    x: Tensor, y: Tensor, teacher_x: Tensor, teacher_y: Tensor, scale: float | Tensor, *, across: bool
) -> Tensor:
    """Σ_ij (P_ij + Q_ij − 2 [i = j]) ⟨x_i, y_j⟩ / 2n, P the teacher's softmax over texts, Q that over images.

    Args:
        x: ``(n, d)`` images.
        y: ``(n, d)`` texts.
        teacher_x: ``(n, e)`` the teacher's images; it gets no gradient.
        teacher_y: ``(n, e)`` its texts.
        scale: what its products are multiplied by.
        across: over all ranks, which bring as many rows each: this rank's part, P of its images over the texts of all
            and Q of its texts over the images of all. The gradient is that of the sum of the ranks' parts.

    Returns:
        ``()`` in float32, or float64 if x is.

    Example:
        >>> rows = torch.eye(2)
        >>> beyond_positives(rows, rows, rows, rows, 0.0, across=False)
        tensor(-0.5000)
    """
    with WithoutAutocast(x.device.type):
        own = widened(x), widened(y)
        teacher = teacher_x.to(own[0].dtype), teacher_y.to(own[0].dtype)
        share = 1 / (2 * len(x))
        if across:
            check_even(own)
            others = [gathered_with_gradient(side) for side in own]
            of_others = [gathered(side) for side in teacher]
            drawn = [_Drawn.apply(own[i], others[1 - i], teacher[i], of_others[1 - i], scale, share) for i in range(2)]
            found: Tensor = drawn[0] + drawn[1] - 2.0 * share * (own[0] * own[1]).sum()
        else:
            found = _Both.apply(*own, *teacher, scale, share)
        return found


def _panels(rows: Tensor) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, len(rows), ROWS)]


class _Held(torch.autograd.Function):
    """A share of a number, whose gradients of two sides are found with it."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        factor, of_sides = upstream * ctx.share, ctx.saved_tensors
        # Nothing will ask for them again: fresh memory would cost a small batch more than the product.
        last = not torch._C._autograd._get_current_graph_task_keep_graph() and unwatched(upstream)
        return *[side.mul_(factor) if last else side * factor for side in of_sides], None, None, None, None


class _Drawn(_Held):
    """Σ_ij P_ij ⟨rows_i, others_j⟩, P the softmax of each row's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        others: Tensor,
        teacher: Tensor,
        other_teacher: Tensor,
        scale: float | Tensor,
        share: float,
    ) -> Tensor:
        of_rows, of_others = torch.empty_like(rows), torch.zeros_like(others)
        for panel in _panels(rows):
            weights = (teacher[panel] @ other_teacher.T).mul_(scale).softmax(1)
            torch.mm(weights, others, out=of_rows[panel])
            of_others.addmm_(weights.T, rows[panel])
        ctx.save_for_backward(of_rows, of_others)
        ctx.share = share
        return torch.dot(rows.flatten(), of_rows.flatten()) * share


class _Both(_Held):
    """Σ_ij (P_ij + Q_ij − 2 [i = j]) ⟨x_i, y_j⟩, both probabilities from one matrix of logits."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, teacher_x: Tensor, teacher_y: Tensor, scale: float | Tensor, share: float
    ) -> Tensor:
        panels = _panels(x)
        if len(panels) > 1:
            lse = torch.stack([(teacher_x[panel] @ teacher_y.T * scale).logsumexp(0) for panel in panels]).logsumexp(0)
        of_x, of_y = torch.empty_like(x), torch.empty_like(y)
        for panel in panels:
            logits = (teacher_x[panel] @ teacher_y.T).mul_(scale)
            weights = logits.softmax(1)
            weights += logits.softmax(0) if len(panels) == 1 else (logits - lse).exp_()
            torch.addmm(y[panel], weights, y, beta=-2.0, out=of_x[panel])
            torch.addmm(of_y if panel.start else x, weights.T, x[panel], beta=1.0 if panel.start else -2.0, out=of_y)
        ctx.save_for_backward(of_x, of_y)
        ctx.share = share
        return torch.dot(x.flatten(), of_x.flatten()) * share
