"""What an encoder may take and return."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ctloss


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True)
class Held:
    left: Any
    right: Any


class Batch(UserDict):
    """As a tokenizer's: it has more than its entries, and looks them up its own way."""

    def __init__(self, data: dict[str, Any], encodings: str) -> None:
        super().__init__(data)
        self.encodings = encodings


CONTAINERS: dict[str, Any] = {
    "dict": lambda a, b: {"left": a, "right": b},
    "ordered": lambda a, b: OrderedDict(left=a, right=b),
    "user": lambda a, b: Batch({"left": a, "right": b}, "kept"),
    "frozen": lambda a, b: MappingProxyType({"left": a, "right": b}),
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "named": Pair,
    "dataclass": Held,
    "nested": lambda a, b: {"left": [a], "right": (Pair(b, None),)},
}


def both(tree: Any, name: str) -> tuple[Tensor, Tensor]:
    if name == "nested":
        left, right = tree["left"][0], tree["right"][0].left
    elif name in ("list", "tuple"):
        left, right = tree
    elif name in ("named", "dataclass"):
        left, right = tree.left, tree.right
    else:
        left, right = tree["left"], tree["right"]
    assert isinstance(left, Tensor)
    assert isinstance(right, Tensor)
    return left, right


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name: str) -> None:
    """They come to encode and back as they are, in chunks of 2, 2 and 1 rows, and are not changed."""
    make = CONTAINERS[name]
    linear = nn.Linear(3, 2).double()
    left, right = torch.randn(2, 5, 3, dtype=torch.float64)
    inputs = make(left, right)
    sizes = []

    def encode(batch: Any) -> Any:
        assert type(batch) is (dict if name == "frozen" else type(inputs))
        if isinstance(batch, Batch):
            assert batch.encodings == "kept"
        a, b = both(batch, name)
        sizes.append((len(a), len(b)))
        return make(linear(a), linear(b))

    returned = ctloss.GradientCache(2)(encode, inputs)
    x, y = both(returned, name)
    assert sizes == [(2, 2), (2, 2), (1, 1)]
    torch.testing.assert_close(x, linear(left))
    torch.testing.assert_close(y, linear(right))
    (x.square() + y).sum().backward()
    found, linear.weight.grad = linear.weight.grad, None
    (linear(left).square() + linear(right)).sum().backward()
    torch.testing.assert_close(found, linear.weight.grad)
    assert both(inputs, name)[0] is left


def test_other_leaves_pass_through() -> None:
    """What is no tensor, and tensors without rows, come whole to every chunk."""
    scale = torch.tensor(2.0, requires_grad=True)
    seen = []

    def encode(batch: dict[str, Any]) -> Tensor:
        seen.append((batch["name"], batch["size"], batch["nothing"]))
        found: Tensor = batch["rows"] * batch["scale"]
        return found

    rows = torch.arange(6.0).reshape(3, 2)
    inputs = {"rows": rows, "scale": scale, "name": "left", "size": 3, "nothing": None}
    ctloss.GradientCache(2)(encode, inputs).sum().backward()
    assert set(seen) == {("left", 3, None)}
    torch.testing.assert_close(scale.grad, rows.sum())


def test_integers_and_masks_come_back() -> None:
    def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows.exp(), rows > 0

    rows = torch.randn(5, 2, requires_grad=True)
    values, mask = ctloss.GradientCache(2)(encode, rows)
    assert torch.equal(mask, rows > 0)
    values[mask].sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, torch.where(rows > 0, rows.exp(), 0.0).detach())


def test_an_encoder_that_returns_its_input() -> None:
    rows = torch.randn(5, 2, requires_grad=True)
    ctloss.GradientCache(2)(nn.Identity(), rows).square().sum().backward()
    torch.testing.assert_close(rows.grad, 2 * rows.detach())
