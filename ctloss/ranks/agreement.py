"""That all ranks make the same call: what they tell each other before it, and what is said of a rank that does not."""

from __future__ import annotations

import json
import math
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from .group import Ranks
from .transport import TERMS, Failure, Messages, gather

MOST_SETS = 8
# Ranks up to which each tells every other one by itself, so that one that does not answer is known.
FEW_RANKS = 64
# Seconds that a rank that has failed waits for what the others say.
PATIENCE = 5.0


class Terms(NamedTuple):
    """What a rank brings to a call, and its need of gradients; numbers only.

    Attributes:
        n: its pairs.
        candidates: rows of each of its own sets of candidates.
        needs: whether its rows need a gradient.
        temperature: a number, or NaN for a tensor, which is not read.
        per_row: whether each of its anchors has its own temperature.
    """

    n: int
    candidates: tuple[int, ...]
    needs: bool
    temperature: float
    per_row: bool


Description = Mapping[str, str]
"""What must be the same on all ranks: an option's name and its value as text."""

# By the groups themselves: their names come again when process groups are destroyed and initialised anew.
_agreed: WeakKeyDictionary[Any, set[int]] = WeakKeyDictionary()
_failures: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def agree(ranks: Ranks, own: Terms, description: Description, device: torch.device, *, even: bool) -> list[Terms]:
    """Every rank's terms, after making sure that all of them make the same call.

    Args:
        ranks: who takes part.
        own: this rank's terms.
        description: what must be the same everywhere.
        device: where messages of the group's backend lie.
        even: take it that all have this rank's terms, except the first time of each kind of call.

    Raises:
        RuntimeError: on every rank, saying which rank differs in what, or which one does not answer.
    """
    fingerprint = zlib.crc32(json.dumps(sorted(description.items())).encode())
    known = _agreed.setdefault(ranks.group, set())
    if even and fingerprint in known:
        return [own] * ranks.world
    if len(own.candidates) > MOST_SETS:
        raise ValueError(
            f"candidates: expected at most {MOST_SETS} sets with group=, got {len(own.candidates)}; join some"
        )
    (temperature,) = struct.unpack("q", struct.pack("d", own.temperature))
    sets = [*own.candidates, *[0] * (MOST_SETS - len(own.candidates))]
    flags = 2 * own.per_row + own.needs
    numbers = torch.tensor([fingerprint, own.n, flags, temperature, len(own.candidates), *sets], device=device)
    with watched(ranks, description):
        table = _told(ranks, numbers).tolist()
    if any(row[0] != fingerprint for row in table):
        _refuse(ranks, told(ranks, description))
    found = []
    for _, n, flags, bits, count, *rows in table:
        (tau,) = struct.unpack("d", struct.pack("q", bits))
        found.append(Terms(n, tuple(rows[:count]), flags % 2 == 1, tau, flags >= 2))
    temperatures = [_kind(one, found) for one in found]
    if len(set(temperatures)) > 1:
        _refuse(ranks, [{"temperature": kind} for kind in temperatures])
    if even:
        if any((one.n, one.candidates, one.needs) != (own.n, own.candidates, own.needs) for one in found):
            sizes: list[Description] = [{"what it brings": _spelled(one)} for one in found]
            _refuse(ranks, sizes, "even=True promises that they are the same; leave it out")
        known.add(fingerprint)
    return found


def _kind(terms: Terms, of_ranks: Sequence[Terms]) -> str:
    """A rank's temperature in words; of a single pair, one number may also stand for those of its anchors."""
    if not math.isnan(terms.temperature):
        return repr(terms.temperature)
    several = terms.per_row or (terms.n <= 1 and any(one.per_row for one in of_ranks))
    return "one per anchor" if several else "one tensor"


def _spelled(terms: Terms) -> str:
    gradients = "with" if terms.needs else "without"
    return f"{terms.n} pairs and {terms.candidates or 'no'} candidates, {gradients} gradients"


def _told(ranks: Ranks, own: Tensor) -> Tensor:
    """Every rank's tensor, stacked."""
    if own.device.type == "cpu" and ranks.world <= FEW_RANKS:
        found = own.repeat(ranks.world, 1)
        others = [rank for rank in range(ranks.world) if rank != ranks.rank]
        Messages(ranks, [(own, rank) for rank in others], [(found[rank], rank) for rank in others], TERMS).wait()
        return found
    found = own.new_empty((ranks.world, own.numel()))
    try:
        gather(found.view(-1), own, ranks)
    except RuntimeError as error:
        raise Failure(None, error) from error
    return found


def total(ranks: Ranks, description: Description, own: Tensor) -> Tensor:
    """The sum of every rank's ``(k,)`` float64 numbers, added up in the order of the ranks."""
    with watched(ranks, description):
        return _told(ranks, own.detach().contiguous()).sum(0)


def told(ranks: Ranks, description: Description) -> list[Description]:
    """Every rank's description."""
    found: list[Any] = [None] * ranks.world
    dist.all_gather_object(found, dict(description), group=ranks.group)
    return found


def _refuse(ranks: Ranks, of_ranks: Sequence[Description], advice: str = "") -> NoReturn:
    """Say which ranks differ from what most of them have."""
    names = sorted({name for one in of_ranks for name in one})
    usual = {name: Counter(one.get(name) for one in of_ranks).most_common(1)[0][0] for name in names}
    found = []
    for rank, one in enumerate(of_ranks):
        differs = [
            f"{name}={one.get(name)} where others have {usual[name]}" for name in names if one.get(name) != usual[name]
        ]
        if differs:
            found.append(f"{ranks.name(rank)} has {', '.join(differs)}")
    raise RuntimeError(
        f"group: expected the same call on every rank, but {'; '.join(found)}; "
        f"{advice or 'call the loss with the same options, and rows of one width and dtype, on every rank'}"
    )


@contextmanager
def watched(ranks: Ranks, description: Description) -> Iterator[None]:
    """Turn a failed exchange into an error that says which rank does not answer, or differs in what.

    Raises:
        RuntimeError: for a :class:`~ctloss.ranks.transport.Failure` inside.
    """
    try:
        yield
    except Failure as failure:
        others = _posted(ranks, description)
        if others is not None:
            silent = [rank for rank, one in enumerate(others) if one is None]
            present = [dict(description) if one is None else one for one in others]
            if any(one != description for one in present):
                _refuse(ranks, present)
        else:
            silent = []
        who = [failure.peer] if failure.peer is not None else silent
        named = " and ".join(ranks.name(rank) for rank in who) or "another rank"
        raise RuntimeError(
            f"group: the exchange with {named} failed ({failure}); it has ended, hangs, or does not call this loss: "
            "see its own output"
        ) from failure


def _posted(ranks: Ranks, own: Description) -> list[Description | None] | None:
    """What the ranks that have failed too say of their call, ``None`` for those that say nothing; or nothing at all.

    The connections between ranks may be unusable by now, so this goes through the store that they were set up with.
    """
    try:
        # What was said of an earlier failure is out of date.
        _failures[ranks.group] = number = _failures.get(ranks.group, 0) + 1
        store = dist.distributed_c10d.PrefixStore(
            f"ctloss/{ranks.group.group_name}/{number}", dist.distributed_c10d._get_default_store()
        )
        store.set(str(ranks.rank), json.dumps(dict(own)))
        found: list[Description | None] = []
        end = time.monotonic() + PATIENCE
        for rank in range(ranks.world):
            try:
                store.wait([str(rank)], timedelta(seconds=max(0.01, end - time.monotonic())))
                found.append(json.loads(store.get(str(rank))))
            except RuntimeError:
                found.append(None)
        return found
    except (RuntimeError, AttributeError):
        return None
