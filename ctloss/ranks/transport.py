"""How rows get from rank to rank: packed into bytes, and sent round a ring or gathered at once.

Everything of a rank that others need for a block travels as one message. While a block is worked on, the next one is on
its way. Collectives are outside autograd: the losses form their gradients themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import schedule
from .group import Ranks

# Every tensor of a message begins at a multiple of this many bytes, which any dtype may.
ALIGNMENT = 16
ROWS, SUMS, TERMS = 1, 2, 3
"""Tags of messages: what a rank awaits is never taken for something else."""


class Part(NamedTuple):
    """One tensor of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes with padding.

        Example:
            >>> Part((3, 2), torch.bfloat16).num_bytes
            16
        """
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT


def size_of(parts: Sequence[Part]) -> int:
    """Bytes of a message."""
    return sum(part.num_bytes for part in parts)


def pack(tensors: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """One message of some tensors, ``(bytes,)`` uint8, copied.

    Example:
        >>> parts = [Part((2,), torch.int64), Part((1, 1), torch.float32)]
        >>> unpack(pack([torch.tensor([3, 4]), torch.tensor([[0.5]])], parts), parts)
        [tensor([3, 4]), tensor([[0.5000]])]
    """
    device = tensors[0].device if tensors else None
    message = torch.empty(size_of(parts), dtype=torch.uint8, device=device)
    for place, tensor in zip(unpack(message, parts), tensors, strict=True):
        place.copy_(tensor)
    return message


def unpack(message: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """The tensors of a message, as views."""
    found, offset = [], 0
    for part in parts:
        count = math.prod(part.shape) * part.dtype.itemsize
        found.append(message[offset : offset + count].view(part.dtype).view(part.shape))
        offset += part.num_bytes
    return found


class Failure(RuntimeError):
    """A message that did not arrive or could not be sent; ``peer`` is the other rank, or ``None`` if any may be it."""

    def __init__(self, peer: int | None, cause: BaseException) -> None:
        super().__init__(str(cause).splitlines()[0] if str(cause) else type(cause).__name__)
        self.peer = peer


class Messages:
    """Messages on their way to and from other ranks; empty ones are not sent.

    Args:
        ranks: whose they are.
        sent: what goes to which rank.
        received: memory for what comes from which rank.
        tag: what they are.
    """

    def __init__(
        self, ranks: Ranks, sent: Sequence[tuple[Tensor, int]], received: Sequence[tuple[Tensor, int]], tag: int
    ) -> None:
        # Memory must live until the messages have gone.
        self.memory: list[Tensor] = []
        peers: list[int | None] = []
        ready = []
        for operation, ends in ((dist.irecv, received), (dist.isend, sent)):
            for tensor, peer in ends:
                if tensor.numel():
                    everywhere = dist.get_global_rank(ranks.group, peer)
                    ready.append(dist.P2POp(operation, tensor, everywhere, ranks.group, tag))
                    peers.append(peer)
                    self.memory.append(tensor)
        self.works: list[tuple[Any, int | None]] = []
        self.failure: Failure | None = None
        # Between CPUs a batch is its messages one by one. A rank that has ended must not keep those to others back.
        alone = bool(ready) and self.memory[0].device.type == "cpu"
        batches = [[one] for one in ready] if alone else [ready]
        for batch, one in zip(batches, peers if alone else [None], strict=True):
            try:
                works = dist.batch_isend_irecv(batch) if batch else []
            except RuntimeError as error:
                self.failure = self.failure or Failure(one, error)
                continue
            self.works += [(work, one) for work in works]

    def wait(self) -> None:
        """Wait for all of them.

        Raises:
            Failure: naming the rank, where one of them has failed.
        """
        failure = self.failure
        for work, peer in self.works:
            try:
                work.wait()
            except RuntimeError as error:
                failure = failure or Failure(peer, error)
                # What others wait for goes on its way although one rank has ended; for one that hangs, once is enough.
                if "imed out" in str(error):
                    break
        self.works, self.memory = [], []
        if failure is not None:
            raise failure


class Ring:
    """Messages that travel from each rank to the one before it, hop by hop; iterates over those that arrive.

    After hop k the message is that of rank + k. It may be used until the next one is asked for: two are held at a time,
    the one in use, which is passed on meanwhile, and the one that arrives.

    Args:
        ranks: whose ring.
        own: this rank's message.
        sizes: bytes of each rank's message.
        hops: how many to receive.
    """

    def __init__(self, ranks: Ranks, own: Tensor, sizes: Sequence[int], hops: int) -> None:
        self.ranks, self.sizes, self.hops = ranks, sizes, hops
        self.memory = [own.new_empty(max(sizes)) for _ in range(min(2, hops))]
        self.arriving, self.message = self._pass_on(own, 1)

    def _pass_on(self, held: Tensor, hop: int) -> tuple[Messages, Tensor]:
        """Send what is held on, and receive what comes at this hop."""
        ranks = self.ranks
        arriving = self.memory[hop % len(self.memory)][: self.sizes[ranks.peer(hop)]]
        return Messages(ranks, [(held, ranks.peer(-1))], [(arriving, ranks.peer(1))], ROWS), arriving

    def __iter__(self) -> Iterator[Tensor]:
        for hop in range(1, self.hops + 1):
            self.arriving.wait()
            current = self.message
            if hop < self.hops:
                self.arriving, self.message = self._pass_on(current, hop + 1)
            yield current


def gather(found: Tensor, own: Tensor, ranks: Ranks, *, async_op: bool = False) -> Any:
    """All ranks' tensors of one size, one after the other in ``found``, by the collective's present name."""
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return collective(found, own, group=ranks.group, async_op=async_op)


class Gathered:
    """All ranks' messages at once; iterates over them in the order of the ring, as often as wanted.

    Args:
        ranks: whose.
        own: this rank's message.
        sizes: bytes of each rank's message.
        hops: how many to iterate over.
    """

    def __init__(self, ranks: Ranks, own: Tensor, sizes: Sequence[int], hops: int) -> None:
        self.ranks, self.sizes, self.hops = ranks, sizes, hops
        # Collectives want messages of one size.
        padded = own.new_zeros(max(sizes))
        padded[: len(own)] = own
        self.memory = own.new_empty(ranks.world * max(sizes))
        self.own: Tensor | None = padded
        try:
            self.work: Any = gather(self.memory, padded, ranks, async_op=True)
        except RuntimeError as error:
            raise Failure(None, error) from error

    def __iter__(self) -> Iterator[Tensor]:
        if self.work is not None:
            try:
                self.work.wait()
            except RuntimeError as error:
                raise Failure(None, error) from error
            self.work = self.own = None
        longest = max(self.sizes)
        for hop in range(1, self.hops + 1):
            peer = self.ranks.peer(hop)
            yield self.memory[peer * longest : peer * longest + self.sizes[peer]]


def begin(
    ranks: Ranks, tensors: Sequence[Tensor], parts: Sequence[Sequence[Part]], workspace: int, hops: int
) -> Ring | Gathered:
    """Start to send a rank's tensors to the others, and to receive theirs, in the way that suits their size.

    Args:
        ranks: who takes part.
        tensors: this rank's.
        parts: what each rank's tensors are.
        workspace: bytes of temporary memory that the call may use.
        hops: how far tensors travel on a ring; gathered ones are those of all.
    """
    sizes = [size_of(one) for one in parts]
    message = pack(tensors, parts[ranks.rank])
    if schedule.transport(ranks.world, max(sizes), workspace) == "gather":
        return Gathered(ranks, message, sizes, ranks.world - 1)
    return Ring(ranks, message, sizes, hops)


def arrivals(
    ranks: Ranks, tensors: Sequence[Tensor], parts: Sequence[Sequence[Part]], workspace: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """Every other rank and its tensors, in the order of the ring; they may be used until the next are asked for.

    They are on their way when this returns. Arguments are those of :func:`begin`.
    """
    hops = len(schedule.backward(ranks.world))
    arriving = begin(ranks, tensors, parts, workspace, hops)
    peers = [ranks.peer(hop) for hop in range(1, hops + 1)]
    return ((peer, unpack(arrived, parts[peer])) for peer, arrived in zip(peers, arriving, strict=True))
