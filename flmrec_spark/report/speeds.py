"""How fast and how good the checkpoints of earlier runs were, by where the item joins the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.report.stored import INPUTS
from flmrec_spark.stages.hybrid import FLM
from flmrec_spark.stages.segments import ALL

QUALITY = "uauc"


@dataclass(frozen=True)
class Speed:
    """One checkpoint: prompts scored per second by the score stage of its fastest run, and its QUALITY."""

    name: str
    prompts_per_second: float
    quality: float


def collect_speeds(
    runs: DataFrame, evaluation: DataFrame, *, own: Mapping[str, Any], model: str, split: str
) -> list[Speed]:
    """`speeds` of the tables runs and evaluation: of finished runs, and of evaluations of the model on the split.

    Args:
      own: the run that asks, which is not in the table yet: job, run_id, inputs, versions.
    """
    finished = runs.where((F.col("verdict") == "done") & F.col("job").isin("score", "evaluate")).orderBy("started_at")
    is_asked = (F.col("model") == model) & (F.col("metric") == QUALITY) & (F.col("segment") == ALL)
    rows = evaluation.where(is_asked & (F.col(c.SPLIT) == split) & F.col("value").isNotNull())
    qualities = {row[c.RUN_ID]: row["value"] for row in rows.select(c.RUN_ID, "value").collect()}
    every = [row.asDict() for row in finished.collect()]
    others = [row for row in every if (row["job"], row[c.RUN_ID]) != ("evaluate", own[c.RUN_ID])]
    return speeds([*others, {"seconds": {}, "counts": {}, "config": "", **own}], qualities, inputs=own["inputs"])


def speeds(
    runs: Sequence[Mapping[str, Any]], qualities: Mapping[str, float], *, inputs: Mapping[str, str]
) -> list[Speed]:
    """One per join, of its latest evaluation; none unless two joins were measured.

    Args:
      runs: finished runs of the jobs score and evaluate, oldest first, as in the table.
      qualities: run_id of an evaluation -> its QUALITY.
      inputs: versions of the tables; runs on other ones are not comparable.
    """
    rates: dict[str, float] = {}
    for run in runs:
        seconds, pairs, checkpoint = (
            run["seconds"].get("score"),
            run["counts"].get("pairs"),
            run["inputs"].get("checkpoint"),
        )
        # Without seconds or pairs its lists were scored by a run before it; a hybrid's seconds are the baselines' too.
        is_scoring = run["job"] == "score" and _is_on(run, inputs) and checkpoint and seconds and pairs
        if is_scoring and _section(run["config"], "score").get("strategy", FLM) == FLM:
            rates[checkpoint] = max(rates.get(checkpoint, 0.0), pairs / seconds)
    found = {}
    for run in runs:
        checkpoint, quality = run["inputs"].get("checkpoint"), qualities.get(run[c.RUN_ID])
        if run["job"] == "evaluate" and _is_on(run, inputs) and checkpoint in rates and quality is not None:
            name = (run.get("versions") or {}).get("join") or _join(run["config"])
            found[name] = Speed(name, rates[checkpoint], quality)
    return list(found.values()) if len(found) > 1 else []


def _join(config: str) -> str:
    """Of a run whose record has no join: what its config says of a model that it may not have trained."""
    model = _section(config, "model")
    join, layer = model.get("join", "layer"), model.get("join_layer", "last")
    return f"layer {layer}" if join == "layer" else str(join)


def _is_on(run: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    return all(run["inputs"].get(name) == inputs.get(name) for name in INPUTS)


def _section(config: str, name: str) -> dict[str, Any]:
    return (yaml.safe_load(config) or {}).get(name) or {}
