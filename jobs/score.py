"""Scores every user-item prompt and refreshes the table `recommendations`, by what score.strategy names.

    spark-submit jobs/score.py --config conf/demo.yaml [score.n=20 ...] [--run-id ID] [--dry-run]

The lists are staged in `top_n`, audited, and only then published in one commit. A run that fails its audit leaves
the published table as it was (exit code 6). The same run again does nothing; a run that was killed goes on from
its last commit and ends in the same table.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from flmrec_spark import columns as c
from flmrec_spark import dry_run, publishing, scoring
from flmrec_spark.config import Config
from flmrec_spark.errors import ConfigError, ConflictError
from flmrec_spark.job import Job, run
from flmrec_spark.ship import listable, load_libraries, ship
from flmrec_spark.stacking import Prepared
from flmrec_spark.stages import top_n
from flmrec_spark.stages.hybrid import FLM
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.stages.user_prompts import user_prompts, with_candidates
from flmrec_spark.strategies import NEEDS_CHECKPOINT, Recommender, recommender
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import run_predicate
from flmrec_spark.tables.spark_errors import spark_message

log = logging.getLogger("flmrec")


def main(argv: Sequence[str]) -> int:
    told = "Scores every user-item prompt and publishes the top-n lists."
    return run("score", score, argv, told, dry_run=estimate, ahead=_load_libraries)


def _load_libraries(config: Config) -> None:
    if config.score.strategy in NEEDS_CHECKPOINT:
        load_libraries()


def score(job: Job) -> None:
    with job.timed("start", "inputs"):
        candidates = scoring.candidates(job)
        made_of = scoring.fingerprint(job, candidates)
        is_named, job.run_id = bool(job.run_id), job.run_id or f"score-{made_of}"
        for schema in (schemas.TOP_N, schemas.RECOMMENDATIONS, schemas.REJECTS, schemas.RUNS):
            job.tables.expect_room(schema)
        for name in scoring.INPUTS:
            job.tables.register(name)
        found_lists = scoring.published_at(job)
        state = scoring.progress(job, made_of, is_named=is_named)
    if state == scoring.PUBLISHED and job.is_recorded():
        job.status = "already done"
        log.info("score: run %s is published already; nothing to do", job.run_id)
        _name_tables(job)
        return
    if state == scoring.PUBLISHED and scoring.is_unstaged(job):
        log.info("score: run %s is published, and its staged lists are gone: nothing is left to audit", job.run_id)
        _name_tables(job)
        return
    with ExitStack() as kept:
        listed = _listed(job, kept)
        found = _recommender(job, kept)
        prompts = _prompts(job, found, candidates, kept)
        metadata = {**job.metadata(), "fingerprint": made_of, "strategy": job.config.score.strategy}
        metadata |= {name: job.versions[name] for name in ("diversity",) if name in job.versions}
        shipped = found.shipped
        refused_items = job.spark.createDataFrame(found.rejected, f"{c.ITEM_ID} string, {c.REASON} string")
        counted = prompts, listed, refused_items
        if state == scoring.NEW:
            shipped, metadata = _stage(job, found, prompts, metadata)
        else:
            job.versions |= (before := scoring.precision_of_staged(job))
            metadata |= before
        staged = _counted(job, *counted)
        if state == scoring.STAGED and publishing.is_broken(job):
            log.warning("score: run %s: the lists that an earlier attempt staged are broken: scored again", job.run_id)
            shipped, metadata = _stage(job, found, prompts, metadata)
            staged = _counted(job, *counted)
        with job.timed("write", "rejects"):
            publishing.write_rejects(job, staged, refused_items)
        publishing.judge(job, staged, refused_items)
        with job.timed("write", "publish"):
            if state != scoring.PUBLISHED:
                scoring.expect_published_at(job, found_lists)
                job.tables.replace(schemas.RECOMMENDATIONS, top_n.published(staged, n=job.config.score.n), metadata)
            _name_tables(job)
            if shipped is not None:
                scoring.count(job, shipped)


def estimate(job: Job) -> None:
    """What `score` would do, read and write, and how long it would take; see `dry_run`."""
    job.status = "dry run"
    if job.config.score.strategy != FLM:
        raise ConfigError(
            f"--dry-run: got score.strategy {job.config.score.strategy}, expected {FLM}: it alone is estimated"
        )
    with job.timed("start", "inputs"):
        candidates = scoring.candidates(job)
        scoring.fingerprint(job, candidates)
    with ExitStack() as kept:
        found = _recommender(job, kept)
        prompts = _prompts(job, found, candidates, kept)
        assert found.shipped is not None
        shipped, work = scoring.make_ready(job, found.shipped, prompts)
        dry_run.estimate(job, shipped, prompts, work)


def _planned(job: Job, shipped: Shipped | None, prompts: DataFrame) -> tuple[Shipped | None, DataFrame]:
    """The shipment with its precision settled, and the users in the tasks of the score stage."""
    if shipped is None:
        return None, prompts.repartition(job.n_partitions)
    shipped, work = scoring.make_ready(job, shipped, prompts)
    return shipped, scoring.spread(job, shipped, prompts, work)


def _stage(
    job: Job, found: Recommender, prompts: DataFrame, metadata: dict[str, object]
) -> tuple[Shipped | None, dict[str, object]]:
    """Scores all users into `top_n`; returns the shipment as it was used, and what its commit tells."""
    shipped, users = _planned(job, found.shipped, prompts)
    if shipped is not None:
        metadata = {**metadata, **{name: job.versions[name] for name in scoring.PRECISION}}
    _score(job, shipped, found.lists(users, job.config.score.staged_n, shipped), metadata)
    return shipped, metadata


def _counted(job: Job, prompts: DataFrame, listed: DataFrame, refused_items: DataFrame) -> DataFrame:
    """The staged lists, at the version that is counted for the audit: what is published is what was audited."""
    with job.timed("write", "audit"):
        staged = job.tables.read("top_n", version=job.tables.version("top_n")).where(run_predicate(job.run_id))
        publishing.count(job, staged, prompts, listed, refused_items)
    return staged


def _score(job: Job, shipped: Shipped | None, lists: DataFrame, metadata: dict[str, object]) -> None:
    with job.timed("score", "score"):
        rows = top_n.staged(lists, run_id=job.run_id)
        job.tables.replace_rows(schemas.TOP_N, rows, run_predicate(job.run_id), metadata)
    # One action scores and stages: behind the end of its last task there is the commit alone.
    ended = shipped.usage.last_end() if shipped is not None else None
    commit = min(max(0.0, time.time() - ended), job.seconds["score"]) if ended is not None else 0.0
    job.add_seconds("score", -commit)
    job.add_seconds("write", commit)


def _recommender(job: Job, kept: ExitStack) -> Recommender:
    with job.timed("ship"):
        found = recommender(
            job.config.score,
            Prepared(job.read("interactions"), job.read("items"), job.read("users"), job.config.score.exclude_seen),
            names=job.config.evaluate.baselines,
            ship=lambda item_filter: _ship(job, item_filter, kept),
            scores=scores,
            tools=scoring.tools(job),
            partitions=job.n_partitions,
            timed=job.timed,
        )
    job.counts |= {"items": found.n_items, "items_rejected": len(found.rejected)}
    return found


def _ship(job: Job, item_filter: str | None, kept: ExitStack) -> Shipped:
    shipped = ship(
        job.spark,
        checkpoint=job.config.checkpoint,
        items=job.read("items"),
        users=job.read("users"),
        score=job.config.score,
        item_filter=item_filter,
    )
    if shipped.bundle.broadcast is not None:  # a session that is not this job's own lives on
        kept.callback(shipped.bundle.broadcast.destroy)
    if shipped.digest != job.inputs["checkpoint"]:
        raise ConflictError(f"checkpoint {job.config.checkpoint}: another one took its place meanwhile; run again")
    return shipped


def _listed(job: Job, kept: ExitStack) -> DataFrame:
    """Items that may be listed now: a filter such as `until_day >= current_date()` may say otherwise at the audit."""
    items = listable(job.read("items"), job.config.score.item_filter).select(c.ITEM_ID)
    if job.config.score.item_filter is not None:
        items = items.persist(StorageLevel.MEMORY_AND_DISK)
        kept.callback(items.unpersist)
        items.count()
    return items


def _prompts(job: Job, found: Recommender, candidates: DataFrame | None, kept: ExitStack) -> DataFrame:
    """Rows of `user_prompts`, which are planned, scored and audited, and made once."""
    with job.timed("score", "prompts"):
        prompts = user_prompts(
            job.read("users"),
            job.read("interactions"),
            splits=job.config.score.history_splits,
            history_length=found.history_length,
            exclude_seen=job.config.score.exclude_seen,
            are_all=True,
        )
        if candidates is not None:
            scoring.tell_of_unknown(job, candidates)
            prompts = with_candidates(prompts, candidates)
        prompts = prompts.persist(StorageLevel.MEMORY_AND_DISK)
        kept.callback(prompts.unpersist)
    return prompts


def _name_tables(job: Job) -> None:
    """Names for SQL, also where a kill came before them or the catalog was lost since."""
    for name in ("top_n", "recommendations"):
        job.tables.register(name)
    recommendations, items = job.tables.reference("recommendations"), job.tables.reference("items")
    query = (
        f"SELECT r.user_id, r.rank, i.title, r.score, r.probability, r.item_id, r.has_history, r.run_id "
        f"FROM {recommendations} r LEFT JOIN {items} i ON r.item_id = i.item_id"
    )
    try:
        job.tables.create_view("recommendations_with_titles", query)
    except PySparkException as fault:  # some catalogs have no views; the lists are published all the same
        log.warning("score: no view recommendations_with_titles: %s", spark_message(fault))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
