"""What ``group=`` may be, and what a rank knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

import torch
import torch.distributed as dist
from torch import Tensor

Average = Literal["mean", "sum"]
Group = Any
"""A ``ProcessGroup``, a one-dimensional ``DeviceMesh``, ``"world"``, or ``None``; not every build of torch has them."""


class RankOptions(TypedDict, total=False):
    """The options of losses over several ranks, for type checkers; :class:`Across` has their meanings and defaults."""

    group: Group
    average: Average
    even: bool
    shared_candidates: bool


OPTIONS = frozenset(RankOptions.__annotations__)
AVERAGES = get_args(Average)


@dataclass(frozen=True, kw_only=True)
class Across:
    """How a loss call extends over ranks.

    Attributes:
        group: the ranks whose rows are compared: a ``ProcessGroup``, a one-dimensional ``DeviceMesh``, ``"world"``, or
            ``None`` for this process alone.
        average: ``"mean"`` if the ranks' gradients are averaged (DDP, FSDP), ``"sum"`` if they are added up.
        even: the promise that at every call all ranks bring equally many rows and candidates, and need the same
            gradients; saves an exchange of sizes.
        shared_candidates: candidates are the same rows on every rank, rather than each rank's own.

    Raises:
        TypeError, ValueError: for another value.

    Example:
        >>> Across(group="world", average="all")
        Traceback (most recent call last):
            ...
        ValueError: average: expected 'mean' or 'sum', got 'all'; DDP and FSDP take the mean
    """

    group: Group = None
    average: Average = "mean"
    even: bool = False
    shared_candidates: bool = False

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise ValueError(f"average: expected 'mean' or 'sum', got {self.average!r}; DDP and FSDP take the mean")
        for name in ("even", "shared_candidates"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}; pass one of them")


def taken(options: dict[str, Any]) -> tuple[Across, dict[str, Any]]:
    """The options of ranks, and the others.

    Example:
        >>> taken({"average": "sum", "normalize": True})
        (Across(group=None, average='sum', even=False, shared_candidates=False), {'normalize': True})
    """
    own = {name: value for name, value in options.items() if name in OPTIONS}
    return Across(**own), {name: value for name, value in options.items() if name not in OPTIONS}


@dataclass(frozen=True)
class Ranks:
    """The ranks of a group, seen from one of them.

    Attributes:
        group: the process group.
        rank: this process's place in it.
        world: how many there are.
    """

    group: Any
    rank: int
    world: int

    @classmethod
    def of(cls, group: Group) -> Ranks:
        """The ranks that ``group=`` stands for.

        Raises:
            TypeError: for something that is no group.
            ValueError: for a mesh of several dimensions, or a group without this process.
            RuntimeError: where no process group has been initialised.
        """
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "group: expected an initialised process group, got none; start the processes with torchrun and call "
                "torch.distributed.init_process_group first, or leave out group= in a single process"
            )
        if isinstance(group, str) and group == "world":
            group = dist.group.WORLD
        if hasattr(group, "get_group") and hasattr(group, "ndim"):
            if group.ndim != 1:
                names = group.mesh_dim_names or tuple(range(group.ndim))
                raise ValueError(
                    f"group: expected a one-dimensional mesh, got one of {group.ndim} dimensions, {names}; pass the "
                    "part along which batches differ, such as mesh['dp']"
                )
            group = group.get_group()
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                f"group: expected a group that this process belongs to, got one without it (rank {dist.get_rank()}); "
                "only the group's own ranks call the loss"
            )
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"group: expected a ProcessGroup, a one-dimensional DeviceMesh or 'world', got {group!r}; "
                "'world' stands for all ranks"
            )
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def name(self, rank: int) -> str:
        """How messages call a rank: by its place in the group, and in the world where that differs.

        Example:
            >>> Ranks(None, 0, 1).name(0)
            'rank 0'
        """
        everywhere = rank if self.group is None else dist.get_global_rank(self.group, rank)
        return f"rank {rank}" if everywhere == rank else f"rank {rank} of the group (rank {everywhere} of all)"

    def peer(self, hop: int) -> int:
        """The rank so many places after this one.

        Example:
            >>> Ranks(None, 2, 3).peer(1)
            0
        """
        return (self.rank + hop) % self.world


def is_sharded(rows: object) -> bool:
    """Whether rows are a DTensor, and so lie on several ranks.

    Example:
        >>> is_sharded(torch.zeros(2, 3))
        False
    """
    return type(rows) is not Tensor and hasattr(rows, "placements") and hasattr(rows, "to_local")


def check_backend(ranks: Ranks, device: torch.device) -> None:
    """Refuse a group that cannot send rows from where they are.

    Raises:
        ValueError: for CPU rows and NCCL, or CUDA rows and gloo.
    """
    backends = dict(pair.split(":") for pair in dist.get_backend_config(ranks.group).split(","))
    found = backends.get(device.type)
    if found is None or (device.type == "cuda" and found == "gloo"):
        raise ValueError(
            f"group: expected a backend that sends rows from {device.type}, got {found or backends}; "
            "initialise the process group with 'gloo' for CPUs, 'nccl' for GPUs, or 'cpu:gloo,cuda:nccl' for both"
        )


def local_rows(name: str, rows: Any, group: Group) -> tuple[Any, Group]:
    """A DTensor's rows on this rank, and the mesh that the others lie on; anything else as it is.

    Args:
        name: the argument's, for the message.
        rows: a tensor, sharded along its rows if it is a DTensor.
        group: what the caller gave, or what another argument's mesh has given.

    Raises:
        TypeError: for a DTensor that is not sharded along its rows.
        ValueError: for a DTensor of a group other than the one given.
    """
    if not is_sharded(rows):
        return rows, group
    spread: Any = rows
    mesh, placements = spread.device_mesh, spread.placements
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise TypeError(
            f"{name}: expected a DTensor sharded along its rows on a one-dimensional mesh, got placements "
            f"{tuple(placements)}; redistribute it to [Shard(0)], or pass {name}.to_local() and group="
        )
    own = Ranks.of(mesh)
    if group is not None and Ranks.of(group) != own:
        raise ValueError(
            f"group: expected the group of {name}'s mesh, which says where its other rows are, got another; omit it"
        )
    return spread.to_local(), mesh
