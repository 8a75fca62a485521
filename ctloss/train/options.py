"""Groups of options that check their values: what the parts of a recipe are made of."""

from __future__ import annotations

import math
import types
from dataclasses import field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class RecipeError(ValueError):
    """A recipe asks for something that cannot be run; the message says what was expected and what was given."""


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """Returns a dataclass field that also carries what the command line shows of it."""
    return field(default=default, metadata={"help": help, "choices": choices})


def require(condition: bool, name: str, expected: str, got: object, hint: str) -> None:
    """Raises RecipeError unless the condition holds, in the one form that every recipe error has."""
    if not condition:
        raise RecipeError(f"{name}: expected {expected}, got {got!r}; {hint}")


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if origin is Literal or hint is str:
        return isinstance(value, str)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _kind(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "True or False", type(None): "None"}
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_kind, get_args(hint)))
    return "a tuple of texts" if get_origin(hint) is tuple else names.get(hint, "text")


class Group:
    """Base of a recipe's parts: refuses a value outside a field's choices, and numbers that are not finite."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            value, choices = getattr(self, item.name), item.metadata["choices"]
            require(
                _fits(value, hints[item.name]), item.name, _kind(hints[item.name]), value, "give a value of that kind"
            )
            if choices:
                require(value in choices, item.name, "one of " + ", ".join(choices), value, "choose one of them")
            if isinstance(value, float):
                require(math.isfinite(value), item.name, "a finite number", value, "give one")
        self.check()

    def check(self) -> None:
        """Raises RecipeError for values that make no sense together."""

    def at_least(self, least: float, *names: str) -> None:
        """Raises RecipeError for the first of the named fields that is set and below ``least``."""
        for name in names:
            value = getattr(self, name)
            require(value is None or value >= least, name, f"at least {least}", value, "raise it")

    def positive(self, *names: str) -> None:
        """Raises RecipeError for the first of the named fields that is set and not above zero."""
        for name in names:
            value = getattr(self, name)
            require(value is None or value > 0, name, "a number above 0", value, "raise it")

    def fraction(self, *names: str) -> None:
        """Raises RecipeError for the first of the named fields outside [0, 1)."""
        for name in names:
            value = getattr(self, name)
            require(0 <= value < 1, name, "a number from 0 up to but not including 1", value, "give a share")
