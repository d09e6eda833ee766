"""Inline SVG: marks on a canvas, coloured by the classes of the page's style so that light and dark both fit.

Every text goes through ElementTree, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree as Xml

from markupsafe import Markup


@dataclass(frozen=True)
class Scale:
    """A linear map of values low .. high to the places start .. end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)


@dataclass
class Canvas:
    """`label` is what a screen reader says of the drawing."""

    width: float
    height: float
    label: str
    root: Xml.Element = field(init=False)

    def __post_init__(self) -> None:
        box = f"0 0 {self.width:g} {self.height:g}"
        self.root = Xml.Element("svg", {"viewBox": box, "role": "img", "aria-label": self.label})

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def dot(self, x: float, y: float, kind: str, *, tip: str = "", radius: float = 4.5) -> None:
        self._add("circle", kind, tip, cx=x, cy=y, r=radius)

    def bar(self, x: float, y: float, width: float, height: float, kind: str, *, tip: str = "") -> None:
        self._add("rect", kind, tip, x=x, y=y, width=max(width, 0.0), height=max(height, 0.0))

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        steps = " ".join(f"{'L' if number else 'M'}{x:g} {y:g}" for number, (x, y) in enumerate(points))
        Xml.SubElement(self.root, "path", {"class": kind, "d": steps})

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self._add("text", kind, x=x, y=y).text = words

    def markup(self) -> Markup:
        return Markup(Xml.tostring(self.root, encoding="unicode"))

    def _add(self, tag: str, kind: str, tip: str = "", **places: float) -> Xml.Element:
        attributes = {name: f"{value:g}" for name, value in places.items()}
        added = Xml.SubElement(self.root, tag, attributes | ({"class": kind} if kind else {}))
        if tip:
            Xml.SubElement(added, "title").text = tip
        return added


def ticks(low: float, high: float) -> list[float]:
    """Round values from low to high, three to eight of them: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10(high - low))
    steps = [size * power for size in (5.0, 2.0, 1.0, 0.5, 0.2)]
    return next((found for step in steps if len(found := list(_multiples(low, high, step))) >= 3), [low, high])


def _multiples(low: float, high: float, step: float) -> Iterator[float]:
    number = math.ceil(low / step - 1e-9)
    while number * step <= high + step * 1e-9:
        yield round(number * step, 12)
        number += 1


def padded(values: Sequence[float], *, share: float = 0.08) -> tuple[float, float]:
    """The range of the values with some room around them; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 0.5
    return low - room, high + room


def short(value: float) -> str:
    """A tick's label."""
    if value and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
