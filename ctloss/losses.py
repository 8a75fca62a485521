"""The losses of pairs as functions: ``ctloss.cz_nce(x, y)``, ``ctloss.info_nce(x, y)``, ``ctloss.contrast(x, y)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .contrast import Contrast
from .core import checks, rows
from .core.graphs import in_graphs, outside_graphs
from .core.ops import Refused, forward_mode, fused, output_dtype, transformed, unwatched
from .core.plan import OPTIONS, Plan, cached_plan, plan, problem_for
from .kernels.problem import Batch, CZOptions, LossOptions, PairOptions, Problem, narrowed
from .ranks import group as across_ranks
from .ranks import losses as of_ranks
from .ranks.group import Across, Ranks
from .reference import contrast as reference_contrast

if TYPE_CHECKING:
    from typing_extensions import Unpack

NO_SECOND_DERIVATIVE_OF_RATIO = (
    "ctloss: form='ratio' has no second derivative; use form='log', which has the same first one, with impl='reference'"
)
Temperature = float | Tensor
Candidates = Tensor | Sequence[Tensor] | None
CandidateIds = Tensor | Sequence[Tensor | None] | None
Function = TypeVar("Function", bound=Callable[..., Any])


class PairCall(PairOptions, across_ranks.RankOptions, total=False):
    """What :func:`contrast` takes by name, for type checkers."""


class LossCall(LossOptions, across_ranks.RankOptions, total=False):
    """What :func:`info_nce` takes by name."""


class CZCall(CZOptions, across_ranks.RankOptions, total=False):
    """What :func:`cz_nce` takes by name."""


def takes(loss: str) -> Callable[[Function], Function]:
    """Show a loss's options in a function's signature, with their defaults from the classes that check them."""
    fields = Problem.__dataclass_fields__ | across_ranks.Across.__dataclass_fields__

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        fixed = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for name, field in fields.items()
            if name in OPTIONS[loss] | across_ranks.OPTIONS
        ]
        function.__signature__ = signature.replace(parameters=[*fixed, *options])  # type: ignore[attr-defined]
        return function

    return show


class _OnceDifferentiable(torch.autograd.Function):
    """The identity; its gradient is the identity too, but refuses to be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # Compiled graphs have no second derivative at all.
            return gradient.view_as(gradient)
        result: Tensor = Refused.apply(gradient, NO_SECOND_DERIVATIVE_OF_RATIO)
        return result


def _by_definition(batch: Batch, weights: Tensor | None, problem: Problem) -> Any:
    """The reference path: plain operations in float64."""
    if problem.form == "ratio":
        if forward_mode():
            raise RuntimeError(
                "form: expected 'log' under forward-mode differentiation, got 'ratio'; it has the same derivative"
            )
        once = _OnceDifferentiable.apply
        temperature = once(batch.temperature) if isinstance(batch.temperature, Tensor) else batch.temperature
        batch = batch._replace(x=once(batch.x), y=once(batch.y), temperature=temperature)
        batch = batch._replace(candidates=tuple(once(side) for side in batch.candidates))
    dtype = output_dtype(batch.shape.dtype)
    with torch.autocast(batch.x.device.type, enabled=False):
        z, positive = reference_contrast(
            **batch._asdict(),
            negatives=problem.negatives,
            directions=problem.directions,
            normalize=problem.normalize,
            margin=problem.margin,
        )
        if problem.loss == "contrast":
            return z.to(dtype), positive.to(dtype)
        wide = None if weights is None else weights.double()
        return rows.reduce(problem, rows.values(problem, z), wide).to(dtype)


def choose(batch: Batch, problem: Problem) -> Plan:
    """The plan of a call in its context: under transforms the reference's.

    Raises:
        RuntimeError: if a path named explicitly cannot run, in general or under transforms.

    Example:
        >>> choose(Batch(torch.eye(2).double(), torch.eye(2).double()), Problem()).path
        'torch'
    """
    if transformed():
        if problem.impl not in ("auto", "reference"):
            raise RuntimeError(
                f"impl={problem.impl!r} cannot run here: the fused paths do not support transforms of torch.func and "
                "forward-mode differentiation; impl='reference' does, and impl='auto' chooses it then"
            )
        problem = replace(problem, impl="reference")
    shape = batch.shape
    settled = type(shape.n) is int and not torch.compiler.is_compiling()
    return (cached_plan if settled else plan)(shape, problem)


def _run(batch: Batch, weights: Tensor | None, problem: Problem) -> Any:
    """The loss of a checked batch, or (z, positive), on the planned path."""
    chosen = choose(batch, problem)
    if chosen.path == "reference":
        return _by_definition(batch, weights, problem)
    if weights is None or not weights.requires_grad or problem.loss == "contrast":
        return fused(batch, weights, chosen)
    losses = fused(batch, None, choose(batch, replace(problem, reduction="none")))
    return rows.reduce(problem, losses, weights.double()).to(losses.dtype)


def prepared(
    loss: str,
    x: Tensor,
    y: Tensor,
    options: dict[str, Any],
    temperature: Temperature,
    candidates: Candidates,
    ids: Tensor | None,
    candidate_ids: CandidateIds,
    *,
    empty: bool = False,
) -> tuple[Problem, Batch]:
    """Check a loss call's options and tensors, and lay them out as the paths take them; ``empty`` allows no rows.

    Raises:
        TypeError, ValueError: see :mod:`ctloss.core.checks`.
    """
    problem = problem_for(loss, x.device.type if isinstance(x, Tensor) else "cpu", options)
    batch = checks.batch(
        x,
        y,
        problem,
        temperature_given=temperature,
        candidates_given=candidates,
        ids_given=ids,
        candidate_ids_given=candidate_ids,
        read=not isinstance(temperature, Tensor) or unwatched(temperature),
        empty=empty,
    )
    if torch.compiler.is_compiling() and not isinstance(batch.temperature, Tensor):
        # A number would be compiled in, so an annealed one would recompile at every step; a tensor does not.
        batch = batch._replace(temperature=torch.ones((), dtype=torch.float64) * batch.temperature)
    if problem.dims is not None:
        width = batch.x.shape[1]
        if max(problem.dims) > width:
            raise ValueError(
                f"dims: expected widths of at most the embeddings' {width} columns, got {problem.dims}; "
                "leave out the wider ones"
            )
        if max(problem.dims) < width:
            batch = narrowed(batch, max(problem.dims))
    return problem, batch


def _at_once(batch: Batch, weights: Tensor | None, problem: Problem) -> bool:
    """Whether one call serves all of ``dims``: the plan says so, and nothing needs operators, which know no widths.

    Otherwise there is one call per width.
    """
    if problem.dims is None:
        return True
    seen = transformed() or not unwatched(*batch.sides, batch.temperature, weights)
    return not seen and choose(batch, problem).nested


class Spread(NamedTuple):
    """A call whose rows lie on several ranks, as one of them sees it: its own part of every tensor.

    Attributes:
        ranks: who takes part; ``None`` if it is this one alone.
        across: how they do.
        x, y, weights: this rank's.
        tensors: temperature, candidates, ids and candidate ids.
        options: all others.
    """

    ranks: Ranks | None
    across: Across
    x: Tensor
    y: Tensor
    weights: Tensor | None
    tensors: tuple[Any, ...]
    options: dict[str, Any]

    @classmethod
    def of(cls, x: Any, y: Any, weights: Any, options: dict[str, Any], tensors: Sequence[Any]) -> Spread:
        """Take DTensors apart and leave out the options of ranks."""
        across, rest = across_ranks.taken(options)
        temperature, candidates, ids, candidate_ids = tensors
        x, group = across_ranks.local_rows("x", x, across.group)

        def local(name: str, given: Any) -> Any:
            if isinstance(given, list | tuple):
                return [local(name, one) for one in given]
            return across_ranks.local_rows(name, given, group)[0]

        tensors = temperature, local("candidates", candidates), local("ids", ids), local("candidate_ids", candidate_ids)
        ranks = None if group is None else Ranks.of(group)
        if ranks is not None and ranks.world == 1:
            ranks = None
        return cls(ranks, across, x, local("y", y), local("weights", weights), tensors, rest)


def _is_spread(x: object, options: Any) -> bool:
    return options.get("group") is not None or across_ranks.is_sharded(x)


def _alone(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call within this process, without those of ranks, which are checked all the same."""
    return options if across_ranks.OPTIONS.isdisjoint(options) else across_ranks.taken(options)[1]


def _loss(loss: str, x: Tensor, y: Tensor, weights: Tensor | None, options: Any, *tensors: Any) -> Tensor:
    if _is_spread(x, options):
        return _spread_loss(loss, x, y, weights, options, *tensors)
    problem, batch = prepared(loss, x, y, _alone(options), *tensors)
    if weights is not None:
        weights = checks.weights(weights, batch.x, problem.num_directions)
    if _at_once(batch, weights, problem):
        result: Tensor = _run(batch, weights, problem)
        return result
    flat = _flat(problem)
    return _sum_of_widths(problem, [_run(narrowed(batch, width), weights, flat) for width in problem.dims or ()])


@outside_graphs
def _spread_loss(loss: str, x: Tensor, y: Tensor, weights: Tensor | None, options: Any, *tensors: Any) -> Tensor:
    spread = Spread.of(x, y, weights, options, tensors)
    if spread.ranks is None:
        return _loss(loss, spread.x, spread.y, spread.weights, spread.options, *spread.tensors)
    problem, batch = prepared(loss, spread.x, spread.y, spread.options, *spread.tensors, empty=True)
    weights = checks.weights(spread.weights, batch.x, problem.num_directions)
    run = partial(of_ranks.loss, spread.across, spread.ranks, weights, problem)
    dtype, flat = output_dtype(batch.shape.dtype), _one_of_many(problem)
    if problem.dims is None:
        return run(problem, batch).to(dtype)
    return _sum_of_widths(problem, [run(flat, narrowed(batch, width)) for width in problem.dims]).to(dtype)


def _flat(problem: Problem) -> Problem:
    """The problem of one width."""
    return problem if problem.dims is None else replace(problem, dims=None, dim_weights=None)


def _one_of_many(problem: Problem) -> Problem:
    """The problem of one width, of which all keep what they need until the backward."""
    return replace(_flat(problem), workspace=problem.workspace // len(problem.dims or (1,)))


def _sum_of_widths(problem: Problem, losses: list[Tensor]) -> Tensor:
    total = sum(one * share for one, share in zip(losses, problem.dim_weights or (1.0,) * len(losses), strict=True))
    assert isinstance(total, Tensor)
    return total


@in_graphs
@takes("cz_nce")
def cz_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: Temperature = 0.07,
    candidates: Candidates = None,
    ids: Tensor | None = None,
    candidate_ids: CandidateIds = None,
    weights: Tensor | None = None,
    **options: Unpack[CZCall],
) -> Tensor:
    r"""CZ-NCE, the contrastive loss that crosses zero: the positive leaves the denominator.

    For the 2n rows of ``[x; y]``, with p(i) the positive of row i and s = cos / τ,

    .. math:: L_i = -\log \frac{e^{s_{i,p(i)}}}{\sum_{j \text{ negative}} e^{s_{ij}}} = z_i,

    equations (4) and (5) of Chen et al. 2022 (arXiv 2202.13083), averaged over both directions as in equation (2). The
    gradient is the stop-gradient ratio form (6): ∂L_i/∂s_ij is the softmax over the negatives and ∂L_i/∂s_i,p(i) is
    -1, at full size however small φ = e^z becomes. Also known as DCL (Yeh et al. 2022) and FlatNCE (Chen et al. 2021).
    A row without any negative (a single pair, or all of them left out) has loss 0 and a zero gradient.

    Args:
        x: ``(n, d)`` anchors; float32, float64, bfloat16 or float16; any strides; CPU or CUDA.
        y: ``(n, d)``: row i of y is the positive of row i of x. Same device; the dtype may differ.
        temperature: τ > 0: a float, or a tensor of one element, one per pair ``(n,)`` or one per anchor ``(2n,)``.
            Tensors receive a gradient. A CUDA tensor is not read on the host: a value ≤ 0 in it gives NaN.
        candidates: more rows that every row is compared with: ``(m, d)`` such as a queue, ``(n, k, d)`` such as hard
            negatives, or a list of these. Only those that require a gradient cost one.
        ids: ``(n,)`` integers, one per pair: two rows are negatives of each other only if their ids differ, which
            leaves out duplicates. ``None`` stands for 0 … n − 1.
        candidate_ids: the candidates' ids, in the shape of their rows; without them no candidate is left out.
        weights: ``(n,)`` or ``(2n,)`` weights of the row losses: ``"mean"`` is then Σ w L / Σ w, and 0 if all are 0.
        negatives: ``"both"``: every other row of both sides (the paper, NT-Xent). ``"cross"``: those of the other side
            (CLIP). ``"own"``: those of the row's own side. ``"none"``: the candidates only.
        directions: ``"both"``, or ``"x"``: only the n rows of x are anchors (queries to documents).
        normalize: cosine similarity if true (a zero row has cosine 0), plain dot products otherwise.
        margin: leave out negatives whose similarity, before the temperature, exceeds the positive's by more than this.
        dims: widths of nested embeddings (Matryoshka), such as ``(768, 256, 64)``: the loss is added up over them. On
            the torch path on a CPU all widths together cost the products of the widest; elsewhere, and under compilers
            and transforms, each width is one call.
        dim_weights: what the loss at each width is multiplied by; 1 each by default.
        reduction: ``"mean"`` over the rows, ``"sum"``, or ``"none"``: all rows, x's first.
        form: ``"log"`` returns z; ``"ratio"`` returns φ/sg(φ) of equation (6): 1, with the same gradient, bit for bit.
        precision: how carefully float32 products are formed on a GPU; the CPU is always at ``"highest"``.
        impl: ``"auto"``, or ``"reference"``, ``"native"``, ``"torch"``, ``"triton"``: a path named explicitly either
            runs or raises an error saying why; :func:`ctloss.explain` tells what would run.
        group: ranks whose rows are compared too: a ``ProcessGroup``, a one-dimensional ``DeviceMesh`` or ``"world"``.
            Each rank passes its own rows and gets W times its part of the loss that one process would have: with equal
            ranks the mean over its own anchors. Rows that are DTensors, sharded along rows, bring their own group.
        average: ``"mean"`` if gradients are averaged over ranks (DDP, FSDP), ``"sum"`` if they are added up; a rank's
            loss is then its part itself.
        even: the promise that all ranks bring as many rows and need the same gradients at every call, which saves an
            exchange of sizes.
        shared_candidates: candidates are the same on every rank, instead of each rank's own, and are not exchanged.

    Returns:
        The loss in float32 (float64 for float64 inputs): a scalar, or one number per row for ``"none"``: ``(2n,)``, or
        ``(n,)`` for ``directions="x"``.

    Raises:
        TypeError: for inputs that are not floating-point tensors, or an unknown option.
        ValueError: for shapes or devices that do not fit, a temperature that is not positive, or a wrong option.
        RuntimeError: if a path named explicitly cannot run; in the backward of a backward, on a fused path; with
            ``group``, on every rank if one of them makes another call or does not answer.

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
    return _loss("cz_nce", x, y, weights, options, temperature, candidates, ids, candidate_ids)


@in_graphs
@takes("info_nce")
def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: Temperature = 0.07,
    candidates: Candidates = None,
    ids: Tensor | None = None,
    candidate_ids: CandidateIds = None,
    weights: Tensor | None = None,
    **options: Unpack[LossCall],
) -> Tensor:
    r"""infoNCE over a batch of pairs, exact where the usual softmax-minus-one-hot loses the positive.

    For the 2n rows of ``[x; y]``, with p(i) the positive of row i and s = cos / τ,

    .. math:: L_i = -\log \frac{e^{s_{i,p(i)}}}{e^{s_{i,p(i)}} + \sum_{j \text{ negative}} e^{s_{ij}}}
              = \operatorname{softplus}(z_i),

    equation (1) of Chen et al. 2022 (arXiv 2202.13083), averaged over both directions as in equation (2). With
    ``negatives="both"`` this is NT-Xent (SimCLR); with ``negatives="cross"`` it is CLIP's loss; with
    ``negatives="cross", directions="x"`` it is the ranking loss of queries against documents, with hard negatives as
    candidates. A row without any negative has loss 0 and a zero gradient.

    Args:
        x: ``(n, d)`` anchors; see :func:`cz_nce` for this and all other arguments.
        y: ``(n, d)``: row i of y is the positive of row i of x.
        temperature: τ > 0: a float, or a tensor of one element, one per pair, or one per anchor.
        candidates: more rows that every row is compared with, ``(m, d)``, ``(n, k, d)``, or a list of these.
        ids: ``(n,)`` integers: two rows are negatives of each other only if their ids differ.
        candidate_ids: the candidates' ids.
        weights: ``(n,)`` or ``(2n,)`` weights of the row losses.
        negatives: ``"both"``, ``"cross"``, ``"own"`` or ``"none"``.
        directions: ``"both"`` or ``"x"``.
        normalize: cosine similarity if true.
        margin: leave out negatives whose similarity exceeds the positive's by more than this.
        dims: widths of nested embeddings (Matryoshka).
        dim_weights: what the loss at each width is multiplied by.
        reduction: ``"mean"`` over the rows, ``"sum"``, or ``"none"``: all rows, x's first.
        precision: how carefully float32 products are formed on a GPU.
        impl: ``"auto"``, or a path's name.
        group: ranks whose rows are compared too.
        average: ``"mean"`` or ``"sum"`` over ranks.
        even: the promise that ranks always bring as many rows.
        shared_candidates: candidates are the same on every rank.

    Returns:
        The loss in float32 (float64 for float64 inputs): a scalar, or one number per row for ``"none"``: ``(2n,)``, or
        ``(n,)`` for ``directions="x"``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`cz_nce`.

    Example:
        >>> import torch, ctloss
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> ctloss.info_nce(x, x, temperature=0.5, reduction="none")
        tensor([0.2395, 0.2395, 0.2395, 0.2395])
        >>> ctloss.info_nce(x, x, temperature=0.5, negatives="cross", directions="x", candidates=-x)
        tensor(0.2539)
    """
    return _loss("info_nce", x, y, weights, options, temperature, candidates, ids, candidate_ids)


@in_graphs
@takes("contrast")
def contrast(
    x: Tensor,
    y: Tensor,
    *,
    temperature: Temperature = 0.07,
    candidates: Candidates = None,
    ids: Tensor | None = None,
    candidate_ids: CandidateIds = None,
    **options: Unpack[PairCall],
) -> Contrast:
    r"""How every row compares with its negatives; the losses in :mod:`ctloss.objectives` are functions of this.

    For every anchor i, :math:`z_i = \log \sum_{j \text{ negative}} e^{s_{ij}} - s^+_i`, equation (5) of Chen et al.
    2022 (arXiv 2202.13083), and :math:`s^+_i`, the logit of its positive. Both are differentiable in every input, so
    your own loss takes one line: ``ctloss.contrast(x, y).z.exp().log1p().mean()`` is infoNCE.

    Args:
        x: ``(n, d)`` anchors; see :func:`cz_nce` for this and all other arguments.
        y: ``(n, d)``: row i of y is the positive of row i of x.
        temperature: τ > 0: a float, or a tensor of one element, one per pair, or one per anchor.
        candidates: more rows that every row is compared with, ``(m, d)``, ``(n, k, d)``, or a list of these.
        ids: ``(n,)`` integers: two rows are negatives of each other only if their ids differ.
        candidate_ids: the candidates' ids.
        negatives: ``"both"``, ``"cross"``, ``"own"`` or ``"none"``.
        directions: ``"both"`` or ``"x"``.
        normalize: cosine similarity if true.
        margin: leave out negatives whose similarity exceeds the positive's by more than this.
        dims: widths of nested embeddings: z and the positives' logits then have one row per width.
        precision: how carefully float32 products are formed on a GPU.
        impl: ``"auto"``, or a path's name.
        group: ranks whose rows are compared too.
        average: ``"mean"`` or ``"sum"`` over ranks.
        even: the promise that ranks always bring as many rows.
        shared_candidates: candidates are the same on every rank.

    Returns:
        A :class:`~ctloss.contrast.Contrast` of z and positive, ``(2n,)`` each (``(n,)`` for ``directions="x"``), x's
        rows first; in float32 (float64 for float64 inputs). A row without negatives has z = −∞ and a zero gradient.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`cz_nce`.

    Example:
        >>> import torch, ctloss
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> ctloss.contrast(x, x, temperature=0.5, directions="x")
        Contrast(z=tensor([-1.3069, -1.3069]), positive=tensor([2., 2.]))
    """
    return _contrast(x, y, dict(options), temperature, candidates, ids, candidate_ids)


def _contrast(x: Tensor, y: Tensor, options: dict[str, Any], *tensors: Any) -> Contrast:
    if _is_spread(x, options):
        return _spread_contrast(x, y, options, *tensors)
    problem, batch = prepared("contrast", x, y, _alone(options), *tensors)
    if _at_once(batch, None, problem):
        return Contrast(*_run(batch, None, problem))
    return _stacked([_run(narrowed(batch, width), None, _flat(problem)) for width in problem.dims or ()])


@outside_graphs
def _spread_contrast(x: Tensor, y: Tensor, options: dict[str, Any], *tensors: Any) -> Contrast:
    spread = Spread.of(x, y, None, options, tensors)
    if spread.ranks is None:
        return _contrast(spread.x, spread.y, spread.options, *spread.tensors)
    problem, batch = prepared("contrast", spread.x, spread.y, spread.options, *spread.tensors, empty=True)
    run = partial(of_ranks.contrast, spread.across, spread.ranks, problem)
    if problem.dims is None:
        return Contrast(*run(problem, batch))
    return _stacked([run(_one_of_many(problem), narrowed(batch, width)) for width in problem.dims])


def _stacked(of_widths: list[tuple[Tensor, Tensor]]) -> Contrast:
    return Contrast(*(torch.stack(one) for one in zip(*of_widths, strict=True)))


@takes("cz_nce")
def explain(
    x: Tensor,
    y: Tensor,
    *,
    loss: str = "cz_nce",
    temperature: Temperature = 0.07,
    candidates: Candidates = None,
    ids: Tensor | None = None,
    candidate_ids: CandidateIds = None,
    weights: Tensor | None = None,
    **options: Unpack[CZCall],
) -> Plan:
    """Which path and configuration a loss call with these arguments would run, and why; computes nothing.

    Args:
        x: ``(n, d)`` anchors; see :func:`cz_nce` for this and all other arguments.
        y: ``(n, d)``.
        loss: ``"cz_nce"``, ``"info_nce"`` or ``"contrast"``.

    Returns:
        A :class:`~ctloss.core.plan.Plan`, readable when printed.

    Raises:
        TypeError, ValueError, RuntimeError: as the loss itself would.

    Example:
        >>> import torch
        >>> print(explain(torch.zeros(4, 8), torch.zeros(4, 8), impl="reference"))
        reference: named explicitly
          computed in: float64
          memory: several matrices of 8 x 8
    """
    if loss not in ("contrast", "cz_nce", "info_nce"):
        raise ValueError(f"loss: expected one of 'contrast', 'cz_nce', 'info_nce', got {loss!r}")
    spread = Spread.of(x, y, weights, dict(options), (temperature, candidates, ids, candidate_ids))
    problem, batch = prepared(loss, spread.x, spread.y, spread.options, *spread.tensors, empty=spread.ranks is not None)
    weights = checks.weights(spread.weights, batch.x, problem.num_directions)
    if weights is not None and weights.requires_grad:
        problem = replace(problem, reduction="none")
    if spread.ranks is None:
        return choose(batch, problem)
    chosen = choose(batch if len(batch.x) else batch._replace(x=batch.x.new_empty(1, batch.x.shape[1])), problem)
    return replace(chosen, across=of_ranks.explained(spread.ranks, spread.across, batch, problem))
