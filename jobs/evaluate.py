"""Measures the checkpoint and simple baselines on held-out interactions, and writes the table `evaluation`.

    spark-submit jobs/evaluate.py --config conf/demo.yaml [evaluate.split=valid ...]

Histories, seen items and baselines are from train for the valid split, from train and valid for test. Held-out
rows that the model gave no score, because it refused the item or the user, are counted and left out for every
model alike; a user whom the model gave no list counts as zero.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import reduce

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T
from rich.console import Console

from flmrec_spark import columns as c
from flmrec_spark.errors import InputError
from flmrec_spark.job import Job, run
from flmrec_spark.report import WIDTH, report
from flmrec_spark.ship import settled, ship
from flmrec_spark.stages import baselines, evaluation
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.stages.user_prompts import user_prompts
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import run_predicate

FLM = "flm"
MODELS = (FLM, *baselines.NAMES)
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
    return run("evaluate", evaluate, argv, "Measures the model beside simple baselines on held-out interactions.")


def evaluate(job: Job) -> None:
    config = job.config.evaluate
    for name in ("interactions", "items", "users"):
        job.inputs[name] = str(job.tables.version(name))
    with job.timed("ship"):
        items = job.tables.read("items")
        users = job.tables.read("users")
        shipped = ship(job.spark, checkpoint=job.config.checkpoint, items=items, users=users, score=job.config.score)
    job.inputs["checkpoint"] = shipped.digest
    job.counts["items_rejected"] = len(shipped.rejected)
    job.run_id = job.run_id or f"evaluate-{_digest(job)}"
    with ExitStack() as kept:
        with job.timed("choose users"):
            inputs = _inputs(job, shipped, kept)
            shipped, told = settled(shipped, inputs.prompts, job.config.score)
            job.versions |= told
        with job.timed("score held-out rows"):
            rows = _scored_rows(job, inputs, shipped)
        with job.timed("score lists"):
            users, found, listed = _lists(job, inputs, shipped, kept)
    with job.timed("measure"):
        measured = evaluation.measure(
            evaluation.held_out_arrays(rows, users),
            list(_answers(rows, users, found, listed, n=max(inputs.cutoffs))),
            cutoffs=inputs.cutoffs,
            n_items=job.counts["items"],
            n_resamples=config.bootstrap,
            seed=config.seed,
        )
    with job.timed("write"):
        _write(job, measured)
    title = f"{job.run_id}: {rows.num_rows:,} rows of {users.num_rows:,} users in {config.split}"
    Console(width=WIDTH).print(report(measured, models=MODELS, title=title))


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


def _lists(job: Job, inputs: Inputs, shipped: Shipped, kept: ExitStack) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Users in a fixed order, hits, and per model how many users and items the lists hold."""
    n = max(inputs.cutoffs)
    lists = {FLM: scores(_spread(job, inputs.prompts), shipped, n=n).where(F.col(c.RANK) >= 1)}
    for by in sorted(set(baselines.LISTED_BY.values())):
        lists[by] = baselines.top_n(inputs.prompts, inputs.item_scores, by=by, n=n, depth=n + inputs.longest_excluded)
    named = [
        frame.select(F.lit(name).alias(evaluation.MODEL), c.USER_ID, c.RANK, c.ITEM_ID) for name, frame in lists.items()
    ]
    together = kept.enter_context(_kept(reduce(DataFrame.unionByName, named)))
    relevant = evaluation.relevant_items(inputs.rows)
    users = evaluation.measured_users(inputs.prompts, relevant).toArrow().sort_by(c.USER_ID)
    found = evaluation.hits(together, relevant).toArrow()
    listed = evaluation.listed(together, inputs.cutoffs).toArrow()
    with_list = {row["model"]: row["users"] for row in listed.to_pylist()}.get(FLM, 0)
    job.counts["users_without_list"] = users.num_rows - with_list
    return users, found, listed


def _answers(
    rows: pa.Table, users: pa.Table, found: pa.Table, listed: pa.Table, *, n: int
) -> Iterator[evaluation.Answers]:
    n_listed = {row.pop("model"): row for row in listed.drop_columns("users").to_pylist()}
    for model in MODELS:
        said, listed_as = rows[model].to_numpy(), {FLM: FLM, **baselines.LISTED_BY}.get(model)
        yield evaluation.Answers(
            model=model,
            scores=said,
            probabilities=said if model in {FLM, *baselines.WITH_PROBABILITY} else None,
            hits=evaluation.hit_matrix(found, users, model=listed_as, n=n) if listed_as else None,
            n_listed={int(k): count for k, count in n_listed.get(listed_as, {}).items()},
        )


def _write(job: Job, measured: Sequence[evaluation.Measurement]) -> None:
    schema = T.StructType([T.StructField(col.name, col.type) for col in schemas.EVALUATION.columns])
    run_of = {c.RUN_ID: job.run_id, c.SPLIT: job.config.evaluate.split}
    frame = job.spark.createDataFrame([{**asdict(row), **run_of} for row in measured], schema)
    job.tables.replace_rows(schemas.EVALUATION, frame.coalesce(1), run_predicate(job.run_id), job.metadata())
    job.counts["measurements"] = len(measured)


def _digest(job: Job) -> str:
    made_of = json.dumps({**job.inputs, "config": job.config.digest("evaluate")}, sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


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
