"""Measures the checkpoint and simple baselines on held-out interactions, and writes the table `evaluation`.

    spark-submit jobs/evaluate.py --config conf/demo.yaml [--report report.html] [evaluate.split=valid ...]

Histories, seen items and baselines are from train for the valid split, from train and valid for test. Held-out
rows that the model gave no score, because it refused the item or the user, are counted and left out for every
model alike; a user whom the model gave no list counts as zero. For test, the hybrid is a stack of the model and the
baselines that is fitted on valid (`stacking`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from rich.console import Console

from flmrec_spark import columns as c
from flmrec_spark import files, measuring
from flmrec_spark.bootstrap import Array
from flmrec_spark.errors import InputError
from flmrec_spark.job import Job, run
from flmrec_spark.measuring import HISTORY_SPLITS, Inputs, diverse_lists, inputs_of, kept_in_memory
from flmrec_spark.report import stored
from flmrec_spark.report.console import WIDTH, report
from flmrec_spark.report.content import Result
from flmrec_spark.report.publish import publish
from flmrec_spark.scoring import tools
from flmrec_spark.ship import load_libraries, settled, ship
from flmrec_spark.stacking import Prepared, fit_models, with_stack
from flmrec_spark.stages import evaluation
from flmrec_spark.stages.baselines.lists import MODEL
from flmrec_spark.stages.diversity import Diverse, diversified
from flmrec_spark.stages.hybrid import FLM, HYBRID
from flmrec_spark.stages.measurements import Measurement, measure, pairs
from flmrec_spark.stages.models import Models, answered, listed, said
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.strategies import depends_on
from flmrec_spark.tables import schemas
from flmrec_spark.tables.history import State

REPORT_LIST = 10  # items of a list that the page shows

log = logging.getLogger("flmrec")


def main(argv: Sequence[str]) -> int:
    about = "Measures the model beside simple baselines on held-out interactions."
    files = {"report": "write one HTML page that shows what was measured"}
    return run("evaluate", evaluate, argv, about, files=files, ahead=lambda _: load_libraries())


def evaluate(job: Job) -> None:
    config = job.config.evaluate
    states = [job.tables.state(name) for name in stored.INPUTS]
    job.inputs |= {name: str(state.version) for name, state in zip(stored.INPUTS, states, strict=True)}
    for schema in (schemas.EVALUATION, schemas.RUNS):
        job.tables.expect_room(schema)
    if job.files["report"] is not None:
        files.expect_room(job.files["report"], flag="--report")
    with job.timed("ship"):
        items, users = job.read("items"), job.read("users")
        shipped = ship(job.spark, checkpoint=job.config.checkpoint, items=items, users=users, score=job.config.score)
        measuring.tell_of_the_checkpoint(job)
    job.inputs["checkpoint"] = shipped.digest
    job.counts["items_rejected"] = len(shipped.rejected)
    diverse = diverse_lists(job)
    measured = _measured_now_or_before(job, shipped, diverse, states)
    known = {row.model for row in measured}
    names = [name for name in (FLM, *config.baselines, HYBRID) if name in known]  # the hybrid may have been left out
    chosen = {diversified(name): name for name in names if diversified(name) in known}
    Console(width=WIDTH).print(report(measured, models=names, title=measuring.title(job), diverse=chosen))
    if job.files["report"] is not None:
        with job.timed("report"):
            against = config.compared_with([name for name in config.baselines if name in known])
            result = Result(measured, names, against, {HYBRID}, chosen, job.versions.get("diversity", ""))
            _publish(job, shipped, result, job.files["report"])


def _measured_now_or_before(
    job: Job, shipped: Shipped, diverse: Diverse | None, states: Sequence[State]
) -> list[Measurement]:
    """The measurements, read back when a run of this id has made them, be it that it ended before its page was there.

    Its counts and versions are the job's then.
    """
    config, lists = job.config.evaluate, job.config.score
    compares = diverse is not None and lists.strategy in config.baselines
    made_by = depends_on(config.baselines, tools=tools(job), compares_texts=compares)
    made_of = stored.fingerprint(
        states,
        config,
        checkpoint=shipped.digest,
        precision=lists.precision,
        exclude_seen=lists.exclude_seen,
        diverse=diverse,
        strategy=lists.strategy,
        made_by=made_by,
    )
    job.run_id = job.run_id or f"evaluate-{made_of}"
    is_done = job.is_recorded()
    before = stored.read(job.tables, job.run_id, made_of=made_of, is_done=is_done)
    if before is not None:
        job.status = "already done" if is_done else job.status
        job.counts, job.versions = dict(before.counts), dict(before.versions)
        return before.measured
    measured = _measured(job, shipped, diverse)
    job.counts["measurements"] = len(measured)
    own: dict[str, Any] = {"run_id": job.run_id, "split": config.split, "made_of": made_of, "metadata": job.metadata()}
    with job.timed("write"):
        stored.write(job.spark, job.tables, measured, counts=job.counts, versions=job.versions, **own)
    return measured


def _measured(job: Job, shipped: Shipped, diverse: Diverse | None) -> list[Measurement]:
    """Every metric; flm less each other model, the hybrid likewise, each of them less `evaluate.against`, if fitted.

    Diverse lists have no probabilities of their own, and are compared with the plain lists of their model.
    """
    config = job.config.evaluate
    with ExitStack() as kept:
        with job.timed("choose users"):
            inputs = inputs_of(job, shipped, diverse, kept)
            shipped, told = settled(shipped, inputs.prompts, job.config.score)
            job.versions |= told
            shipped = _of_split(job, shipped)
        models = _models(job, shipped, diverse)
        measuring.tell_what_is_missing(models, config.against)
        with job.timed("score"):  # held-out rows and lists in one pass
            prompts = _spread(job, evaluation.beside_lists(inputs.prompts, inputs.rows))
            ours = kept.enter_context(kept_in_memory(said(prompts, models, n=max(inputs.cutoffs))))
            rows = _scored_rows(job, inputs, models, ours)
        with job.timed("lists"):
            asked, lists = _lists(job, inputs, models, rows, ours, kept)
    compared = pairs(models.names, config.compared_with(models.baselines))
    compared += [(HYBRID, name) for name in models.baselines if models.stackers is not None]
    compared += models.plain.items()
    with job.timed("measure"):
        names = [*models.names, *models.plain]
        answers = evaluation.answers_of_all(
            asked, rows, lists, names, with_probability=models.with_probability, cutoffs=inputs.cutoffs
        )
        return measure(
            asked.world,
            answers,
            cutoffs=inputs.cutoffs,
            compared=list(dict.fromkeys(compared)),
            n_resamples=config.bootstrap,
            seed=config.seed,
        )


def _models(job: Job, shipped: Shipped, diverse: Diverse | None) -> Models:
    """Baselines are fitted on what the histories are from."""
    config = job.config.evaluate
    prepared = Prepared(job.read("interactions"), job.read("items"), job.read("users"), job.config.score.exclude_seen)
    splits, fits = HISTORY_SPLITS[config.split], tools(job)
    diversity, published = None if diverse is None else diverse.config, job.config.score.strategy
    models = fit_models(
        prepared,
        shipped,
        names=config.baselines,
        history_splits=splits,
        diversity=diversity if published in config.baselines else None,
        tools=fits,
        timed=job.timed,
    )
    models = replace(models, diverse=diverse, published=published)
    if not config.hybrid or config.split != c.TEST:
        return models
    try:
        with job.timed("fit hybrid"):
            return with_stack(models, prepared, shipped=shipped, tools=fits, partitions=job.n_partitions)
    except InputError as fault:
        log.warning("evaluate: %s; the hybrid is left out", fault)
        return models


def _scored_rows(job: Job, inputs: Inputs, models: Models, ours: DataFrame) -> pa.Table:
    """The held-out rows that have a score, one column per model, in a fixed order; `ours` as `models.said`."""
    asked = _spread(job, evaluation.pointwise_prompts(inputs.prompts, inputs.rows))
    found = answered(ours, asked, models, n=inputs.longest_rows)
    by_pair = found.groupBy(c.USER_ID, c.ITEM_ID).pivot(MODEL, list(models.names)).agg(F.first(c.SCORE))
    everything = inputs.rows.join(by_pair, [c.USER_ID, c.ITEM_ID], "left").toArrow()
    rows = everything.filter(everything[FLM].is_valid())
    job.counts["unscored_rows"] = everything.num_rows - rows.num_rows
    if not rows.num_rows:
        raise InputError(f"checkpoint {job.config.checkpoint}: scored none of {everything.num_rows} held-out rows")
    return rows.sort_by([(name, "ascending") for name in (c.USER_ID, c.ITEM_ID, c.MOMENT)])


def _lists(
    job: Job, inputs: Inputs, models: Models, rows: pa.Table, ours: DataFrame, kept: ExitStack
) -> tuple[evaluation.Collected, dict[str, Array]]:
    """What was asked, with users in a fixed order, and each model's lists as places in the catalogue."""
    n = max(inputs.cutoffs)
    together = kept.enter_context(kept_in_memory(listed(ours, _spread(job, inputs.prompts), models, n=n)))
    asked = evaluation.collected(
        rows,
        evaluation.relevant_items(inputs.rows, exclude_seen=job.config.score.exclude_seen).toArrow(),
        evaluation.measured_users(inputs.prompts, inputs.history).toArrow().sort_by(c.USER_ID),
        evaluation.catalogue(evaluation.catalogue_rows(job.read("items"), inputs.history).toArrow()),
    )
    found = evaluation.places_of_all(together, asked, models.lengths(n))
    job.counts["users_without_list"] = int((found[FLM][:, 0] < 0).sum())
    return asked, found


def _publish(job: Job, shipped: Shipped, result: Result, file: Path) -> None:
    def lists_of(prompts: DataFrame) -> DataFrame:
        measured = replace(shipped.bundle, precision=job.versions["precision"])  # a trial on so few may find another
        found = _of_split(job, replace(shipped, bundle=measured))
        return scores(prompts, found, n=REPORT_LIST).where(F.col(c.RANK) >= 1)

    publish(
        file,
        result,
        run_id=job.run_id,
        counts=job.counts,
        inputs=job.inputs,
        join=job.versions.get("join"),
        tables=job.tables,
        checkpoint=job.config.checkpoint,
        evaluate=job.config.evaluate,
        lists_of=lists_of,
        history_splits=HISTORY_SPLITS[job.config.evaluate.split],
        history_length=shipped.history_length,
        exclude_seen=job.config.score.exclude_seen,
    )


def _of_split(job: Job, shipped: Shipped) -> Shipped:
    """The model that has not learned the rows that are asked about."""
    return shipped.of_train() if job.config.evaluate.split == c.VALID else shipped


def _spread(job: Job, users: DataFrame) -> DataFrame:  # few rows, much work each: Spark would make one task of them
    return users.repartition(job.n_partitions, c.USER_ID)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
