"""The supervised contrastive loss, ``ctloss.sup_con``: several positives per row, given by labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from .core import checks
from .core.graphs import in_graphs, outside_graphs
from .core.keywords import only, unknown_to
from .core.ops import forward_mode, once, output_dtype, unwatched
from .core.plan import cached_plan, problem_for
from .core.rows import power_of_two, reduce
from .core.units import unit_rows
from .kernels.native import sup_con as native
from .kernels.native.engine import release
from .kernels.problem import Impl, Precision, Problem, Reduction, Shape
from .kernels.sigmoid import SCALE_BITS, softplus
from .kernels.torch_path.engine import Held
from .losses import contrast
from .ranks.group import Across, Average, Group, Ranks, is_sharded, local_rows
from .ranks.sup_con import sup_con as of_ranks

ONLY_FIRST_DERIVATIVES = (
    "ctloss: the fused paths of sup_con have no second derivative; impl='reference' can be differentiated any number "
    "of times"
)
_OF_NEGATIVES = {"negatives": "own", "directions": "x"}
SMALL_CLASS = 32
"""Classes up to this size are compared with themselves in one small float64 product, larger ones in the core."""


@in_graphs
@only
def sup_con(
    x: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    reduction: Reduction = "mean",
    precision: Precision = "highest",
    impl: Impl = "auto",
    group: Group = None,
    average: Average = "mean",
    even: bool = False,
    **others: NoReturn,
) -> Tensor:
    r"""The supervised contrastive loss: rows of one label attract each other, all others repel.

    .. math:: L_i = \log \sum_{j \ne i} e^{s_{ij}} - \frac{1}{|P_i|} \sum_{p \in P_i} s_{ip}, \qquad
              s_{ij} = \frac{\cos(x_i, x_j)}{\tau}

    with P_i the other rows of i's label. Source: SupCon, arXiv 2004.11362, eq. (2), L_out.

    The sum contains the positives, and subtracting them from it would lose the digits of the negatives. So it is split:
    the core sums over the negatives, relative to a positive, and each class sums over its own rows:

    .. math:: L_i = \mathrm{softplus}(\mathrm{lse}_{N_i} - \mathrm{lse}_{P_i})
              + (\mathrm{lse}_{P_i} - \textstyle\frac{1}{|P_i|} \sum_p s_{ip})

    The negatives' term has the error bounds of :func:`ctloss.info_nce`, however little they weigh. With one positive
    per row the second term is exactly 0, and the loss is infoNCE. Otherwise a row's loss is at least log |P_i|, and the
    second term's gradient, a difference of weights that sum to 1, is formed in float64 in classes of up to 32 rows, and
    within the bounds of :func:`ctloss.cz_nce` in larger ones. No n × n matrix is formed: memory is that of
    :func:`ctloss.contrast` plus the rows in float64 and 32 n logits. On the native path, which is one call, the
    exponentials of all pairs and the logits of those of one class are kept as long as they fit the workspace.

    A row whose label no other row has gets loss 0 and gradient 0 and is left out of the mean, as in
    pytorch-metric-learning; the authors' code counts it as a 0. Without any positive the mean is 0. The labels are read
    on the host, because they decide which rows are compared, so ``torch.compile`` breaks its graph here.

    Args:
        x: ``(n, d)`` float32, float64, bfloat16 or float16; several views of one sample are rows with one label.
        labels: ``(n,)`` integers.
        temperature: τ > 0: a number, or a tensor of one element or one per row, which may require a gradient.
        normalize: cosines if true, else dot products.
        reduction: ``"mean"`` over the rows with a positive, ``"sum"``, or ``"none"`` for ``(n,)`` row losses.
        precision: as for :func:`ctloss.info_nce`.
        impl: as for :func:`ctloss.info_nce`.
        group: ranks whose rows are compared too, as for :func:`ctloss.cz_nce`; labels mean the same on all of them.
        average: whether ranks' gradients are averaged, ``"mean"``, or added up, ``"sum"``.
        even: the promise that ranks always bring as many rows.

    Returns:
        The loss: ``()``, or ``(n,)`` for ``reduction="none"``; float32, or float64 for float64 inputs.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`ctloss.contrast`.

    Example:
        >>> import torch, ctloss
        >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
        >>> ctloss.sup_con(x, torch.tensor([0, 0, 1, 1]), temperature=0.5)
        tensor(0.4302)
    """
    if others:
        raise unknown_to(sup_con, others)
    options = _OF_NEGATIVES | {"normalize": normalize, "reduction": reduction, "precision": precision, "impl": impl}
    across = Across(group=group, average=average, even=even)
    if group is not None or is_sharded(x):
        return _spread(x, labels, temperature, options, across)
    return _sup_con(*_checked(x, labels, temperature, options))


@outside_graphs
def _spread(x: Any, labels: Any, temperature: float | Tensor, options: dict[str, Any], across: Across) -> Tensor:
    x, group = local_rows("x", x, across.group)
    labels, _ = local_rows("labels", labels, group)
    ranks, arguments = Ranks.of(group), _checked(x, labels, temperature, options)
    return _sup_con(*arguments) if ranks.world == 1 else of_ranks(*arguments, across, ranks)


def _checked(
    x: Tensor, labels: Tensor, temperature: float | Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, float | Tensor, Problem]:
    # The negatives' term is CZ-NCE's.
    problem = problem_for("cz_nce", x.device.type if isinstance(x, Tensor) else "cpu", options)
    checks.embeddings("x", x)
    ids = checks.ids("labels", labels, x.shape[0], x)
    tau = checks.temperature(temperature, x, 1, read=not isinstance(temperature, Tensor) or unwatched(temperature))
    return x, ids, tau, problem


@outside_graphs
def _sup_con(x: Tensor, ids: Tensor, tau: float | Tensor, problem: Problem) -> Tensor:
    if unwatched(x, ids, tau):
        loss = _native(x, ids, tau, problem)
        if loss is not None:
            return loss
    classes = Classes.of(_readable(ids))
    with torch.autocast(x.device.type, enabled=False):
        rows = _row_losses(x, classes, tau, problem).to(output_dtype(x.dtype))
    return reduce(problem, rows, None if problem.reduction == "none" else classes.paired.to(rows.dtype))


def _native(x: Tensor, labels: Tensor, tau: float | Tensor, problem: Problem) -> Tensor | None:
    """The loss in one call of the native path, attached to autograd; ``None`` where another way must be taken."""
    per_row = isinstance(tau, Tensor) and tau.dim() > 0
    if per_row or not x.shape[0] or forward_mode():
        return None
    n, d = x.shape
    shape = Shape(n, d, dtype=x.dtype, device_type=x.device.type, masked=True)
    # One call returns single rows as exactly as their sum.
    if cached_plan(shape, replace(problem, reduction="mean")).path != "native" or not native.fits(n, problem):
        return None
    needs = (False, False)
    if torch.is_grad_enabled():
        needs = x.requires_grad, isinstance(tau, Tensor) and tau.requires_grad
    number = tau.item() if isinstance(tau, Tensor) else tau
    # Where each row's upstream gradient has yet to come, everything is formed again in the backward.
    now = needs if problem.reduction != "none" else (False, False)
    solved = native.solve(x, labels, number, problem, needs=now)
    if solved is None:
        return None
    if True not in needs:
        return solved.loss.float()
    loss: Tensor = Solved.apply(solved, labels, problem, number, x, tau)
    return loss


class Solved(torch.autograd.Function):
    """The native path's loss, whose gradient has been found with it."""

    @staticmethod
    def forward(
        ctx: Any, solved: native.Solved, labels: Tensor, problem: Problem, number: float, x: Tensor, tau: float | Tensor
    ) -> Tensor:
        ctx.needs = ctx.needs_input_grad[4:]
        ctx.set_materialize_grads(False)
        # Without the loss: it leads to this node, and would keep it and itself alive.
        ctx.held, ctx.rest = solved[1:], (problem, number)
        # So that a change of what is read again is noticed, and a second derivative reaches the inputs.
        read_again = labels if problem.reduction == "none" else None
        ctx.save_for_backward(read_again, x, *((tau,) if isinstance(tau, Tensor) else ()))
        return solved.loss.float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 6
        (labels, *inputs), (problem, number) = ctx.saved_tensors, ctx.rest
        # Freed like saved tensors: a loss that is kept for its value keeps nothing else.
        solved, last = native.Solved(upstream, *ctx.held), not torch._C._autograd._get_current_graph_task_keep_graph()
        if last:
            ctx.held = None
        last = last and unwatched(upstream) and not torch.is_grad_enabled()
        run = partial(_gradients, solved, labels, problem, number, inputs, ctx.needs, last)
        if last:
            return None, None, None, None, *run(upstream, None)
        return None, None, None, None, *once(run, ctx, upstream, inputs, ONLY_FIRST_DERIVATIVES)


def _gradients(
    solved: native.Solved,
    labels: Tensor | None,
    problem: Problem,
    tau: float,
    inputs: Sequence[Tensor],
    needs: tuple[bool, bool],
    last: bool,
    upstream: Tensor,
    _: None,
) -> list[Tensor | None]:
    """The gradients of the rows and of the temperature; ``last`` says that nothing will ask for them again."""
    x = inputs[0]
    if problem.reduction == "none":
        factor = power_of_two(upstream).item()
        weights = upstream.double() / factor
        assert labels is not None
        again = native.solve(x, labels, tau, problem, needs=needs, weights=weights)
        if again is None:
            return _gradients_by_contrast(labels, problem, tau, inputs, needs, upstream)
        solved = again
    else:
        factor = upstream.item()
        if problem.reduction == "mean":
            factor /= max(solved.paired, 1)
    powers = None if solved.exponents is None else [solved.exponents]
    found = release(Held([solved.gradient], powers, -SCALE_BITS), factor / tau, (x.dtype,), last=last)
    if not needs[1]:
        return [*found, None]
    assert solved.slope is not None
    return [*found, (solved.slope * (factor / tau)).to(inputs[1].dtype)]


def _gradients_by_contrast(
    labels: Tensor, problem: Problem, tau: float, inputs: Sequence[Tensor], needs: tuple[bool, bool], upstream: Tensor
) -> list[Tensor | None]:
    """The same for a batch that the native path declines once it knows the upstream gradient."""
    x = inputs[0].detach().requires_grad_(needs[0])
    learnt = inputs[1].detach().requires_grad_() if needs[1] else tau
    with torch.enable_grad():
        losses = _row_losses(x, Classes.of(labels), learnt, problem)
    wanted = [leaf for leaf in (x, learnt) if isinstance(leaf, Tensor) and leaf.requires_grad]
    found = iter(torch.autograd.grad(losses, wanted, upstream.double()))
    return [next(found) if need else None for need in needs]


def _readable(labels: Tensor) -> Tensor:
    """Refuse labels whose values, which decide what is computed, cannot be read on the host."""
    if torch.compiler.is_compiling():
        return labels
    batched = torch._C._functorch.is_batchedtensor(labels)
    if batched or labels.is_meta or is_fake(labels):
        got = "a batch of them under torch.vmap" if batched else "a tensor that has none (a meta or fake one)"
        raise ValueError(
            f"labels: expected a tensor whose values can be read, got {got}; they decide which rows are compared: call "
            "sup_con once for each vector of labels, with real tensors"
        )
    return labels


@dataclass(frozen=True)
class Classes:
    """Rows by their label.

    Attributes:
        ids: ``(n,)``, one number per class.
        next: ``(n,)``, for each row the next one of its class, in a ring; itself if it is alone.
        small: for each small class size from 2 on, the rows of all classes of that size, ``(classes, size)``.
        large: the rows of each larger class.
        paired: ``(n,)`` whether a row has a positive.
    """

    ids: Tensor
    next: Tensor
    small: list[Tensor]
    large: list[Tensor]
    paired: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> Classes:
        """Sort rows by their labels.

        Example:
            >>> Classes.of(torch.tensor([7, 3, 7])).next
            tensor([2, 1, 0])
        """
        _, ids, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        order = torch.argsort(ids, stable=True)
        starts = counts.cumsum(0) - counts
        following, sizes = torch.empty_like(order), counts.tolist()
        following[order] = order.roll(-1)
        following[order[starts + counts - 1]] = order[starts]
        small, large = [], []
        for size in sorted(set(sizes) - {0, 1}):
            places = starts[counts == size][:, None] + torch.arange(size, device=labels.device)
            if size <= SMALL_CLASS:
                small.append(order[places])
            else:
                large += list(order[places])
        return cls(ids, following, small, large, (counts > 1)[ids])


def _row_losses(x: Tensor, classes: Classes, tau: float | Tensor, problem: Problem) -> Tensor:
    """``(n,)`` float64."""
    options: dict[str, Any] = _OF_NEGATIVES | {
        "normalize": problem.normalize,
        "precision": problem.precision,
        "impl": problem.impl,
    }
    others = contrast(x, x[classes.next], temperature=tau, ids=classes.ids, **options)
    wide = unit_rows(x) if problem.normalize else x.double()
    groups = list(_own_classes(x, wide, classes, tau, options))
    nothing = torch.zeros_like(wide[:, 0])
    if not groups:
        return nothing + others.z[:0].sum()
    rows, positives, spread = (torch.cat(parts) for parts in zip(*groups, strict=True))
    losses = softplus(others.z[rows].double() - positives) + spread
    return nothing.index_put((rows,), losses)


def _own_classes(
    x: Tensor, wide: Tensor, classes: Classes, tau: float | Tensor, options: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For groups of rows: the rows, and their positives' lse less the next one's logit, and less the mean logit."""
    for members in classes.small:
        rows, size = members.flatten(), members.shape[1]
        units = wide[members]
        logits = torch.bmm(units, units.mT) / _of_rows(tau, members)
        own = torch.eye(size, dtype=torch.bool, device=x.device)
        # The next row of a ring that keeps the order of the class.
        following = logits[:, torch.arange(size), torch.arange(1, size + 1) % size]
        lse = torch.logsumexp(logits.masked_fill(own, -torch.inf) - following[:, :, None], 2)
        mean = ((logits - following[:, :, None]).masked_fill(own, 0.0)).sum(2) / (size - 1)
        yield rows, lse.flatten(), (lse - mean).flatten()
    for rows in classes.large:
        own_tau = _of_rows(tau, rows)
        following = x[classes.next[rows]]
        lse = contrast(x[rows], following, temperature=own_tau, **options).z.double()
        units = wide[rows]
        mean = (units.sum(0) - units) / (len(rows) - 1)
        yield rows, lse, lse - (units * (mean - wide[classes.next[rows]])).sum(1) / own_tau


def _of_rows(tau: float | Tensor, rows: Tensor) -> Any:
    """The temperatures of some rows; if the rows are a matrix, with one more dimension for the logits they divide."""
    if not isinstance(tau, Tensor) or not tau.dim():
        return tau
    return tau[rows] if rows.dim() == 1 else tau[rows][:, :, None]
