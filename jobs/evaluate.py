"""Measures the checkpoint and simple baselines on held-out interactions, and writes the table `evaluation`.

    spark-submit jobs/evaluate.py --config conf/demo.yaml [--report report.html] [evaluate.split=valid ...]

Histories, seen items and baselines are from train for the valid split, from train and valid for test. Held-out
rows that the model gave no score, because it refused the item or the user, are counted and left out for every
model alike; a user whom the model gave no list counts as zero.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from rich.console import Console

from flmrec_spark import columns as c
from flmrec_spark.bootstrap import Array
from flmrec_spark.config import EvaluateConfig
from flmrec_spark.errors import ConfigError, InputError
from flmrec_spark.job import Job, run
from flmrec_spark.report import page, stored
from flmrec_spark.report.console import WIDTH, report
from flmrec_spark.report.content import Result
from flmrec_spark.report.publish import publish
from flmrec_spark.ship import ship
from flmrec_spark.stages import baselines, evaluation
from flmrec_spark.stages.measurements import Answers, Measurement, measure, pairs
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.stages.user_prompts import user_prompts
from flmrec_spark.tables.delta import run_predicate

FLM = "flm"
MODELS = (FLM, *baselines.NAMES)
INPUTS = ("interactions", "items", "users")
REPORT_LIST = 10  # items of a list that the report shows
HISTORY_SPLITS = {c.VALID: (c.TRAIN,), c.TEST: (c.TRAIN, c.VALID)}


@dataclass(frozen=True)
class Inputs:
    """Who and what is measured; `rows` as `evaluation.held_out`, `prompts` as `user_prompts.user_prompts`."""

    history: DataFrame
    item_scores: DataFrame
    rows: DataFrame
    prompts: DataFrame
    longest_rows: int  # distinct held-out items of a user at most
    longest_excluded: int
    cutoffs: list[int]


def main(argv: Sequence[str]) -> int:
    about = "Measures the model beside simple baselines on held-out interactions."
    return run("evaluate", evaluate, argv, about, files={"report": "write one HTML page that shows what was measured"})


def evaluate(job: Job) -> None:
    config = job.config.evaluate
    for name in INPUTS:
        job.inputs[name] = str(job.tables.version(name))
    _against(config)
    if job.files["report"] is not None:
        page.expect_room(job.files["report"])
    with job.timed("ship"):
        items = job.tables.read("items")
        users = job.tables.read("users")
        shipped = ship(job.spark, checkpoint=job.config.checkpoint, items=items, users=users, score=job.config.score)
    job.inputs["checkpoint"] = shipped.digest
    job.counts["items_rejected"] = len(shipped.rejected)
    measured = _measured_now_or_before(job, shipped)
    rows = job.counts["held_out_rows"] - job.counts["unscored_rows"]
    title = f"{job.run_id}: {rows:,} rows of {job.counts['users']:,} users in {config.split}"
    Console(width=WIDTH).print(report(measured, models=MODELS, title=title))
    if job.files["report"] is not None:
        with job.timed("report"):
            _publish(job, shipped, measured, job.files["report"])


def _measured_now_or_before(job: Job, shipped: Shipped) -> list[Measurement]:
    """The measurements, read back when a finished run of this id has made them; its counts are the job's then."""
    config, precision = job.config.evaluate, job.config.score.precision
    made_of = stored.fingerprint(job.tables, job.inputs, config, precision=precision, models=MODELS)
    job.run_id = job.run_id or f"evaluate-{made_of}"
    measured = stored.read(job.tables, job.run_id, made_of=made_of) if job.is_recorded() else None
    if measured is not None:
        runs = job.tables.read("runs").where(run_predicate(job.run_id)).where(F.col("job") == job.name)
        job.status, job.counts = "already done", dict(runs.collect()[0]["counts"])
        return measured
    measured = _measured(job, shipped)
    job.counts["measurements"] = len(measured)
    with job.timed("write"):
        metadata = job.metadata()
        stored.write(
            job.spark, job.tables, measured, run_id=job.run_id, split=config.split, made_of=made_of, metadata=metadata
        )
    return measured


def _measured(job: Job, shipped: Shipped) -> list[Measurement]:
    config = job.config.evaluate
    with ExitStack() as kept:
        with job.timed("choose users"):
            inputs = _inputs(job, shipped, kept)
        with job.timed("score held-out rows"):
            rows = _scored_rows(job, inputs, shipped)
        with job.timed("score lists"):
            asked, lists = _lists(job, inputs, shipped, rows)
    with job.timed("measure"):
        return measure(
            asked.world,
            list(_answers(rows, asked, lists, inputs.cutoffs)),
            cutoffs=inputs.cutoffs,
            compared=pairs(MODELS, _against(config)),
            n_resamples=config.bootstrap,
            seed=config.seed,
        )


def _inputs(job: Job, shipped: Shipped, kept: ExitStack) -> Inputs:
    config = job.config.evaluate
    interactions, history_splits = job.tables.read("interactions"), HISTORY_SPLITS[config.split]
    chosen = evaluation.draw_users(interactions, split=config.split, max_users=config.max_users, seed=config.seed)
    users = kept.enter_context(_kept(job.tables.read("users").join(chosen, c.USER_ID, "left_semi")))
    rows = evaluation.held_out(interactions, users, split=config.split, history_splits=history_splits)
    rows = kept.enter_context(_kept(rows))
    prompts = user_prompts(
        users, interactions, splits=history_splits, history_length=shipped.history_length, exclude_seen=True
    )
    prompts = kept.enter_context(_kept(prompts))
    sizes = rows.groupBy(c.USER_ID).agg(F.count_distinct(c.ITEM_ID).alias("items"), F.count("*").alias("rows"))
    held_out = sizes.agg(F.max("items").alias("longest"), F.sum("rows").alias("rows")).collect()[0]
    if not held_out["rows"]:
        raise InputError(f"table interactions: got no rows of split {config.split}, expected some; see prepare.split")
    excluded = prompts.agg(F.max(F.size(c.EXCLUDED)).alias("longest"), F.count("*").alias("users")).collect()[0]
    job.counts |= {"users": excluded["users"], "held_out_rows": held_out["rows"]}
    history = interactions.where(F.col(c.SPLIT).isin(*history_splits))
    item_scores = kept.enter_context(_kept(baselines.item_scores(history, job.tables.read("items"))))
    job.counts["items"] = item_scores.count()
    return Inputs(
        history=history,
        item_scores=item_scores,
        rows=rows,
        prompts=prompts,
        longest_rows=held_out["longest"],
        longest_excluded=excluded["longest"],
        cutoffs=sorted(set(config.k)),
    )


def _scored_rows(job: Job, inputs: Inputs, shipped: Shipped) -> pa.Table:
    """The held-out rows that have a score, one column per model, in a fixed order."""
    asked = evaluation.pointwise_prompts(inputs.prompts, inputs.rows)
    answered = scores(_spread(job, asked), shipped, n=inputs.longest_rows).where(F.col(c.RANK) >= 1)
    scored = inputs.rows.join(
        answered.select(c.USER_ID, c.ITEM_ID, F.col(c.SCORE).cast("double").alias(FLM)),
        [c.USER_ID, c.ITEM_ID],
        "left",
    )
    users = baselines.user_scores(inputs.history, inputs.prompts)
    everything = baselines.score_rows(scored, items=inputs.item_scores, users=users).toArrow()
    rows = everything.filter(everything[FLM].is_valid())
    job.counts["unscored_rows"] = everything.num_rows - rows.num_rows
    if not rows.num_rows:
        raise InputError(f"checkpoint {job.config.checkpoint}: scored none of {everything.num_rows} held-out rows")
    return rows.sort_by([(name, "ascending") for name in (c.USER_ID, c.ITEM_ID, c.MOMENT)])


def _lists(job: Job, inputs: Inputs, shipped: Shipped, rows: pa.Table) -> tuple[evaluation.Collected, dict[str, Array]]:
    """What was asked, with users in a fixed order, and each model's lists as places in the catalogue."""
    n = max(inputs.cutoffs)
    lists = {FLM: scores(_spread(job, inputs.prompts), shipped, n=n).where(F.col(c.RANK) >= 1)}
    for by in sorted(set(baselines.LISTED_BY.values())):
        lists[by] = baselines.top_n(inputs.prompts, inputs.item_scores, by=by, n=n, depth=n + inputs.longest_excluded)
    asked = evaluation.collected(
        rows,
        evaluation.relevant_items(inputs.rows).toArrow(),
        evaluation.measured_users(inputs.prompts, inputs.history).toArrow().sort_by(c.USER_ID),
        evaluation.catalogue(evaluation.catalogue_rows(job.tables.read("items"), inputs.history).toArrow()),
    )
    columns = (c.USER_ID, c.RANK, c.ITEM_ID)
    found = {name: evaluation.places(frame.select(*columns).toArrow(), asked, n=n) for name, frame in lists.items()}
    job.counts["users_without_list"] = int((found[FLM][:, 0] < 0).sum())
    return asked, found


def _answers(
    rows: pa.Table, asked: evaluation.Collected, lists: Mapping[str, Array], cutoffs: Sequence[int]
) -> Iterator[Answers]:
    for model in MODELS:
        listed_as = {FLM: FLM, **baselines.LISTED_BY}.get(model)
        yield evaluation.answers(
            asked,
            model,
            rows[model].to_numpy(),
            is_probability=model in {FLM, *baselines.WITH_PROBABILITY},
            listed=lists[listed_as] if listed_as else None,
            expected=lists[baselines.POPULARITY],
            cutoffs=cutoffs,
        )


def _against(config: EvaluateConfig) -> str:
    if config.against not in MODELS:
        raise ConfigError(f"evaluate.against: got {config.against!r}, expected one of {', '.join(MODELS)}")
    return config.against


def _publish(job: Job, shipped: Shipped, measured: Sequence[Measurement], file: Path) -> None:
    config = job.config.evaluate
    publish(
        file,
        Result(measured, MODELS, _against(config)),
        run_id=job.run_id,
        counts=job.counts,
        inputs=job.inputs,
        tables=job.tables,
        checkpoint=job.config.checkpoint,
        evaluate=config,
        lists_of=lambda prompts: scores(prompts, shipped, n=REPORT_LIST).where(F.col(c.RANK) >= 1),
        history_splits=HISTORY_SPLITS[config.split],
        history_length=shipped.history_length,
    )


def _spread(job: Job, users: DataFrame) -> DataFrame:
    # Few and small rows, much work each: Spark would put them all into one task.
    return users.repartition(job.config.score.partitions or 4 * job.spark.sparkContext.defaultParallelism, c.USER_ID)


@contextmanager
def _kept(frame: DataFrame) -> Iterator[DataFrame]:
    # What is read twice is computed once: a list is scored by the model, and found again for each question.
    frame.persist()
    try:
        yield frame
    finally:
        frame.unpersist()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
