"""How many bytes a rank sends in a call: what it hands to torch.distributed, counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor


class Sent:
    """A count of bytes."""

    def __init__(self) -> None:
        self.num_bytes = 0.0


Arguments = Mapping[str, Any]


def _bytes(tensors: Tensor | Sequence[Tensor]) -> int:
    every = [tensors] if isinstance(tensors, Tensor) else tensors
    return sum(tensor.numel() * tensor.element_size() for tensor in every)


def _gathered(ranks: int, given: Arguments) -> float:
    return (ranks - 1) * _bytes(given["input_tensor"])


def _reduced(ranks: int, given: Arguments) -> float:
    return (ranks - 1) * _bytes(given["output"])


# Bytes that one of so many ranks sends, from the arguments of each function: the least that it can be, which is what a
# ring sends. Of a scatter and a broadcast the source sends everything. Single sends are not here: a P2POp takes only
# torch's own isend.
_COSTS: dict[str, Callable[[int, Arguments], float]] = {
    "all_gather": lambda ranks, given: (ranks - 1) * _bytes(given["tensor"]),
    "all_gather_into_tensor": _gathered,
    "all_gather_single": _gathered,
    "all_reduce": lambda ranks, given: 2 * (ranks - 1) / ranks * _bytes(given["tensor"]),
    "reduce_scatter": _reduced,
    "reduce_scatter_tensor": _reduced,
    "reduce_scatter_single": _reduced,
    "all_to_all": lambda ranks, given: (ranks - 1) / ranks * _bytes(given["input_tensor_list"]),
    "all_to_all_single": lambda ranks, given: (ranks - 1) / ranks * _bytes(given["input"]),
    "scatter": lambda ranks, given: (ranks - 1) * _bytes(given["tensor"]) if given.get("scatter_list") else 0,
    "broadcast": lambda ranks, given: (ranks - 1) * _bytes(given["tensor"]) if given["src"] == dist.get_rank() else 0,
    "batch_isend_irecv": lambda _, given: _bytes([op.tensor for op in given["p2p_op_list"] if op.op is dist.isend]),
}


def _watched(name: str, sent: Sent) -> Callable[..., Any]:
    plain: Callable[..., Any] = getattr(dist, name)
    signature = inspect.signature(plain)

    def call(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options).arguments
        sent.num_bytes += _COSTS[name](dist.get_world_size(given.get("group")), given)
        return plain(*args, **options)

    return call


@contextmanager
def counted() -> Iterator[Sent]:
    """Count while the block runs: ``with counted() as sent: call()``, then ``sent.num_bytes``."""
    sent = Sent()
    with ExitStack() as stack:
        for name in _COSTS:
            # Two of them are not in older versions of PyTorch.
            if hasattr(dist, name):
                stack.enter_context(mock.patch.object(dist, name, _watched(name, sent)))
        yield sent
