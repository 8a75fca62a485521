"""Trees of tensors: what an encoder takes and returns, in any containers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def mapped(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same containers around what ``leaf`` makes of everything in them that is no container, in a fixed order.

    Containers are mappings, lists, tuples, named tuples and dataclasses. They keep their type and are not changed.

    Example:
        >>> mapped({"ids": [1, 2], "mask": (3,)}, lambda number: 10 * number)
        {'ids': [10, 20], 'mask': (30,)}
    """
    if isinstance(tree, Tensor):
        return leaf(tree)
    if isinstance(tree, Mapping):
        entries = {key: mapped(value, leaf) for key, value in tree.items()}
        if type(tree) is dict or not isinstance(tree, MutableMapping):
            return entries
        # A tokenizer's batch and a model's output hold more than their entries, and not all can be made from a dict.
        held = copy.copy(tree)
        for key, value in entries.items():
            held[key] = value
        return held
    if isinstance(tree, tuple):
        values = [mapped(value, leaf) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if isinstance(tree, list):
        return [mapped(value, leaf) for value in tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changed = copy.copy(tree)
        for field in dataclasses.fields(tree):
            # A frozen dataclass has no other way.
            object.__setattr__(changed, field.name, mapped(getattr(tree, field.name), leaf))
        return changed
    return leaf(tree)


def leaves(tree: Any) -> list[Any]:
    """Everything in the tree that is no container, in the order of :func:`mapped`.

    Example:
        >>> leaves({"ids": [1, 2], "mask": (None,)})
        [1, 2, None]
    """
    found: list[Any] = []
    mapped(tree, found.append)
    return found


def with_leaves(tree: Any, given: list[Any]) -> Any:
    """The tree with other leaves, in the order of :func:`leaves`.

    Example:
        >>> with_leaves({"ids": [1, 2], "mask": (None,)}, ["a", "b", "c"])
        {'ids': ['a', 'b'], 'mask': ('c',)}
    """
    following = iter(given)
    return mapped(tree, lambda _: next(following))
