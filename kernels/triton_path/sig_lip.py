"""The sigmoid loss on the Triton path: not there yet."""

from __future__ import annotations

from ..problem import Batch


def unsupported(batch: Batch) -> str | None:
    """Why this path cannot run, or ``None``."""
    return "it has no sigmoid loss yet"
