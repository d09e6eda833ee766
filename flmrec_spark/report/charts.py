"""The charts of the page: values with their intervals, lines, and the calibration curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flmrec_spark.report.found import NOTHING
from flmrec_spark.report.svg import Canvas, Scale, padded, short, ticks

WIDTH = 360.0
OURS, THEIRS, OTHER = "ours", "theirs", "other"  # classes of the page's style


@dataclass(frozen=True)
class Dot:
    """A value with its interval; `kind` is how it is drawn."""

    value: float | None
    low: float | None
    high: float | None
    kind: str

    def said(self) -> str:
        if self.value is None:
            return NOTHING
        around = f" ({self.low:.4f} to {self.high:.4f})" if self.low is not None and self.high is not None else ""
        return f"{self.value:.4f}{around}"


@dataclass(frozen=True)
class Series:
    """A line through points (x, y)."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


def dots(rows: Sequence[tuple[str, Sequence[Dot]]], *, label: str) -> Markup | None:
    """One row per name, each with its values as dots with whiskers; None when there is no value at all."""
    shown = [dot for _, row in rows for dot in row if dot.value is not None]
    if not shown:
        return None
    step, top = 24.0, 6.0
    left = 26 + 6.2 * max(len(_cut(name)) for name, _ in rows)
    bottom = top + step * len(rows)
    canvas = Canvas(WIDTH, bottom + 22, f"{label}: " + "; ".join(_said(name, row) for name, row in rows))
    ends = [end for dot in shown for end in (dot.value, dot.low, dot.high) if end is not None]
    across = Scale(*padded(ends), left, WIDTH - 14)
    for tick in ticks(across.low, across.high):
        canvas.line(across(tick), top, across(tick), bottom, "grid")
        canvas.text(across(tick), bottom + 15, short(tick), "tick middle")
    for number, (name, row) in enumerate(rows):
        middle = top + step * (number + 0.5)
        canvas.text(left - 10, middle + 4, _cut(name), "name end" + (" strong" if _is_ours(row) else ""))
        for place, dot in enumerate(row):
            _whisker(canvas, across, middle + 6 * (place - (len(row) - 1) / 2), dot, name)
    return canvas.markup()


def lines(
    series: Sequence[Series],
    *,
    label: str,
    x_name: str,
    x_ticks: Sequence[float] | None = None,
    width: float = WIDTH,
) -> Markup | None:
    """Lines with a dot at each point; None without a point."""
    every = [point for one in series for point in one.points]
    if not every:
        return None
    canvas = Canvas(width, 240, f"{label}: " + "; ".join(f"{one.name} {_points(one)}" for one in series))
    across = Scale(*padded([x for x, _ in every], share=0.05), 48, width - 14)
    up = Scale(*padded([y for _, y in every]), 196, 22)
    _axes(canvas, across, up, x_name=x_name, marks=[(across(tick), short(tick)) for tick in x_ticks or ()])
    for one in series:
        if len(one.points) > 1:
            canvas.path([(across(x), up(y)) for x, y in one.points], f"line {one.kind}")
        for x, y in one.points:
            canvas.dot(across(x), up(y), one.kind, tip=f"{one.name}: {short(x)}, {y:.4f}", radius=3.5)
    return canvas.markup()


def named_points(points: Sequence[tuple[str, float, float]], *, label: str, x_name: str, y_name: str) -> Markup:
    """A curve through named points with x > 0 on a logarithmic scale, in the order of x."""
    ordered = sorted(points, key=lambda point: point[1])
    said = "; ".join(f"{name} {short(round(x))}, {y:.4f}" for name, x, y in ordered)
    canvas = Canvas(WIDTH, 240, f"{label}: {said}")
    powers = Scale(*padded([math.log10(x) for _, x, _ in ordered], share=0.2), 48, WIDTH - 14)
    up = Scale(*padded([y for _, _, y in ordered], share=0.2), 196, 22)
    places = [(powers(math.log10(x)), up(y)) for _, x, y in ordered]
    tens = range(math.ceil(powers.low), math.floor(powers.high) + 1)
    marks = [(powers(power), short(10.0**power)) for power in tens]
    if not marks:  # all within one decade
        marks = [(powers(math.log10(x)), short(float(f"{x:.2g}"))) for _, x, _ in (ordered[0], ordered[-1])]
    _axes(canvas, powers, up, x_name=x_name, y_name=y_name, marks=marks)
    canvas.path(places, f"line {OURS}")
    for (name, rate, quality), (x, y) in zip(ordered, places, strict=True):
        canvas.dot(x, y, OURS, tip=f"{name}: {short(round(rate))}, {quality:.4f}")
        canvas.text(x, y - 9, name, "name middle")
    return canvas.markup()


def calibration(series: Sequence[Series], shares: Sequence[float], *, label: str) -> Markup | None:
    """Predicted against observed with the diagonal; below it how many rows of the first fall into each tenth."""
    if not any(one.points for one in series):
        return None
    canvas = Canvas(WIDTH, 300, f"{label}: " + "; ".join(f"{one.name} {_points(one)}" for one in series))
    across, up = Scale(0, 1, 48, WIDTH - 14), Scale(0, 1, 216, 22)
    _axes(canvas, across, up, x_name="predicted probability", y_name="share liked")
    canvas.line(across(0), up(0), across(1), up(1), "diagonal")
    for one in series:
        canvas.path([(across(x), up(y)) for x, y in one.points], f"line {one.kind}")
        for x, y in one.points:
            canvas.dot(across(x), up(y), one.kind, tip=f"{one.name}: predicted {x:.3f}, liked {y:.3f}", radius=3.5)
    tallest = max(shares, default=0.0) or 1.0
    for number, share in enumerate(shares):
        height = 26 * share / tallest
        left, right = across(number / len(shares)), across((number + 1) / len(shares))
        canvas.bar(left + 1, 284 - height, right - left - 2, height, "rows", tip=f"{share:.1%} of the rows")
    canvas.text(48, 297, "rows in each tenth", "tick")
    return canvas.markup()


def _axes(
    canvas: Canvas, across: Scale, up: Scale, *, x_name: str, y_name: str = "", marks: Sequence[tuple[float, str]] = ()
) -> None:
    """`marks` are places and labels below the x axis, round values unless given."""
    for tick in ticks(up.low, up.high):
        canvas.line(across.start, up(tick), across.end, up(tick), "grid")
        canvas.text(across.start - 6, up(tick) + 4, short(tick), "tick end")
    for place, words in marks or [(across(tick), short(tick)) for tick in ticks(across.low, across.high)]:
        canvas.text(place, up.start + 16, words, "tick middle")
    canvas.text(across.end, up.start + 32, x_name, "tick end")
    canvas.text(4, up.end - 10, y_name, "tick")


def _whisker(canvas: Canvas, across: Scale, middle: float, dot: Dot, name: str) -> None:
    if dot.value is None:
        return
    if dot.low is not None and dot.high is not None:
        canvas.line(across(dot.low), middle, across(dot.high), middle, f"whisker {dot.kind}")
    canvas.dot(across(dot.value), middle, dot.kind, tip=f"{name}: {dot.said()}")


def _said(name: str, row: Sequence[Dot]) -> str:
    return f"{name} {', '.join(dot.said() for dot in row)}"


def _points(one: Series) -> str:
    return ", ".join(f"{short(round(x, 3))}: {y:.4f}" for x, y in one.points)


def _is_ours(row: Sequence[Dot]) -> bool:
    return len(row) == 1 and row[0].kind == OURS


def _cut(name: str, *, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
