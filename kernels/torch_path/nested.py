"""Nested embeddings (Matryoshka): the losses at all widths of ``dims`` from one pass over the columns.

With u the rows over their lengths and ``r_l,i = |u_i[:d_l]|`` the lengths of their first ``d_l`` columns, the products

    P_l(i, j) = Σ_{c < d_l} u_ic u_jc,        cos_l(i, j) = P_l(i, j) / (r_l,i r_l,j),

of one width continue those of the next narrower one, so all of them together cost what the widest costs. Logits,
exclusions and sums are separate for each width. The gradient goes from the widest to the narrowest. With ``W_l`` the
weights of the pairs at width l (:mod:`.gradient`), its column c is

    Σ_j V_ij u_jc − R_i u_ic,    V = Σ_{l: d_l > c} W_l / (r_l,i r_l,j),    R = Σ_{l: d_l > c} Σ_j W_l,ij cos_l / r_l,i²

over the row's length, where positives are pairs with the weight ``−b``. R, a row's radial part at each width, is summed
from the panels, except at the widest width, where it is the gradient's component along u. At the other widths the two
sums cancel but have been rounded separately, so both are added up in float64. Without normalisation there is neither r
nor R.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..problem import Batch, Forward, Problem, Shape, narrowed
from . import engine
from .denominators import Denominators, OptimisticSums, RunningSums, subtract_shift
from .engine import Held
from .gradient import SCRATCH_ENTRIES, Run, Weights, add_products, add_pull, runs, touches
from .layout import FEW_ROWS, Layout, Panel, layout
from .logits import CHUNK, LN2, Logits, base2_scale, gather_ids
from .products import ExactProducts
from .rows import BLOCK_ENTRIES, Rows, accumulation_dtype, blocks, prepare, unit_rows

# Bounds on the largest entry of a row's first columns, relative to the row's length if normalised. Beyond them products
# with it, or their divisors, would leave float32's range.
LEAST_ENTRY, LARGEST_ENTRY = 2.0**-20, 2.0**40


@dataclass(frozen=True)
class Width:
    """One width of a batch.

    Attributes:
        columns: those that the next narrower width lacks.
        logits: what its logits are formed from apart from products: positives, limits, scale, ids.
        inverse: ``(m,)`` 1/r of the stacked rows, 0 for rows of zeros; ``None`` where every r is 1.
    """

    columns: slice
    logits: Logits
    inverse: Tensor | None

    def fill(self, panel: Panel, products: Tensor, out: Tensor) -> Tensor:
        """Write a panel's logits.

        Args:
            panel: which anchors and columns.
            products: those of the next narrower width, times the scale if it is a number; replaced by this width's.
            out: matrix to write.

        Returns:
            ``out``.
        """
        anchors, others = slice(panel.start, panel.stop), slice(panel.first, panel.last)
        rows, scale = self.logits.rows.stacked, self.logits.scale
        tall, wide = rows[anchors], rows[others].t()
        alpha = 1.0 if isinstance(scale, Tensor) else scale
        for start in range(self.columns.start, self.columns.stop, CHUNK):
            part = slice(start, min(start + CHUNK, self.columns.stop))
            torch.addmm(products, tall[:, part], wide[part], beta=int(start > 0), alpha=alpha, out=products)
        if self.inverse is None:
            out.copy_(products)
        else:
            torch.mul(products, self.inverse[anchors, None], out=out).mul_(self.inverse[others])
        if isinstance(scale, Tensor):
            out.mul_(scale[anchors, None])
        return self.logits.exclude(panel, out)


@dataclass
class State:
    """What the backward needs of the forward.

    Attributes:
        batch: the tensors.
        plan: which panels.
        widths: narrowest first.
        places: the place of each width in ``dims``.
        lengths: ``(K, m)`` float64, r of every row at every width.
        sums: of every width.
        kept: logits of every panel at every width; ``None`` if not kept.
    """

    batch: Batch
    plan: Layout
    widths: list[Width]
    places: list[int]
    lengths: Tensor
    sums: list[Denominators]
    kept: list[list[Tensor]] | None


@dataclass
class Apart:
    """The states of one call per width, in the order of ``dims``."""

    states: list[engine.State]


def describe(shape: Shape, problem: Problem) -> dict[str, object]:
    """The configuration that would run.

    Example:
        >>> describe(Shape(512, 256), Problem(dims=(256, 64)))["widths"]
        'one pass over the columns; one call each for rows that are not finite or all but vanish at a width'
    """
    found = engine.describe(_worked_in(shape, problem), problem)
    rule = "one pass over the columns; one call each for rows that are not finite or all but vanish at a width"
    return {**found, "widths": rule}


def _worked_in(shape: Shape, problem: Problem) -> Shape:
    """The shape as computed: no wider than the widest width, and few rows in float64."""
    assert problem.dims is not None
    few = 2 * shape.n + sum(shape.candidates) <= FEW_ROWS
    return shape._replace(d=max(problem.dims), dtype=torch.float64 if few else shape.dtype)


def forward(batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
    """z and the positives' logits of all anchors at every width.

    Args:
        batch: the sides, as wide as the widest of ``problem.dims``, on the CPU.
        problem: the loss call's options.
        moment: find Σ_j P_ij s_ij − s⁺_i too.
        gradient: whether :func:`backward` may follow.

    Returns:
        The :class:`~..problem.Forward`; every tensor has one row per width, in the order of ``dims``.

    Example:
        >>> eye = torch.eye(2)
        >>> forward(Batch(eye, eye, temperature=1.0), Problem(dims=(2, 1)), moment=False, gradient=False).z
        tensor([[-0.3069, -0.3069, -0.3069, -0.3069],
                [-0.3069,  0.6931, -0.3069,  0.6931]], dtype=torch.float64)
    """
    assert problem.dims is not None
    plan = layout(_worked_in(batch.shape, problem), problem)
    ends = sorted(problem.dims)
    lengths, products, steady = _prefixes(batch, ends, problem.normalize)
    if not steady:
        return _one_by_one(batch, problem, moment=moment, gradient=gradient)
    with ExactProducts("cpu"):
        dtype = _worked_in(batch.shape, problem).dtype
        rows = prepare(batch.sides, problem.normalize, dtype)
        widths = _widths(batch, problem, rows, ends, lengths, products)
        keep: list[list[Tensor]] | None = [] if plan.keep and gradient else None
        sums = _sums(widths, problem, plan, keep, moment=moment)
        if problem.by_row and rows.stacked.dtype == torch.float32:
            for width, end, found in zip(widths, ends, sums, strict=True):
                engine.sum_dominated_again(found, narrowed(batch, end), width.logits, problem, plan)
    places = [problem.dims.index(end) for end in ends]
    order = [ends.index(end) for end in problem.dims]
    lse = torch.stack([sums[place].lse for place in order])
    base2 = torch.stack([widths[place].logits.positive(problem.num_directions) for place in order])
    z, positive, mean = (lse - base2).mul_(LN2), None, None
    if moment or problem.loss == "contrast":
        positive = base2 * LN2
    if moment and positive is not None:
        means = torch.stack([one for one in (sums[place].mean for place in order) if one is not None])
        mean = torch.where(lse == -torch.inf, 0.0, means - positive)
    return Forward(z, positive, mean, State(batch, plan, widths, places, lengths, sums, keep))


def _one_by_one(batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
    """The forward as one call per width."""
    assert problem.dims is not None
    flat = replace(problem, dims=None, dim_weights=None)
    found = [engine.forward(narrowed(batch, width), flat, moment=moment, gradient=gradient) for width in problem.dims]
    positives = [one.positive for one in found if one.positive is not None]
    moments = [one.moment for one in found if one.moment is not None]
    return Forward(
        torch.stack([one.z for one in found]),
        torch.stack(positives) if positives else None,
        torch.stack(moments) if moments else None,
        Apart([one.state for one in found]),
    )


def _prefixes(batch: Batch, ends: list[int], normalize: bool) -> tuple[Tensor, Tensor, bool]:
    """Lengths of the rows' first columns, and products of the pairs' first columns, at every width in float64.

    Args:
        batch: the sides.
        ends: the widths, ascending.
        normalize: take the rows over their lengths.

    Returns:
        ``(K, m)`` lengths, ``(K, n)`` products, and whether all rows are finite and, at every width, zero or of
        ordinary size.
    """
    n, count = batch.x.shape[0], sum(batch.sizes)
    lengths = torch.zeros((len(ends), count), dtype=torch.float64)
    largest = torch.zeros_like(lengths)
    products = torch.zeros((len(ends), n), dtype=torch.float64)
    for parts, places in blocks(batch.sides, max(1, BLOCK_ENTRIES // ends[-1])):
        units = [unit_rows(part, normalize) for part in parts]
        for width, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            segments = [unit[:, first:last] for unit in units]
            for segment, place in zip(segments, places, strict=True):
                lengths[width, place] = segment.square().sum(1)
                largest[width, place] = torch.linalg.vector_norm(segment, torch.inf, dim=1)
            if len(segments) == 2:
                products[width, places[0]] = torch.linalg.vecdot(*segments)
    largest = torch.cummax(largest, 0).values
    ordinary = largest <= LARGEST_ENTRY
    if normalize:
        ordinary &= (largest >= LEAST_ENTRY) | (largest == 0)
    return lengths.cumsum(0).sqrt_(), products.cumsum(0), bool(ordinary.all())


def _widths(
    batch: Batch, problem: Problem, rows: Rows, ends: list[int], lengths: Tensor, products: Tensor
) -> list[Width]:
    """Every width's positives, limits and inverse lengths."""
    n, scale, ids = batch.x.shape[0], base2_scale(batch.temperature), gather_ids(batch)
    widths = []
    for place, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
        stacked, positive, inverse = rows.stacked[:, :last], products[place], None
        if problem.normalize:
            both = lengths[place, :n] * lengths[place, n : 2 * n]
            positive = torch.where(both > 0, positive / both, 0.0)
            if place < len(ends) - 1:
                # From the rounded rows, so that rounding has no radial part.
                exact = torch.linalg.vector_norm(stacked, dim=1, dtype=torch.float64)
                inverse = torch.where(exact > 0, 1 / exact, 0.0).to(stacked.dtype)
        limits = None
        if problem.margin is not None:
            limits = (positive.repeat(problem.num_directions) + problem.margin) * scale
        of_width = Rows(stacked, None, positive, rows.norms, rows.exponents)
        widths.append(Width(slice(first, last), Logits(of_width, n, scale, ids, limits), inverse))
    return widths


def _sums(
    widths: list[Width], problem: Problem, plan: Layout, kept: list[list[Tensor]] | None, *, moment: bool
) -> list[Denominators]:
    """The sums over the negatives at every width: optimistic if that works for all, else running."""
    like = widths[-1].logits.rows.stacked
    shares = problem.by_row and like.dtype == torch.float32
    second = like.new_empty(plan.largest)
    shift = engine.choose_shift(widths[-1].logits, problem)
    shifted = bool(shift.any()) if isinstance(shift, Tensor) else bool(shift)
    if shifted and any(width.inverse is not None and (width.inverse == 0).any() for width in widths):
        # The same as for rows of zeros.
        shift = None
    if shift is not None:
        optimistic = [OptimisticSums(like, plan, shift, moment=moment, shares=shares, second=second) for _ in widths]
        _add_panels(widths, optimistic, plan, kept)
        results = [one.result(None) for one in optimistic]
        found = [one for one in results if one is not None]
        if len(found) == len(widths):
            return found
        if kept is not None:
            kept.clear()
    running = [RunningSums(like, plan, moment=moment, second=second) for _ in widths]
    _add_panels(widths, running, plan, kept)
    return [one.result(None) for one in running]


def _add_panels(
    widths: list[Width],
    sums: Sequence[OptimisticSums | RunningSums],
    plan: Layout,
    kept: list[list[Tensor]] | None,
) -> None:
    like = widths[-1].logits.rows.stacked
    memory = [like.new_empty(plan.largest) for _ in range(2)]
    for panel in plan.panels:
        products, entries = (_view(one, panel) for one in memory)
        of_widths = []
        for width, one in zip(widths, sums, strict=True):
            width.fill(panel, products, entries)
            if kept is not None:
                of_widths.append(entries.clone())
            one.add(entries, panel)
        if kept is not None:
            kept.append(of_widths)


def _view(memory: Tensor, panel: Panel) -> Tensor:
    return memory[: panel.height * panel.width].view(panel.height, panel.width)


def backward(
    state: State | Apart, a: float | Tensor, b: float | Tensor, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of ``Σ_l Σ_i a_li lse_li − b_li s⁺_li`` with respect to the sides' rows.

    Args:
        state: from the forward; may be used again.
        a: ``(K, rows)`` float64 in the order of ``dims``, or what broadcasts to it; 0 for rows without negatives.
        b: the same for the positives; may be ``a``.
        needs: which sides need a gradient.

    Returns:
        One tensor per side, in its dtype; ``None`` where not needed.
    """
    batch = state.batch if isinstance(state, State) else state.states[0].batch
    return release(hold(state, a, b, needs), 1.0, tuple(side.dtype for side in batch.sides))


def hold(
    state: State | Apart,
    a: float | Tensor,
    b: float | Tensor,
    needs: tuple[bool, ...],
    largest: float | None = None,
) -> Held | list[Held]:
    """What :func:`backward` returns, before a factor that is only known later; ``largest`` as in :mod:`.engine`."""
    if isinstance(state, Apart):
        shape = len(state.states), len(state.states[0].lse)
        wide_a, wide_b = (torch.as_tensor(one, dtype=torch.float64).expand(shape) for one in (a, b))
        return [
            engine.hold(one, of_a, of_a if b is a else of_b, needs, largest)
            for one, of_a, of_b in zip(state.states, wide_a, wide_b, strict=True)
        ]
    if not any(needs):
        return Held([None] * len(needs), None, 0)
    shape = len(state.widths), state.plan.num_anchors
    wide = torch.as_tensor(a, dtype=torch.float64).expand(shape)
    pulls = wide if b is a else torch.as_tensor(b, dtype=torch.float64).expand(shape)
    if state.widths[-1].logits.rows.norms is not None and state.widths[0].columns.stop == 1:
        # A single column over its length is ±1 whatever its value, and many such terms do not cancel exactly.
        constant = torch.arange(len(state.widths)).unsqueeze(1) == state.places[0]
        wide, same = wide.masked_fill(constant, 0.0), pulls is wide
        pulls = wide if same else pulls.masked_fill(constant, 0.0)
    scaled_a, scaled_b, bits = engine.scaled(wide, pulls, state.batch.temperature, largest)
    assert isinstance(scaled_a, Tensor)
    assert isinstance(scaled_b, Tensor)
    with ExactProducts("cpu"):
        found = _gradients(state, scaled_a[state.places], scaled_b[state.places], needs)
    exponents = state.widths[-1].logits.rows.exponents
    return Held(found, None if exponents is None else list(exponents.split(state.batch.sizes)), bits)


def release(
    held: Held | list[Held], factor: float | Tensor, dtypes: tuple[torch.dtype, ...], *, last: bool = False
) -> list[Tensor | None]:
    """Held gradients times a factor; arguments and result as in :mod:`.engine`."""
    if isinstance(held, Held):
        return engine.release(held, factor, dtypes, last=last)
    wide = tuple(accumulation_dtype(dtype) for dtype in dtypes)
    sides = zip(*(engine.release(one, factor, wide) for one in held), strict=True)
    gradients: list[Tensor | None] = []
    for of_widths, dtype in zip(sides, dtypes, strict=True):
        some = [one for one in of_widths if one is not None]
        if not some:
            gradients.append(None)
            continue
        total = max(some, key=lambda one: one.shape[1]).clone()
        for one in some:
            if one.shape[1] < total.shape[1]:
                total[:, : one.shape[1]] += one
        gradients.append(total.to(dtype))
    return gradients


def _gradients(state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """The sides' gradients from panels of every width, in the scale of a and b, narrowest width first."""
    plan, widths, sizes = state.plan, state.widths, state.batch.sizes
    rows = widths[-1].logits.rows
    dtype = rows.stacked.dtype
    # Subtracting a centre would lengthen a row that is short at some width.
    least, most = torch.aminmax(state.lengths, dim=1)
    centre = rows.stacked.mean(0).mul_(bool((2 * least > most).all()))
    centred = rows.stacked - centre
    weights = [engine.weigh(sums, of_width, plan, dtype) for sums, of_width in zip(state.sums, a, strict=True)]
    wanted = runs(rows, sizes, needs)
    segments = [[Run(run.start, run.stop, run.gradient[:, width.columns]) for run in wanted] for width in widths]
    for of_width in segments[:-1]:
        for run in of_width:
            run.gradient = torch.zeros_like(run.gradient, dtype=torch.float64)
    sums, radial = torch.zeros((2, len(widths), plan.count), dtype=torch.float64)
    panels = _Panels(state, weights)
    for index, panel in enumerate(plan.panels):
        if not any(touches(run, panel) for run in wanted):
            continue
        total = None
        for place, entries in panels.weights(index, panel, radial):
            inverse = widths[place].inverse
            if inverse is not None:
                entries.mul_(inverse[panel.start : panel.stop, None]).mul_(inverse[panel.first : panel.last])
            total = entries if total is None else total.add_(entries)
            add_products(segments[place], sums[place], total, centred[:, widths[place].columns], panel)
    # Kept panels are consumed; another call forms them again.
    state.kept = None
    pull, total_radial = torch.zeros(plan.n, dtype=torch.float64), torch.zeros(plan.count, dtype=torch.float64)
    for place in reversed(range(len(widths))):
        width, of_pairs = widths[place], engine.of_pairs(b[place], plan)
        n, columns = plan.n, width.columns
        if width.inverse is None:
            pull = pull + of_pairs
        else:
            inverse_lengths = width.inverse.double()
            pull = pull + of_pairs * inverse_lengths[:n] * inverse_lengths[n : 2 * n]
            of_positives = of_pairs * width.logits.rows.positive
            radial[place, :n] -= of_positives
            radial[place, n : 2 * n] -= of_positives
            total_radial = total_radial + radial[place] * inverse_lengths.square()
        for run in segments[place]:
            here = slice(run.start, run.stop)
            kind = run.gradient.dtype
            others = centred[:, columns].to(kind)
            add_pull(run, sums[place], pull.to(kind), others, n)
            # u is the centre plus a rest; where all rows are alike, the coefficients of the centre cancel.
            along = (sums[place, here] - total_radial[here]).to(kind)
            run.gradient.addcmul_(along[:, None], centre[columns].to(kind))
            run.gradient.addcmul_(total_radial[here, None].to(kind), others[here], value=-1)
    for index, run in enumerate(wanted):
        for width, of_width in zip(widths[:-1], segments, strict=False):
            run.gradient[:, width.columns] = of_width[index].gradient
        rows.project(run.gradient, slice(run.start, run.stop))
    return engine.of_sides(wanted, sizes, needs)


class _Panels:
    """Panels of weights at every width, from logits that are kept or formed again."""

    def __init__(self, state: State, weights: list[Weights]) -> None:
        self.widths, self.of_widths, self.kept = state.widths, weights, state.kept
        like = state.widths[-1].logits.rows.stacked
        largest, widest = state.plan.largest, max((panel.width for panel in state.plan.panels), default=1)
        self.scratch = like.new_empty(max(widest, min(SCRATCH_ENTRIES, largest)))
        # Holds products while logits are formed, then logits while weights are formed.
        self.other = like.new_empty(largest)
        self.memory = [like.new_empty(largest) for _ in state.widths] if self.kept is None else []
        scale = state.widths[-1].logits.scale
        self.per_logit = (1 / scale).to(like.dtype) if isinstance(scale, Tensor) else 1 / scale

    def weights(self, index: int, panel: Panel, radial: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every width's weights, the widest first; their radial parts are added up on the way.

        Args:
            index: of the panel.
            panel: the panel.
            radial: ``(K, m)``, modified.

        Yields:
            The width's place and its weights, which may be modified.
        """
        other = _view(self.other, panel)
        if self.kept is not None:
            of_widths = self.kept[index]
            self.kept[index] = []
        else:
            of_widths = [_view(one, panel) for one in self.memory]
            for width, entries in zip(self.widths, of_widths, strict=True):
                width.fill(panel, other, entries)
        for place in reversed(range(len(self.widths))):
            entries, weights = of_widths[place], self.of_widths[place]
            has_radial = self.widths[place].inverse is not None
            if has_radial:
                other.copy_(entries)
            if weights.per_sum is not None:
                subtract_shift(entries, weights.shift, panel).exp2_()
            weights.apply(panel, entries, self.scratch)
            if has_radial:
                self._add_radial(radial[place], other.mul_(entries), panel)
            yield place, entries

    def _add_radial(self, radial: Tensor, products: Tensor, panel: Panel) -> None:
        """Add a panel's weights times cosines, given the weights times logits."""
        per_logit = self.per_logit
        if isinstance(per_logit, Tensor):
            products.mul_(per_logit[panel.start : panel.stop, None])
        else:
            products.mul_(per_logit)
        radial[panel.start : panel.stop] += products.sum(1)
        radial[panel.outside : panel.last] += products[:, panel.outside - panel.first :].sum(0)
