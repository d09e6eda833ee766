"""What an evaluation prints: each model's metrics, and how sure the differences are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flmrec_spark.report import found
from flmrec_spark.report.found import NOTHING, Found
from flmrec_spark.stages.measurements import Measurement, difference

WIDTH = 100  # columns that the report needs at most
NONE: Mapping[str, str] = MappingProxyType({})
_OF_ROWS = ("auc", "uauc", "log_loss", "calibration_error")
_OF_LISTS = ("ndcg", "coverage")
_SHORT = {"calibration_error": "ece"}
_COMPARED = ("auc", "uauc", "log_loss", "ndcg")


def report(
    rows: Sequence[Measurement], *, models: Sequence[str], title: str, diverse: Mapping[str, str] = NONE
) -> Group:
    """Two tables over all users, and one of what diversity costs.

    Args:
      models: as measured, the one that the others are compared with first.
      diverse: lists -> the model that they were chosen from.
    """
    by_key = found.of_all(rows)
    keys = list(_keys(by_key))
    tables = [_values(by_key, keys, models, title), _differences(by_key, keys, models)]
    tables += [_cost(by_key, *pair) for pair in diverse.items()]
    return Group(*[part for table in tables for part in (table, "")][:-1])


def _keys(by_key: Found) -> Iterator[tuple[str, int]]:
    """What is shown, list metrics at the middle cut-off."""
    k = found.middle_cutoff(by_key)
    for key in (*((metric, 0) for metric in _OF_ROWS), *((metric, k) for metric in _OF_LISTS)):
        if any(cell.value is not None for (_, *rest), cell in by_key.items() if tuple(rest) == key):
            yield key


def _values(by_key: Found, keys: Sequence[tuple[str, int]], models: Sequence[str], title: str) -> Table:
    caption = f"bold: the best; below {models[0]} its 95 % interval; all metrics are in the table evaluation"
    table = Table(title=Text(title), caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.add_column("model")
    for key in keys:
        table.add_column(found.name_of(_SHORT.get(key[0], key[0]), key[1]), justify="right")
    best = {key: found.best(by_key, key, models) for key in keys}
    decimals = {key: found.decimals(by_key, key, models) for key in keys}
    for model in models:
        row = {key: by_key[model, *key] for key in keys}
        cells = (_cell(cell.value, decimals[key], bold=cell.value == best[key]) for key, cell in row.items())
        table.add_row(model, *cells)
        if model == models[0]:
            table.add_row("", *(_bracket(cell, decimals[key]) for key, cell in row.items()), style="dim")
    return table


def _differences(by_key: Found, keys: Sequence[tuple[str, int]], models: Sequence[str]) -> Table:
    table = Table(title=f"{models[0]} less each baseline, same users", title_justify="left", show_edge=False)
    for column in ("metric", "baseline", "difference", "95 %", "so"):
        table.add_column(column, justify="right" if column == "difference" else "left")
    for key in keys:
        if key[0] in _COMPARED:
            for model in models[1:]:
                row = by_key[difference(models[0], model), *key]
                if row.value is not None:
                    cells = (f"{row.value:+.4f}", found.interval(row, "{:+.4f}"), found.verdict(row))
                    table.add_row(found.name_of(*key), model, *cells)
            table.add_section()
    return table


def _cost(by_key: Found, chosen: str, plain: str) -> Table:
    table = Table(title=f"{chosen} beside {plain}, same users", title_justify="left", show_edge=False)
    for column in ("metric", plain, chosen, "difference", "95 %", "so"):
        table.add_column(column, justify="left" if column in ("metric", "95 %", "so") else "right")
    for key in found.traded(by_key, chosen):
        decimals = found.decimals(by_key, key, (plain, chosen))
        values = [_cell(by_key[model, *key].value, decimals, bold=False) for model in (plain, chosen)]
        row = by_key.get((difference(chosen, plain), *key))
        cells = ["", "", ""]
        if row is not None and row.value is not None:
            cells = [f"{row.value:+.4f}", found.interval(row, "{:+.4f}"), found.verdict(row)]
        table.add_row(found.name_of(*key), *values, *cells)
    return table


def _cell(value: float | None, decimals: int, *, bold: bool) -> Text:
    return Text(NOTHING) if value is None else Text(f"{value:.{decimals}f}", style="bold" if bold else "")


def _bracket(row: Measurement, decimals: int) -> str:
    if row.low is None or row.high is None:
        return ""
    return "–".join(f"{end:.{decimals}f}".removeprefix("0") for end in (row.low, row.high))
