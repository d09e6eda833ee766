"""The page: one HTML file with its style and drawings inside, that asks nothing of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flmrec_spark.report import charts, found, words
from flmrec_spark.report.charts import OURS, THEIRS, Series
from flmrec_spark.report.content import Result
from flmrec_spark.report.examples import ExampleUser
from flmrec_spark.report.parts import Figure
from flmrec_spark.report.speeds import QUALITY, Speed

_VERDICTS = (found.BETTER, found.WITHIN_NOISE, found.WORSE)
_TRAINING = ("loss", "log_loss", "auc", "uauc", "ndcg")  # of the checkpoint's history, one chart each


@dataclass(frozen=True)
class Run:
    """What was evaluated."""

    run_id: str
    split: str
    n_rows: int
    n_users: int
    n_items: int
    inputs: Mapping[str, str]


def render(
    result: Result,
    run: Run,
    *,
    training: Sequence[Mapping[str, Any]],
    examples: Sequence[ExampleUser],
    speeds: Sequence[Speed],
    exclude_seen: bool = True,
) -> str:
    """The page as HTML.

    Args:
      training: the checkpoint's validations, each with `step` and metrics.
      examples, speeds: their sections are left out when empty.
      exclude_seen: lists leave out what their user has met.
    """
    environment = Environment(
        loader=PackageLoader("flmrec_spark", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headlines = list(result.headlines())
    return environment.get_template("page.html").render(
        run=run,
        result=result,
        model=words.model_name(result.models[0]),
        against=words.model_name(result.against),
        headlines=headlines,
        verdicts={said: [one.metric for one in headlines if one.verdict == said] for said in _VERDICTS},
        training=training_figures(training),
        examples=examples,
        exclude_seen=exclude_seen,
        speed=_speed_figure(speeds),
        meanings=[(words.metric_name(name), text) for name, text in words.MEANINGS.items()],
        OURS=OURS,
        THEIRS=THEIRS,
    )


def training_figures(history: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """A chart for each metric that the validations have, in a fixed order."""
    figures = []
    for name in _TRAINING:
        points = [(float(one["step"]), float(one[name])) for one in history if _is_number(one.get(name))]
        title = f"Validation {words.metric_name(name)}" if name != "loss" else "Training loss"
        steps = [step for step, _ in points] if len(points) <= 8 else None
        drawing = charts.lines([Series(title, OURS, points)], label=title, x_name="step", x_ticks=steps, width=270)
        if drawing is not None:
            figures.append(Figure(title, drawing))
    return figures


def _speed_figure(speeds: Sequence[Speed]) -> Figure | None:
    if not speeds:
        return None
    points = [(one.name, one.prompts_per_second, one.quality) for one in speeds]
    names = {"x_name": "prompts per second", "y_name": words.metric_name(QUALITY)}
    title = "Speed and quality of each join"
    return Figure(title, charts.named_points(points, label=title, **names))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
