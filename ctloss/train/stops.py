"""How a run ends before its end: by a signal, at a loss or weight that is not finite, or on a disk that takes no more.

Each of these is an exception with one line that says what happened, what is saved and what to do, and with the exit
status of the command.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed
from transformers import TrainerCallback

from ..shared.command import Signals, Stopped

# What to do about a disk that takes no more.
MAKE_ROOM = "make room there, then go on with --resume; checkpoints are as they were"
NEVER = torch.iinfo(torch.int64).max


class DivergedError(RuntimeError):
    """The loss or a weight was not finite; see :class:`Stopped` for the attributes."""

    status = 1

    def __init__(self, said: str, *, told: bool = True) -> None:
        super().__init__(said)
        self.told = told


class SavingError(RuntimeError):
    """Something of the run could not be written; see :class:`Stopped` for the attributes."""

    status = 1

    def __init__(self, said: str, *, told: bool = True) -> None:
        super().__init__(said)
        self.told = told


ENDS = (Stopped, DivergedError, SavingError)


@contextmanager
def writing(what: str, todo: str) -> Iterator[None]:
    """Turns what goes wrong while the block writes into a SavingError: what could not be written, why, what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports what the system said as text.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise SavingError(f"could not write {what}: {reason}{place}; {todo}") from error


def is_about_disk(error: OSError) -> bool:
    """Tells whether an error says that a disk is full, broken or not to be written to."""
    told = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    return error.errno in told


class Agreement:
    """The signal that some process has got, known to all of them at the same step.

    At every step each process sends what it has got and reads what all had sent at the step before. The exchange is one
    of the processors, and a step long, so no device waits for it. Make one on every process, or on none.
    """

    def __init__(self) -> None:
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        self._group = distributed.new_group(backend="gloo") if several else None
        self._sent = torch.zeros((), dtype=torch.int64)
        self._under_way: Any = None

    def at_step(self, received: int) -> int:
        """Tells the others of a signal (0 for none) and returns that to stop for after this step (0 for none)."""
        if self._group is None:
            return received
        agreed = self._read()
        if not agreed:
            self._sent = torch.tensor(received)
            self._under_way = distributed.all_reduce(
                self._sent, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
            )
        return agreed

    def at_end(self, received: int) -> int:
        """Returns a signal that came too late for ``at_step``, which must not be called again."""
        if self._group is None:
            return received
        agreed = self._read()
        distributed.destroy_process_group(self._group)
        self._group = None
        return agreed

    def _read(self) -> int:
        if self._under_way is None:
            return 0
        self._under_way.wait()
        self._under_way = None
        return int(self._sent)


class Stopping(TrainerCallback):
    """Makes Trainer save and stop after the step at which all processes know of a signal.

    Attributes:
        number: the signal, once there is one that the run ends for; 0 before.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.number = 0
        self._agreement: Agreement | None = None

    def begin(self) -> None:
        """Call it on every process before training."""
        self._agreement = Agreement()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for a checkpoint and the end after a signal."""
        if self._agreement is not None and not self.number:
            self.number = self._agreement.at_step(self.signals.received)
        if self.number:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a signal in the middle of an epoch nothing happens that belongs to its end."""
        if self.number:
            ended = state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-9
            control.should_log, control.should_evaluate = (
                flag and ended for flag in (control.should_log, control.should_evaluate)
            )

    def end(self) -> int:
        """Returns the signal that the run ends for, or 0."""
        late = self._agreement.at_end(self.signals.received) if self._agreement is not None else 0
        self._agreement = None
        return self.number or late


class FiniteWatch:
    """Remembers the first step whose loss was not finite, on the device, without waiting for it."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Looks at the loss of a step."""
        never = torch.full((), NEVER, device=loss.device) if self._first is None else self._first
        self._first = torch.where(loss.detach().isfinite(), never, never.clamp(max=step))

    def first(self, device: torch.device) -> Tensor:
        """Returns the first such step, or NEVER: int64 (1,) on the device."""
        return torch.full((1,), NEVER, device=device) if self._first is None else self._first.reshape(1)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns the name of the first tensor with a value that is not finite.

    Example:
        >>> not_finite([("a", torch.ones(2)), ("b", torch.tensor([1.0, torch.inf]))])
        'b'
    """
    found = [(name, value) for name, value in tensors if value.is_floating_point()]
    if not found:
        return None
    flags = [value.detach().isfinite().all() for _, value in found]
    # One wait for the device instead of one for each tensor.
    finite = torch.stack([flag.to(flags[0].device, non_blocking=True) for flag in flags]).tolist()
    return next((name for (name, _), one in zip(found, finite, strict=True) if not one), None)


def diverged(what: str, arguments: Any, last: tuple[int, Path] | None, *, steps: int) -> str:
    """Returns the line about a run that diverged.

    Args:
        what: what was not finite, and when.
        arguments: the run's TrainingArguments.
        last: step and folder of the last checkpoint, whose weights are finite.
        steps: that had changed the weights before.
    """
    causes, todo = [], []
    if steps:
        causes.append(f"a learning rate of {arguments.learning_rate:g}")
        todo.append("a lower learning_rate")
        if arguments.weight_decay > 1:
            causes.append(f"a weight_decay of {arguments.weight_decay:g}, which turns weights over")
            todo.append("a weight_decay below 1")
        if not arguments.max_grad_norm:
            causes.append("gradients that are not clipped")
            todo.append("max_grad_norm 1")
    else:
        # No learning rate has been used yet.
        causes.append("the encoder's own weights, alpha or temperature, as no step was taken before")
        todo.append("another encoder, alpha or temperature")
    if arguments.fp16:
        causes.append("float16, which overflows")
        todo.append("precision bf16 or fp32")
    kept = "no checkpoint was saved before" if last is None else f"the last finite checkpoint, {last[1]}, is kept"
    begin = "" if last is None else f", or go on from that checkpoint's weights with --encoder {last[1]}"
    return (
        f"training diverged: {what}; likely because of {' and '.join(causes)}; {kept}; "
        f"start again with {' and '.join(todo)} in another --output{begin}"
    )
