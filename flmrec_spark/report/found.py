"""The rows of an evaluation, by key, and what is read off them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flmrec_spark import metrics
from flmrec_spark.stages.measurements import Measurement
from flmrec_spark.stages.segments import ALL

NOTHING = "–"
WITHIN_NOISE, BETTER, WORSE = "within noise", "better", "worse"
_DECIMALS, _MOST_DECIMALS = 3, 6
_TRADED = ("ndcg", "recall", "hit_rate", "diversity", "coverage")

Found = Mapping[tuple[str, str, int], Measurement]  # by model, metric and k


def of_segment(rows: Sequence[Measurement], segment: str) -> dict[tuple[str, str, int], Measurement]:
    return {(row.model, row.metric, row.k): row for row in rows if row.segment == segment}


def of_all(rows: Sequence[Measurement]) -> dict[tuple[str, str, int], Measurement]:
    return of_segment(rows, ALL)


def cutoffs(by_key: Found) -> list[int]:
    return sorted({k for _, metric, k in by_key if k and metric in metrics.LIST_METRICS})


def middle_cutoff(by_key: Found) -> int:
    """The cut-off that is shown where there is room for one; 0 when nothing has one."""
    every = cutoffs(by_key)
    return every[len(every) // 2] if every else 0


def best(by_key: Found, key: tuple[str, int], models: Sequence[str]) -> float | None:
    """The best value that one of the models has; None when none has one."""
    known = [row.value for model in models if (row := by_key.get((model, *key))) and row.value is not None]
    if not known:
        return None
    return min(known) if key[0] in metrics.LOWER_IS_BETTER else max(known)


def best_model(by_key: Found, key: tuple[str, int], models: Sequence[str]) -> str | None:
    """The first of the models that has the best value."""
    value = best(by_key, key, models)
    return next((m for m in models if value is not None and by_key[m, *key].value == value), None)


def decimals(by_key: Found, key: tuple[str, int], models: Sequence[str]) -> int:
    """Of the models' values: 3, and more where the largest would have fewer than three digits; of a count as few."""
    largest = max((abs(row.value) for model in models if (row := by_key.get((model, *key))) and row.value), default=1.0)
    digits = 2 - math.floor(math.log10(largest))
    return min(_MOST_DECIMALS, max(0 if key[0] == "average_popularity" else _DECIMALS, digits))


def verdict(row: Measurement) -> str:
    """What a paired difference says; nothing without an interval."""
    if row.low is None or row.high is None:
        return NOTHING
    if row.low <= 0 <= row.high:
        return WITHIN_NOISE
    return BETTER if (row.low > 0) != (row.metric in metrics.LOWER_IS_BETTER) else WORSE


def traded(by_key: Found, chosen: str) -> list[tuple[str, int]]:
    """What lists that were chosen for diversity give and take, at the longest cut-off that they reach."""
    keys = [(metric, k) for k in reversed(cutoffs(by_key)) for metric in _TRADED]
    known = [key for key in keys if (row := by_key.get((chosen, *key))) and row.value is not None]
    return [key for key in known if key[1] == known[0][1]]


def name_of(metric: str, k: int) -> str:
    return f"{metric}@{k}" if k else metric


def interval(row: Measurement, form: str) -> str:
    if row.low is None or row.high is None:
        return NOTHING
    return f"{form.format(row.low)} .. {form.format(row.high)}"
