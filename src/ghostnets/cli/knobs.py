# SPDX-License-Identifier: Apache-2.0
"""The knobs of a recipe as flags of the command line, each with the words that the recipe says of it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter

from ghostnets.training.recipe import Recipe

GROUP = "Knobs of the recipe"


def said_of_knobs() -> dict[str, str]:
    """Knob -> the docstring under it in the recipe's source."""
    (table,) = ast.parse(inspect.getsource(Recipe)).body
    assert isinstance(table, ast.ClassDef)
    found: dict[str, str] = {}
    for line, below in zip(table.body, [*table.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            words = below.value if isinstance(below, ast.Expr) else None
            text = words.value if isinstance(words, ast.Constant) else ""
            plain = " ".join(str(text).split()).rstrip(".").replace("``", "")
            found[line.target.id] = plain[:1].lower() + plain[1:]
    return found


def _table() -> type[Any]:
    hints, said = get_type_hints(Recipe), said_of_knobs()
    fields: list[tuple[str, Any, None]] = []
    for field in dataclasses.fields(Recipe):
        if field.name != "expected":
            off = f"--no-{field.name.replace('_', '-')}" if hints[field.name] is bool else ""
            # consume_multiple: timm too takes --decay-milestones 82 123
            words = Parameter(help=said[field.name], negative=off, group=GROUP, consume_multiple=True)
            fields.append((field.name, Annotated[hints[field.name] | None, words], None))
    table = dataclasses.make_dataclass("Knobs", fields, frozen=True, kw_only=True)
    table.__module__ = __name__  # else it counts as one of Python's own types, which have no flags
    return table


Knobs: Any = _table()
"""Every knob of a recipe but what it is expected to reach; None where it is left as the recipe has it."""


def turned(knobs: Any) -> dict[str, Any]:
    """Those that were given."""
    if knobs is None:
        return {}
    given = {field.name: getattr(knobs, field.name) for field in dataclasses.fields(knobs)}
    return {name: value for name, value in given.items() if value is not None}
