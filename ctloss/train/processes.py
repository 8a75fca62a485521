"""What the processes of a run tell one another besides gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..shared.text import DataError
from .recipe import RecipeError

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T")


def shared_out(arguments: TrainingArguments) -> bool:
    """Tells whether FSDP or DeepSpeed share the weights out, so that no process has all of them."""
    return bool(arguments.fsdp or arguments.deepspeed)


def from_main(value: T) -> T:
    """Returns the main process's value on every process; call it on all of them."""
    from accelerate.utils import broadcast_object_list

    found: T = broadcast_object_list([value])[0]
    return found


def on_main(process: object, action: Callable[[], T]) -> T:
    """Returns what an action returns on the main process, on every process; what it refuses is refused on all.

    The others wait meanwhile, so it must not take long.

    Args:
        process: accelerate's ``PartialState``.
        action: called on the main process alone.
    """
    found: T | None = None
    error: Exception | None = None
    if process.is_main_process:  # type: ignore[attr-defined]
        try:
            found = action()
        except (RecipeError, DataError) as refusal:
            error = refusal
    found, error = from_main((found, error))
    if error is not None:
        raise error
    return found  # type: ignore[return-value]
