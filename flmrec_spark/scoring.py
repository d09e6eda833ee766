"""What a scoring run and its dry run do alike: name the run, settle on a precision, get executors ready, count."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.errors import ConflictError
from flmrec_spark.fitting import Tools
from flmrec_spark.job import Job
from flmrec_spark.lm import folders, manifest
from flmrec_spark.prompts import load_template
from flmrec_spark.ranking import LISTS
from flmrec_spark.ship import filter_digest, settled
from flmrec_spark.stages import partitions, scores
from flmrec_spark.stages.diversity import checked, told
from flmrec_spark.stages.hybrid import FLM, HYBRID
from flmrec_spark.stages.scores import Shipped
from flmrec_spark.strategies import NEEDS_CHECKPOINT, depends_on
from flmrec_spark.tables.delta import content_digest, run_predicate

log = logging.getLogger("flmrec")

INPUTS = ("interactions", "items", "users")
PUBLISHED, STAGED, NEW = "published", "staged", "new"
PRECISION = ("precision", "precision_because")


def fingerprint(job: Job, candidates: DataFrame | None) -> str:
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
    if candidates is not None:
        job.inputs["candidates"] = content_digest(candidates)
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


def make_ready(job: Job, shipped: Shipped, prompts: DataFrame) -> tuple[Shipped, partitions.Work]:
    """Plans the users of `user_prompts` under `seconds["score"]`, then loads the model everywhere under `items`."""
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


def spread(job: Job, shipped: Shipped, prompts: DataFrame, work: partitions.Work) -> DataFrame:
    """The users in the tasks of the score stage."""
    at_once = max(slots(shipped), job.spark.sparkContext.defaultParallelism)
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
