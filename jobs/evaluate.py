"""Measures the checkpoint and simple baselines on held-out interactions, and writes the table `evaluation`.

    spark-submit jobs/evaluate.py --config conf/demo.yaml [evaluate.split=valid ...]

Histories, seen items and baselines are from train for the valid split, from train and valid for test. Held-out
rows that the model gave no score, because it refused the item or the user, are counted and left out for every
model alike; a user whom the model gave no list counts as zero. For test, the hybrid is a stack of the model and the
baselines that is fitted on valid (`stacking`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T
from rich.console import Console

from flmrec_spark import columns as c
from flmrec_spark.errors import InputError
from flmrec_spark.fitting import Tools
from flmrec_spark.job import Job, run
from flmrec_spark.prompts import load_template
from flmrec_spark.report import WIDTH, report
from flmrec_spark.ship import ship
from flmrec_spark.stacking import HISTORY_LENGTH, Prepared, fit_models, with_stack
from flmrec_spark.stages import evaluation
from flmrec_spark.stages.hybrid import FLM, HYBRID
from flmrec_spark.stages.models import WITH_PROBABILITY, Models, answered, listed
from flmrec_spark.stages.scores import Shipped
from flmrec_spark.stages.user_prompts import user_prompts
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import run_predicate

HISTORY_SPLITS = {c.VALID: (c.TRAIN,), c.TEST: (c.TRAIN, c.VALID)}
REPORTED = 5  # models beside each other in a printed table

log = logging.getLogger("flmrec")


@dataclass(frozen=True)
class Inputs:
    """Who and what is measured; `rows` as `evaluation.held_out`, `prompts` as `user_prompts.user_prompts`."""

    rows: DataFrame
    prompts: DataFrame
    longest_rows: int  # distinct held-out items of a user at most
    cutoffs: list[int]


def main(argv: Sequence[str]) -> int:
    return run("evaluate", evaluate, argv, "Measures the model beside simple baselines on held-out interactions.")


def evaluate(job: Job) -> None:
    config = job.config.evaluate
    for name in ("interactions", "items", "users"):
        job.inputs[name] = str(job.tables.version(name))
    _against(config)
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
        models = _models(job, shipped)
        with job.timed("score held-out rows"):
            rows = _scored_rows(job, inputs, models)
        with job.timed("score lists"):
            users, found, counted = _lists(job, inputs, models, kept)
    with job.timed("measure"):
        measured = _measured(job, models, rows, users, found, counted, cutoffs=inputs.cutoffs)
    with job.timed("write"):
        _write(job, measured)
    title = f"{job.run_id}: {rows.num_rows:,} rows of {users.num_rows:,} users in {config.split}"
    for start in range(1, len(models.names), REPORTED - 1):
        beside = [FLM, *models.names[start : start + REPORTED - 1]]
        Console(width=WIDTH).print(report(measured, models=beside, title=title))


def _measured(
    job: Job, models: Models, rows: pa.Table, users: pa.Table, found: pa.Table, counted: pa.Table, *, cutoffs: list[int]
) -> list[evaluation.Measurement]:
    """Every metric, what flm's differ from each other's, and what the hybrid's do."""
    answers = list(_answers(models, rows, users, found, counted, n=max(cutoffs)))
    config, world = job.config.evaluate, evaluation.held_out_arrays(rows, users)

    def measure(first: str) -> list[evaluation.Measurement]:
        return evaluation.measure(
            world,
            sorted(answers, key=lambda answer: answer.model != first),
            cutoffs=cutoffs,
            n_items=job.counts["items"],
            n_resamples=config.bootstrap,
            seed=config.seed,
        )

    measured = measure(FLM)
    if models.stackers is not None:
        own = evaluation.difference(HYBRID, "")
        measured += [row for row in measure(HYBRID) if row.model.startswith(own)]
    return measured


def _inputs(job: Job, shipped: Shipped, kept: ExitStack) -> Inputs:
    config = job.config.evaluate
    interactions, history_splits = job.tables.read("interactions"), HISTORY_SPLITS[config.split]
    chosen = evaluation.draw_users(interactions, split=config.split, max_users=config.max_users, seed=config.seed)
    users = kept.enter_context(_kept(job.tables.read("users").join(chosen, c.USER_ID, "left_semi")))
    rows = evaluation.held_out(interactions, users, split=config.split, history_splits=history_splits)
    rows = kept.enter_context(_kept(rows))
    prompts = user_prompts(
        users,
        interactions,
        splits=history_splits,
        history_length=max(HISTORY_LENGTH, shipped.history_length),
        exclude_seen=True,
    )
    prompts = kept.enter_context(_kept(prompts))
    sizes = rows.groupBy(c.USER_ID).agg(F.count_distinct(c.ITEM_ID).alias("items"), F.count("*").alias("rows"))
    held_out = sizes.agg(F.max("items").alias("longest"), F.sum("rows").alias("rows")).collect()[0]
    if not held_out["rows"]:
        raise InputError(f"table interactions: got no rows of split {config.split}, expected some; see prepare.split")
    job.counts |= {"users": prompts.count(), "held_out_rows": held_out["rows"]}
    job.counts["items"] = job.tables.read("items").count()
    return Inputs(rows=rows, prompts=prompts, longest_rows=held_out["longest"], cutoffs=sorted(set(config.k)))


def _models(job: Job, shipped: Shipped) -> Models:
    """Baselines are fitted on what the histories are from."""
    config = job.config.evaluate
    prepared = Prepared(*[job.tables.read(name) for name in ("interactions", "items", "users")])
    tools = Tools(job.spark, load_template(job.config.prompts.template), job.config.model.path)
    splits = HISTORY_SPLITS[config.split]
    models = fit_models(prepared, shipped, names=config.baselines, history_splits=splits, tools=tools, timed=job.timed)
    if not config.hybrid or config.split != c.TEST:
        return models
    try:
        with job.timed("fit hybrid"):
            return with_stack(models, prepared, shipped=shipped, tools=tools, partitions=_partitions(job))
    except InputError as fault:
        log.warning("evaluate: %s; the hybrid is left out", fault)
        return models


def _scored_rows(job: Job, inputs: Inputs, models: Models) -> pa.Table:
    """The held-out rows that have a score, one column per model, in a fixed order."""
    asked = _spread(job, evaluation.pointwise_prompts(inputs.prompts, inputs.rows))
    said = answered(asked, models, n=inputs.longest_rows)
    by_pair = said.groupBy(c.USER_ID, c.ITEM_ID).pivot(evaluation.MODEL, list(models.names)).agg(F.first(c.SCORE))
    everything = inputs.rows.join(by_pair, [c.USER_ID, c.ITEM_ID], "left").toArrow()
    rows = everything.filter(everything[FLM].is_valid())
    job.counts["unscored_rows"] = everything.num_rows - rows.num_rows
    if not rows.num_rows:
        raise InputError(f"checkpoint {job.config.checkpoint}: scored none of {everything.num_rows} held-out rows")
    return rows.sort_by([(name, "ascending") for name in (c.USER_ID, c.ITEM_ID, c.MOMENT)])


def _lists(job: Job, inputs: Inputs, models: Models, kept: ExitStack) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Users in a fixed order, hits, and per model how many users and items the lists hold."""
    together = kept.enter_context(_kept(listed(_spread(job, inputs.prompts), models, n=max(inputs.cutoffs))))
    relevant = evaluation.relevant_items(inputs.rows)
    users = evaluation.measured_users(inputs.prompts, relevant).toArrow().sort_by(c.USER_ID)
    found = evaluation.hits(together, relevant).toArrow()
    counted = evaluation.listed(together, inputs.cutoffs).toArrow()
    with_list = {row["model"]: row["users"] for row in counted.to_pylist()}.get(FLM, 0)
    job.counts["users_without_list"] = users.num_rows - with_list
    return users, found, counted


def _answers(
    models: Models, rows: pa.Table, users: pa.Table, found: pa.Table, counted: pa.Table, *, n: int
) -> Iterator[evaluation.Answers]:
    n_listed = {row.pop("model"): row for row in counted.drop_columns("users").to_pylist()}
    for model in models.names:
        said, can_list = rows[model].to_numpy(), model in models.listing
        yield evaluation.Answers(
            model=model,
            scores=said,
            probabilities=said if model in WITH_PROBABILITY else None,
            hits=evaluation.hit_matrix(found, users, model=model, n=n) if can_list else None,
            n_listed={int(k): count for k, count in n_listed.get(model, {}).items()} if can_list else {},
        )


def _against(config: EvaluateConfig) -> str:
    if config.against not in MODELS:
        raise ConfigError(f"evaluate.against: got {config.against!r}, expected one of {', '.join(MODELS)}")
    return config.against


def _write(job: Job, measured: Sequence[Measurement]) -> None:
    schema = T.StructType([T.StructField(col.name, col.type) for col in schemas.EVALUATION.columns])
    run_of = {c.RUN_ID: job.run_id, c.SPLIT: job.config.evaluate.split}
    frame = job.spark.createDataFrame([{**asdict(row), **run_of} for row in measured], schema)
    job.tables.replace_rows(schemas.EVALUATION, frame.coalesce(1), run_predicate(job.run_id), job.metadata())
    job.counts["measurements"] = len(measured)


def _digest(job: Job) -> str:
    settings = job.config.evaluate.model_dump(exclude={"report_users"})
    made_of = json.dumps({**job.inputs, "settings": settings}, sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


def _spread(job: Job, users: DataFrame) -> DataFrame:
    # Few and small rows, much work each: Spark would put them all into one task.
    return users.repartition(_partitions(job), c.USER_ID)


def _partitions(job: Job) -> int:
    return job.config.score.partitions or 4 * job.spark.sparkContext.defaultParallelism


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
