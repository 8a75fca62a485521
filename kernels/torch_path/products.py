"""Float32 products in float32, whatever the process allows elsewhere.

``torch.set_float32_matmul_precision("medium")`` and the tf32 switches allow float32 products to be formed from bfloat16
or tf32 factors, on a CPU through oneDNN. Logits rounded that way are off by up to 1e-2 / temperature.
"""

from __future__ import annotations

import threading
from functools import cache
from types import TracebackType
from typing import Any, ClassVar

import torch

_BACKENDS = {"cpu": "mkldnn", "cuda": "cuda"}
_EXACT = ("highest", "ieee", "none")


class ExactProducts:
    """A context in which float32 products on the device are exact to float32; it only touches settings that need it.

    The settings belong to the process: the first thread to enter changes them, the last to leave restores them.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``; elsewhere the context does nothing.

    Example:
        >>> with ExactProducts("cpu"):
        ...     product = torch.eye(2) @ torch.eye(2)
    """

    __slots__ = ("_counted", "_name")

    _lock = threading.Lock()
    _inside: ClassVar[dict[str, int]] = {}
    _former: ClassVar[dict[str, str]] = {}

    def __init__(self, device_type: str) -> None:
        self._name = _BACKENDS.get(device_type)
        self._counted = False

    def __enter__(self) -> None:
        name = self._name
        # While no thread has changed the settings, an exact one needs neither lock nor count.
        if name is None or (name not in self._inside and _read(name) in _EXACT):
            return
        with self._lock:
            if name not in self._inside:
                self._former[name] = _read(name)
                _write(name, "highest" if _matmul(name) is None else "ieee")
            self._inside[name] = self._inside.get(name, 0) + 1
            self._counted = True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        name = self._name
        if name is None or not self._counted:
            return
        with self._lock:
            self._inside[name] -= 1
            if self._inside[name]:
                return
            del self._inside[name]
            former = self._former.pop(name)
            if _matmul(name) is not None:
                # "none" inherits a wider setting; prefer it where that restores what was read.
                _write(name, "none")
            if _read(name) != former:
                _write(name, former)


@cache
def _matmul(name: str) -> Any:
    """A backend's settings for its products; ``None`` before torch 2.9, where one setting governs every backend."""
    found = getattr(getattr(torch.backends, name), "matmul", None)
    return found if hasattr(found, "fp32_precision") else None


def _read(name: str) -> str:
    settings = _matmul(name)
    return torch.get_float32_matmul_precision() if settings is None else str(settings.fp32_precision)


def _write(name: str, value: str) -> None:
    settings = _matmul(name)
    if settings is None:
        torch.set_float32_matmul_precision(value)
    else:
        settings.fp32_precision = value
