"""Ranks that do not make the same call, or do not answer: every other one says which of them, and what differs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import ctloss
from ctloss.ranks.group import Ranks, check_backend
from support.ranks.pool import fresh, shared


def call(group: Any, options: dict[str, Any], repeats: int = 1) -> str:
    """Call a loss as told; the message of its error, or nothing."""
    own = dict(options)
    n, d, dtype = own.pop("n", 3), own.pop("d", 5), own.pop("dtype", torch.float32)
    name, needs, grads = own.pop("loss", "cz_nce"), own.pop("needs", True), own.pop("grads", True)
    x = torch.randn(n, d, dtype=dtype).requires_grad_(needs)
    try:
        with torch.set_grad_enabled(grads):
            for _ in range(repeats):
                getattr(ctloss, name)(x, x.detach(), group=group, **own)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("usual", "other", "told"),
    [
        ({}, {"d": 4}, "rank 1 has d=4 where others have 5"),
        ({}, {"dtype": torch.float64}, "rank 1 has dtypes=float64, float64 where others have float32, float32"),
        ({}, {"loss": "info_nce"}, "rank 1 has loss='info_nce' where others have 'cz_nce'"),
        ({}, {"loss": "sig_lip"}, "loss='sig_lip' where others have 'cz_nce'"),
        ({"dims": (5, 2)}, {"dims": (5,)}, "rank 1 has dims=(5,) where others have (5, 2)"),
        ({"dims": (5, 2)}, {"dims": (5, 2), "dim_weights": (1.0, 9.0)}, "rank 1 has dim_weights=(1.0, 9.0)"),
        ({}, {"negatives": "cross"}, "rank 1 has negatives='cross' where others have 'both'"),
        ({}, {"average": "sum"}, "rank 1 has average='sum' where others have 'mean'"),
        ({}, {"temperature": 0.1}, "rank 1 has temperature=0.1 where others have 0.07"),
        ({}, {"ids": torch.arange(3)}, "rank 1 has ids=given where others have none"),
        ({}, {"grads": False}, "rank 1 has gradients=disabled (torch.no_grad) where others have enabled"),
        ({}, {"weights": torch.ones(3)}, "rank 1 has weights=given where others have none"),
        ({"even": True}, {"n": 4}, "rank 1 has what it brings=4 pairs"),
    ],
)
def test_another_call_is_refused_on_every_rank(usual: dict[str, Any], other: dict[str, Any], told: str) -> None:
    messages = shared().run(3, call, [usual, usual | other, usual])
    assert all(told in message for message in messages), messages


def learning(group: Any, learns: bool) -> str:
    x, tau = torch.randn(3, 5), torch.tensor(0.1, requires_grad=learns)
    try:
        ctloss.cz_nce(x, x, temperature=tau, group=group)
    except RuntimeError as error:
        return str(error)
    return ""


def test_all_ranks_learn_the_temperature_or_none() -> None:
    messages = shared().run(2, learning, [True, False])
    assert all("learns_temperature=" in message for message in messages), messages


def call_twice(group: Any, first: dict[str, Any], second: dict[str, Any]) -> tuple[str, str, float]:
    start = time.monotonic()
    return call(group, first), call(group, second), time.monotonic() - start


def test_a_promise_that_is_broken_later_is_told_within_the_timeout() -> None:
    """With even=True known calls exchange nothing beforehand, so a rank that makes another one is noticed late."""
    usual: dict[str, Any] = {"even": True, "n": 2}
    with fresh(3, timeout=3.0) as pool:
        answers = pool.answers(3, call_twice, [usual] * 3, [usual, usual | {"normalize": False}, usual])
    assert all(done for done, _ in answers), answers
    for _, (first, second, seconds) in answers:
        assert first == ""
        assert "rank 1 has normalize=False where others have True" in second
        assert seconds < 60


def call_or_end(group: Any, ends: bool) -> tuple[str, float]:
    if ends:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    return call(group, {}), time.monotonic() - start


def test_a_rank_that_ends_is_named_by_all_others() -> None:
    with fresh(4, timeout=20.0) as pool:
        answers = pool.answers(4, call_or_end, [False, False, True, False])
    assert [done for done, _ in answers] == [True, True, False, True]
    for rank in (0, 1, 3):
        message, seconds = answers[rank][1]
        assert "the exchange with rank 2 failed" in message
        assert seconds < 20


def backward_or_end(group: Any, ends: bool) -> str:
    x = torch.randn(3, 5, requires_grad=True)
    loss = ctloss.cz_nce(x, x.detach(), group=group)
    if ends:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        loss.backward()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_rank_that_ends_before_the_backward_is_noticed_there() -> None:
    with fresh(3, timeout=10.0) as pool:
        answers = pool.answers(3, backward_or_end, [False, True, False])
    assert [done for done, _ in answers] == [True, False, True]
    assert all("failed" in answers[rank][1] and "rank 1" in answers[rank][1] for rank in (0, 2)), answers


def test_the_group_must_be_one() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="expected an initialised process group, got none"):
        ctloss.cz_nce(x, x, group="world")
    with pytest.raises(ValueError, match="average: expected 'mean' or 'sum', got 'median'"):
        ctloss.cz_nce(x, x, average="median")
    with pytest.raises(TypeError, match="even: expected True or False, got 1"):
        ctloss.info_nce(x, x, even=1)


def wrong_groups(group: Any) -> list[str]:
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    pair = dist.new_group([0, 1])
    x = torch.randn(2, 3, requires_grad=True)
    found = []
    for wrong in ("everyone", mesh, pair if dist.get_rank() > 1 else 3):
        try:
            ctloss.cz_nce(x, x, group=wrong)
        except (TypeError, ValueError) as error:
            found.append(str(error))
    batched = ctloss.contrast(x, x.detach(), group=group).z
    try:
        torch.autograd.grad(batched, x, torch.eye(4), is_grads_batched=True)
    except RuntimeError as error:
        found.append(str(error))
    try:
        torch.func.grad(lambda rows: ctloss.cz_nce(rows, rows.detach(), group=group))(x)
    except RuntimeError as error:
        found.append(str(error))
    return found


def test_what_is_no_group_is_refused() -> None:
    for rank, found in enumerate(shared().run(4, wrong_groups)):
        assert "expected a ProcessGroup, a one-dimensional DeviceMesh or 'world', got 'everyone'" in found[0]
        assert "expected a one-dimensional mesh, got one of 2 dimensions" in found[1]
        assert ("expected a group that this process belongs to" if rank > 1 else "got 3") in found[2]
        assert "expected one gradient at a time" in found[3]
        assert "under a transform of torch.func" in found[4]


def sent_from_a_gpu(group: Any) -> str:
    try:
        check_backend(Ranks.of(group), torch.device("cuda"))
    except ValueError as error:
        return str(error)
    return ""


def test_a_backend_must_send_from_where_rows_are() -> None:
    assert all("sends rows from cuda, got gloo" in message for message in shared().run(2, sent_from_a_gpu))


def in_two_sessions(rank: int, folder: str, results: Any) -> None:
    """Two worlds, one after the other; their groups of two have one name, but not the same ranks."""
    for session, members in enumerate(([0, 1], [1, 2])):
        store = dist.FileStore(f"{folder}/{session}", 3)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=timedelta(seconds=20))
        group = dist.new_group(members)
        message = call(group, {"even": True}) if rank in members else ""
        dist.barrier()
        dist.destroy_process_group()
        results.put((rank, message))


def test_what_a_former_group_agreed_on_is_forgotten(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("forkserver")
    results = context.Queue()
    processes = [context.Process(target=in_two_sessions, args=(rank, str(tmp_path), results)) for rank in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=100) for _ in range(6)]
    for process in processes:
        process.join(20)
    assert sorted(found) == sorted([(rank, "") for rank in range(3)] * 2)


def empty_everywhere(group: Any) -> str:
    x = torch.randn(0, 3, requires_grad=True)
    try:
        ctloss.cz_nce(x, x, group=group)
    except ValueError as error:
        return str(error)
    return ""


def test_no_rows_anywhere_are_refused_on_every_rank() -> None:
    assert all("expected at least 1 row on some rank" in message for message in shared().run(2, empty_everywhere))


def candidate_ids_alone(group: Any) -> str:
    x = torch.randn(2, 3)
    try:
        ctloss.cz_nce(x, x, candidates=x, candidate_ids=torch.arange(2), group=group)
    except ValueError as error:
        return str(error)
    return ""


def test_ids_of_candidates_need_those_of_pairs() -> None:
    assert all("number the pairs over all ranks" in message for message in shared().run(2, candidate_ids_alone))
