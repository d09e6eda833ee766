"""Who and what an evaluation measures: its users, their held-out rows and prompts, and how long lists are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.errors import InputError
from flmrec_spark.job import Job
from flmrec_spark.lm import folders, manifest
from flmrec_spark.lm.checkpoint import read_metrics
from flmrec_spark.stacking import HISTORY_LENGTH
from flmrec_spark.stages import evaluation
from flmrec_spark.stages.diversity import Diverse, checked, told
from flmrec_spark.stages.models import Models
from flmrec_spark.stages.scores import Shipped
from flmrec_spark.stages.user_prompts import user_prompts

log = logging.getLogger("flmrec")

HISTORY_SPLITS = {c.VALID: (c.TRAIN,), c.TEST: (c.TRAIN, c.VALID)}


@dataclass(frozen=True)
class Inputs:
    """Who and what is measured; `rows` as `evaluation.held_out`, `prompts` as `user_prompts.user_prompts`."""

    history: DataFrame
    rows: DataFrame
    prompts: DataFrame
    longest_rows: int  # distinct held-out items of a user at most
    cutoffs: list[int]


def inputs_of(job: Job, shipped: Shipped, diverse: Diverse | None, kept: ExitStack) -> Inputs:
    """What the config asks for; diverse lists are measured at their own length too.

    Raises:
      InputError: the split has no rows.
    """
    config = job.config.evaluate
    interactions, history_splits = job.read("interactions"), HISTORY_SPLITS[config.split]
    chosen = evaluation.draw_users(interactions, split=config.split, max_users=config.max_users, seed=config.seed)
    users = kept.enter_context(kept_in_memory(job.read("users").join(chosen, c.USER_ID, "left_semi")))
    rows = evaluation.held_out(interactions, users, split=config.split, history_splits=history_splits)
    rows = kept.enter_context(kept_in_memory(rows))
    prompts = user_prompts(
        users,
        interactions,
        splits=history_splits,
        history_length=max(HISTORY_LENGTH, shipped.history_length),
        exclude_seen=job.config.score.exclude_seen,
    )
    prompts = kept.enter_context(kept_in_memory(prompts))
    sizes = rows.groupBy(c.USER_ID).agg(F.count_distinct(c.ITEM_ID).alias("items"), F.count("*").alias("rows"))
    held_out = sizes.agg(F.max("items").alias("longest"), F.sum("rows").alias("rows")).collect()[0]
    if not held_out["rows"]:
        raise InputError(f"table interactions: got no rows of split {config.split}, expected some; see prepare.split")
    job.counts |= {"users": prompts.count(), "held_out_rows": held_out["rows"]}
    job.counts["items"] = job.read("items").count()
    history = interactions.where(F.col(c.SPLIT).isin(*history_splits))
    cutoffs = sorted({*config.k, *([] if diverse is None else [diverse.n])})
    return Inputs(history, rows, prompts, longest_rows=held_out["longest"], cutoffs=cutoffs)


def diverse_lists(job: Job) -> Diverse | None:
    """The lists that jobs/score.py would publish, which are measured beside the plain ones; None with diversity off.

    Raises:
      ConfigError: as `diversity.checked`.
    """
    config = checked(job.config.score.diversity, job.read("items").columns)
    if config is None:
        return None
    job.versions["diversity"] = told(config)
    return Diverse(config, job.config.score.n)


def tell_of_the_checkpoint(job: Job) -> None:
    """Its join for the record, and a warning where it was trained on other interactions.

    They may hold out what it has learned; a nightly one's seldom do.
    """
    file = folders.present(Path(job.config.checkpoint)) / "flmrec.json"
    if file.is_file():
        settings = manifest.read_json(file)["settings"]
        job.versions["join"] = f"layer {settings['join_layer']}" if settings["join"] == "layer" else settings["join"]
    of = read_metrics(job.config.checkpoint).get("tables", {}).get("interactions")
    if of is None:
        return
    now = job.tables.state("interactions")
    if not now.of_rows <= int(of) <= now.version:
        log.warning(
            "evaluate: the checkpoint was trained on version %s of the table interactions and is measured on version "
            "%s: where the splits were made otherwise, held-out rows may be among those that it has learned",
            of,
            now.version,
        )


def tell_what_is_missing(models: Models, against: str | None) -> None:
    if against is not None and against not in models.baselines:
        log.warning("evaluate: %s was left out: differences are not taken to evaluate.against", against)
    if models.diverse is not None and models.published not in models.listing:
        log.warning("evaluate: the diverse lists of score.strategy = %s are not measured", models.published)


def title(job: Job) -> str:
    """What was measured, in a line; also of how much nothing can be said."""
    n_left = job.counts["unscored_rows"]
    more = f"; {n_left:,} more have no score, as a prompt of theirs is too long" if n_left else ""
    rows, users = job.counts["held_out_rows"] - n_left, job.counts["users"]
    return f"{job.run_id}: {rows:,} rows of {users:,} users in {job.config.evaluate.split}{more}"


@contextmanager
def kept_in_memory(frame: DataFrame) -> Iterator[DataFrame]:
    # What is read twice is computed once: a list is scored by the model, and found again for each question.
    frame.persist()
    try:
        yield frame
    finally:
        frame.unpersist()
