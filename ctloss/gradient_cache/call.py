"""One call of a cache: an encoder, its inputs in chunks, and what every chunk has to find again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .encoders import Modules
from .states import Autocast, RandomStates
from .trees import leaves, with_leaves

CHANGED = (
    "a tensor that encode reads was changed in place, by encode or between the forward and the backward pass: one of "
    "shape {shape} and {dtype}; step the optimiser and refill input buffers after the backward pass, clone in encode"
)
REENTRANT = (
    "encode: expected activation checkpointing with use_reentrant=False, got the reentrant kind, which hides its "
    "parameters; pass use_reentrant=False to torch.utils.checkpoint, or "
    "gradient_checkpointing_kwargs={'use_reentrant': False} to transformers"
)


class Call:
    """An encoder and its inputs, run in chunks as often as wanted.

    Args:
        encode: called with a chunk of ``inputs`` and all of ``shared``.
        inputs: a tree of tensors whose first dimensions are the rows of the batch.
        shared: trees of tensors that every chunk gets whole.
        chunk: rows of a chunk.

    Raises:
        TypeError, ValueError: see :meth:`GradientCache.__call__`.
    """

    def __init__(self, encode: Callable[..., Any], inputs: Any, shared: tuple[Any, ...], chunk: int) -> None:
        if not callable(encode):
            raise TypeError(
                f"encode: expected a module or a function of a chunk of inputs, got {type(encode).__name__}; "
                "pass the model itself, or lambda batch: model(**batch)"
            )
        self.encode = encode
        self.inputs, self.shared = inputs, shared
        self.input_leaves, self.shared_leaves = leaves(inputs), leaves(shared)
        rows = _rows(self.input_leaves)
        # No rows are one chunk: a rank without any takes part in all that the others do.
        self.bounds = [(start, min(start + chunk, rows)) for start in range(0, max(rows, 1), chunk)]
        self.modules = Modules()
        self.autocast = Autocast.now()
        self.states: list[RandomStates] = []
        # The inputs that want a gradient, and, found in the first pass, the other tensors that do.
        self.sources = [one for one in (*self.input_leaves, *self.shared_leaves) if _differentiable(one)]
        self.learnt: list[Tensor] = []
        # Tensors made in inference mode do not count their changes.
        given = [one for one in (*self.input_leaves, *self.shared_leaves) if isinstance(one, Tensor)]
        self.versions = [(one, one._version) for one in given if not one.is_inference()]
        # What encode returned for the first chunk, and which of its leaves have a gradient.
        self.form: Any = None
        self.live: list[bool] = []

    def first_pass(self, *, keep: bool) -> list[Any]:
        """The leaves of what encode returns, of the whole batch and without a graph.

        With ``keep``, the chunks run as they will in the backward pass, with a graph that is dropped at once: some
        kernels, and compilers, choose by it, and others would draw other random numbers. From the graph are seen the
        tensors that get a gradient.
        """
        wholes: list[Any] = []
        seen: dict[int, weakref.ref[Tensor]] = {}
        for index in range(len(self.bounds)):
            if keep:
                self.states.append(RandomStates.now())
            with self.modules.unwrapped() if index else self.modules.watched(self.encode):
                self._take(index, wholes, seen)
            if not index:
                self.modules.settle(len(self.bounds))
        # Leaves that encode made for a chunk, such as frozen embeddings that are told to want a gradient, went with it.
        self.learnt = [one for reference in seen.values() if (one := reference()) is not None]
        self.versions += [(one, one._version) for one in self.learnt]
        return wholes

    def _take(self, index: int, wholes: list[Any], seen: dict[int, weakref.ref[Tensor]]) -> None:
        """Run a chunk, put what it returns among ``wholes``, and note the leaves of its graph, which ends here."""
        start, stop = self.bounds[index]
        found, sources = self.run(start, stop)
        live = [_differentiable(one) for one in found]
        # Parameters that are gathered for a moment are no leaves to return a gradient for.
        used = [] if self.modules.sharded else _graph_leaves([one for one in found if _differentiable(one)])
        own = {id(one) for one in sources}
        for one in used:
            known = seen.get(id(one))
            if id(one) not in own and (known is None or known() is not one):
                seen[id(one)] = weakref.ref(one)
        if not index:
            # Room for the rows, and not a list of parts: a part may be a view of all that a layer put out.
            wholes += [_room(one, self.bounds[-1][1]) for one in found]
            self.live = live
        for whole, part in zip(wholes, found, strict=True):
            _put(whole, part, start, stop)
        self.live = [before or now for before, now in zip(self.live, live, strict=True)]

    def run(self, start: int, stop: int) -> tuple[list[Any], list[Tensor]]:
        """The leaves of what encode returns for some rows, and the rows and tensors in which its graph ends."""
        sources: list[Tensor] = []

        def own(leaf: Any, *, whole: bool) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            part = leaf.detach() if whole or not leaf.ndim else leaf.detach()[start:stop]
            if _differentiable(leaf) and torch.is_grad_enabled():
                sources.append(part.requires_grad_())
            return part

        inputs = with_leaves(self.inputs, [own(one, whole=False) for one in self.input_leaves])
        shared = with_leaves(self.shared, [own(one, whole=True) for one in self.shared_leaves])
        returned = self.encode(inputs, *shared)
        found = leaves(returned)
        if self.form is None:
            self.form = with_leaves(returned, [None] * len(found))
        self._check(found, stop - start)
        return found, sources

    def _check(self, found: list[Any], rows: int) -> None:
        if not any(isinstance(one, Tensor) for one in found):
            raise TypeError(
                "encode: expected a tensor, or tensors in dicts, tuples, lists or dataclasses, got "
                f"{', '.join(sorted({type(one).__name__ for one in found})) or 'nothing'}; return the embeddings"
            )
        for one in found:
            if isinstance(one, Tensor) and (not one.ndim or one.shape[0] != rows):
                raise ValueError(
                    f"encode: expected tensors whose first dimension is that of the chunk, {rows} rows, got "
                    f"{tuple(one.shape)}; return what belongs to rows, and use anything else outside of encode"
                )
            if not isinstance(one, Tensor | int | float | str | None):
                raise TypeError(
                    f"encode: expected tensors, got {type(one).__name__} among what it returned; "
                    "return only what the loss needs"
                )
        expected = len(leaves(self.form))
        if len(found) != expected:
            raise ValueError(
                f"encode: expected the same tree for every chunk, got {len(found)} leaves after {expected}; "
                "what it returns must not depend on the rows"
            )

    def replay(self, index: int) -> tuple[list[Any], list[Tensor]]:
        """A chunk again, with its graph; to be called within :meth:`replaying`."""
        with self.autocast.replayed(), self.modules.replayed(), torch.enable_grad():
            return self.run(*self.bounds[index])

    def replaying(self, index: int) -> Any:
        """A context in which the chunk draws the random numbers that it drew first."""
        return self.states[index].replayed() if self.states else nullcontext()

    def check(self) -> None:
        """Refuse to replay what would not be what ran first.

        Raises:
            RuntimeError: if a tensor or a module's mode has changed.
        """
        self.modules.check_modes()
        for one, version in self.versions:
            if one._version != version:
                raise RuntimeError(CHANGED.format(shape=tuple(one.shape), dtype=one.dtype))


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _rows(inputs: list[Any]) -> int:
    """The rows of a batch, from the tensors in it.

    Raises:
        TypeError: if there are none.
        ValueError: if there are no rows, or the tensors disagree.
    """
    tensors = [one for one in inputs if isinstance(one, Tensor) and one.ndim]
    if not tensors:
        raise TypeError(
            "inputs: expected a tensor, or tensors in dicts, tuples, lists or dataclasses, got none; "
            "tokenise texts and stack images first"
        )
    shapes = [tuple(one.shape) for one in tensors]
    rows = shapes[0][0]
    if any(shape[0] != rows for shape in shapes):
        raise ValueError(
            f"inputs: expected tensors with the same number of rows, got shapes {', '.join(map(str, shapes))}; "
            "pass tensors that belong to no row after the inputs: cache(encode, inputs, tensor)"
        )
    return rows


def _room(first: Any, rows: int) -> Any:
    """A tensor for the rows of all chunks, after the leaf that the first returned; what is no tensor stands for all."""
    return first.detach().new_empty((rows, *first.shape[1:])) if isinstance(first, Tensor) else first


def _put(whole: Any, part: Any, start: int, stop: int) -> None:
    if not isinstance(whole, Tensor):
        if part != whole:
            raise ValueError(
                f"encode: expected the same number or text for every chunk, got {whole!r} and {part!r}; "
                "return a tensor with a row for each row"
            )
        return
    if part.shape[1:] != whole.shape[1:] or part.dtype != whole.dtype:
        raise ValueError(
            f"encode: expected rows of {tuple(whole.shape[1:])} and {whole.dtype} from all chunks, got "
            f"{tuple(part.shape[1:])} and {part.dtype}; pad the whole batch to one length"
        )
    whole[start:stop] = part.detach()


def _graph_leaves(outputs: list[Tensor]) -> list[Tensor]:
    """The tensors for which a backward pass from the outputs would leave a gradient.

    Raises:
        ValueError: if some are hidden.
    """
    seen: set[Any] = set()
    # An output that is a leaf itself has no node.
    found: list[Tensor] = [one for one in outputs if one.grad_fn is None]
    waiting: list[Any] = [one.grad_fn for one in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)
        elif type(node).__name__ == "CheckpointFunctionBackward":
            raise ValueError(REENTRANT)
        waiting += [following for following, _ in node.next_functions]
    return found
