"""The block kernels' configuration, the order of their tiles, and the panels that bound their memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError, replace
from itertools import product

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from ctloss.kernels.problem import Problem
from ctloss.kernels.triton_path import schedule
from ctloss.kernels.triton_path.config import (
    CDNA3,
    INTERPRETER,
    BlockConfig,
    choose,
    choose_flash,
    choose_formats,
    choose_small,
    flash_wins,
)
from ctloss.kernels.triton_path.tiles import tile_at

PROBLEM = Problem("cz_nce", "both", True, "mean", "highest", 1 << 28)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def configuration(dtype: torch.dtype, arch: int = 90, **options: object) -> BlockConfig:
    return choose(4096, 768, dtype, arch, replace(PROBLEM, **options))


def test_bfloat16_on_hopper() -> None:
    chosen = configuration(torch.bfloat16)
    assert (chosen.block, chosen.depth, chosen.num_warps, chosen.num_stages) == (128, 64, 8, 3)
    assert chosen.weight_dtype == torch.bfloat16


@pytest.mark.parametrize(("precision", "products"), [("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")])
def test_precision_is_explicit_for_float32(precision: str, products: str) -> None:
    """The kernels name their arithmetic, so no global switch for TF32 reaches them."""
    chosen = configuration(torch.float32, precision=precision)
    assert (chosen.products, chosen.weight_products) == (products, products)
    assert chosen.weight_dtype == torch.float32


def test_weights_keep_what_nothing_removes_the_rounding_of() -> None:
    raw = configuration(torch.bfloat16, normalize=False)
    assert (raw.weight_dtype, raw.weight_terms, raw.weight_bytes) == (torch.bfloat16, 3, 6)
    assert configuration(torch.float16, normalize=False).weight_products == "tf32x3"
    assert not configuration(torch.float16, normalize=False).rounds_weights
    assert configuration(torch.float16).rounds_weights
    few = choose(64, 768, torch.bfloat16, 90, PROBLEM)
    assert (few.weight_dtype, few.weight_terms) == (torch.bfloat16, 3)
    assert configuration(torch.bfloat16).weight_terms == 1
    assert not configuration(torch.bfloat16).rounds_weights


def test_few_rows_are_multiplied_in_float64() -> None:
    for dtype in DTYPES:
        assert choose(64, 768, dtype, 90, PROBLEM).products == "double"
        assert choose(65, 768, dtype, 90, PROBLEM).products != "double"
    medium = replace(PROBLEM, precision="medium")
    assert choose(64, 768, torch.float32, 90, medium).products == "tf32"
    assert choose(64, 768, torch.float16, 90, medium).products == "double"


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
    """First rows of tiles and of steps in the gradient's sum, each tile of one side alone and none left over."""
    for n, normalize in product((2, 63, 64, 65, 128, 129, 256, 257, 320, 511, 512), (True, False)):
        problem = replace(PROBLEM, negatives=negatives, precision=precision, normalize=normalize)
        chosen = choose_small(n, dtype, arch, problem)
        padded = schedule.padded_rows(n)
        for extent in (chosen.block, chosen.row_block, chosen.gradient_rows, chosen.gradient_depth):
            for first in range(0, 2 * padded, extent):
                assert first // padded == (first + extent - 1) // padded
        assert padded % chosen.row_block == schedule.product_columns(n, problem) % chosen.block == 0
        assert schedule.product_columns(n, problem) % chosen.gradient_depth == 0


@pytest.mark.parametrize("arch", [80, 89, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 64, 65, 128, 256, 257, 512])
def test_small_batches_occupy_a_device_with_whole_tiles(n: int, dtype: torch.dtype, arch: int) -> None:
    chosen = choose_small(n, dtype, arch, PROBLEM)
    rows = 2 * schedule.padded_rows(n)
    for extent in (chosen.block, chosen.row_block, chosen.gradient_rows, chosen.gradient_depth):
        assert schedule.padded_rows(n) % extent == 0
    tiles = rows // chosen.block
    assert tiles * (tiles + 1) // 2 >= 10
    assert rows // chosen.gradient_rows * 768 // chosen.gradient_columns >= 96
    assert vars(choose_formats(n, dtype, arch, PROBLEM)).items() <= vars(chosen).items()


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
    assert {arch for arch in every if flash_wins(4096, 64, dtype, arch, problem)} == archs
    assert {arch for arch in every if flash_wins(4096, 1, dtype, arch, problem)} == archs
    wider = {90} if dtype == torch.float16 and problem.normalize else set()
    assert {arch for arch in every if flash_wins(4096, 65, dtype, arch, problem)} == wider
    assert not any(flash_wins(4096, 129, dtype, arch, problem) for arch in every)
    assert not any(flash_wins(64, 64, dtype, arch, problem) for arch in every)
    for arch in every:
        chosen = choose_flash(4096, dtype, arch, problem)
        assert schedule.padded_rows(65) % chosen.block == chosen.block % chosen.row_block == 0
        assert vars(choose_formats(4096, dtype, arch, problem)).items() <= vars(chosen).items()


def test_products_are_kept_where_they_fit() -> None:
    both, cross = PROBLEM, replace(PROBLEM, negatives="cross")
    assert schedule.product_floats(512, both) == 2 * schedule.product_floats(512, cross) == 1 << 20
    assert schedule.product_floats(64, both) == 2 * 128**2
    assert schedule.keeps_products(512, both)
    assert not schedule.keeps_products(513, both)
    assert schedule.keeps_products(512, replace(both, workspace=1 << 22))
    assert not schedule.keeps_products(512, replace(both, workspace=(1 << 22) - 1))
    assert schedule.keeps_products(512, replace(cross, workspace=1 << 21))


def test_logits_are_kept_where_they_are_read_back_sooner() -> None:
    for dtype, normalize, kept, fewest in (
        (torch.bfloat16, True, torch.int16, 200),
        (torch.float16, True, torch.float32, 400),
        (torch.bfloat16, False, torch.float32, 400),
        (torch.float32, True, torch.float32, 80),
        (torch.float32, False, torch.float32, 80),
    ):
        for d in (fewest - 1, fewest):
            chosen = choose(4096, d, dtype, 90, replace(PROBLEM, normalize=normalize))
            assert (chosen.kept_dtype, chosen.keeps) == (kept, d == fewest)
    # Fewer pairs keep more digits of their weights.
    assert choose(1023, 768, torch.bfloat16, 90, PROBLEM).kept_dtype == torch.float32


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
    chosen = choose(n, 768, torch.bfloat16, 90, problem)
    kept = schedule.kept_tiles(n, 768, chosen, problem)
    assert kept / schedule.num_tiles(n, chosen.block, problem) == pytest.approx(share, abs=5e-4)


@given(
    n=st.integers(2, 2**18),
    d=st.integers(1, 2048),
    dtype=st.sampled_from(DTYPES),
    negatives=st.sampled_from(["both", "cross"]),
    arch=st.sampled_from([80, 90]),
    workspace=st.integers(2**20, 2**34),
)
def test_kept_logits_leave_room_for_shared_panels(
    n: int, d: int, dtype: torch.dtype, negatives: str, arch: int, workspace: int
) -> None:
    """Of any size that is of use: what is kept slows nothing else down."""
    problem = replace(PROBLEM, negatives=negatives, workspace=workspace)
    chosen = choose(n, d, dtype, arch, problem)
    kept = schedule.kept_tiles(n, d, chosen, problem)
    if kept:
        plan = schedule.plan_backward(n, d, chosen.weight_bytes, workspace - kept * schedule.tile_bytes(chosen))
        assert plan.shared
        assert plan.size == min(schedule.LARGEST_PANEL, 2 * schedule.padded_rows(n))
        assert kept <= schedule.num_tiles(n, chosen.block, problem) <= 2 * kept


def test_rescaling_only_where_exponents_ask_for_it() -> None:
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
    with pytest.raises(ValueError, match="expected no halves where products are summed in float64"):
        replace(chosen, products="double", halves="apart")
    small = choose_small(300, torch.float32, 90, PROBLEM)
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


def served(panels: list[schedule.Panel], n: int, both_sides: bool) -> Counter[tuple[int, int]]:
    """How often each ordered pair of the 2n rows is served, pairs that are left out and padding not counted."""
    padded = schedule.padded_rows(n)
    found: Counter[tuple[int, int]] = Counter()
    for panel in panels:
        for i in range(panel.a_start, panel.a_stop):
            for j in range(panel.b_start, panel.b_stop):
                (row_side, row), (column_side, column) = divmod(i, padded), divmod(j, padded)
                if row == column or row >= n or column >= n:
                    continue
                pair = row_side * n + row, column_side * n + column
                found[pair] += 1
                if both_sides and not panel.diagonal:
                    found[pair[::-1]] += 1
    return found


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("n", [5, 100, 128, 150])
def test_panels_serve_every_negative_once(n: int, negatives: str) -> None:
    problem = replace(PROBLEM, negatives=negatives)
    expected = {
        (i, j)
        for i in range(2 * n)
        for j in range(2 * n)
        if i % n != j % n and (negatives == "both" or i // n != j // n)
    }
    assert served(list(schedule.unordered_panels(n, 128, problem)), n, both_sides=True) == Counter(expected)
    runs = [
        panel
        for side in (schedule.X, schedule.Y)
        for rows in schedule.side_runs(n, 128, side)
        for panel in schedule.row_panels(n, 256, side, rows, problem)
    ]
    assert served(runs, n, both_sides=False) == Counter(expected)


@given(
    n=st.integers(2, 2**20),
    d=st.integers(1, 1024),
    weight_bytes=st.sampled_from([2, 4, 6]),
    workspace=st.integers(2**20, 2**34),
)
def test_plans_stay_within_the_workspace(n: int, d: int, weight_bytes: int, workspace: int) -> None:
    plan = schedule.plan_backward(n, d, weight_bytes, workspace)
    rows = 2 * schedule.padded_rows(n) if plan.shared else plan.size
    sums = rows * schedule.padded_width(d) * 4
    assert plan.size % 128 == 0
    assert plan.size**2 * weight_bytes + sums <= workspace
    for planes, block in product((2, 3), (32, 64, 128)):
        size = schedule.forward_panel(n, block, planes, workspace)
        assert 2 * planes * size * (size // block) * 4 <= workspace
