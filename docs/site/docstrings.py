"""How the API pages read our docstrings: signatures as Python shows them, references as links, equations as MathML.

MathML is drawn by the browser itself, so the pages need no script from elsewhere.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: griffe.ParameterKind.positional_only,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
}
ROLE = re.compile(r":(?:class|data|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`")
# Griffe knows doctests under the plural only.
EXAMPLE = re.compile(r"^( *)Example:$", flags=re.M)
MATH = re.compile(r"^(?P<indent> *)\.\. math::(?P<formula>.*(?:\n(?P=indent) +\S.*)*)", flags=re.M)


class Docstrings(griffe.Extension):
    """What the pages need to know of this package's way to write its docstrings."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Replace ``**options`` by the options that ``takes`` says; constructors refer to those of the functions."""
        decorated = any(str(decorator.value).startswith("takes(") for decorator in func.decorators)
        if not decorated or not isinstance(func.parent, griffe.Module):
            return
        function = getattr(importlib.import_module(func.parent.path), func.name)
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    name,
                    annotation=None if one.annotation is inspect.Parameter.empty else str(one.annotation),
                    kind=KINDS[one.kind],
                    default=None if one.default is inspect.Parameter.empty else repr(one.default),
                )
                for name, one in inspect.signature(function).parameters.items()
            )
        )

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Turn reStructuredText's references and equations into HTML, and examples into doctests."""
        if obj.docstring:
            text = ROLE.sub(lambda found: _reference(found, obj), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(r"\1Examples:", MATH.sub(_equation, text))


def _equation(found: re.Match[str]) -> str:
    formula = convert(" ".join(found["formula"].split()), display="block")
    return f'{found["indent"]}<div class="equation">{formula}</div>'


def _reference(found: re.Match[str], obj: griffe.Object) -> str:
    """A link where a page has the name, code anywhere else."""
    name = found["name"]
    shown = name.rsplit(".", 1)[-1] if found["short"] else name
    place = name if name.startswith("ctloss") else f"{(obj if obj.is_module else obj.module).path}.{name}"
    return f'<autoref identifier="{place}" optional><code>{shown}</code></autoref>'
