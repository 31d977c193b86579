# SPDX-License-Identifier: Apache-2.0
"""Pieces of C."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ghostnets.deploy.c.layout import Buffer

ARGUMENTS = {
    "in": "const float *in",
    "other": "const float *other",
    "w": "const float *w",
    "out": "float *out",
    "scratch": "float *scratch",
    "y0": "int y0",
    "y1": "int y1",
    "n0": "int n0",
    "n1": "int n1",
}
"""What a kernel may be given: maps, weights, the rows and the tiles of channels it computes."""


@dataclass(frozen=True)
class Kernel:
    """A C function without a name, which is given last, so that equal ones are written once."""

    comment: str
    arguments: tuple[str, ...]
    body: str
    """Lines of the function."""
    parts: tuple[tuple[str, str], ...] = ()
    """Functions it calls: a name to be completed (NAME_suffix) and the text."""

    def named(self, name: str) -> str:
        """The text of the function and of its parts."""
        signature = ", ".join(ARGUMENTS[argument] for argument in self.arguments)
        text = "\n".join(part for _, part in self.parts)
        whole = f"{text}\n/* {self.comment} */\nstatic void NAME({signature}) {{\n{self.body}\n}}\n"
        return whole.replace("NAME", name).lstrip("\n")


def block(head: str, *body: str | Iterable[str]) -> list[str]:
    """``head { body }`` on lines of their own, the body indented."""
    lines = [line for part in body for line in ([part] if isinstance(part, str) else part)]
    return [f"{head} {{" if head else "{", *(f"  {line}" for line in lines), "}"]


def text(*parts: str | Iterable[str]) -> str:
    """Lines of a function's body."""
    return "\n".join(f"  {line}" for part in parts for line in ([part] if isinstance(part, str) else part))


def row(name: str, y: str, buffer: Buffer) -> str:
    """The beginning of row y, or of zeros where there is no such row."""
    return f"row({name}, {y}, {buffer.height}, {buffer.ring}, {buffer.row})"


def row_inside(name: str, y: str, buffer: Buffer) -> str:
    """The beginning of row y, which is known to be there."""
    if buffer.ring == 1:
        return name
    index = y if buffer.ring == buffer.height else f"(({y}) % {buffer.ring})"
    return f"({name} + (size_t)({index}) * {buffer.row})"
