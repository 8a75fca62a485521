"""Which modules an encoder runs, what is refused among them, and how wrappers for several processes are dealt with."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

BATCH_STATISTICS = (
    "encode: expected a module whose rows do not depend on each other, got {kind} with the statistics of the batch, "
    "which of a chunk are others than of the whole batch; call .eval() on it, or replace it by a GroupNorm or LayerNorm"
)
STATIC_GRAPH = (
    "encode: expected DistributedDataParallel without static_graph=True, which counts the gradients of its first step "
    "while they are still incomplete; leave the option out"
)
NATIVE_MIXED_PRECISION = (
    "encode: expected DistributedDataParallel without mixed_precision=, whose casts are made by its own forward; "
    "use torch.autocast"
)
FLAT_PARAMETERS = (
    "encode: expected FSDP2, got FullyShardedDataParallel, whose gradients are of one backward per forward; "
    "use torch.distributed.fsdp.fully_shard"
)
TWO_KINDS = (
    "encode: expected modules under DistributedDataParallel or under fully_shard, got both; "
    "put the smaller one under fully_shard too"
)
OTHER_MODE = (
    "encode: expected {kind} to be in the same mode in the forward and in the backward pass, got training={before}, "
    "then {after}; call .train() and .eval() between steps"
)


def _loaded(module: str, name: str) -> type | tuple[()]:
    """A class to ask ``isinstance`` for; where nobody has imported its module, nothing is an instance of it."""
    found: type | tuple[()] = getattr(sys.modules.get(module), name, ())
    return found


def _compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class Modules:
    """The modules that ran in an encoder's first chunk.

    They are seen as they are called, so that it does not matter how ``encode`` got hold of them.
    """

    def __init__(self) -> None:
        self.training: dict[nn.Module, bool] = {}
        self.parallel: list[nn.Module] = []
        self.sharded: list[Any] = []
        self.freed: list[Any] = []

    @contextmanager
    def watched(self, encode: object) -> Iterator[None]:
        """Note the modules that are called inside.

        Raises:
            ValueError: from the call of a module that cannot be cached.
        """
        if isinstance(encode, nn.Module) and _compiled(encode):
            self._note_all(encode)
        handle = register_module_forward_pre_hook(self._called)
        try:
            with warnings.catch_warnings():
                # That compiled modules call the hook twice.
                warnings.filterwarnings("ignore", message=".*global hooks on modules.*")
                yield
        finally:
            handle.remove()

    def _called(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_compiling():
            return
        self._note(module)
        # What is inside of a compiled module is not seen.
        for one in (module, *module.children()):
            if _compiled(one):
                self._note_all(one)

    def _note_all(self, module: nn.Module) -> None:
        for one in module.modules():
            self._note(one)

    def _note(self, module: nn.Module) -> None:
        if module in self.training:
            return
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(BATCH_STATISTICS.format(kind=type(module).__name__))
        if isinstance(module, _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")):
            raise ValueError(FLAT_PARAMETERS)
        if isinstance(module, nn.parallel.DistributedDataParallel):
            if module.static_graph:
                raise ValueError(STATIC_GRAPH)
            if module.mixed_precision is not None:
                raise ValueError(NATIVE_MIXED_PRECISION)
            self.parallel.append(module)
        if isinstance(module, _loaded("torch.distributed.fsdp", "FSDPModule")):
            self.sharded.append(module)
        self.training[module] = module.training

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Let modules do in a backward pass what they do in a forward pass.

        There, those under fully_shard keep what they have gathered, as for a recomputed layer that is needed at once.
        """
        handles = [module.register_forward_hook(_reshard) for module in self.freed]
        try:
            with self.unwrapped():
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """Let calls of DistributedDataParallel go straight to the module in it.

        Its own forward prepares one all-reduce and sends buffers around, which is to happen once in a step. The first
        chunk did that; the gradients then arrive once, for all chunks, and it reduces them as it always does.
        """
        before = [module.__dict__.get("forward") for module in self.parallel]
        try:
            for module in self.parallel:
                module.__dict__["forward"] = _straight(module)
            yield
        finally:
            for module, forward in zip(self.parallel, before, strict=True):
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward

    def settle(self, num_chunks: int) -> None:
        """Note how the first chunk leaves the modules, and what all ranks have to do alike.

        Raises:
            ValueError: if some are under DistributedDataParallel and some under fully_shard, or the ranks that share a
                model have other numbers of chunks.
        """
        if self.sharded and self.parallel:
            raise ValueError(TWO_KINDS)
        self.training = {module: module.training for module in self.training}
        parameters = [one for module in self.sharded for one in module.parameters()]
        self.freed = [module for module in self.sharded if all(map(_is_shard, module.parameters()))]
        # In an order that is that of all ranks.
        for mesh in dict.fromkeys(one.device_mesh for one in parameters if _is_shard(one)):
            _agree(mesh, num_chunks)

    def check_modes(self) -> None:
        """Refuse a module that is not in the mode in which the forward pass left it.

        Raises:
            RuntimeError: naming the module's class and both modes.
        """
        for module, before in self.training.items():
            if module.training != before:
                raise RuntimeError(OTHER_MODE.format(kind=type(module).__name__, before=before, after=module.training))


def _is_shard(parameter: Tensor) -> bool:
    return hasattr(parameter, "device_mesh")


def _reshard(module: Any, args: object, returned: object) -> None:
    module.reshard()


def _agree(mesh: Any, num_chunks: int) -> None:
    """Refuse ranks of a mesh that would wait for each other for ever."""
    # The largest number, and the smallest with its sign turned.
    extremes = torch.tensor([num_chunks, -num_chunks], device=mesh.device_type)
    for dimension in range(mesh.ndim):
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=mesh.get_group(dimension))
    most, least = extremes.tolist()
    if most != -least:
        raise ValueError(
            f"inputs: expected as many chunks on every rank of a model under fully_shard, got from {-least} to {most} "
            f"({num_chunks} here); give every rank as many rows, as drop_last=True does"
        )


def _straight(wrapper: nn.Module) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        module = wrapper.module
        assert isinstance(module, nn.Module)
        return module(*args, **kwargs)

    return forward
