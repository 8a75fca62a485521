"""What ``group=`` may be, and what a rank knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

Average = Literal["mean", "sum"]
Group = Any
"""A ProcessGroup, a one-dimensional DeviceMesh, ``"world"``, or None; torch may have been built without the former."""


class RankOptions(TypedDict, total=False):
    """The options of losses over several ranks, for type checkers; :class:`Across` has their meanings and defaults."""

    group: Group
    average: Average
    even: bool
    shared_candidates: bool


@dataclass(frozen=True)
class Across:
    """How a loss call extends over ranks.

    Attributes:
        group: the ranks whose rows are compared: a ``ProcessGroup``, a one-dimensional ``DeviceMesh``, ``"world"``, or
            ``None`` for this process alone.
        average: ``"mean"`` if the ranks' gradients are averaged (DDP, FSDP), ``"sum"`` if they are added up.
        even: the promise that at every call all ranks bring as many rows as each other, and all or none need gradients.
        shared_candidates: candidates are the same rows on every rank, rather than each rank's own.

    Raises:
        TypeError, ValueError: for another value.

    Example:
        >>> Across.taken({"average": "sum", "normalize": True})
        (None, {'average': 'sum', 'normalize': True})
    """

    group: Group = None
    average: Average = "mean"
    even: bool = False
    shared_candidates: bool = False

    def __post_init__(self) -> None:
        if self.average not in get_args(Average):
            raise ValueError(f"average: expected 'mean' or 'sum', got {self.average!r}; DDP and FSDP take the mean")
        for name in ("even", "shared_candidates"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}; pass one of them")
