"""Our lightly losses beside lightly's own: values, gradients, memory bank, training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from ctloss.integrations import lightly as ours
from support.calls import present
from support.integrations.drop_ins import rows, same_numbers, same_training, two_views

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore:To copy construct from a tensor")]
MODULES = {"NTXentLoss": "ntx_ent_loss", "DCLLoss": "dcl_loss", "DCLWLoss": "dcl_loss"}


def theirs(name: str, **options: Any) -> Callable[..., Tensor]:
    return present(peers.loss_class, "lightly", f"lightly.loss.{MODULES[name]}", name)(**options)  # type: ignore[arg-type]


def distance(out0: Tensor, out1: Tensor) -> Tensor:
    return (out0 - out1).square().sum(1)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("NTXentLoss", {}),
    ("NTXentLoss", {"temperature": 0.07, "gather_distributed": True}),
    ("DCLLoss", {}),
    ("DCLLoss", {"temperature": 0.5, "weight_fn": distance}),
    ("DCLWLoss", {}),
    ("DCLWLoss", {"temperature": 0.2, "sigma": 0.9}),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_numbers(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    x, y = (rows(17, 9, dtype=dtype, seed=seed) for seed in (0, 1))
    same_numbers(getattr(ours, name)(**options), theirs(name, **options), x, y)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_training(name: str, options: dict[str, Any]) -> None:
    same_training(getattr(ours, name)(**options), theirs(name, **options), two_views)


def banks() -> list[Any]:
    made: list[Any] = []
    for make in (ours.NTXentLoss, lambda **options: theirs("NTXentLoss", **options)):
        torch.manual_seed(3)
        made.append(make(temperature=0.2, memory_bank_size=(40, 9)))
    return made


def test_the_bank_holds_the_same_rows() -> None:
    """It starts alike, is read before it takes a batch in, and drops what no longer fits at its end."""
    mine, other = banks()
    for step in range(6):
        x, y = (rows(17, 9, dtype=torch.float32, seed=2 * step + side) for side in (0, 1))
        same_numbers(mine, other, x, y)
        torch.testing.assert_close(mine.memory_bank.bank, other.memory_bank.bank)
        assert torch.equal(mine.memory_bank.bank_ptr, other.memory_bank.bank_ptr)


def test_evaluation_leaves_the_bank_alone() -> None:
    mine, other = banks()
    before = mine.memory_bank.bank.clone()
    x, y = (rows(17, 9, dtype=torch.float32, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        torch.testing.assert_close(mine(x, y), other(x, y))
    assert torch.equal(mine.memory_bank.bank, before)


def test_two_forwards_before_a_backward() -> None:
    """The first backward reads the bank of its own forward, which the second has written over."""
    mine, other = banks()
    batches = [[rows(17, 9, dtype=torch.float32, seed=2 * step + side) for side in (0, 1)] for step in range(2)]
    found = []
    for loss in (mine, other):
        leaves = [[one.clone().requires_grad_() for one in batch] for batch in batches]
        (loss(*leaves[0]) + loss(*leaves[1])).backward()
        found.append([one.grad for batch in leaves for one in batch])
    torch.testing.assert_close(found[0], found[1])


def test_training_with_a_bank() -> None:
    mine, other = (bank.double() for bank in banks())
    for loss in (mine, other):
        loss.memory_bank.bank = torch.nn.functional.normalize(rows(24, 8), dim=1)
        loss.memory_bank.size = (24, 8)
    same_training(mine, other, lambda encoder, x: (encoder(x), encoder(x + 0.1).detach()))


def test_the_bank_is_not_saved_and_moves_with_the_loss() -> None:
    mine, other = banks()
    assert mine.state_dict().keys() == other.state_dict().keys()
    assert mine.double().memory_bank.bank.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0"),
        ({"memory_bank_size": 4096}, r"memory_bank_size: expected 0 or \(rows, columns\), got 4096"),
        ({"memory_bank_size": (4, -1)}, r"memory_bank_size: expected 0 or \(rows, columns\)"),
        ({"memory_bank_size": (4.0, 2)}, r"memory_bank_size: expected 0 or \(rows, columns\), got \(4.0, 2\)"),
        ({"memory_bank_size": "64"}, r"memory_bank_size: expected 0 or \(rows, columns\), got '64'"),
        ({"memory_bank_size": None}, r"memory_bank_size: expected 0 or \(rows, columns\), got None"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ours.NTXentLoss(**options)


def test_a_tensor_is_no_temperature() -> None:
    with pytest.raises(TypeError, match="learnable_temperature=True"):
        ours.DCLLoss(temperature=torch.tensor(0.1))


def test_arrays_are_no_rows_of_a_bank_either() -> None:
    x = rows(5, 6)
    for options in ({}, {"memory_bank_size": (8, 6)}):
        with pytest.raises(TypeError, match=r"x: expected a torch.Tensor of shape \(n, d\), got ndarray"):
            ours.NTXentLoss(**options)(x.numpy(), x)


def test_weights_are_one_a_row() -> None:
    x, y = rows(5, 6), rows(5, 6, seed=1)
    torch.testing.assert_close(
        ours.DCLLoss(weight_fn=lambda a, b: torch.tensor(0.5))(x, y),
        ours.DCLLoss(weight_fn=lambda a, b: torch.full((len(a),), 0.5))(x, y),
    )
    for shape in ((5, 1), (3,)):
        with pytest.raises(ValueError, match=r"weight_fn: expected .* one weight a row, \(5,\), got"):
            ours.DCLLoss(weight_fn=partial(lambda ones, a, b: ones, torch.ones(shape)))(x, y)
    with pytest.raises(TypeError, match="weight_fn: expected a function of both views, got 3"):
        ours.DCLLoss(weight_fn=3)
