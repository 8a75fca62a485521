"""What an encoder's numbers depend on besides its inputs and parameters: random generators and autocast."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEVICES_WITH_AUTOCAST = ("cpu", "cuda", "xpu", "mps")


class RandomStates(NamedTuple):
    """The states of the generators of the CPU, of all CUDA devices, of Python and, if it is loaded, of NumPy."""

    cpu: Tensor
    cuda: list[Tensor]
    python: Any
    numpy: Any

    @staticmethod
    def now() -> RandomStates:
        """The present states. CUDA is left alone until something else has initialised it."""
        numpy = sys.modules.get("numpy")
        return RandomStates(
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            python=random.getstate(),
            numpy=None if numpy is None else numpy.random.get_state(),
        )

    def restore(self) -> None:
        """Make these the present states."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw from these states inside, and leave the generators as if nothing had been drawn.

        Example:
            >>> states = RandomStates.now()
            >>> first, second = torch.rand(2), torch.rand(2)
            >>> with states.replayed():
            ...     print(torch.equal(torch.rand(2), first))
            True
            >>> third = torch.rand(2)
            >>> states.restore()
            >>> print([torch.equal(torch.rand(2), one) for one in (first, second, third)])
            [True, True, True]
        """
        present = RandomStates.now()
        try:
            self.restore()
            yield
        finally:
            present.restore()


class Autocast(NamedTuple):
    """For each kind of device whether autocast is on and to which dtype; and whether casts are kept."""

    devices: dict[str, tuple[bool, torch.dtype]]
    keeps_casts: bool

    @staticmethod
    def now() -> Autocast:
        """The present settings."""
        devices = {
            name: (torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in DEVICES_WITH_AUTOCAST
        }
        return Autocast(devices, torch.is_autocast_cache_enabled())

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """These settings inside, whatever holds outside.

        Example:
            >>> with torch.autocast("cpu", dtype=torch.bfloat16):
            ...     settings = Autocast.now()
            >>> with settings.replayed():
            ...     print((torch.eye(2) @ torch.eye(2)).dtype)
            torch.bfloat16
        """
        present = Autocast.now()
        with ExitStack() as stack:
            for name, (enabled, dtype) in self.devices.items():
                if present.devices[name] != (enabled, dtype):
                    # No dtype where it is off: a device that is absent has none to be asked for.
                    wanted = dtype if enabled else None
                    stack.enter_context(
                        torch.autocast(name, enabled=enabled, dtype=wanted, cache_enabled=self.keeps_casts)
                    )
            yield
