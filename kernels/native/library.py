"""The compiled kernels, where the installation has them for this processor."""

from __future__ import annotations

import os
from types import ModuleType

from torch import Tensor

kernels: ModuleType | None
"""``None`` where they are missing."""

_missing = ""
if os.environ.get("CTLOSS_NATIVE") == "0":
    kernels, _missing = None, "the environment variable CTLOSS_NATIVE=0 turns them off"
else:
    try:
        from . import _kernels

        kernels = _kernels
    except ImportError as error:
        kernels = None
        _missing = f"this installation has none ({error}); where a C++ compiler is at hand, reinstalling builds them"


def readable(tensor: Tensor) -> Tensor:
    """The tensor with its entries as they are meant, one after the other: a sign may only be noted beside the memory.

    Example:
        >>> import torch
        >>> readable(torch.eye(2).t()).is_contiguous()
        True
    """
    return tensor.contiguous().resolve_neg()


def readable_rows(rows: Tensor) -> Tensor:
    """The same for rows, which may lie any distance apart."""
    apart = rows.shape[1] > 1 and rows.stride(1) != 1
    return readable(rows) if apart or rows.is_neg() else rows


def missing() -> str | None:
    """Why there are no compiled kernels, or ``None``.

    Example:
        >>> (missing() is None) == (kernels is not None)
        True
    """
    return None if kernels is not None else f"the compiled kernels are missing: {_missing}"
