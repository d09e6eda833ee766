"""What sections are made of: tables of cells, figures, and how a measurement reads in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flmrec_spark import metrics
from flmrec_spark.report import found
from flmrec_spark.report.charts import Dot, Series
from flmrec_spark.report.found import NOTHING, Found
from flmrec_spark.stages.measurements import Measurement


@dataclass(frozen=True)
class Cell:
    """A value as text, its interval or nothing, and whether it is the best of its column."""

    value: str
    interval: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: a name and cells per row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Headline:
    """The model beside its best baseline at one metric."""

    metric: str
    ours: Cell
    baseline: str
    theirs: Cell
    difference: str
    interval: str
    verdict: str


@dataclass(frozen=True)
class Figure:
    title: str
    drawing: Markup
    legend: Sequence[tuple[str, str]] = ()  # (class, name)


def number(every: Found, model: str, key: tuple[str, int]) -> float | None:
    row = every.get((model, *key))
    return None if row is None else row.value


def cell(row: Measurement, best: float | None = None, *, decimals: int) -> Cell:
    if row.value is None:
        return Cell(NOTHING)
    form = f"{{:,.{decimals}f}}"
    around = "" if row.low is None else found.interval(row, form).replace(" .. ", "–")
    return Cell(form.format(row.value), around, row.value == best)


def dot(row: Measurement, kind: str) -> Dot:
    return Dot(row.value, row.low, row.high, kind)


def signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.4f}".replace("-", "−")


def around(row: Measurement) -> str:
    return "" if row.low is None else f"{signed(row.low)} to {signed(row.high)}"


def differing(row: Measurement) -> Cell:
    """Marked when its interval excludes zero."""
    return Cell(signed(row.value), around(row), found.verdict(row) in (found.BETTER, found.WORSE))


def direction(metric: str) -> str:
    return " ↓" if metric in metrics.LOWER_IS_BETTER else ""


def legend(series: Sequence[Series]) -> list[tuple[str, str]]:
    return [(one.kind, one.name) for one in series]
