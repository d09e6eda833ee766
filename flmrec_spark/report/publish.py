"""From a run's measurements to its page: what else the page shows, and where that comes from.

Nothing of it is stored for the page's sake. Training is read from the checkpoint, speeds from the tables of earlier
runs; the few users that are shown are scored again. So a run that was measured long ago gives the same page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pyspark.sql import DataFrame

from flmrec_spark import columns as c
from flmrec_spark import files
from flmrec_spark.config import EvaluateConfig
from flmrec_spark.lm.checkpoint import read_metrics
from flmrec_spark.report import page
from flmrec_spark.report.content import Result
from flmrec_spark.report.examples import collect_examples
from flmrec_spark.report.speeds import collect_speeds
from flmrec_spark.tables.delta import Tables


def publish(
    file: Path,
    result: Result,
    *,
    run_id: str,
    counts: Mapping[str, int],
    inputs: Mapping[str, str],
    join: str | None,
    tables: Tables,
    checkpoint: str,
    evaluate: EvaluateConfig,
    lists_of: Callable[[DataFrame], DataFrame],
    history_splits: Sequence[str],
    history_length: int,
    exclude_seen: bool,
) -> None:
    """Writes the page of a run, its rows being in the table `evaluation`.

    `counts` and `inputs` are those of the table `runs`, `join` is the model's, and `lists_of` makes lists (user_id,
    rank, item_id, score) of rows of `user_prompts.user_prompts`. Raises EnvironmentFault when it cannot be written.
    """
    frames = (tables.read(name, version=int(inputs[name])) for name in ("interactions", "users", "items"))
    interactions, users, items = frames
    examples = collect_examples(
        interactions,
        users,
        items,
        lists_of,
        split=evaluate.split,
        history_splits=history_splits,
        history_length=history_length,
        n_users=evaluate.report_users,
        seed=evaluate.seed,
        exclude_seen=exclude_seen,
    )
    earlier = []
    if tables.exists("runs"):
        of_jobs = tables.read("runs"), tables.read("evaluation")
        own = {"job": "evaluate", c.RUN_ID: run_id, "inputs": dict(inputs), "versions": {"join": join}}
        earlier = collect_speeds(*of_jobs, own=own, model=result.models[0], split=evaluate.split)
    n_rows = counts["held_out_rows"] - counts["unscored_rows"]
    about = page.Run(run_id, evaluate.split, n_rows, counts["users"], counts["items"], inputs)
    training = read_metrics(checkpoint).get("history", [])
    text = page.render(result, about, training=training, examples=examples, speeds=earlier, exclude_seen=exclude_seen)
    files.write(file, text, flag="--report")
