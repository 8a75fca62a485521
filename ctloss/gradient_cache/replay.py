"""The backward pass of a cache: each chunk runs again with its graph and takes its part of the embeddings' gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .call import Call

SECOND_DERIVATIVE = (
    "ctloss.GradientCache has no second derivative; leave create_graph=True out, or encode the whole batch at once"
)
GRADIENT_OF_SHARDS = (
    "ctloss.GradientCache: expected loss.backward() for a model under fully_shard, whose gradients are kept by shards; "
    "got torch.autograd.grad or backward(inputs=...)"
)
OUTER_GRAPH = (
    "encode uses a tensor that was computed from others which want a gradient; every chunk would go through its graph "
    "again: pass it after the inputs, as in cache(encode, inputs, tensor)"
)
NARROW = (torch.bfloat16, torch.float16)


class Replay(torch.autograd.Function):
    """The embeddings of a call, as a function of everything that its chunks get a gradient for."""

    @staticmethod
    def forward(ctx: Any, call: Call, embeddings: list[Tensor], *wanting: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.call = call
        return tuple(embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(SECOND_DERIVATIVE)
        call: Call = ctx.call
        call.check()
        kept = Kept(call)
        for index in range(len(call.bounds)):
            if call.modules.sharded:
                _run_sharded(call, index, gradients, kept)
            else:
                _run(call, index, gradients, kept)
        return None, None, *kept.sources, *kept.of_learnt()


class Kept:
    """The gradients of all chunks: those of inputs row by row, those of everything else added up."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.sources: list[Tensor | None] = [None] * len(call.sources)
        self.learnt: list[Tensor | None] = [None] * len(call.learnt)
        self.num_split = sum(isinstance(one, Tensor) and one.requires_grad for one in call.input_leaves)

    def add_learnt(self, place: int, gradient: Tensor) -> Tensor | None:
        """Add the gradient of a chunk; what stands for it in the engine, which would hold it until the chunk's end."""
        total = self.learnt[place]
        if gradient.layout != torch.strided:
            self.learnt[place] = gradient if total is None else total + gradient
            return None
        if total is None:
            # The sum of many chunks in a narrow dtype would stop to grow.
            wide = torch.float32 if gradient.dtype in NARROW else gradient.dtype
            self.learnt[place] = gradient.to(wide, copy=True)
        else:
            total.add_(gradient)
        return gradient.new_zeros(()).expand_as(gradient)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Gather the gradients of the learnt tensors as they are formed.

        Hooks that others have put on these tensors wait for the sum, which the surrounding backward pass hands over.
        """
        others = [(tensor, tensor._backward_hooks) for tensor in self.call.learnt]
        for tensor, _ in others:
            tensor._backward_hooks = None
        try:
            for place, (tensor, _) in enumerate(others):
                tensor.register_hook(partial(self.add_learnt, place))
            yield
        finally:
            for tensor, hooks in others:
                tensor._backward_hooks = hooks

    def add_source(self, place: int, index: int, gradient: Tensor | None) -> None:
        """Put the gradient of a chunk's rows in their place, or add that of a shared tensor."""
        if gradient is None:
            return
        source, total = self.call.sources[place], self.sources[place]
        if total is None:
            total = self.sources[place] = torch.zeros_like(source, memory_format=torch.contiguous_format)
        if place < self.num_split and source.ndim:
            start, stop = self.call.bounds[index]
            total = total[start:stop]
        total.add_(gradient)

    def of_learnt(self) -> list[Tensor | None]:
        """The gradients of what else the chunks found, in the dtypes of the tensors."""
        if self.call.modules.sharded:
            return [None]
        pairs = zip(self.learnt, self.call.learnt, strict=True)
        return [None if total is None else total.to(one.dtype) for total, one in pairs]


def _ends(call: Call, index: int, found: list[Any], gradients: tuple[Tensor | None, ...]) -> tuple[list, list]:
    """What of a chunk's outputs has a gradient, and these gradients."""
    start, stop = call.bounds[index]
    live = [one for one, is_live in zip(found, call.live, strict=True) if is_live]
    outputs, upstream = [], []
    for one, gradient in zip(live, gradients, strict=True):
        if gradient is not None and one.requires_grad:
            outputs.append(one)
            upstream.append(gradient[start:stop])
    return outputs, upstream


def _run(call: Call, index: int, gradients: tuple[Tensor | None, ...], kept: Kept) -> None:
    """A chunk whose gradients are taken and added up here, so that each parameter hands over one sum.

    Whatever waits for the gradients of parameters (the reducer of DistributedDataParallel, hooks, an optimiser in the
    backward pass) then sees what it would see without a cache.
    """
    with call.replaying(index):
        found, sources = call.replay(index)
        outputs, upstream = _ends(call, index, found, gradients)
        if not outputs:
            return
        try:
            with kept.collecting():
                formed = torch.autograd.grad(outputs, [*sources, *call.learnt], upstream, allow_unused=True)
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise RuntimeError(OUTER_GRAPH) from error
            raise
    # Those of the learnt tensors went to their hooks.
    for place, _ in enumerate(sources):
        kept.add_source(place, index, formed[place])


def _run_sharded(call: Call, index: int, gradients: tuple[Tensor | None, ...], kept: Kept) -> None:
    """A chunk of a model under fully_shard, whose own backward pass adds to the shards' gradients."""
    valid = getattr(torch.autograd, "_is_checkpoint_valid", None)
    if valid is not None and not valid():
        raise RuntimeError(GRADIENT_OF_SHARDS)
    with call.replaying(index):
        found, sources = call.replay(index)
        outputs, upstream = _ends(call, index, found, gradients)
        if outputs:
            torch.autograd.backward(outputs, upstream)
    for place, source in enumerate(sources):
        kept.add_source(place, index, source.grad)
