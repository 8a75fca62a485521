"""The simulated ring: what is scheduled and when, and that its numbers agree with measurements."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import ring
from benchmarks.gpu.ring import Gpu, Network, Step, backward_blocks, cost, forward_blocks, memory
from ctloss.kernels.problem import Shape
from ctloss.kernels.triton_path.plan import layout
from ctloss.kernels.triton_path.plan.layout import stack_of
from ctloss.kernels.triton_path.plan.memory import plan_backward

GPU, NETWORK = Gpu(7e14, 3e14, 2e14, 1e-3, 1e-3), Network()
AMPLE = 1 << 40
TOLERANCE = 0.1


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 9, 16])
def test_forward_meets_every_unordered_pair_of_ranks_once(ranks: int) -> None:
    met: dict[frozenset[int], float] = {}
    for rank in range(ranks):
        for offset, share in forward_blocks(ranks):
            pair = frozenset((rank, (rank - offset) % ranks))
            met[pair] = met.get(pair, 0.0) + share
    # Of a rank with itself, one triangle of the symmetric rectangle.
    assert met == {frozenset((a, b)): 0.5 if a == b else 1.0 for a in range(ranks) for b in range(ranks)}


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
def test_backward_gives_each_rank_every_block(ranks: int) -> None:
    assert [offset for offset, _ in backward_blocks(ranks)] == list(range(ranks))
    assert {share for offset, share in backward_blocks(ranks) if offset} <= {1.0}


def in_ticks(compute: list[int], hops: list[int]) -> list[list[int]]:
    """The ring again, one unit of time after the other: when every rank finishes every step."""
    ranks, steps, now = len(hops), len(compute), 0
    holds = [{0} for _ in hops]  # blocks there or arriving, by the step that works on them
    newest, finished, passed_on = [0] * ranks, [0] * ranks, [0] * ranks  # the last step there, steps done, blocks sent
    arriving: list[int | None] = [None] * ranks
    remaining = [compute[0]] * ranks
    done: list[list[int]] = [[] for _ in hops]
    while any(len(times) < steps for times in done):
        for rank, hop in enumerate(hops):
            # Block k of this rank is block k - 1 of the one before.
            step, before = newest[rank] + 1, (rank - 1) % ranks
            room = len(holds[rank] - {0}) < 2
            if arriving[rank] is None and step < steps and newest[before] >= step - 1 and room:
                arriving[rank] = hop
                holds[rank].add(step)
        now += 1
        for rank in range(ranks):
            if finished[rank] < steps and newest[rank] >= finished[rank]:
                remaining[rank] -= 1
                if remaining[rank] == 0:
                    done[rank].append(now)
                    finished[rank] += 1
                    remaining[rank] = compute[finished[rank]] if finished[rank] < steps else 0
            left = arriving[rank]
            if left is not None:
                arriving[rank] = left - 1
                if left == 1:
                    arriving[rank] = None
                    newest[rank] += 1
                    passed_on[(rank - 1) % ranks] += 1
        for rank in range(ranks):
            holds[rank] = {step for step in holds[rank] if step >= min(finished[rank], passed_on[rank])}
    return done


@pytest.mark.parametrize("seed", range(30))
def test_ring_agrees_with_a_simulation_tick_by_tick(seed: int) -> None:
    draw = random.Random(seed)
    hops = [draw.randint(1, 9) for _ in range(draw.randint(2, 7))]
    compute = [draw.randint(1, 9) for _ in range(draw.randint(1, len(hops)))]
    found = ring.ring(compute, torch.tensor(hops, dtype=torch.float64))
    assert found.T.tolist() == in_ticks(compute, hops)


@pytest.mark.parametrize("seed", range(30))
def test_no_step_outlasts_its_work_and_the_slowest_hop(seed: int) -> None:
    draw = random.Random(seed)
    hops = torch.tensor([draw.random() for _ in range(draw.randint(2, 12))], dtype=torch.float64)
    compute = [draw.random() for _ in range(len(hops))]
    found = ring.ring(compute, hops)
    latest = torch.tensor([max(work, hops.max().item()) for work in compute], dtype=torch.float64).cumsum(0)
    earliest = torch.tensor(compute, dtype=torch.float64).cumsum(0)
    assert (found <= latest[:, None] + 1e-12).all()
    assert (found >= earliest[:, None] - 1e-12).all()
    assert (ring.ring(compute, 2 * hops) >= found).all()


def test_links_hidden_and_links_felt() -> None:
    work = [1.0, 2.0, 2.0, 2.0]
    assert ring.ring(work, torch.full((4,), 0.9))[-1].tolist() == pytest.approx([7.0] * 4)
    assert ring.ring([0.0] * 4, torch.full((4,), 0.9))[-1].tolist() == pytest.approx([2.7] * 4)


def test_hops_between_nodes_are_the_slow_ones() -> None:
    hops = NETWORK.hops(24, 1e9)
    slow = (hops > hops.min()).nonzero().flatten().tolist()
    assert slow == [0, 8, 16]
    assert hops[0].item() == pytest.approx(1e9 / 40e9 + 10e-6)
    assert NETWORK.hops(8, 1e9).unique().tolist() == pytest.approx([1e9 / 360e9 + 5e-6])


def test_doubling_ranks_never_saves_flops() -> None:
    n = 2**17
    found = [cost(Step(n, 2**k, workspace=AMPLE), GPU, NETWORK).flops for k in range(8)]
    unit = (2 * n) ** 2 * 768
    assert found[0] == 4 * unit
    assert all(before < after for before, after in pairwise(found))
    assert found[-1] < 5 * unit


def test_memory_grows_with_n_and_not_with_ranks() -> None:
    for ranks in (1, 8, 1024):
        found = [memory(Step(2**k, ranks)) for k in range(12, 25)]
        assert all(before < after for before, after in pairwise(found))
    found = [memory(Step(2**20, 2**k)) for k in range(1, 11)]
    assert all(before > after for before, after in pairwise(found))


def test_a_ring_without_fixed_costs_scales_until_its_links_are_felt() -> None:
    swift = Gpu(7e14, 3e14, 2e14, 0.0, 0.0)
    times = [cost(Step(2**18, ranks), swift, NETWORK) for ranks in (8, 16, 32)]
    assert times[0].total / times[2].total == pytest.approx(4, rel=0.05)
    felt = cost(Step(2**18, 256), swift, NETWORK)
    assert felt.forward + felt.backward > 1.2 * felt.busy


def test_rates_are_recovered_from_times_made_of_them(tmp_path: Path) -> None:
    rows = []
    for n in ring.CALIBRATED_AT:
        rectangle = 2 * n * n * 768
        forward = GPU.forward_fixed + rectangle / GPU.logits
        both = forward + GPU.backward_fixed + rectangle / GPU.weights + 2 * rectangle / GPU.product
        key = {"provider": "ctloss-triton", "loss": "info-cross", "n": n, "d": 768, "dtype": "bfloat16"}
        rows += [key | {"which": "forward", "wall_ms": 1e3 * forward}]
        rows += [key | {"which": "forward+backward", "wall_ms": 1e3 * both}]
    launches = [{"provider": "ctloss-triton", "loss": "cz-both", "n": n, "wall_us": n} for n in (64, 128)]
    parts = {"ceilings": [{"what": "product", "tera_per_s": GPU.product / 1e12}], "large": rows, "graphs": launches}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"parts": {name: {"rows": each} for name, each in parts.items()}}), encoding="utf-8")
    found = ring.measured_gpu(path)
    assert (found.product, found.logits, found.weights) == pytest.approx((GPU.product, GPU.logits, GPU.weights))
    assert (found.forward_fixed, found.backward_fixed) == pytest.approx((1e-3, 1e-3))
    assert ring.measured_gpu(path, graph=True).forward_fixed == pytest.approx(32e-6)
    with pytest.raises(ValueError, match="expected times of cz-both at n=64, d=768"):
        ring.measured_seconds(path, "cz-both", 64)


@pytest.mark.parametrize("n", ring.CALIBRATED_AT)
def test_simulated_time_is_the_measured_time(n: int) -> None:
    """The rates come from rectangles only; the triangle over both sides was measured in the same run."""
    found = cost(Step(n), ring.measured_gpu(ring.RESULTS), NETWORK)
    forward, backward = ring.measured_seconds(ring.RESULTS, ring.CHECKED_ON, n)
    assert (found.forward, found.backward) == pytest.approx((forward, backward), rel=TOLERANCE)


@pytest.mark.parametrize("n", [4096, 16384, 65536])
def test_memory_is_the_measured_memory(n: int) -> None:
    parts = json.loads(ring.RESULTS.read_text(encoding="utf-8"))["parts"]
    peaks = [row["peak_bytes"] for part in ("large", "huge") for row in parts[part]["rows"]
             if (row["provider"], row["loss"], row["n"], row["d"]) == ("ctloss-triton", ring.CHECKED_ON, n, 768)
             and row["dtype"] == "bfloat16"]  # fmt: skip
    beyond_inputs = memory(Step(n)) - 2 * n * 768 * 2
    assert peaks
    assert peaks == pytest.approx([beyond_inputs] * len(peaks), rel=0.01)


@pytest.mark.parametrize("n", [2**k for k in range(12, 21)])
@pytest.mark.parametrize("workspace", [2**28, 2**30, 13 * 2**30])
def test_plan_is_that_of_the_kernels(n: int, workspace: int) -> None:
    plan = plan_backward(stack_of(Shape(n, 768)), 2, workspace)
    assert Step(n, workspace=workspace).shared == plan.shared
    assert plan.size <= ring.LARGEST_PANEL == layout.LARGEST_PANEL


def test_bytes_follow_columns_and_entries() -> None:
    assert Step(1024, d=768).hop_bytes(ring.FORWARD_VECTORS) == 2048 * (1536 + 8)
    assert Step(1024, d=768, itemsize=4).hop_bytes(ring.BACKWARD_VECTORS) == 2048 * (3072 + 12)


@pytest.mark.parametrize(("n", "ranks"), [(10, 4), (0, 1), (8, 0)])
def test_ranks_hold_equal_numbers_of_pairs(n: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"expected n a multiple of ranks, got n={n}, ranks={ranks}"):
        Step(n, ranks)


def test_contradictory_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="expected rates above 0"):
        Gpu(7e14, 3e14, -2e14, 0.0, 0.0)


def test_report_covers_one_gpu_and_rings() -> None:
    report = ring.report()
    assert report.startswith("Predicted")
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith("| 2^")]
    assert {row[1] for row in rows} == {"1", "8", "64", "256", "1,024"}
    # 2^20 pairs over 8 GPUs, called from Python.
    assert ["| 2^20", "8", "131,072", "from Python", "1.38", "0.000111", "4.01", "5.38", "0%", "2.88 |"] in rows
