"""What is changed in the kernels' modules while an alternative runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from ctloss.kernels.triton_path.plan import config

# Attributes of modules and what they are meanwhile; none: everything as shipped.
Changes = tuple[tuple[ModuleType, str, object], ...]
# No batch is small; those of a real run are too large to notice.
IN_PANELS: Changes = ((config, "SMALL_PAIRS", 0), (config, "FEW_PAIRS", 0))


@contextmanager
def changed(changes: Changes) -> Iterator[None]:
    """Set attributes of modules for a while."""
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def small_configured(**fields: Any) -> Changes:
    """Small batches whose three kernels' configuration has these fields."""
    choose = config.choose_small
    return ((config, "choose_small", lambda *about: replace(choose(*about), **fields)),)


def configured(**fields: Any) -> Changes:
    """Panels whose configuration has these fields."""
    choose = config.choose
    return ((config, "choose", lambda *about: replace(choose(*about), **fields)),)
