# SPDX-License-Identifier: Apache-2.0
"""A page as a browser's parser sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "hr", "img"}


@dataclass
class Node:
    """An element with its attributes, its children, and the text directly in it."""

    tag: str
    attrs: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    children: list[Node] = field(default_factory=list["Node"])
    own: str = ""

    def all(self, tag: str, **attrs: str) -> list[Node]:
        here = [self] if self.tag == tag and attrs.items() <= self.attrs.items() else []
        return here + [node for child in self.children for node in child.all(tag, **attrs)]

    def everything(self) -> list[Node]:
        return [self] + [node for child in self.children for node in child.everything()]

    @property
    def text(self) -> str:
        return " ".join((self.own + " " + " ".join(child.text for child in self.children)).split())


class Tree(HTMLParser):
    """Builds the tree and refuses a tag that is closed where it is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open = [Node("document")]
        self.feed(page)
        self.close()
        assert len(self.open) == 1, f"left open: {[node.tag for node in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(self.open[-1].children[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} is given twice"
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        node = self.open.pop()
        assert node.tag == tag, f"</{tag}> closes <{node.tag}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].own += data
