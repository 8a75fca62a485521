"""Two ranks' rows against each other, on every path: within bounds derived from the arithmetic of single precision."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from ctloss.kernels.blocks import Anchors, Sums, native, torch_path
from ctloss.kernels.native import library
from ctloss.kernels.problem import Batch, Problem
from ctloss.reference.eager import unit_rows
from ctloss.reference.ranks import block
from support.acceptance import OUTPUT_ROUNDING, SCALES, SideRows, check_rows, within
from support.calls import noisy, peak_bytes
from support.regimes import Candidates, Case, cases
from support.triton_calls import Blocks
from support.truth import FINENESS, norms

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MODULES = [torch_path] if library.kernels is None else [torch_path, native]
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
every_path = pytest.mark.parametrize(
    "module", [*MODULES, Blocks], ids=lambda module: module.__name__.rpartition(".")[2]
)
# Triton's interpreter is slow, so it has few cases: each option, one panel and several, products in both formats.
INTERPRETED = [
    (Case("random", 23, 9, candidates=(Candidates(5), Candidates(4, need=False))), 8, 256 << 20),
    (Case("zeros", 72, 5, temperature=0.01, candidates=(Candidates(40),)), 66, 1),
    (Case("hard", 90, 12, dtype=torch.float16, directions="x", ids=7, candidates=(Candidates(9, ids=True),)), 40, 1),
    (Case("scaled", 20, 7, negatives="own", directions="x", margin=0.6, candidates=(Candidates(6),)), 12, 256 << 20),
    (Case("random", 20, 7, negatives="cross", temperatures="rows", normalize=False, margin=0.5), 7, 256 << 20),
    (Case("random", 9, 70, negatives="none", temperatures="tensor", candidates=(Candidates(9),)), 8, 256 << 20),
]


class Truth(NamedTuple):
    """One rank's logits against another's rows, and the positives' logits."""

    logits: Tensor
    positive: Tensor

    @property
    def lse(self) -> Tensor:
        return torch.logsumexp(self.logits, 1)


def split(case: Case, at: int, *, fewer: bool) -> tuple[Batch, Batch]:
    """A case's batch as that of two ranks; the second without the last candidates if it is to have fewer sides."""
    batch = case.batch()
    sides = [(side[:at], side[at:]) for side in (batch.x, batch.y)]
    sides += [(side[: len(side) // 3], side[len(side) // 3 :]) for side in batch.candidates]
    ids = [batch.ids, *(batch.candidate_ids or [None] * len(batch.candidates))]
    ranks = []
    for rank in (0, 1):
        own = [side[rank] for side in sides]
        own_ids = [None if part is None or batch.ids is None else part for part in ids]
        cuts = [at, *(len(side) // 3 for side in batch.candidates)]
        own_ids = [
            None if part is None else (part[:cut], part[cut:])[rank] for part, cut in zip(own_ids, cuts, strict=True)
        ]
        temperature = batch.temperature
        if isinstance(temperature, Tensor) and temperature.dim():
            temperature = torch.cat([(part[:at], part[at:])[rank] for part in temperature.view(-1, case.n)])
        if rank and fewer:
            own, own_ids = own[: max(2, len(own) - 1)], own_ids[: max(1, len(own_ids) - 1)]
        ranks.append(Batch(own[0], own[1], tuple(own[2:]), temperature, own_ids[0], tuple(own_ids[1:])))
    return ranks[0], ranks[1]


def truth(own: Batch, other: Batch, problem: Problem) -> Truth:
    """By the definition, in float64."""
    options: dict[str, Any] = {name: getattr(problem, name) for name in ("negatives", "directions", "normalize")}
    other_ids = [other.ids, other.ids, *(other.candidate_ids or [None] * len(other.candidates))]
    found = block(
        own.x,
        own.y,
        other.sides,
        temperature=own.temperature,
        ids=own.ids,
        other_ids=other_ids,
        margin=problem.margin,
        **options,
    )
    return Truth(*found)


def per_logit(own: Batch, other: Batch, found: Truth, problem: Problem) -> float:
    """The relative error of a weight, from the largest logit before its products cancel."""
    units = [_units(batch, problem).abs() for batch in (own, other)]
    n, count = len(own.x), len(found.positive)
    temperature = torch.as_tensor(own.temperature, dtype=torch.float64).reshape(-1, 1)
    of_pairs = (units[0][:n] * units[0][n : 2 * n]).sum(1).repeat(count // n)[:, None]
    sizes = (units[0][:count] @ units[1].T).masked_fill(found.logits == -torch.inf, 0.0)
    largest = (torch.cat((sizes, of_pairs), 1) / temperature).max().item()
    dtype = torch.promote_types(own.shape.dtype, other.shape.dtype)
    return (5e-7 + 1e-7 * largest) * FINENESS.get(dtype, 1.0)


def _units(batch: Batch, problem: Problem) -> Tensor:
    wide = torch.cat([side.double() for side in batch.sides])
    return unit_rows(wide) if problem.normalize else wide


def check_sums(sums: Sums, exact: Truth, allowed: float, *, moment: bool) -> None:
    """z relative to max(1, |z|), −∞ where nothing is compared; the moment relative to its terms' sizes."""
    z = exact.lse - exact.positive
    empty = z == -torch.inf
    assert (sums.z.dtype, sums.z.shape) == (torch.float64, z.shape)
    assert torch.equal(sums.z == -torch.inf, empty)
    within("z", sums.z[~empty], z[~empty], z[~empty].abs().clamp_min(1) * allowed)
    assert (sums.moment is not None) == moment
    if sums.moment is not None:
        finite = exact.logits.masked_fill(exact.logits == -torch.inf, 0.0)
        softmax = torch.where(empty[:, None], 0.0, torch.exp(exact.logits - exact.lse[:, None]))
        wanted = torch.where(empty, 0.0, (softmax * finite).sum(1) - exact.positive)
        size = (softmax * finite.abs()).sum(1) + exact.positive.abs()
        assert (sums.moment[empty] == 0).all()
        # A logit is off by units of its terms, however small they leave it.
        within("moment", sums.moment, wanted, size.clamp_min(1) * allowed)


def weights_of(exact: Truth, seed: int, size: float, decades: float) -> Anchors:
    """Weights of either sign, some of them 0, and sums that other blocks have added to."""
    generator = torch.Generator().manual_seed(seed)
    count = len(exact.positive)
    normal, more, spread = (torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(3))
    a = normal * size * 10 ** (-decades * spread.sigmoid())
    a[torch.rand(count, generator=generator) < 0.2] = 0
    lse = torch.where(exact.lse == -torch.inf, exact.positive, exact.lse)
    # Nothing says what an anchor without weight comes with.
    return Anchors(a, torch.where(a == 0, more, torch.logaddexp(lse, lse + 3 * more)))


def check_pull(
    module: Any,
    own: Batch,
    other: Batch,
    problem: Problem,
    exact: tuple[Truth, Truth],
    anchors: tuple[Anchors, Anchors],
    needs: tuple[bool, ...],
    allowed: float,
) -> None:
    """The gradient by the derivative of Σ a_i exp(lse_i of the block − lse_i), which is a_i lse_i's over its pairs."""
    leaves = [side.double().clone().requires_grad_() for side in own.sides]
    own_wide = own._replace(x=leaves[0], y=leaves[1], candidates=tuple(leaves[2:]))
    wide = truth(own_wide, other, problem), truth(other, own_wide, problem)
    total = sum(
        ((of.logits - bound.lse[:, None]).masked_fill(bound.a[:, None] == 0, -torch.inf).exp() * bound.a[:, None]).sum()
        for of, bound in zip(wide, anchors, strict=True)
    )
    assert isinstance(total, Tensor)
    wanted = torch.autograd.grad(total, leaves, materialize_grads=True)

    units = [_units(batch, problem) for batch in (own, other)]
    lengths = [torch.linalg.vector_norm(part, dim=1) for part in units]
    matrices = []
    for of, bound in zip(exact, anchors, strict=True):
        shares = (of.logits - bound.lse[:, None]).masked_fill(bound.a[:, None] == 0, -torch.inf).exp()
        matrices.append(shares * bound.a.abs()[:, None])
    for matrix, batch in zip(matrices, (own, other), strict=True):
        matrix /= torch.as_tensor(batch.temperature, dtype=torch.float64).reshape(-1, 1)
    sizes = matrices[1].T @ lengths[1][: len(matrices[1])]
    sizes[: len(matrices[0])] += matrices[0] @ lengths[1]
    raw = norms(*own.sides) if problem.normalize else torch.ones_like(sizes)
    cancelling = torch.where(raw > 0, sizes / raw, 0.0)

    found = module.pull(own, other, problem, *anchors, needs)
    accumulated = torch.promote_types(torch.promote_types(own.shape.dtype, other.shape.dtype), torch.float32)
    finfo = torch.finfo(accumulated)
    root = own.x.shape[1] ** 0.5
    parts = zip(found, wanted, cancelling.split(own.sizes), raw.split(own.sizes), needs, strict=True)
    for gradient, gradient_wanted, size, scale, need in parts:
        assert (gradient is not None) == need
        if gradient is None:
            continue
        assert (gradient.shape, gradient.dtype) == (gradient_wanted.shape, accumulated)
        rows = SideRows(
            found=gradient.double(),
            exact=gradient_wanted,
            cancelling=size,
            scale=scale,
            rounding=torch.zeros_like(scale),
            smallest=torch.full_like(scale, finfo.smallest_normal * root),
            underflow=torch.full_like(scale, finfo.smallest_normal * finfo.eps * root),
        )
        kept = (gradient_wanted.abs() <= finfo.max).all(1)
        if kept.any():
            check_rows(SideRows(*(part[kept] for part in rows)), allowed)


def check(module: Any, own: Batch, other: Batch, problem: Problem, seed: int, needs: tuple[bool, ...]) -> None:
    """Hold both functions to the bounds, and the inputs unchanged."""
    before = [side.clone() for batch in (own, other) for side in batch.sides]
    exact = truth(own, other, problem), truth(other, own, problem)
    allowed = max(per_logit(own, other, exact[0], problem), per_logit(other, own, exact[1], problem))
    for mutual, moment in ((False, False), (True, True)):
        of_own, of_other = module.meet(own, other, problem, mutual=mutual, moment=moment)
        check_sums(of_own, exact[0], allowed, moment=moment)
        assert (of_other is not None) == mutual
        if of_other is not None:
            check_sums(of_other, exact[1], allowed, moment=moment)
    if module is native and all(side.dtype == torch.bfloat16 for batch in (own, other) for side in batch.sides):
        # Processors that multiply such rows take weights that are rounded to their dtype.
        allowed += OUTPUT_ROUNDING[torch.bfloat16]
    size, decades = SCALES[seed % 4], 30.0 * (seed // 4 % 2)
    anchors = (
        weights_of(exact[0], seed, size, decades),
        weights_of(exact[1], seed + 1, size, decades),
    )
    check_pull(module, own, other, problem, exact, anchors, needs, allowed)
    after = [side for batch in (own, other) for side in batch.sides]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True)), "an input was modified"


@every_module
@given(
    case=cases(max_n=140, max_d=96, dtypes=DTYPES).filter(lambda case: case.n > 1),
    share=st.floats(0, 1),
    fewer=st.booleans(),
    by_row=st.booleans(),
    workspace=st.sampled_from([1, 256 << 20]),
)
@example(Case("random", 60, 5, negatives="none"), 0.5, False, False, 1)
@example(Case("zeros", 65, 5, temperature=0.01, candidates=(Candidates(9),)), 0.5, False, True, 1)
def test_within_the_derived_bounds(
    module: Any, case: Case, share: float, fewer: bool, by_row: bool, workspace: int
) -> None:
    own, other = split(case, 1 + round(share * (case.n - 2)), fewer=fewer)
    problem = case.problem(loss="contrast" if by_row else "cz_nce", form="log", workspace=workspace)
    if by_row:
        problem = replace(problem, reduction="none")
    check(module, own, other, problem, case.seed, case.needs)


@pytest.mark.parametrize(("case", "at", "workspace"), INTERPRETED)
def test_the_triton_path_is_within_them(case: Case, at: int, workspace: int) -> None:
    own, other = split(case, at, fewer=False)
    check(Blocks, own, other, case.problem(workspace=workspace), at, case.needs)


def test_ranks_of_two_temperatures_are_within_them_on_the_triton_path() -> None:
    own, other = split(Case("random", 20, 9), 12, fewer=False)
    check(Blocks, own, other._replace(temperature=torch.tensor(0.02)), Problem(), 0, (True, True))


@every_module
@pytest.mark.parametrize("negatives", ["both", "cross", "own", "none"])
@pytest.mark.parametrize("directions", ["both", "x"])
def test_a_tall_block_is_within_them_too(module: Any, directions: str, negatives: str) -> None:
    """More anchors than a panel is high, on either side; one temperature and two."""
    case = Case("random", 600, 9, negatives=negatives, directions=directions, candidates=(Candidates(33),))
    for temperature, at in itertools.product((0.07, 0.02), (270, 330)):
        own, other = split(case, at, fewer=False)
        check(module, own, other._replace(temperature=temperature), case.problem(), 0, case.needs)


@every_path
def test_anchors_with_nothing_to_meet_are_no_error(module: Any) -> None:
    x, y = noisy(4, 3)
    own, other = Batch(x[:2], y[:2]), Batch(x[2:], y[2:])
    problem = Problem(negatives="none")
    for of_rank in module.meet(own, other, problem, mutual=True, moment=True):
        assert of_rank.z.tolist() == [-torch.inf] * 4
        assert of_rank.moment.tolist() == [0.0] * 4
    zero = torch.zeros(4, dtype=torch.float64)
    for gradient in module.pull(own, other, problem, Anchors(zero, zero), Anchors(zero, zero), (True, True)):
        assert (gradient == 0).all()


@every_path
def test_a_row_that_is_not_finite_gives_nan_where_it_is_met(module: Any) -> None:
    x, y = noisy(6, 3)
    y[4, 1] = torch.inf
    own, other = Batch(x[:3], y[:3]), Batch(x[3:], y[3:])
    of_own, of_other = module.meet(own, other, Problem(negatives="cross"), mutual=True, moment=False)
    assert of_own.z.isnan().tolist() == [True] * 3 + [False] * 3
    # Its pair has a NaN for a positive.
    assert of_other.z.isnan().tolist() == [False, True, False, False, True, False]


@every_module
@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_a_row_that_one_negative_dominates_is_exact(module: Any, negatives: str) -> None:
    """Where single rows are returned, a row must not carry the full rounding error of one float32 product."""
    x, y = noisy(80, 256, noise=0.1)
    x[40:] = x[:40] + 1e-3 * y[40:]
    y[40:] = x[:40] + 1e-3 * y[40:]
    for tau in (0.01, 0.05):
        own, other = Batch(x[:40], y[:40], (), tau), Batch(x[40:], y[40:], (), tau)
        problem = Problem(loss="contrast", negatives=negatives)
        for found, ranks in zip(
            module.meet(own, other, problem, mutual=True, moment=False), ((own, other), (other, own)), strict=True
        ):
            exact = truth(*ranks, problem)
            check_sums(found, exact, 5e-7 + 1e-7 / tau, moment=False)


@every_module
@pytest.mark.parametrize("idle", [True, False])
def test_logits_of_any_size_have_weights(module: Any, idle: bool) -> None:
    """Dot products whose exponentials are no float32, of an anchor with a weight and of one without."""
    x, y = (0.1 * side for side in noisy(80, 7))
    own, other = Batch(x[:40], y[:40], temperature=1.0), Batch(x[40:], y[40:], temperature=1.0)
    own.x[3], other.y[5] = 20.0, 20.0
    problem = Problem(normalize=False, negatives="cross")
    exact = truth(own, other, problem), truth(other, own, problem)
    anchors = [Anchors(torch.ones(80, dtype=torch.float64), of.lse.clone()) for of in exact]
    if idle:
        for of, anchor in zip(anchors, (3, 45), strict=True):
            of.a[anchor], of.lse[anchor] = 0.0, 1.0
    allowed = per_logit(own, other, exact[0], problem)
    check_pull(module, own, other, problem, exact, (anchors[0], anchors[1]), (True, True), allowed)


def test_the_torch_path_needs_no_optimistic_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is within the bounds by plain exponentials is so by running maxima, and with weights from log-sum-exps."""
    case = Case("random", 150, 12, candidates=(Candidates(20),), ids=70)
    own, other = split(case, 70, fewer=False)
    check(torch_path, own, other, case.problem(), 0, case.needs)
    monkeypatch.setattr(torch_path, "choose_shift", lambda logits, problem: None)
    check(torch_path, own, other, case.problem(), 0, case.needs)


@every_module
@pytest.mark.parametrize("limit", [1 << 20, 4 << 20])
def test_memory_stays_within_the_workspace(module: Any, limit: int) -> None:
    n, d = 600, 8
    x, y = noisy(2 * n, d)
    own, other = Batch(x[:n], y[:n]), Batch(x[n:], y[n:])
    problem = Problem(workspace=limit)
    one = torch.ones(2 * n, dtype=torch.float64)
    both = Anchors(one, one), Anchors(one, one)
    # Outputs and vectors of one number a row come on top.
    allowed = limit + 2 * n * d * 4 + 32 * 4 * n * 8
    assert peak_bytes(lambda: module.meet(own, other, problem, mutual=True, moment=True)) <= allowed
    assert peak_bytes(lambda: module.pull(own, other, problem, *both, (True, True))) <= allowed


@every_module
def test_repeats_are_bitwise_equal(module: Any) -> None:
    case = Case("random", 150, 12, candidates=(Candidates(20),))
    own, other = split(case, 70, fewer=False)
    one = torch.ones(140, dtype=torch.float64), torch.ones(160, dtype=torch.float64)
    anchors = [Anchors(ones, 20 * ones) for ones in one]
    for _ in range(2):
        sums = [module.meet(own, other, case.problem(), mutual=True, moment=True) for _ in range(2)]
        assert all(torch.equal(a, b) for one, two in zip(*sums, strict=True) for a, b in zip(one, two, strict=True))
        pulls = [module.pull(own, other, case.problem(), *anchors, (True, True, True)) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*pulls, strict=True))
