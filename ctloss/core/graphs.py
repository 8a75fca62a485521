"""What compilers record of the losses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.torch_version import TorchVersion

Function = TypeVar("Function", bound=Callable[..., Any])
OLDEST = "2.12"
"""The PyTorch from which on ``torch.compile`` can record a loss. Before, its compiler fails on one."""


def outside_graphs(function: Function) -> Function:
    """Have compilers break their graph at a function, and call it as it is.

    ``torch.compiler.disable`` itself would import all of a compiler with this package.
    """

    # Made once, not at every call. Compilers warn of functools.cache.
    left_out: list[Callable[..., Any]] = []

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if not left_out:
            left_out.append(torch.compiler.disable(function))
        return left_out[0](*arguments, **options)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def in_graphs(loss: Function) -> Function:
    """Leave a loss to compilers that can record it, as it is."""
    return loss if TorchVersion(torch.__version__) >= OLDEST else outside_graphs(loss)
