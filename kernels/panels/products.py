"""Float32 products in float32, whatever the process allows elsewhere.

``torch.set_float32_matmul_precision("medium")`` and the tf32 switches let float32 products be formed from bfloat16 or
tf32 factors, on a CPU through oneDNN. Logits rounded that way are off by up to 1e-2 / temperature.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch

_BACKENDS = {"cpu": "mkldnn", "cuda": "cuda"}


class ExactProducts:
    """A context in which float32 products on the device are exact to float32; the settings are touched only if needed.

    The settings belong to the process: a thread that leaves the context restores them for all.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``; elsewhere the context does nothing.

    Example:
        >>> with ExactProducts("cpu"):
        ...     product = torch.eye(2) @ torch.eye(2)
    """

    __slots__ = ("_former", "_legacy", "_setting")

    def __init__(self, device_type: str) -> None:
        name = _BACKENDS.get(device_type)
        self._setting: Any = getattr(getattr(torch.backends, name), "matmul", None) if name is not None else None
        # Before torch 2.9 one legacy setting governed every backend.
        self._legacy = name is not None and not hasattr(self._setting, "fp32_precision")
        self._former: str | None = None

    def __enter__(self) -> None:
        if self._legacy:
            former = torch.get_float32_matmul_precision()
            if former != "highest":
                self._former = former
                torch.set_float32_matmul_precision("highest")
        elif self._setting is not None:
            former = self._setting.fp32_precision
            if former not in ("ieee", "none"):
                self._former = former
                self._setting.fp32_precision = "ieee"

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._former is None:
            return
        if self._legacy:
            torch.set_float32_matmul_precision(self._former)
            return
        # "none" inherits a wider setting; prefer it where it gives back what was read.
        self._setting.fp32_precision = "none"
        if self._setting.fp32_precision != self._former:
            self._setting.fp32_precision = self._former
