"""Groups of options as dataclass fields that check their values, and the command line made from them."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from .text import is_unicode


class OptionError(ValueError):
    """An option asks for something that cannot be done; the message says what was expected and what was given."""


def option(default: Any, help: str, *, flag: str | None = None, shown: str = "none") -> Any:
    """Returns a field of a group that is also an option of the command line; other fields are not.

    Args:
        default: the value unless another is given.
        help: what the command line's help says about it.
        flag: its name there; by default ``--learning-rate`` for the field ``learning_rate``.
        shown: how the help shows a default that is None or empty.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "shown": shown})


def require(condition: bool, name: str, expected: str, got: object, hint: str) -> None:
    """Raises OptionError unless the condition holds, in the one form that every error about an option has."""
    if not condition:
        raise OptionError(f"{name}: expected {expected}, got {got!r}; {hint}")


def near(given: str, known: Iterable[str], otherwise: str) -> str:
    """Returns the end of an error about an unknown name: the nearest known one or, if none is near, something else.

    Example:
        >>> near("cosin", ["linear", "cosine"], "choose one of them"), near("x", ["linear"], "choose one of them")
        ('did you mean cosine?', 'choose one of them')
    """
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise


class Parser(argparse.ArgumentParser):
    """A command line that refuses in one line, and names the option or choice nearest to what was given.

    Args:
        listed: what the line says if nothing is near.
        given: as for ``argparse.ArgumentParser``.
    """

    def __init__(self, *given: Any, listed: str = "--help lists them", **named: Any) -> None:
        super().__init__(*given, **named)
        self._listed = listed

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and refuses unknown options."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            known = [option for option in self._option_string_actions if option.startswith("--")]
            told = near(rest[0].split("=")[0], known, self._listed) if rest[0].startswith("-") else "see --help"
            self.error(f"unrecognized arguments: {' '.join(rest)}; {told}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Ends the process as argparse does, without the usage."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            told = near(str(value), choices, "choose one of them")
            raise argparse.ArgumentError(action, f"expected one of {', '.join(choices)}, got {str(value)!r}; {told}")


class Group:
    """Base of frozen dataclasses that refuse values of the wrong type and numbers that are not finite.

    A field is text, a whole number, a number, a boolean, a path, a Literal of texts, one of several of these or None,
    or a tuple (of any length) of one of them; a list becomes a tuple.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Training(Group):
        ...     batch_size: int = option(32, "items of a step")
        ...
        ...     def check(self) -> None:
        ...         self.at_least(1, "batch_size")
        >>> Training(batch_size=0)
        Traceback (most recent call last):
        ...
        ctloss.shared.options.OptionError: batch_size: expected at least 1, got 0; raise it
    """

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is tuple and isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            check_type(name, value, hint)
        self.check()

    def check(self) -> None:
        """Raises OptionError for values, or combinations of them, that make no sense; subclasses override it."""

    def at_least(self, least: float, *names: str) -> None:
        """Raises OptionError for the first of the named fields that is set and below ``least``."""
        for name in names:
            value = getattr(self, name)
            require(value is None or value >= least, name, f"at least {least}", value, "raise it")

    def positive(self, *names: str) -> None:
        """Raises OptionError for the first of the named fields that is set and not above zero."""
        for name in names:
            value = getattr(self, name)
            require(value is None or value > 0, name, "a number above 0", value, "raise it")

    def fraction(self, *names: str) -> None:
        """Raises OptionError for the first of the named fields outside [0, 1)."""
        for name in names:
            value = getattr(self, name)
            require(0 <= value < 1, name, "a number from 0 up to but not including 1", value, "give a share")


def check_type(name: str, value: object, hint: Any) -> None:
    """Raises OptionError unless a field's value is of its type: a number finite, a text one that can be written."""
    choices = _choices(hint)
    if choices and value is not None:
        named = [str(choice) for choice in choices]
        require(
            value in choices, name, "one of " + ", ".join(named), value, near(str(value), named, "choose one of them")
        )
    require(_fits(value, hint), name, _kind(hint), value, "give a value of that kind")
    if isinstance(value, float):
        require(math.isfinite(value), name, "a finite number", value, "give one")
    if isinstance(value, int):
        largest = sys.float_info.max if _fits(0.5, hint) else (1 << 63) - 1
        require(abs(value) <= largest, name, "a number of at most 64 bits", value, "give a smaller one")
    for text in value if isinstance(value, tuple) else (value,):
        # Bytes of a file's name that are not UTF-8 come as surrogates.
        if isinstance(text, str | Path):
            require(is_unicode(str(text)), name, "a name in UTF-8", str(text), "rename it")


def field_types(group: type[Group]) -> dict[str, Any]:
    """Returns the type of each field of a group, by name."""
    hints = get_type_hints(group)
    return {item.name: hints[item.name] for item in fields(group)}  # type: ignore[arg-type]


def command_line(group: type[Group]) -> dict[str, str]:
    """Returns the flag of each field that is an option of the command line, by the field's name."""
    options = [item for item in fields(group) if "help" in item.metadata]  # type: ignore[arg-type]
    return {item.name: item.metadata["flag"] or "--" + item.name.replace("_", "-") for item in options}


def add_options(
    parser: argparse.ArgumentParser,
    title: str,
    groups: Mapping[str, Group],
    *,
    description: str | None = None,
    lists: bool = False,
    leave_out: Collection[str] = (),
) -> None:
    """Adds a section with an option for each field of a group that has one, unset unless given.

    Args:
        parser, title: where to add the section, and what it is called.
        groups: groups of one class, whose values the help shows as defaults, by the name of the recipe or task that
            has them; one group under any name if there are no such names to tell apart.
        description: of the section; by default the docstring of the class.
        lists: whether each option takes several texts, such as ``VALUE TASK=VALUE``, which the caller selects from
            and reads with :func:`read_values`.
        leave_out: fields that get no option.
    """
    group = type(next(iter(groups.values())))
    section = parser.add_argument_group(title, (group.__doc__ or "").strip() if description is None else description)
    hints, flags = field_types(group), command_line(group)
    for item in fields(group):  # type: ignore[arg-type]
        if item.name in flags and item.name not in leave_out:
            reading = {"nargs": "+", "metavar": "X"} if lists else _reading(hints[item.name])
            values = {name: getattr(values, item.name) for name, values in groups.items()}
            help = f"{item.metadata['help']} ({default_text(values, item.metadata['shown'])})".replace("%", "%%")
            section.add_argument(flags[item.name], default=None, help=help, **reading)


def given_options(parsed: argparse.Namespace, group: type[Group]) -> dict[str, Any]:
    """Returns the values of a group's options that the command line gave, by the field's name."""
    flags = command_line(group).items()
    values = {name: getattr(parsed, flag.lstrip("-").replace("-", "_"), None) for name, flag in flags}
    return {name: value for name, value in values.items() if value is not None}


def read_values(group: type[Group], name: str, texts: Sequence[str], *, of: str = "") -> Any:
    """Converts texts from the command line to the value of a field.

    Args:
        group, name: the field.
        texts: one, or several for a tuple.
        of: what the value is for, such as a task; errors name it.

    Raises:
        OptionError: several texts for a single value, or one that cannot be converted to the field's type.
    """
    hint, place = _not_none(field_types(group)[name]), command_line(group)[name] + (f" of {of}" if of else "")
    if get_origin(hint) is tuple:
        return tuple(_read(get_args(hint)[0], text, place) for text in texts)
    require(len(texts) == 1, place, "one value", " ".join(texts), "give one")
    return _read(hint, texts[0], place)


def _read(hint: Any, text: str, place: str) -> Any:
    choices = _choices(hint)
    if choices:
        require(text in choices, place, "one of " + ", ".join(choices), text, near(text, choices, "choose one of them"))
    if hint is bool:
        require(text in ("on", "off"), place, "on or off", text, "give one of them")
        return text == "on"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise OptionError(f"{place}: expected {_kind(hint)}, got {text!r}; correct it") from None
    return text


def _not_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _choices(hint: Any) -> tuple[str, ...]:
    hint = _not_none(hint)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (dict, list):
        return isinstance(value, origin)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _kind(hint: Any, several: bool = False) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_kind(kind, several) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a tuple of {_kind(get_args(hint)[0], several=True)}"
    names = {
        str: ("text", "texts"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("True or False", "booleans"),
        Path: ("a path", "paths"),
        type(None): ("None", "None"),
        dict: ("a dictionary", "dictionaries"),
        list: ("a list", "lists"),
    }
    return names.get(get_origin(hint) or hint, names[str])[several]


def _reading(hint: Any) -> dict[str, Any]:
    hint = _not_none(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        return {"nargs": "+", "metavar": "X", **({"type": kind} if kind in (int, float) else {})}
    if choices := _choices(hint):
        return {"choices": choices}
    if hint in (int, float):
        return {"type": hint, "metavar": "N" if hint is int else "X"}
    return {"metavar": "TEXT"}


def default_text(values: Mapping[str, Any], unset: str = "none") -> str:
    """Returns what the help says of defaults, by the name of the recipe or task that has them."""

    def text(value: Any) -> str:
        if value is None or value in ((), ""):
            return unset
        if isinstance(value, tuple):
            return " ".join(map(str, value))
        return ("on" if value else "off") if isinstance(value, bool) else str(value)

    if len(set(map(text, values.values()))) == 1:
        return f"default: {text(next(iter(values.values())))}"
    return ", ".join(f"{name}: {text(value)}" for name, value in values.items())
