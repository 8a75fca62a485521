"""The simulated ring: what is scheduled and when, and that its numbers agree with measurements."""

from __future__ import annotations

import itertools
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import ring
from benchmarks.gpu.ring import Gpu, Network, Step, cost, memory, shares
from benchmarks.results import page_of, split_document
from ctloss.kernels.problem import Shape
from ctloss.kernels.triton_path.plan import layout
from ctloss.kernels.triton_path.plan.layout import stack_of
from ctloss.kernels.triton_path.plan.memory import plan_backward
from ctloss.ranks import schedule

GPU, NETWORK = Gpu(7e14, 3e14, 2e14, 1e-3, 1e-3), Network()
AMPLE = 1 << 40
TOLERANCE = 0.1


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 9, 16])
def test_forward_meets_every_unordered_pair_of_ranks_once(ranks: int) -> None:
    met: dict[frozenset[int], float] = {}
    for hop, of_ranks in enumerate(shares(ranks, "forward").tolist()):
        for rank, share in enumerate(of_ranks):
            pair = frozenset((rank, (rank + hop) % ranks))
            met[pair] = met.get(pair, 0.0) + share
    # Of a rank with itself, one triangle of the symmetric rectangle.
    assert met == {frozenset((a, b)): 0.5 if a == b else 1.0 for a in range(ranks) for b in range(ranks)}


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
def test_backward_gives_each_rank_every_block(ranks: int) -> None:
    assert shares(ranks, "backward").tolist() == [[0.5] * ranks, *[[1.0] * ranks] * (ranks - 1)]


@pytest.mark.parametrize("ranks", [2, 3, 4, 7, 8])
def test_shares_are_what_the_schedule_counts(ranks: int) -> None:
    size = 6
    for number, which in enumerate(("forward", "backward")):
        beyond_own = (shares(ranks, which)[1:].sum(0) * size**2).tolist()
        assert beyond_own == [schedule.logits(rank, [size] * ranks)[number] for rank in range(ranks)]


def test_a_schedule_that_leaves_out_a_hop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "backward", lambda world: [schedule.Step(2, "all", "all")])
    shares.cache_clear()
    with pytest.raises(ValueError, match="expected all ranks to use what arrives at hop 1"):
        shares(3, "backward")
    shares.cache_clear()


def in_ticks(compute: list[list[int]], hops: list[int], returned: list[list[int]]) -> list[list[int]]:
    """The ring again, one unit of time after the other: when every rank has finished every step.

    Every rank is a program of its own: it asks for what arrives, works, and waits for its messages.
    """
    ranks, steps = len(hops), len(compute)
    done: list[list[int]] = [[] for _ in hops]
    asked: list[dict[int, int]] = [{1: 0} for _ in hops]  # by hop, when
    arrived: list[dict[int, int]] = [{} for _ in hops]
    sums: list[dict[int, int]] = [{} for _ in hops]  # by step, when a rank's sums are back
    state = [("work", compute[0][rank]) for rank in range(ranks)]
    now = 0
    while any(len(times) < steps for times in done):
        for rank in range(ranks):
            # Messages that both ends asked for.
            after = (rank + 1) % ranks
            for hop in range(1, steps):
                if hop in asked[rank] and hop in asked[after]:
                    arrived[rank].setdefault(hop, max(asked[rank][hop], asked[after][hop]) + hops[rank])
        for _ in range(2 * steps):
            for rank in range(ranks):
                kind, end = state[rank]
                step = len(done[rank])
                if kind == "work" and end == now:
                    state[rank] = ("sums", 0)
                if state[rank][0] == "sums":
                    # Sums of the step before, and after the last step those of this one too.
                    awaited = step - 1 if step > 1 and returned else None
                    if awaited is None or sums[rank].get(awaited, now + 1) <= now:
                        done[rank].append(now)
                        state[rank] = ("wait", 0) if step + 1 < steps else ("over", 0)
                if state[rank][0] == "wait":
                    hop = len(done[rank])
                    before = arrived[(rank - 1) % ranks]
                    if arrived[rank].get(hop, now + 1) <= now and before.get(hop, now + 1) <= now:
                        asked[rank][hop + 1] = now
                        state[rank] = ("work", now + compute[hop][rank])
            for rank in range(ranks):
                for step in range(1, len(done[rank])):
                    source = (rank - step) % ranks
                    if returned and len(done[source]) > step:
                        both = max(done[rank][step], done[source][step])
                        sums[rank].setdefault(step, both + returned[step - 1][rank])
        now += 1
    if returned and steps > 1:
        for rank in range(ranks):
            source = (rank - (steps - 1)) % ranks
            both = max(done[rank][-1], done[source][-1])
            sums[rank][steps] = both + returned[-1][rank]
        for rank in range(ranks):
            done[rank][-1] = max(done[rank][-1], sums[rank][steps])
    return done


@pytest.mark.parametrize("seed", range(30))
def test_ring_agrees_with_a_simulation_tick_by_tick(seed: int) -> None:
    draw = random.Random(seed)
    ranks = draw.randint(2, 7)

    def draws() -> list[int]:
        return [draw.randint(1, 9) for _ in range(ranks)]

    hops, compute = draws(), [draws() for _ in range(draw.randint(1, ranks))]
    returned = [draws() for _ in compute[1:]] if seed % 2 else []
    work, links = torch.tensor(compute, dtype=torch.float64), torch.tensor(hops, dtype=torch.float64)
    found = ring.ring(work, links, [torch.tensor(each, dtype=torch.float64) for each in returned])
    assert found.T.tolist() == in_ticks(compute, hops, returned)


@pytest.mark.parametrize("seed", range(30))
def test_no_step_outlasts_its_work_and_the_slowest_hop(seed: int) -> None:
    draw = random.Random(seed)
    ranks = draw.randint(2, 12)
    hops = torch.tensor([draw.random() for _ in range(ranks)], dtype=torch.float64)
    compute = torch.tensor([draw.random() for _ in range(ranks)], dtype=torch.float64)
    alike = compute[:, None].expand(-1, ranks)
    found = ring.ring(alike, hops)
    latest = torch.maximum(compute, hops.max()).cumsum(0)
    assert (found <= latest[:, None] + 1e-12).all()
    assert (found >= compute.cumsum(0)[:, None] - 1e-12).all()
    assert (ring.ring(alike, 2 * hops) >= found).all()


def test_links_hidden_and_links_felt() -> None:
    work = torch.tensor([1.0, 2.0, 2.0, 2.0], dtype=torch.float64)[:, None].expand(-1, 4)
    hops = torch.full((4,), 0.9, dtype=torch.float64)
    assert ring.ring(work, hops)[-1].tolist() == pytest.approx([7.0] * 4)
    assert ring.ring(torch.zeros_like(work), hops)[-1].tolist() == pytest.approx([2.7] * 4)
    # The last sums are awaited with nothing to do meanwhile.
    assert ring.ring(work, hops, [hops] * 3)[-1].tolist() == pytest.approx([7.9] * 4)
    # All blocks are there after three hops; then only work is left.
    assert ring.gathered(work, hops)[-1].tolist() == pytest.approx([2.7 + 6.0] * 4)
    assert ring.gathered(work, hops / 3)[-1].tolist() == pytest.approx([7.0] * 4)


def test_messages_between_nodes_are_the_slow_ones() -> None:
    hops = NETWORK.into(24, 1, 1e9)
    slow = (hops > hops.min()).nonzero().flatten().tolist()
    assert slow == [7, 15, 23]
    assert hops[7].item() == pytest.approx(1e9 / 40e9 + 10e-6)
    assert NETWORK.into(8, 1, 1e9).unique().tolist() == pytest.approx([1e9 / 360e9 + 5e-6])
    back = NETWORK.into(24, -2, 1e9)
    assert (back > back.min()).nonzero().flatten().tolist() == [0, 1, 8, 9, 16, 17]


def test_doubling_ranks_never_saves_flops() -> None:
    n = 2**17
    found = [cost(Step(n, 2**k, workspace=AMPLE), GPU, NETWORK, "ring").flops for k in range(8)]
    unit = (2 * n) ** 2 * 768
    assert found[0] == 4 * unit
    assert all(before < after for before, after in pairwise(found))
    assert found[-1] < 5 * unit


def test_memory_grows_with_n_and_not_with_ranks() -> None:
    for ranks in (1, 8, 1024):
        every = [Step(2**k, ranks) for k in range(12, 25)]
        # Where rows are gathered they are all held, so the first ring may take less than the last gather.
        for transport in ("gather", "ring"):
            found = [memory(step) for step in every if step.transport == transport]
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
    assert Step(1024, d=768).message(0) == 2048 * 1536
    assert Step(1024, d=768, itemsize=4).message(ring.TRAVELLING) == 2048 * (3072 + 16)


def test_transport_is_that_of_the_losses() -> None:
    few, many = Step(2**14, 8), Step(2**20, 8)
    assert (few.transport, many.transport) == ("gather", "ring")
    rows = few.message(0)
    assert few.transport == schedule.transport(8, rows, few.workspace)


@pytest.mark.parametrize(("n", "ranks"), [(10, 4), (0, 1), (8, 0)])
def test_ranks_hold_equal_numbers_of_pairs(n: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"expected n a multiple of ranks, got n={n}, ranks={ranks}"):
        Step(n, ranks)


def test_contradictory_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="expected rates above 0"):
        Gpu(7e14, 3e14, -2e14, 0.0, 0.0)


def test_report_covers_one_gpu_and_rings() -> None:
    assert {*itertools.product(range(20, 25), (8, 64, 256, 1024)), (20, 1)} <= {*ring.REPORTED}
    report = ring.report(((20, 1), (20, 8), (20, 64)))
    assert report.startswith("Predicted")
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith("| 2^")]
    assert [row[:2] for row in rows] == [["| 2^20", "1"], ["| 2^20", "8"], ["| 2^20", "64"]]
    assert rows[1][2:8] == ["131,072", "1.37", "4.19", "5.58", "5.57", "3.61"]
    # The page shows what the command prints.
    shown = split_document(page_of(ring.COMMAND), ring.COMMAND)[1].splitlines()
    assert {*report.splitlines()} <= {*shown}
