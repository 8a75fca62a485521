"""The configuration of the Triton path's kernels, the order of their tiles, and panels that bound their memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise, product

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from ctloss.kernels.problem import Problem, Shape
from ctloss.kernels.triton_path.plan import layout, memory
from ctloss.kernels.triton_path.plan.config import (
    CDNA3,
    INTERPRETER,
    BlockConfig,
    are_many,
    choose,
    choose_flash,
    choose_formats,
    choose_small,
    flash_wins,
)
from ctloss.kernels.triton_path.plan.layout import CANDIDATES, X, Y, stack_of, wanted_spans
from ctloss.kernels.triton_path.tiles import tile_at

PROBLEM = Problem(workspace=1 << 28)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def configuration(dtype: torch.dtype, arch: int = 90, **options: object) -> BlockConfig:
    return choose(Shape(4096, 768, dtype=dtype), arch, replace(PROBLEM, **options))


def test_bfloat16_on_hopper() -> None:
    chosen = configuration(torch.bfloat16)
    assert (chosen.block, chosen.depth, chosen.num_warps, chosen.num_stages) == (128, 64, 8, 3)
    assert chosen.weight_dtype == torch.bfloat16


@pytest.mark.parametrize(("precision", "products"), [("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")])
def test_precision_is_explicit_for_float32(precision: str, products: str) -> None:
    """The kernels name their arithmetic, so no global TF32 switch affects them."""
    chosen = configuration(torch.float32, precision=precision)
    assert (chosen.products, chosen.weight_products) == (products, products)
    assert chosen.weight_dtype == torch.float32


def test_weights_keep_their_digits_where_nothing_removes_rounding() -> None:
    raw = configuration(torch.bfloat16, normalize=False)
    assert (raw.weight_dtype, raw.weight_terms, raw.weight_bytes) == (torch.bfloat16, 3, 6)
    assert configuration(torch.float16, normalize=False).weight_products == "tf32x3"
    assert not configuration(torch.float16, normalize=False).rounds_weights
    assert configuration(torch.float16).rounds_weights
    few = choose(Shape(64, 768, dtype=torch.bfloat16), 90, PROBLEM)
    assert (few.weight_dtype, few.weight_terms) == (torch.bfloat16, 3)
    seven = Shape(4096, 768, (7,), torch.bfloat16)
    assert choose(seven, 90, replace(PROBLEM, negatives="none")).weight_terms == 3
    assert choose(seven, 90, PROBLEM).weight_terms == 1
    assert not are_many(seven, replace(PROBLEM, negatives="none"))
    assert are_many(seven._replace(candidates=(7, 1017)), replace(PROBLEM, negatives="none"))
    assert configuration(torch.bfloat16).weight_terms == 1
    assert not configuration(torch.bfloat16).rounds_weights


def test_few_rows_are_multiplied_in_float64() -> None:
    for dtype in DTYPES:
        for few in (Shape(64, 768), Shape(30, 768, (60, 8)), Shape(1, 768, (126,))):
            assert choose(few._replace(dtype=dtype), 90, PROBLEM).products == "double"
        for more in (Shape(65, 768), Shape(30, 768, (60, 9)), Shape(1, 768, (127,))):
            assert choose(more._replace(dtype=dtype), 90, PROBLEM).products != "double"
    medium = replace(PROBLEM, precision="medium")
    assert choose(Shape(64, 768), 90, medium).products == "tf32"
    assert choose(Shape(64, 768, dtype=torch.float16), 90, medium).products == "double"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_float32_is_not_split_where_matrix_cores_take_it(dtype: torch.dtype, normalize: bool) -> None:
    for precision in ("highest", "high"):
        chosen = configuration(dtype, CDNA3, normalize=normalize, precision=precision)
        assert "tf32x3" not in (chosen.products, chosen.weight_products)
    assert configuration(dtype, 90, normalize=False, precision="high").weight_products == "tf32x3"
    assert configuration(torch.float32, CDNA3, precision="medium").weight_products == "tf32"


@pytest.mark.parametrize("arch", [INTERPRETER, 80, 89, 90, 100, 120, CDNA3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_no_tile_of_a_small_batch_crosses_the_sides(
    negatives: str, precision: str, dtype: torch.dtype, arch: int
) -> None:
    """Tiles, and steps of the gradient's sum, each lie within one side, and whole tiles cover it."""
    for n, normalize in product((1, 63, 64, 65, 128, 129, 256, 257, 320, 511, 512), (True, False)):
        problem = replace(PROBLEM, negatives=negatives, precision=precision, normalize=normalize)
        shape = Shape(n, 768, dtype=dtype)
        chosen, stack = choose_small(shape, arch, problem), stack_of(shape)
        padded = stack.padded
        for extent in (chosen.block, chosen.row_block, chosen.gradient_rows, chosen.gradient_depth):
            for first in range(0, 2 * padded, extent):
                assert first // padded == (first + extent - 1) // padded
        assert padded % chosen.row_block == layout.product_columns(stack, problem) % chosen.block == 0
        assert layout.product_columns(stack, problem) % chosen.gradient_depth == 0


@pytest.mark.parametrize("arch", [80, 89, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 64, 65, 128, 256, 257, 512])
def test_small_batches_occupy_a_device_with_whole_tiles(n: int, dtype: torch.dtype, arch: int) -> None:
    shape = Shape(n, 768, dtype=dtype)
    chosen = choose_small(shape, arch, PROBLEM)
    rows = 2 * stack_of(shape).padded
    for extent in (chosen.block, chosen.row_block, chosen.gradient_rows, chosen.gradient_depth):
        assert rows // 2 % extent == 0
    tiles = rows // chosen.block
    assert tiles * (tiles + 1) // 2 >= 10
    assert rows // chosen.gradient_rows * 768 // chosen.gradient_columns >= 96
    assert vars(choose_formats(shape, arch, PROBLEM)).items() <= vars(chosen).items()


@pytest.mark.parametrize(
    ("dtype", "options", "archs"),
    [
        (torch.bfloat16, {}, {89, 90}),
        (torch.bfloat16, {"normalize": False}, {90}),
        (torch.float16, {}, {90}),
        (torch.float16, {"normalize": False}, set()),
        (torch.float32, {}, set()),
        (torch.float32, {"precision": "medium"}, set()),
    ],
)
def test_weights_stay_in_registers_where_that_is_expected_to_win(
    dtype: torch.dtype, options: dict[str, object], archs: set[int]
) -> None:
    problem = replace(PROBLEM, **options)
    every = [INTERPRETER, 80, 89, 90, 100, CDNA3]

    def winning(n: int, d: int, asked: Problem = problem, **about: bool) -> set[int]:
        return {arch for arch in every if flash_wins(Shape(n, d, dtype=dtype, **about), arch, asked)}

    assert winning(4096, 64) == winning(4096, 1) == winning(4096, 64, masked=True) == archs
    assert winning(4096, 65) == ({90} if dtype == torch.float16 and problem.normalize else set())
    assert winning(4096, 129) == winning(64, 64) == set()
    assert winning(4096, 64, per_row=True) == winning(4096, 64, replace(problem, margin=0.1)) == set()
    for arch in every:
        shape = Shape(4096, 64, dtype=dtype)
        chosen = choose_flash(shape, arch, problem)
        assert stack_of(Shape(65, 64)).padded % chosen.block == chosen.block % chosen.row_block == 0
        assert vars(choose_formats(shape, arch, problem)).items() <= vars(chosen).items()


def test_products_are_kept_where_they_fit() -> None:
    both, cross = PROBLEM, replace(PROBLEM, negatives="cross")
    small = stack_of(Shape(512, 8))
    assert layout.product_floats(small, both) == 2 * layout.product_floats(small, cross) == 1 << 20
    assert layout.product_floats(stack_of(Shape(64, 8)), both) == 2 * 128**2
    assert layout.keeps_products(Shape(512, 8), both)
    assert not layout.keeps_products(Shape(513, 8), both)
    assert layout.keeps_products(Shape(512, 8), replace(both, workspace=1 << 22))
    assert not layout.keeps_products(Shape(512, 8), replace(both, workspace=(1 << 22) - 1))
    assert layout.keeps_products(Shape(512, 8), replace(cross, workspace=1 << 21))


def test_three_kernels_are_for_plain_calls() -> None:
    assert layout.keeps_products(Shape(20, 8), replace(PROBLEM, directions="x"))
    for options in ({"negatives": "own"}, {"negatives": "none"}, {"margin": 0.1}):
        assert not layout.keeps_products(Shape(20, 8), replace(PROBLEM, **options))
    for about in ({"candidates": (3,)}, {"masked": True}, {"per_row": True}):
        assert not layout.keeps_products(Shape(20, 8, **about), PROBLEM)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_that_need_two_sets_of_numbers_are_no_larger_than_their_registers(dtype: torch.dtype) -> None:
    shape = Shape(4096, 768, dtype=dtype)
    assert choose(shape, 90, replace(PROBLEM, margin=0.1)).block == 64
    per_row = choose(shape._replace(per_row=True), 90, PROBLEM)
    assert (per_row.block, per_row.row_block, per_row.keeps) == (64, 2, False)


def test_logits_are_kept_where_reading_them_back_is_faster() -> None:
    for dtype, normalize, kept, fewest in (
        (torch.bfloat16, True, torch.int16, 200),
        (torch.float16, True, torch.float32, 400),
        (torch.bfloat16, False, torch.float32, 400),
        (torch.float32, True, torch.float32, 80),
        (torch.float32, False, torch.float32, 80),
    ):
        for d in (fewest - 1, fewest):
            chosen = choose(Shape(4096, d, dtype=dtype), 90, replace(PROBLEM, normalize=normalize))
            assert (chosen.kept_dtype, chosen.keeps) == (kept, d == fewest)
    # With fewer pairs, weights keep more digits.
    assert choose(Shape(1023, 768, dtype=torch.bfloat16), 90, PROBLEM).kept_dtype == torch.float32


@pytest.mark.parametrize(
    ("n", "negatives", "workspace", "share"),
    [
        (512, "both", 2**30, 0),
        (1024, "both", 2**30, 1),
        (4096, "both", 2**30, 1),
        (4096, "both", 2**28, 1),
        (16384, "both", 2**30, 0.667),
        (16384, "cross", 2**30, 1),
        (16384, "both", 2**31, 1),
        (65536, "both", 2**30, 0),
    ],
)
def test_logits_are_kept_where_at_least_half_of_them_fit(n: int, negatives: str, workspace: int, share: float) -> None:
    problem = replace(PROBLEM, negatives=negatives, workspace=workspace)
    shape = Shape(n, 768, dtype=torch.bfloat16)
    chosen = choose(shape, 90, problem)
    kept = layout.kept_tiles(shape, chosen, problem)
    every = layout.num_tiles(layout.blocks(stack_of(shape), problem, chosen.block), chosen.block)
    assert kept / every == pytest.approx(share, abs=5e-4)


@given(
    n=st.integers(1, 2**18),
    m=st.integers(0, 2**18),
    d=st.integers(1, 2048),
    dtype=st.sampled_from(DTYPES),
    negatives=st.sampled_from(["both", "cross", "own", "none"]),
    arch=st.sampled_from([80, 90]),
    workspace=st.integers(2**20, 2**34),
)
def test_kept_logits_leave_room_for_shared_panels(
    n: int, m: int, d: int, dtype: torch.dtype, negatives: str, arch: int, workspace: int
) -> None:
    """Panels still have the largest useful size, so keeping logits slows nothing else down."""
    problem = replace(PROBLEM, negatives=negatives, workspace=workspace)
    shape = Shape(n, d, (m,), dtype)
    chosen, stack = choose(shape, arch, problem), stack_of(shape)
    kept = layout.kept_tiles(shape, chosen, problem)
    if kept:
        plan = memory.plan_backward(stack, chosen.weight_bytes, workspace - kept * layout.tile_bytes(chosen))
        assert plan.shared
        assert plan.size == min(layout.LARGEST_PANEL, max(2 * stack.padded, stack.num_rows - 2 * stack.padded))
        every = layout.num_tiles(layout.blocks(stack, problem, chosen.block), chosen.block)
        assert kept <= every <= 2 * kept


def test_rescaling_only_where_exponents_need_it() -> None:
    assert configuration(torch.bfloat16).rescale
    assert configuration(torch.float32).rescale
    assert not configuration(torch.float16).rescale
    assert not configuration(torch.float32, normalize=False).rescale


@pytest.mark.parametrize("arch", [INTERPRETER, 80, 89, 90, 100, CDNA3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pure_function_of_its_arguments(dtype: torch.dtype, arch: int) -> None:
    assert configuration(dtype, arch) == configuration(dtype, arch)


def test_frozen_and_checked() -> None:
    chosen = configuration(torch.float32)
    with pytest.raises(FrozenInstanceError):
        chosen.block = 32  # type: ignore[misc]
    with pytest.raises(ValueError, match="gemm_depth to divide 128"):
        replace(chosen, block=96)
    with pytest.raises(ValueError, match="gemm_columns to divide 64"):
        replace(chosen, gemm_columns=96)
    small = choose_small(Shape(300, 768), 90, PROBLEM)
    for name in ("block", "row_block", "gradient_rows", "gradient_depth"):
        for extent in (128, 48):
            with pytest.raises(ValueError, match=f"expected block, .*gradient_depth to divide 64.* {name}={extent}"):
                replace(small, **{name: extent})


@triton.jit
def list_tiles(out, tiles_m, tiles_n, TRIANGLE: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    a, b = tile_at(program, tiles_m, tiles_n, TRIANGLE, GROUP)
    tl.store(out + 2 * program, a)
    tl.store(out + 2 * program + 1, b)


def visited(tiles_m: int, tiles_n: int, triangle: bool, group: int) -> Counter[tuple[int, ...]]:
    programs = tiles_m * (tiles_m + 1) // 2 if triangle else tiles_m * tiles_n
    out = torch.full((programs, 2), -1, dtype=torch.int32, device=DEVICE)
    list_tiles[(programs,)](out, tiles_m, tiles_n, TRIANGLE=triangle, GROUP=group)
    return Counter(tuple(tile) for tile in out.tolist())


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 5, 8, 9])
def test_triangle_is_visited_once(tiles: int, group: int) -> None:
    expected = {(a, b) for a in range(tiles) for b in range(a, tiles)}
    assert visited(tiles, tiles, True, group) == Counter(expected)


@pytest.mark.parametrize(("tiles_m", "tiles_n", "group"), [(1, 1, 8), (3, 5, 2), (9, 2, 4), (2, 9, 8)])
def test_rectangle_is_visited_once(tiles_m: int, tiles_n: int, group: int) -> None:
    assert visited(tiles_m, tiles_n, False, group) == Counter(product(range(tiles_m), range(tiles_n)))


def served(panels: list[layout.Panel], shape: Shape) -> Counter[tuple[int, int]]:
    """How often each pair of an anchor and a row, neither of them padding, is served."""
    stack = stack_of(shape)
    counts = {X: shape.n, Y: shape.n, CANDIDATES: stack.m}
    found: Counter[tuple[int, int]] = Counter()
    for panel in panels:
        for i in range(*panel.rows):
            for j in range(*panel.columns):
                sides = stack.side(i), stack.side(j)
                rows = [row - stack.span(side)[0] for row, side in zip((i, j), sides, strict=True)]
                if any(row >= counts[side] for row, side in zip(rows, sides, strict=True)):
                    continue
                found[i, j] += 1
                if panel.serves_columns:
                    found[j, i] += 1
    return found


def compared(shape: Shape, problem: Problem) -> set[tuple[int, int]]:
    """The pairs of an anchor and a row that it is compared with, without padding."""
    stack = stack_of(shape)
    rows = [
        range(stack.span(side)[0], stack.span(side)[0] + count)
        for side, count in enumerate((shape.n, shape.n, stack.m))
    ]
    others = {"both": {X, Y}, "cross": {1}, "own": {0}, "none": set()}[problem.negatives]
    found: set[tuple[int, int]] = set()
    for anchor in (X, Y)[: problem.num_directions]:
        sides = others if problem.negatives == "both" else {anchor ^ other for other in others}
        for side in (*sides, CANDIDATES):
            found |= set(product(rows[anchor], rows[side]))
    return found


EVERY = [
    (shape, {"negatives": negatives, "directions": directions})
    for shape in (Shape(5, 8), Shape(150, 8), Shape(70, 8, (20, 60)), Shape(3, 8, (150,)))
    for negatives in ("both", "cross", "own", "none")
    for directions in ("both", "x")
]


@pytest.mark.parametrize(("shape", "options"), EVERY, ids=str)
def test_panels_serve_every_comparison_once(shape: Shape, options: dict[str, str]) -> None:
    problem = replace(PROBLEM, **options)
    stack = stack_of(shape)
    blocks = layout.blocks(stack, problem, 64)
    expected = Counter(compared(shape, problem))
    for size in (128, 4096):
        assert served(list(layout.panels(blocks, size, stack)), shape) == expected
    tiles = sum(block.tiles(64) for block in blocks)
    assert layout.num_tiles(blocks, 64) == tiles
    assert [block.tiles_before for block in blocks] == [
        sum(block.tiles(64) for block in blocks[:position]) for position in range(len(blocks))
    ]


@pytest.mark.parametrize(("shape", "options"), EVERY, ids=str)
def test_partners_are_all_rows_that_a_gradient_sums_over(shape: Shape, options: dict[str, str]) -> None:
    problem = replace(PROBLEM, **options)
    stack = stack_of(shape)
    pairs = compared(shape, problem)
    for side in (X, Y, CANDIDATES):
        start, stop = stack.span(side)
        rows = {j for i, j in pairs if start <= i < stop} | {i for i, j in pairs if start <= j < stop}
        spans = layout.partners(side, stack, problem)
        assert {stack.side(row) for row in rows} == {
            other for other in (X, Y, CANDIDATES) for span in spans if span[0] <= stack.span(other)[0] < span[1]
        }


# Held rows from none to all of those wanted, in one side or several.
@pytest.mark.parametrize("held", [0, 128, 192, 320, 4096])
@pytest.mark.parametrize(("shape", "options"), EVERY, ids=str)
@pytest.mark.parametrize("needs", [(True, True, True, True), (True, False, True, False), (False, True, False, True)])
def test_runs_meet_every_partner_once(
    shape: Shape, options: dict[str, str], needs: tuple[bool, ...], held: int
) -> None:
    """Of every wanted row; and weights are formed twice only for two rows of which neither is held."""
    problem = replace(PROBLEM, **options)
    stack = stack_of(shape)
    wanted = wanted_spans(needs[: 2 + len(shape.candidates)], stack)
    if not wanted:
        return
    plan = memory.BackwardPlan(128, 64, False, held)
    is_held = torch.zeros(stack.num_rows, dtype=torch.bool)
    for span in memory.held_spans(wanted, plan):
        is_held[slice(*span)] = True
    assert is_held.sum() == min(held, sum(map(layout.length, wanted)))
    # How often each pair is served, and how often its weights are formed outside the squares on the diagonal.
    met, formed = torch.zeros(2, stack.num_rows, stack.num_rows, dtype=torch.int32)
    finished: list[int] = []
    for run in memory.runs(wanted, plan, stack, problem):
        assert is_held[slice(*run.rows)].eq(run.held).all()
        finished += range(*run.rows)
        for panel, serves_columns in run.panels:
            assert panel.rows == run.rows
            assert panel.pairs <= max(plan.size * plan.columns, 128**2)
            square = slice(*panel.rows), slice(*panel.columns)
            met[square] += 1
            formed[square] += not panel.diagonal
            if serves_columns:
                assert is_held[square[1]].all()
                met[square[::-1]] += 1
    assert sorted(finished) == [row for span in wanted for row in range(*span)]
    expected = torch.zeros_like(met)
    for span in wanted:
        for partner in layout.partners(stack.side(span[0]), stack, problem):
            expected[slice(*span), slice(*partner)] += 1
    assert torch.equal(met, expected)
    twice = formed + formed.T > 1
    assert not (twice & (is_held[:, None] | is_held[None, :])).any()


@given(
    n=st.integers(1, 3000),
    candidates=st.lists(st.integers(0, 3000), max_size=4),
    needs=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_wanted_spans_hold_the_sides_needed(n: int, candidates: list[int], needs: list[bool]) -> None:
    """In order, without overlap, in whole tiles."""
    stack = stack_of(Shape(n, 8, tuple(candidates)))
    needed = needs[: 2 + len(candidates)]
    spans = wanted_spans(needed, stack)
    assert all(first < last for first, last in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(end % stack.padding == 0 for span in spans for end in span)
    assert spans == [] or spans[-1][1] <= stack.num_rows
    sides = [(side * stack.padded, side * stack.padded + n) for side in (X, Y)] + stack.candidate_spans()
    for (first, last), need in zip(sides, needed, strict=True):
        if need and first < last:
            assert any(start <= first and last <= stop for start, stop in spans)


@given(
    n=st.integers(1, 2**20),
    m=st.integers(0, 2**20),
    d=st.integers(1, 1024),
    weight_bytes=st.sampled_from([2, 4, 6]),
    workspace=st.integers(2**20, 2**34),
)
def test_plans_stay_within_the_workspace(n: int, m: int, d: int, weight_bytes: int, workspace: int) -> None:
    stack = stack_of(Shape(n, d, (m,)))
    plan = memory.plan_backward(stack, weight_bytes, workspace)
    rows = stack.num_rows if plan.shared else plan.size + plan.held
    sums = rows * stack.width * 4
    assert plan.size % 64 == plan.columns % 64 == plan.held % 64 == 0
    assert plan.size * plan.columns * weight_bytes + sums <= workspace
    assert plan.shared == (plan.held == stack.num_rows)
    for planes, block in product((2, 3), (32, 64, 128)):
        size = layout.forward_panel(stack, block, planes, workspace)
        assert 2 * planes * size * (size // block) * 4 <= workspace
