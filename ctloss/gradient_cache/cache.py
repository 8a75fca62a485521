"""The cache as users call it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .replay import Replay
from .trees import with_leaves

UNDER_A_COMPILER = (
    "ctloss.GradientCache cannot be part of a graph; compile the encoder, torch.compile(model), "
    "or leave fullgraph=True out"
)


class GradientCache:
    r"""Embeddings of a large batch in the memory of a small one, with the gradient of the whole batch.

    A contrastive loss cannot be split into micro-batches: every row is compared with all others. But with E = f(X; θ),

    .. math:: \frac{\partial L}{\partial \theta} = \sum_{\text{chunks } c}
              \Big(\frac{\partial f(X_c; \theta)}{\partial \theta}\Big)^{\!\top} \frac{\partial L}{\partial E_c},

    so each chunk can be run, forgotten, and run again once :math:`\partial L / \partial E` is known (Gao et al. 2021,
    arXiv 2101.06983). A call returns the embeddings of all rows. They are differentiable as if the encoder had run on
    the whole batch: the loss and its ``backward()`` remain what they were, with gradient scalers, DDP, ``group=`` and
    whatever calls ``backward``. Each chunk draws in the second run the random numbers (dropout) of its first, in the
    same autocast.

    Args:
        chunk: rows that the encoder gets at once. Memory is that of one chunk's activations and of all embeddings.

    Raises:
        TypeError, ValueError: for a chunk that is not a positive integer.

    Example:
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Dropout(0.1))
        >>> cache = GradientCache(chunk=16)
        >>> x, y = cache(encoder, torch.randn(64, 8)), cache(encoder, torch.randn(64, 8))
        >>> x.shape
        torch.Size([64, 4])
        >>> (x * y).sum().backward()
        >>> encoder[0].weight.grad.shape
        torch.Size([4, 8])
    """

    def __init__(self, chunk: int) -> None:
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            raise TypeError(f"chunk: expected a number of rows, got {type(chunk).__name__}; pass an int such as 64")
        if chunk < 1:
            raise ValueError(f"chunk: expected at least 1 row, got {chunk}; pass what one forward pass has room for")
        self.chunk = chunk

    def __repr__(self) -> str:
        return f"GradientCache(chunk={self.chunk})"

    def __call__(self, encode: Callable[..., Any], inputs: Any, *shared: Any) -> Any:
        """What ``encode(inputs, *shared)`` returns, computed chunk by chunk.

        Args:
            encode: a module or any function: ``lambda batch: model(**batch).last_hidden_state[:, 0]``. Each row it
                returns must depend on this row of the inputs only.
            inputs: a tensor, or tensors in (nested) dicts, tuples, lists, dataclasses, or what a tokenizer returns.
                All have the rows of the batch as their first dimension and are split along it; 0-d tensors and what is
                no tensor are passed on whole. Tensors that require a gradient get it.
            shared: more arguments of ``encode``, which every chunk gets whole. A tensor that was computed from others
                that learn, such as a prompt, goes here.

        Returns:
            What ``encode`` returns, a tensor or several in any of these containers, with the rows of the whole batch.

        Raises:
            TypeError: if inputs or what encode returns hold no tensor, or encode returns something else among them.
            ValueError: if the first dimensions of inputs disagree, what encode returns has other rows than its chunk,
                or encode runs what cannot be cached: a BatchNorm in training, reentrant checkpointing,
                DistributedDataParallel with ``static_graph``, FullyShardedDataParallel; or, under ``fully_shard``, if
                ranks have other numbers of chunks.
            RuntimeError: in the backward pass, if parameters, inputs or modes of modules have changed since, or if a
                second derivative is asked for.

        Example:
            >>> words = {"ids": torch.tensor([[1, 2], [3, 4], [5, 6]]), "weight": torch.tensor([1.0, 2.0, 3.0])}
            >>> table = torch.nn.Embedding(10, 2)
            >>> def encode(batch):
            ...     return table(batch["ids"]).mean(1) * batch["weight"].unsqueeze(1)
            >>> rows = GradientCache(chunk=2)(encode, words)
            >>> rows.sum().backward()
            >>> table.weight.grad[:, 0]
            tensor([0.0000, 0.5000, 0.5000, 1.0000, 1.0000, 1.5000, 1.5000, 0.0000, 0.0000,
                    0.0000])
        """
        if torch.compiler.is_compiling():
            # Where breaks of the graph are allowed, this is one, and the call comes again outside of it.
            raise RuntimeError(UNDER_A_COMPILER)
        # Else a compiler that leaves this function alone would try those that it calls.
        embed = torch.compiler.disable(self._embed) if "torch._dynamo" in sys.modules else self._embed
        return embed(encode, inputs, shared)

    def _embed(self, encode: Callable[..., Any], inputs: Any, shared: tuple[Any, ...]) -> Any:
        call = Call(encode, inputs, shared, self.chunk)
        found = call.first_pass(keep=torch.is_grad_enabled())
        # Sharded parameters get their gradients by themselves; something has to ask for them.
        learnt = [torch.empty(0, requires_grad=True)] if call.modules.sharded else call.learnt
        places = [place for place, live in enumerate(call.live) if live]
        if places and (learnt or call.sources):
            attached = Replay.apply(call, [found[place] for place in places], *call.sources, *learnt)
            for place, tensor in zip(places, attached, strict=True):
                found[place] = tensor
        return with_leaves(call.form, found)


def cached(
    encode_x: Callable[..., Any],
    inputs_x: Any,
    encode_y: Callable[..., Any],
    inputs_y: Any,
    loss: Callable[..., Tensor],
    *,
    chunk: int,
) -> Tensor:
    """A loss of two large batches, encoded chunk by chunk: ``loss(encode_x(inputs_x), encode_y(inputs_y))``.

    Its gradient is that of the whole batch; see :class:`GradientCache`, which this calls for both sides.

    Args:
        encode_x: the encoder of the anchors: a module or a function.
        inputs_x: its inputs, split along their first dimension.
        encode_y: the encoder of the positives; the same one, or another.
        inputs_y: its inputs.
        loss: a function of what both encoders return, such as :func:`ctloss.info_nce`, or a module such as
            :class:`ctloss.InfoNCELoss`; ``functools.partial`` or a lambda brings options in.
        chunk: rows that an encoder gets at once.

    Returns:
        What ``loss`` returns.

    Raises:
        TypeError, ValueError, RuntimeError: as :meth:`GradientCache.__call__`.

    Example:
        >>> import ctloss
        >>> encoder = torch.nn.Linear(8, 4)
        >>> x, y = torch.randn(64, 8), torch.randn(64, 8)
        >>> loss = ctloss.cached(encoder, x, encoder, y, ctloss.info_nce, chunk=16)
        >>> torch.testing.assert_close(loss, ctloss.info_nce(encoder(x), encoder(y)))
        >>> loss.backward()
    """
    cache = GradientCache(chunk)
    return loss(cache(encode_x, inputs_x), cache(encode_y, inputs_y))
