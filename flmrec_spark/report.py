"""What an evaluation prints: metrics beside the baselines', and how sure the differences are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flmrec_spark import metrics
from flmrec_spark.stages.evaluation import ALL, COVERAGE, Measurement, difference

WIDTH = 100  # columns that the report needs at most
NOTHING = "–"

_Found = dict[tuple[str, str, int], Measurement]


def report(found: Sequence[Measurement], *, models: Sequence[str], title: str) -> Group:
    """Two tables over all users; `models` as measured, the one that the others are compared with first."""
    by_key = {(row.model, row.metric, row.k): row for row in found if row.segment == ALL}
    keys = list(_keys(by_key))
    return Group(_values(by_key, keys, models, title), "", _differences(by_key, keys, models))


def _keys(found: _Found) -> Iterator[tuple[str, int]]:
    cutoffs = sorted({k for _, _, k in found if k})
    for metric in metrics.POINTWISE:
        yield metric, 0
    for metric in (*metrics.LIST_METRICS, COVERAGE):
        for k in cutoffs:
            yield metric, k


def _values(found: _Found, keys: Sequence[tuple[str, int]], models: Sequence[str], title: str) -> Table:
    caption = "bold: the best of the row"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", show_edge=False)
    table.add_column("metric")
    table.add_column(models[0], justify="right")
    table.add_column("95 %")
    for model in models[1:]:
        table.add_column(model, justify="right")
    previous = keys[0][0]
    for metric, k in keys:
        if k and metric != previous:
            table.add_section()
        previous = metric
        row = [found[model, metric, k] for model in models]
        known = [cell.value for cell in row if cell.value is not None]
        best = None if not known else min(known) if metric in metrics.LOWER_IS_BETTER else max(known)
        cells = [_cell(cell.value, bold=cell.value == best) for cell in row]
        table.add_row(_name(metric, k), cells[0], _interval(row[0], "{:.3f}"), *cells[1:])
    return table


def _differences(found: _Found, keys: Sequence[tuple[str, int]], models: Sequence[str]) -> Table:
    last = max(k for _, k in keys)
    table = Table(title=f"{models[0]} less each baseline, same users", title_justify="left", show_edge=False)
    for column in ("metric", "baseline", "difference", "95 %", "so"):
        table.add_column(column, justify="right" if column == "difference" else "left")
    for metric, k in (("auc", 0), ("uauc", 0), ("log_loss", 0), ("ndcg", last), ("recall", last)):
        for model in models[1:]:
            row = found[difference(models[0], model), metric, k]
            if row.value is not None:
                cells = (f"{row.value:+.4f}", _interval(row, "{:+.4f}"), _verdict(row))
                table.add_row(_name(metric, k), model, *cells)
        table.add_section()
    return table


def _verdict(row: Measurement) -> str:
    if row.low is None or row.high is None:
        return NOTHING
    if row.low <= 0 <= row.high:
        return "within noise"
    return "better" if (row.low > 0) != (row.metric in metrics.LOWER_IS_BETTER) else "worse"


def _name(metric: str, k: int) -> str:
    return f"{metric}@{k}" if k else metric


def _cell(value: float | None, *, bold: bool) -> Text:
    return Text(NOTHING if value is None else f"{value:.4f}", style="bold" if bold and value is not None else "")


def _interval(row: Measurement, form: str) -> str:
    if row.low is None or row.high is None:
        return NOTHING
    return f"{form.format(row.low)} .. {form.format(row.high)}"
