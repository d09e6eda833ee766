"""Between the staged lists and the published ones: counts, rejects, and the verdict of the audit."""

from __future__ import annotations

import logging
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.errors import AuditError
from flmrec_spark.job import Job
from flmrec_spark.stages import audit, top_n
from flmrec_spark.stages.rejects import CONTENT, REFUSED, rejects
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import run_predicate

log = logging.getLogger("flmrec")


def count(job: Job, staged: DataFrame, prompts: DataFrame, listed: DataFrame, refused_items: DataFrame) -> None:
    """Counts what `judge` looks at; `listed` are the item_id that the filter let through."""
    items, config = job.read("items"), job.config.score
    allowed = listed.join(refused_items, on=[c.ITEM_ID], how="left_anti")
    lists: tuple[DataFrame, ...] = (staged, prompts, allowed)
    counts = audit.list_counts(*lists, n=config.staged_n).collect()[0].asDict()
    shorter = audit.short_lists(*lists, n=config.staged_n).collect()[0].asDict() if counts.pop("not_full") else {}
    job.counts |= {**counts, "short_lists": 0, **shorter}
    for frame in audit.cap_counts(staged, items, config.diversity):
        job.counts |= frame.collect()[0].asDict()


def write_rejects(job: Job, staged: DataFrame, refused_items: DataFrame) -> None:
    """Replaces the rejects of this run: items that no prompt can show, and users without a list."""
    if not job.counts["users_rejected"] + job.counts["items_rejected"] and not _has_rejects(job):
        return  # a commit takes seconds
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
    job.tables.replace_rows(schemas.REJECTS, every, run_predicate(job.run_id, job=job.name), job.metadata())


def _has_rejects(job: Job) -> bool:
    """Whether an earlier attempt of this run has left some."""
    if not job.tables.exists("rejects"):
        return False
    return not job.tables.read("rejects").where(run_predicate(job.run_id, job=job.name)).isEmpty()


def is_broken(job: Job) -> bool:
    """Whether the lists have a fault that no setting heals: of a host, or of the release that made them."""
    return bool(audit.broken(job.counts, job.config.score))


def judge(job: Job, staged: DataFrame, refused_items: DataFrame) -> None:
    """Raises AuditError, naming every fault at once and who is refused why, when the lists must not be published."""
    config = job.config.score
    if config.diversity.caps and job.counts["short_lists"]:
        log.warning("score: %s lists are short, as no item left fits the caps", f"{job.counts['short_lists']:,}")
    n_rejected = job.counts["items_rejected"]
    found = audit.faults(job.counts, config, n_items=job.counts["items"] + n_rejected, n_rejected_items=n_rejected)
    if found:
        found = [*found, *_reasons("users", top_n.without_list(staged)), *_reasons("items", refused_items)]
        raise AuditError(f"run {job.run_id} is not published, the table is as it was: {'; '.join(found)}")


def _reasons(name: str, refused: DataFrame) -> list[str]:
    rows = refused.groupBy(c.REASON).count().orderBy(F.desc("count"), c.REASON).collect()
    return [f"{name} refused: " + ", ".join(f"{row['count']:,} as {row[c.REASON]}" for row in rows)] if rows else []
