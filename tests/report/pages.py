"""A page as a reader without a browser sees it: its elements, their texts and what they would load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Element:
    """`parts` are texts and elements in their order."""

    tag: str
    attributes: dict[str, str]
    parts: list[str | Element] = field(default_factory=list)

    def all(self, tag: str, **wanted: str) -> list[Element]:
        return [
            one
            for one in self._inner()
            if one.tag == tag
            and all(value in one.attributes.get(name.strip("_"), "").split() for name, value in wanted.items())
        ]

    def text(self) -> str:
        words = " ".join(part if isinstance(part, str) else part.text() for part in self.parts)
        return " ".join(words.split())

    def _inner(self) -> Iterator[Element]:
        for part in self.parts:
            if isinstance(part, Element):
                yield part
                yield from part._inner()

    def every(self) -> list[Element]:
        return list(self._inner())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        added = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(added)
        if tag not in VOID:
            self.open.append(added)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def parsed(html: str) -> Element:
    """The page's elements; fails where one is not closed in its order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert len(reader.open) == 1, [one.tag for one in reader.open]
    return reader.open[0]


def cells(table: Element) -> list[list[str]]:
    """The texts of a table's rows."""
    return [[cell.text() for cell in row.every() if cell.tag in ("th", "td")] for row in table.all("tr")]
