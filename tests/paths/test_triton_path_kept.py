"""Logits that the Triton path keeps from the forward for the backward."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from ctloss.kernels.problem import Problem, Shape
from ctloss.kernels.triton_path import engine, gradient, kept, tiles, weights
from ctloss.kernels.triton_path.plan import config, layout
from support.regimes import Candidates, Case, cases
from support.triton_calls import (
    DEVICE,
    DTYPES,
    Counted,
    both_passes,
    chain_of,
    check,
    in_panels,
    pairs,
    problem,
    shape_of,
)

pytestmark = pytest.mark.numeric

# The regimes whose weights may be rounded: many negatives of similar size.
ROUNDED = [
    Case("random", 40, 33),
    Case("random", 45, 70, negatives="cross", temperature=0.2, need=(True, False, True)),
    Case("random", 70, 20, need=(False, True, True), candidates=(Candidates(40),)),
    Case("collapsed", 33, 33, negatives="cross", temperature=0.065),
    Case("collapsed", 97, 40, strides="transposed", directions="x"),
    Case("identical", 65, 17, need=(False, True, False)),
    Case("zeros", 40, 20, strides="padded", negatives="own"),
    Case("scaled", 35, 64, negatives="cross", temperature=1.0),
]
# Each kind of block that tiles are counted in, and what leaves out pairs.
BLOCKS: list[dict[str, Any]] = [
    {"negatives": "both"},
    {"negatives": "cross"},
    {"negatives": "own", "candidates": (Candidates(40), Candidates(9))},
    {"negatives": "both", "directions": "x", "ids": 20, "candidates": (Candidates(90, need=False, ids=True),)},
    {"negatives": "none", "candidates": (Candidates(140),), "margin": 0.6},
]


def keep(patch: pytest.MonkeyPatch, many_pairs: int = config.MANY_PAIRS) -> None:
    """Compute every batch in panels and keep its logits; in 16 bits from ``many_pairs`` on.

    float16 stands in for bfloat16, which the interpreter cannot do.
    """
    in_panels(patch)
    patch.setattr(config, "COARSE", config.HALF_PRECISION)
    for name in ("FEW_PAIRS", "TENSOR_COLUMNS", "PLAIN_COLUMNS"):
        patch.setattr(config, name, 0)
    patch.setattr(config, "MANY_PAIRS", many_pairs)


def forget(patch: pytest.MonkeyPatch) -> None:
    """Form logits again instead."""
    for name in ("TENSOR_COLUMNS", "PLAIN_COLUMNS"):
        patch.setattr(config, name, 1 << 20)


def kept_share(shape: Shape, asked: Problem) -> float:
    """The share of a call's tiles that are kept."""
    count, every = str(engine.describe(shape, asked)["kept_tiles"]).split(" of ")
    return int(count) / int(every) if int(every) else 1.0


def test_acceptance_with_kept_logits() -> None:
    @settings(max_examples=settings().max_examples // 2)
    @given(cases(max_n=48, max_d=70, dtypes=DTYPES))
    def accepted(case: Case) -> None:
        with pytest.MonkeyPatch.context() as patch:
            keep(patch)
            # With a temperature for each row, no logits are kept.
            shape = shape_of(case)
            assert kept_share(shape, case.problem()) == (not shape.per_row) or "0 of 0" in str(
                engine.describe(shape, case.problem())["kept_tiles"]
            )
            check(case, chain_of(case))

    accepted()


@pytest.mark.parametrize("case", ROUNDED, ids=lambda case: f"{case.regime}-{case.n}x{case.d}-{case.negatives}")
def test_acceptance_with_kept_cosines(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits, with weights that are rounded as coarsely."""
    keep(monkeypatch, many_pairs=2)
    for dtype in DTYPES[1:]:
        half = replace(case, dtype=dtype, seed=0)
        chosen = config.choose(shape_of(half), config.INTERPRETER, problem())
        assert chosen.keeps
        assert chosen.kept_dtype == torch.int16
        check(half, chain_of(half))


@pytest.mark.parametrize(
    ("options", "normalize", "tau"),
    [
        *((options, True, 0.07) for options in BLOCKS),
        *((BLOCKS[place], *about) for place in (0, 4) for about in ((True, 0.005), (False, 0.07))),
    ],
    ids=str,
)
@pytest.mark.usefixtures("poisoned")
def test_kept_float32_logits_are_those_formed_again(
    options: dict[str, Any], normalize: bool, tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, whether all logits are kept or only as many as fit; cut at their end, panels are added otherwise."""
    case = Case("random", 70, 40, normalize=normalize, temperature=tau, **options)
    batch, asked = pairs(case), case.problem(workspace=1 << 28)
    keep(monkeypatch)
    assert kept_share(batch.shape, asked) == 1
    assert kept_share(batch.shape, replace(asked, workspace=1 << 17)) == 0
    narrow = next(
        tried
        for tried in (replace(asked, workspace=workspace) for workspace in range(1 << 20, 1 << 17, -5000))
        if kept_share(batch.shape, tried) < 0.8
    )
    assert kept_share(batch.shape, narrow) >= 0.5
    every = both_passes(batch, asked)
    on_device = batch._replace(temperature=torch.tensor(tau, dtype=torch.float64, device=DEVICE))
    cut = both_passes(on_device, narrow)
    monkeypatch.setattr(gradient, "edge_of", lambda *about: None)
    some = both_passes(on_device, narrow)
    forget(monkeypatch)
    assert kept_share(batch.shape, asked) == 0
    none = both_passes(batch, asked)
    assert all(map(torch.equal, every, none))
    assert all(map(torch.equal, some, none))
    assert all(map(torch.equal, cut[:3], none[:3]))
    for one, other in zip(cut[3:], none[3:], strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("options", BLOCKS[:4], ids=str)
def test_panels_are_cut_where_kept_tiles_end(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is kept, a panel is told to hold all, some or none of its tiles as one by one they would say."""
    case = Case("random", 700, 8, **options)
    stack = layout.stack_of(shape_of(case))
    blocks = layout.blocks(stack, case.problem(), 64)
    places = {
        (block, a, b): block.tiles_before + (b * (b + 1) // 2 if block.square else b * high) + a
        for block in blocks
        for high, wide in [(layout.length(block.rows) // 64, layout.length(block.columns) // 64)]
        for b in range(wide)
        for a in range(min(high, b + 1) if block.square else high)
    }
    every = layout.num_tiles(blocks, 64)
    assert sorted(places.values()) == list(range(every))
    shares = set()
    for num_kept in range(0, every + 1, 13):
        edge = kept.edge_of(blocks, num_kept, 64)
        for size in (256, 4096):
            for panel in layout.panels(blocks, size, stack, edge):
                held = [
                    place < num_kept
                    for (block, a, b), place in places.items()
                    if block is panel.block
                    and panel.rows[0] <= block.rows[0] + 64 * a < panel.rows[1]
                    and panel.columns[0] <= block.columns[0] + 64 * b < panel.columns[1]
                ]
                expected = "all" if all(held) else "some" if any(held) else "none"
                assert kept.share_of(panel, num_kept, 64) == expected
                shares.add(expected)
                # One column of tiles may be kept in part; panels too narrow to be cut hold both.
                assert expected != "some" or edge is not None
    assert shares == {"all", "some", "none"}


@pytest.mark.parametrize(("tau", "on_device", "name"), [
    (0.07, False, "kept_weights"),
    (0.07, True, "block_weights"),
    (0.02, False, "block_weights"),
])  # fmt: skip
def test_kept_cosines_need_no_products_where_the_host_knows_them_fine_enough(
    tau: float, on_device: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, many_pairs=2)
    launched: list[str] = []
    for module, kernel in ((kept, "kept_weights"), (weights, "block_weights")):
        monkeypatch.setattr(module, kernel, Counted(getattr(module, kernel), launched))
    temperature = torch.tensor(tau, device=DEVICE) if on_device else tau
    both_passes(pairs(Case("random", 40, 33, dtype=torch.float16), temperature=temperature), problem())
    assert set(launched) == {name}


@pytest.mark.parametrize("options", BLOCKS, ids=str)
def test_kept_tiles_are_found_by_other_panels(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("random", 130, 8, **options)
    batch, asked = pairs(case), case.problem()
    keep(monkeypatch)
    monkeypatch.setattr(layout, "LARGEST_PANEL", 128)
    description = engine.describe(batch.shape, asked)
    assert description["forward_panel"] == 384
    assert description["backward_panel"] == 128
    used = both_passes(batch, asked)
    forget(monkeypatch)
    assert all(map(torch.equal, used, both_passes(batch, asked)))


@pytest.mark.parametrize("tau", [0.032, 0.031, 0.01])
def test_cosines_too_coarse_for_a_small_temperature_are_not_used(tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is decided on the device, where the temperature may be."""
    batch = pairs(Case("random", 40, 33, dtype=torch.float16), temperature=torch.tensor(tau, device=DEVICE))
    keep(monkeypatch, many_pairs=2)
    used = both_passes(batch, problem())
    forget(monkeypatch)
    formed = both_passes(batch, problem())
    fine = 1 / math.log(2) / tau <= tiles.COARSEST_RATE.value
    assert fine == (tau >= 1 / 32)
    assert all(map(torch.equal, used[:3], formed[:3])), "keeping logits changed the forward"
    assert torch.equal(used[3], formed[3]) != fine


@pytest.mark.parametrize("tau", [0.07, 0.032])
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("alike", [False, True], ids=["random", "half a step off all alike"])
def test_cosines_are_fine_enough_for_bfloat16(
    tau: float, negatives: str, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where all cosines are 1/2 and the rounding to 16 bits does not average out.

    An exponential changes by at most 2^-11, which moves the weight (tf32) and the gradient (float16) by one step each.
    """
    batch = pairs(Case("random", 70, 48, dtype=DTYPES[-1], negatives=negatives), temperature=tau)
    if alike:
        x = torch.cat((torch.ones(8, 1), torch.eye(8)), 1).to(DEVICE, DTYPES[-1])
        batch = batch._replace(x=x, y=x.clone())
    asked = problem(negatives=negatives)
    a = torch.full((2 * batch.x.shape[0],), 1 / (2 * batch.x.shape[0]), dtype=torch.float64, device=DEVICE)
    keep(monkeypatch, many_pairs=2)
    used = both_passes(batch, asked, a)
    forget(monkeypatch)
    for one, other in zip(used[3:], both_passes(batch, asked, a)[3:], strict=True):
        difference = (one.double() - other.double()).norm()
        assert difference <= 3 * 2.0**-11 * other.double().norm()
        # Where all change alike, the step may be lost in float16.
        assert alike or difference > 0


@pytest.mark.parametrize("many_pairs", [2, config.MANY_PAIRS])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_in_gives_nan_out(bad: float, many_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, many_pairs)
    batch = pairs(Case("random", 40, 20, dtype=torch.float16))
    batch.x[3, 7] = bad
    z, _, _, of_x, _ = both_passes(batch, problem())
    assert z[3].isnan()
    assert of_x[3].isnan().any()


@pytest.mark.parametrize("value", [0.0, -0.07, math.nan])
def test_temperature_refused_on_the_device_gives_nan(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, many_pairs=2)
    batch = pairs(Case("random", 9, 8, dtype=torch.float16), temperature=torch.tensor(value, device=DEVICE))
    assert all(result.isnan().all() for result in both_passes(batch, problem()))


@pytest.mark.parametrize("many_pairs", [2, config.MANY_PAIRS])
@pytest.mark.usefixtures("poisoned")
def test_what_is_kept_is_a_function_of_the_inputs(many_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Including padding, which is an output like any other."""
    keep(monkeypatch, many_pairs)
    case = Case("random", 11, 20, dtype=torch.float16, candidates=(Candidates(7),))
    first, again = (
        engine.save(engine.forward(case.batch(DEVICE), problem(), moment=True, gradient=True).state) for _ in range(2)
    )
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("many_pairs", [2, config.MANY_PAIRS])
@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_only_what_will_be_differentiated_is_kept(
    negatives: str, many_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved has the promised shape, and evaluation only saves the rows' statistics."""
    keep(monkeypatch, many_pairs)
    asked = problem(negatives=negatives)
    for dtype in DTYPES:
        batch = pairs(Case("random", 70, 20, dtype=dtype))
        saved = {}
        for differentiated in (True, False):
            state = engine.forward(batch, asked, moment=True, gradient=differentiated).state
            (saved[differentiated],) = engine.save(state)
            promised = engine.saved_shapes(batch.shape, asked, gradient=differentiated)
            assert promised == [(saved[differentiated].shape, torch.float32)]
        assert saved[False].numel() == 10 * 2 * 128
        # Both sides are padded to 128 rows.
        block = engine.describe(batch.shape, asked)["block"]
        assert isinstance(block, int)
        high = 128 // block
        entries = block**2 * (high**2 if negatives == "cross" else high * (2 * high + 1))
        bits = 16 if many_pairs == 2 and dtype != torch.float32 else 32
        assert saved[True].numel() - saved[False].numel() == entries * bits // 32
