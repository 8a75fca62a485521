"""Versions of installed distributions, and how they compare."""

from __future__ import annotations

import re
from importlib import metadata


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, which compare as versions do.

    Example:
        >>> release("2.13.0+cpu") < release("2.14")
        True
    """
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
