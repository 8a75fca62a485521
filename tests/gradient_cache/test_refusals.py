"""Mistakes end in errors that say what was expected, what came, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ctloss

ROWS = torch.ones(5, 2)
LINEAR = nn.Linear(2, 3)


@pytest.mark.parametrize(
    ("chunk", "error", "message"),
    [
        (0, ValueError, "expected at least 1 row, got 0; pass"),
        (2.0, TypeError, "expected a number of rows, got float; pass"),
        (True, TypeError, "expected a number of rows, got bool; pass"),
    ],
)
def test_chunk(chunk: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ctloss.GradientCache(chunk)
    with pytest.raises(error, match=message):
        ctloss.cached(LINEAR, ROWS, LINEAR, ROWS, ctloss.info_nce, chunk=chunk)


INPUTS: dict[str, tuple[Any, type[Exception], str]] = {
    "no tensor": (["a", "b"], TypeError, "inputs: expected a tensor, .* got none; tokenise"),
    "disagreement": (
        (ROWS, ROWS[:3]),
        ValueError,
        r"got shapes \(5, 2\), \(3, 2\); pass tensors that belong to no row",
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str) -> None:
    given, error, message = INPUTS[name]
    with pytest.raises(error, match=message):
        ctloss.GradientCache(2)(LINEAR, given)


class Output:
    """No container and no tensor."""


RETURNED: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": (lambda rows: None, TypeError, "encode: expected a tensor, .* got NoneType; return the embeddings"),
    "an object": (lambda rows: (rows, Output()), TypeError, "expected tensors, got Output among .*; return only"),
    "a scalar": (lambda rows: rows.sum(), ValueError, r"that of the chunk, 2 rows, got \(\); return what belongs"),
    "other rows": (lambda rows: rows[:1], ValueError, r"that of the chunk, 2 rows, got \(1, 2\); return what belongs"),
    "other columns": (lambda rows: rows @ rows.mT, ValueError, r"expected rows of \(2,\) .* got \(1,\) .*; pad"),
    "other numbers": (lambda rows: (rows, len(rows)), ValueError, "same number or text for every chunk, got 2 and 1"),
    "other leaves": (
        lambda rows: len(rows) * [rows],
        ValueError,
        "same tree .*, got 1 leaves after 2; what it returns",
    ),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_encode_returns(name: str) -> None:
    encode, error, message = RETURNED[name]
    with pytest.raises(error, match=message):
        ctloss.GradientCache(2)(encode, ROWS)


def test_encode_is_called() -> None:
    with pytest.raises(TypeError, match=r"encode: expected a module or a function .*, got Tensor; pass the model"):
        ctloss.GradientCache(2)(ROWS, ROWS)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_statistics(kind: type[nn.Module]) -> None:
    """Refused before they are updated, and only while they are of the batch."""
    norm: Any = kind(3)
    encoder = nn.Sequential(LINEAR, norm)
    with pytest.raises(ValueError, match=f"got {kind.__name__} with the statistics of the batch.*; call .eval"):
        ctloss.GradientCache(2)(lambda rows: encoder(rows), ROWS)
    assert norm.num_batches_tracked == 0
    norm.eval()
    ctloss.GradientCache(2)(encoder, ROWS)
    unrecorded = nn.Sequential(LINEAR, nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="with the statistics of the batch"):
        ctloss.GradientCache(2)(unrecorded, ROWS)


def test_batch_statistics_in_a_compiled_module() -> None:
    encoder = nn.Sequential(LINEAR, nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="with the statistics of the batch"):
        ctloss.GradientCache(2)(torch.compile(encoder, backend="eager"), ROWS)


def test_reentrant_checkpoint() -> None:
    def encode(rows: Tensor) -> Tensor:
        found: Tensor = checkpoint(LINEAR, rows, use_reentrant=True)
        return found

    with pytest.raises(ValueError, match=r"got the reentrant kind, .*; pass use_reentrant=False"):
        ctloss.GradientCache(2)(encode, ROWS.clone().requires_grad_())


def test_second_derivative() -> None:
    loss = ctloss.GradientCache(2)(LINEAR, ROWS).square().sum()
    with pytest.raises(RuntimeError, match="has no second derivative; leave create_graph=True out"):
        torch.autograd.grad(loss, LINEAR.weight, create_graph=True)


def test_a_graph_from_outside() -> None:
    prompt = LINEAR(ROWS[:1]).exp()
    loss = ctloss.GradientCache(2)(lambda rows: LINEAR(rows) * prompt, ROWS).sum()
    with pytest.raises(RuntimeError, match="would go through its graph again: pass it after the inputs"):
        loss.backward()


def test_a_compiled_step() -> None:
    """The cache breaks its graph."""
    step = torch.compile(lambda rows: ctloss.GradientCache(2)(LINEAR, 2 * rows).sum(), backend="eager")
    LINEAR.weight.grad = None
    step(ROWS).backward()
    assert LINEAR.weight.grad is not None
    torch.testing.assert_close(LINEAR.weight.grad, torch.full((3, 2), 10.0))


def test_a_step_in_one_graph() -> None:
    step = torch.compile(lambda rows: ctloss.GradientCache(2)(LINEAR, rows).sum(), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="cannot be part of a graph; compile the encoder"):
        step(ROWS)
