"""What a scoring run and its dry run do alike: name the run, settle on a precision, get executors ready, count."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.errors import ConflictError, InputError
from flmrec_spark.fitting import Tools
from flmrec_spark.job import Job
from flmrec_spark.lm import folders, manifest
from flmrec_spark.prompts import load_template
from flmrec_spark.ranking import LISTS
from flmrec_spark.ship import filter_digest, settled
from flmrec_spark.stages import partitions, scores
from flmrec_spark.stages.diversity import checked, told
from flmrec_spark.stages.hybrid import FLM, HYBRID
from flmrec_spark.stages.rejects import is_blank
from flmrec_spark.stages.scores import Shipped
from flmrec_spark.strategies import NEEDS_CHECKPOINT, depends_on
from flmrec_spark.tables.delta import content_digest, run_predicate
from flmrec_spark.tables.pins import pinned
from flmrec_spark.tables.sources import read_source, reading
from flmrec_spark.tables.text_files import MALFORMED

log = logging.getLogger("flmrec")

INPUTS = ("interactions", "items", "users")
PUBLISHED, STAGED, NEW = "published", "staged", "new"
PRECISION = ("precision", "precision_because")


def candidates(job: Job) -> DataFrame | None:
    """user_id, item_id of score.candidates; None without any. Raises InputError for rows that are no such pair."""
    source = job.config.score.candidates
    if source is None:
        return None
    required = (c.USER_ID, c.ITEM_ID)
    source, _ = pinned(job.spark, source)
    pairs = read_source(job.spark, source, name="score.candidates", required=required)
    is_bad = F.col(f"`{MALFORMED}`").isNotNull() | is_blank(F.col(c.USER_ID)) | is_blank(F.col(c.ITEM_ID))
    with reading(source, "score.candidates"):
        n_bad = pairs.where(is_bad).count()
    if n_bad:
        raise InputError(
            f"score.candidates: got {n_bad:,} malformed rows or rows without an id, expected none; at {source.place}"
        )
    return pairs.select(*required)


def fingerprint(job: Job, pairs: DataFrame | None) -> str:
    """What the lists depend on: two runs of one fingerprint publish the same rows.

    Raises:
      ConfigError: as `diversity.checked`.
    """
    contents = []
    for name in INPUTS:
        state = job.tables.state(name)
        job.inputs[name] = str(state.version)
        contents.append((state.of_rows, state.made.get("content")))
    strategy, made_by = job.config.score.strategy, []
    if strategy in NEEDS_CHECKPOINT:
        job.inputs["checkpoint"] = manifest.verify(folders.present(Path(job.config.checkpoint)))
    config = job.config.score
    diversity = checked(config.diversity, job.read("items").columns)
    if diversity is not None:
        job.versions["diversity"] = told(diversity)
    if strategy != FLM:
        compares = diversity is not None and diversity.relevance < 1
        names = job.config.evaluate.baselines if strategy == HYBRID else [strategy]
        made_by = [strategy, *depends_on(names, compares_texts=compares and strategy != HYBRID, tools=tools(job))]
    if pairs is not None:
        job.inputs["candidates"] = content_digest(pairs)
    settings = [
        LISTS,
        config.n,
        config.depth,
        config.exclude_seen,
        config.item_filter,
        filter_digest(job.read("items"), config.item_filter),
        config.history_splits,
        config.precision,
        *made_by,
        *([] if diversity is None else [diversity.model_dump()]),
    ]
    # A table that was removed and made anew counts its versions from 0 again, so its content speaks too.
    more = {name: value for name, value in job.inputs.items() if name not in INPUTS}
    return manifest.text_digest(json.dumps([more, contents, settings], sort_keys=True))


def progress(job: Job, made_of: str, *, is_named: bool) -> str:
    """How far this run has come before; one that another run has followed is published again, unless it was named.

    So is one whose lists somebody has deleted or put back to those of another run, named or not.

    Raises:
      ConflictError: its id was published with other inputs.
    """
    commits = job.tables.commits("recommendations")
    published = [commit for commit in commits if commit.get("job") == job.name]
    is_undone = bool(commits) and commits[0].get("job") != job.name
    if is_undone and published and published[0].get("run_id") == job.run_id:
        log.warning("score: run %s: its lists were changed or put back since, and are published again", job.run_id)
    for age, commit in enumerate(published):
        if commit.get("run_id") == job.run_id:
            if commit.get("fingerprint") != made_of:
                raise ConflictError(
                    f"--run-id: {job.run_id} was published with other inputs or settings; give this run another id"
                )
            if not is_undone if age == 0 else is_named:
                return PUBLISHED
            break
    if _last_of(job).get("fingerprint") != made_of:
        return NEW
    return NEW if is_unstaged(job) else STAGED


def published_at(job: Job) -> int | None:
    """The version since which the published lists are the same; None before the first."""
    return job.tables.state("recommendations").of_rows if job.tables.exists("recommendations") else None


def expect_published_at(job: Job, version: int | None) -> None:
    """Raises ConflictError where lists were published since, maybe of newer data than this run's."""
    if published_at(job) != version:
        raise ConflictError("table recommendations: another run has published while this one scored; run again")


def is_unstaged(job: Job) -> bool:
    """The run has no rows in `top_n`, or none any more by somebody's DELETE."""
    return not job.tables.exists("top_n") or job.tables.read("top_n").where(run_predicate(job.run_id)).isEmpty()


def precision_of_staged(job: Job) -> dict[str, str]:
    """What the run's staged lists were scored in, and why, as far as their commit tells."""
    return {name: value for name, value in _last_of(job).items() if name in PRECISION}


def _last_of(job: Job) -> dict[str, Any]:
    """What the run's last commit of `top_n` tells."""
    return next((one for one in job.tables.commits("top_n") if one.get("run_id") == job.run_id), {})


def tools(job: Job) -> Tools:
    """What baselines are fitted with."""
    return Tools(job.spark, partial(load_template, job.config.prompts.template), job.config.model.path)


def tell_of_unknown(job: Job, pairs: DataFrame) -> None:
    """Counts the users and items of score.candidates that the tables do not have, of whom nothing can be said."""
    for name, key in (("users", c.USER_ID), ("items", c.ITEM_ID)):
        unknown = pairs.select(key).distinct().join(job.read(name), key, "left_anti").count()
        job.counts[f"candidates_unknown_{name}"] = unknown
        if unknown:
            log.warning(
                "score: %d %s of score.candidates are not in the table %s: their pairs are left out; ids must be "
                "written alike, and new ones come by jobs/prepare.py",
                unknown,
                name,
                name,
            )


def make_ready(job: Job, shipped: Shipped, prompts: DataFrame) -> tuple[Shipped, partitions.Work]:
    """Plans the users of `user_prompts` under `seconds["score"]`, then loads the model everywhere under `items`."""
    tell_of_idle_cores(job.spark, shipped)
    with job.timed("score", "plan"):
        work = partitions.measure(prompts, shipped.cost)
        shipped, told = settled(shipped, prompts, job.config.score)
        job.versions |= told
    with job.timed("items"):
        scores.make_ready(job.spark, shipped, tasks=job.spark.sparkContext.defaultParallelism).collect()
    return shipped, work


def slots(shipped: Shipped) -> int:
    """Python processes that score at once, as `make_ready` found them."""
    return max(1, len(shipped.usage.loads()))


def tell_of_idle_cores(spark: SparkSession, shipped: Shipped) -> None:
    """Warns where Spark gives a task several cores of which the kernel in C uses one."""
    from flmrec_spark.lm import native

    cpus = int(spark.sparkContext.getConf().get("spark.task.cpus", "1") or 1)
    if cpus == 1 or shipped.bundle.uses_gpu or shipped.cost.shape.join == "full" or native.build() is None:
        return
    log.warning(
        "score: spark.task.cpus is %d, but a task scores on one core, as the kernel in C has no threads: "
        "with 1 every core scores",
        cpus,
    )


def tasks_at_once(spark: SparkSession, shipped: Shipped) -> int:
    """Tasks of the score stage that run at a time: one per GPU slot where they ask for GPUs, else one per core."""
    found = slots(shipped)
    return found if shipped.profile is not None else max(found, spark.sparkContext.defaultParallelism)


def spread(job: Job, shipped: Shipped, prompts: DataFrame, work: partitions.Work) -> DataFrame:
    """The users in the tasks of the score stage."""
    at_once = tasks_at_once(job.spark, shipped)
    plan = partitions.rounds(at_once, users=work.users, tasks=job.config.score.partitions)
    return partitions.spread(prompts, shipped.cost, work, plan)


def count(job: Job, shipped: Shipped) -> None:
    """Adds what the tasks told to `counts`; nothing where this run found its lists staged."""
    sums, loads = shipped.usage.sums(), shipped.usage.loads()
    n_item_tokens = round(shipped.cost.item_tokens * shipped.n_items)
    if "pairs" in sums:
        job.counts |= {"pairs": int(sums["pairs"]), "tokens": int(sums["user_tokens"]) + n_item_tokens}
        job.counts["scorer_ms"] = round(1000 * sums["busy_s"])  # of all tasks together
    if loads:
        job.counts |= {"workers": len(loads), "model_loads": sum(loads.values())}
    job.counts["peak_rss_mb"] = sum((shipped.usage.peaks_mb() | _driver_peaks(job.spark)).values())


def _driver_peaks(spark: SparkSession) -> dict[str, int]:
    from flmrec_spark.lm import memory

    jvm = spark.sparkContext._jvm
    assert jvm is not None
    return memory.peak_mb() | memory.peak_mb(int(jvm.java.lang.ProcessHandle.current().pid()))
