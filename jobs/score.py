"""Scores every user-item prompt and refreshes the table `recommendations`, by what score.strategy names.

    spark-submit jobs/score.py --config conf/demo.yaml [score.n=20 ...] [--run-id ID]

The lists are staged in `top_n`, audited, and only then published in one commit. A run that fails its audit leaves
the published table as it was (exit code 6). The same run again does nothing; a run that was killed goes on from
its last commit and ends in the same table.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.errors import AuditError, ConflictError, InputError
from flmrec_spark.fitting import Tools
from flmrec_spark.job import Job, run
from flmrec_spark.lm import folders, manifest
from flmrec_spark.prompts import load_template
from flmrec_spark.ship import filter_digest, listable, ship
from flmrec_spark.stacking import Prepared
from flmrec_spark.stages import audit, top_n
from flmrec_spark.stages.hybrid import FLM
from flmrec_spark.stages.rejects import CONTENT, REFUSED, rejects
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.stages.user_prompts import user_prompts, with_candidates
from flmrec_spark.strategies import NEEDS_CHECKPOINT, Recommender, depends_on, recommender
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import content_digest, run_predicate
from flmrec_spark.tables.sources import MALFORMED, read_source

log = logging.getLogger("flmrec")

INPUTS = ("interactions", "items", "users")
PUBLISHED, STAGED, NEW = "published", "staged", "new"


def main(argv: Sequence[str]) -> int:
    return run("score", score, argv, "Scores every user-item prompt and publishes the top-n lists.")


def score(job: Job) -> None:
    candidates = _candidates(job)
    made_of = _fingerprint(job, candidates)
    is_named, job.run_id = bool(job.run_id), job.run_id or f"score-{made_of}"
    for schema in (schemas.TOP_N, schemas.RECOMMENDATIONS):
        job.tables.expect_room(schema)
    state = _state(job, made_of, is_named=is_named)
    if state == PUBLISHED and job.is_recorded():
        job.status = "already done"
        log.info("score: run %s is published already; nothing to do", job.run_id)
        _name_tables(job)
        return
    with job.timed("ship"):
        found = _recommender(job)
    prompts = _prompts(job, found, candidates)
    made_by = {"strategy": job.config.score.strategy, "precision": found.precision}
    metadata = {**job.metadata(), "fingerprint": made_of, **made_by}
    if state == NEW:
        lists = found.lists(_spread(job, prompts), job.config.score.staged_n)
        with job.timed("score"):
            rows = top_n.staged(lists, run_id=job.run_id)
            job.tables.replace_rows(schemas.TOP_N, rows, run_predicate(job.run_id), metadata)
    staged = job.tables.read("top_n").where(run_predicate(job.run_id))
    with job.timed("rejects"):
        refused_items = job.spark.createDataFrame(found.rejected, f"{c.ITEM_ID} string, {c.REASON} string")
        _write_rejects(job, staged, refused_items)
    with job.timed("audit"):
        _audit(job, staged, prompts, refused_items)
    with job.timed("publish"):
        if state != PUBLISHED:
            job.tables.replace(schemas.RECOMMENDATIONS, top_n.published(staged, n=job.config.score.n), metadata)
        _name_tables(job)


def _candidates(job: Job) -> DataFrame | None:
    source = job.config.score.candidates
    if source is None:
        return None
    required = (c.USER_ID, c.ITEM_ID)
    pairs = read_source(job.spark, source, name="score.candidates", required=required)
    is_bad = F.col(f"`{MALFORMED}`").isNotNull() | F.col(c.USER_ID).isNull() | F.col(c.ITEM_ID).isNull()
    n_bad = pairs.where(is_bad).count()
    if n_bad:
        raise InputError(
            f"score.candidates: got {n_bad:,} malformed rows or rows without an id, expected none; at {source.place}"
        )
    return pairs.select(*required)


def _fingerprint(job: Job, candidates: DataFrame | None) -> str:
    """What the lists depend on: two runs of one fingerprint publish the same rows."""
    for name in INPUTS:
        job.inputs[name] = str(job.tables.version(name))
    strategy, made_by = job.config.score.strategy, []
    if strategy in NEEDS_CHECKPOINT:
        job.inputs["checkpoint"] = manifest.verify(folders.present(Path(job.config.checkpoint)))
    if strategy != FLM:
        made_by = depends_on(strategy, names=job.config.evaluate.baselines, tools=_tools(job))
    if candidates is not None:
        job.inputs["candidates"] = content_digest(candidates)
    config = job.config.score
    settings = [
        config.n,
        config.depth,
        config.exclude_seen,
        config.item_filter,
        filter_digest(_read(job, "items"), config.item_filter),
        config.history_splits,
        config.precision,
        *made_by,
    ]
    # A table that was removed and made anew counts its versions from 0 again, so its content speaks too.
    contents = [commit.get("content") for name in INPUTS for commit in job.tables.commits(name)[:1]]
    return manifest.text_digest(json.dumps([job.inputs, contents, settings], sort_keys=True))


def _read(job: Job, name: str) -> DataFrame:
    """An input at the version that the run began with, whatever is written to it meanwhile."""
    return job.tables.read(name, version=int(job.inputs[name]))


def _state(job: Job, made_of: str, *, is_named: bool) -> str:
    """How far this run has come before; one that another run has followed is published again, unless it was named.

    Raises:
      ConflictError: its id was published with other inputs.
    """
    published = [commit for commit in job.tables.commits("recommendations") if commit.get("job") == job.name]
    for age, commit in enumerate(published):
        if commit.get("run_id") == job.run_id:
            if commit.get("fingerprint") != made_of:
                raise ConflictError(
                    f"--run-id: {job.run_id} was published with other inputs or settings; give this run another id"
                )
            if age == 0 or is_named:
                return PUBLISHED
            break
    of_run = [commit for commit in job.tables.commits("top_n") if commit.get("run_id") == job.run_id]
    return STAGED if of_run and of_run[0].get("fingerprint") == made_of else NEW


def _recommender(job: Job) -> Recommender:
    found = recommender(
        job.config.score,
        Prepared(*[_read(job, name) for name in INPUTS]),
        names=job.config.evaluate.baselines,
        ship=lambda item_filter: _ship(job, item_filter),
        scores=scores,
        tools=_tools(job),
        partitions=_partitions(job),
        timed=job.timed,
    )
    job.counts |= {"items": found.n_items, "items_rejected": len(found.rejected)}
    return found


def _tools(job: Job) -> Tools:
    return Tools(job.spark, load_template(job.config.prompts.template), job.config.model.path)


def _ship(job: Job, item_filter: str | None) -> Shipped:
    shipped = ship(
        job.spark,
        checkpoint=job.config.checkpoint,
        items=_read(job, "items"),
        users=_read(job, "users"),
        score=job.config.score,
        item_filter=item_filter,
    )
    if shipped.digest != job.inputs["checkpoint"]:
        raise ConflictError(f"checkpoint {job.config.checkpoint}: another one took its place meanwhile; run again")
    return shipped


def _prompts(job: Job, found: Recommender, candidates: DataFrame | None) -> DataFrame:
    prompts = user_prompts(
        _read(job, "users"),
        _read(job, "interactions"),
        splits=job.config.score.history_splits,
        history_length=found.history_length,
        exclude_seen=job.config.score.exclude_seen,
    )
    return prompts if candidates is None else with_candidates(prompts, candidates)


def _spread(job: Job, prompts: DataFrame) -> DataFrame:
    return prompts.repartition(_partitions(job))


def _partitions(job: Job) -> int:
    """Several tasks per core, so that the last one does not wait long for its end."""
    return job.config.score.partitions or 4 * job.spark.sparkContext.defaultParallelism


def _write_rejects(job: Job, staged: DataFrame, refused_items: DataFrame) -> None:
    sources = {"items": (refused_items, c.ITEM_ID), "top_n": (top_n.without_list(staged), c.USER_ID)}
    refused = [
        rejects(
            frame.select(F.col(c.REASON).alias(REFUSED), F.to_json(F.struct(key)).alias(CONTENT)),
            run_id=job.run_id,
            job=job.name,
            source=source,
        )
        for source, (frame, key) in sources.items()
    ]
    every = reduce(DataFrame.unionByName, refused)
    job.tables.replace_rows(schemas.REJECTS, every, run_predicate(job.run_id), job.metadata())


def _audit(job: Job, staged: DataFrame, prompts: DataFrame, refused_items: DataFrame) -> None:
    """Raises AuditError, naming every fault at once, when the lists must not be published."""
    config = job.config.score
    allowed = listable(_read(job, "items"), config.item_filter)
    allowed = allowed.join(refused_items, on=[c.ITEM_ID], how="left_anti")
    frames = (
        audit.user_counts(staged, prompts),
        audit.list_counts(staged),
        audit.item_counts(staged, prompts, allowed, n=config.staged_n),
    )
    for frame in frames:
        job.counts |= frame.collect()[0].asDict()
    n_rejected = job.counts["items_rejected"]
    found = audit.faults(job.counts, config, n_items=job.counts["items"] + n_rejected, n_rejected_items=n_rejected)
    if found:
        raise AuditError(f"run {job.run_id} is not published, the table is as it was: {'; '.join(found)}")


def _name_tables(job: Job) -> None:
    """Names for SQL, also where a kill came before them or the catalog was lost since."""
    for name in (*INPUTS, "top_n", "recommendations"):
        job.tables.register(name)
    recommendations, items = job.tables.reference("recommendations"), job.tables.reference("items")
    job.tables.create_view(
        "recommendations_with_titles",
        f"SELECT r.user_id, r.rank, i.title, r.score, r.item_id, r.has_history, r.run_id "
        f"FROM {recommendations} r LEFT JOIN {items} i ON r.item_id = i.item_id",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
