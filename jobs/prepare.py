"""Interactions, items and users as people bring them -> Delta tables interactions, items, users and examples.

What is refused goes to the table `rejects` with its reason. Over prepare.max_reject_share of any source the job
stops with exit code 8 and leaves the four tables as they were. The same input again changes none of the four.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from flmrec_spark import columns as c
from flmrec_spark import files
from flmrec_spark.config import Source
from flmrec_spark.errors import ConfigError, InputError
from flmrec_spark.job import Job, run
from flmrec_spark.prompts import load_template
from flmrec_spark.stages import doubts
from flmrec_spark.stages.catalog import attribute_types, clean_items, clean_users, items_of, users_of
from flmrec_spark.stages.cleaned import Cleaned, by_count, expect_few_rejects
from flmrec_spark.stages.examples import build_examples
from flmrec_spark.stages.interactions import check_timestamp_format, clean_interactions
from flmrec_spark.stages.rejects import REFUSED, REPEATED, accepted, rejects
from flmrec_spark.stages.repeats import without_repeats
from flmrec_spark.stages.splits import with_moments, with_splits
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import run_predicate
from flmrec_spark.tables.pins import pinned
from flmrec_spark.tables.sources import read_source, reading

Splits = Mapping[str, tuple[int, ...]]  # split -> interactions, liked ones, users, examples


log = logging.getLogger("flmrec")


def main(argv: Sequence[str]) -> int:
    return run("prepare", prepare, argv, "Clean, split and store interactions, items and users; make the examples.")


def prepare(job: Job) -> None:
    config, job.redoes = job.config.prepare, True
    job.run_id = job.run_id or f"prepare-{job.config.digest('prepare', 'prompts', 'tables')}"
    named = schemas.items({}), schemas.users({})
    for schema in (schemas.INTERACTIONS, *named, schemas.EXAMPLES, schemas.REJECTS, schemas.RUNS):
        job.tables.expect_room(schema)
    with ExitStack() as stack:
        with job.timed("clean"):
            cleaned = _clean(job, stack)
        _expect_fields(job, cleaned)
        _count_rejects(job, cleaned)
        with job.timed("rejects"):
            refused = [rejects(one.tagged, run_id=job.run_id, job=job.name, source=one.name) for one in cleaned]
            every = reduce(DataFrame.unionByName, refused)
            job.tables.replace_rows(schemas.REJECTS, every, run_predicate(job.run_id, job=job.name), job.metadata())
        expect_few_rejects(cleaned, config)
        splits = _write(job, stack, cleaned)
    _report(cleaned, splits, n_repeats=job.counts["repeats"])


def _clean(job: Job, stack: ExitStack) -> list[Cleaned]:
    """Items and users, where there is a source of them, and interactions."""
    config = job.config.prepare
    limit = config.max_text_chars
    check_timestamp_format(job.spark, config.timestamp_format)
    cleaned, items = [], None
    if config.items is not None:
        source = config.items
        frame = _read(job, "items", source=source, required=(c.ITEM_ID,), optional=(c.TITLE,), with_attributes=True)
        tagged = clean_items(frame, source, max_text_chars=limit)
        cleaned.append(_tag(stack, "items", source=source, frame=frame, tagged=tagged))
        items = accepted(cleaned[0].tagged)
    if config.users is not None:
        source = config.users
        frame = _read(job, "users", source=source, required=(c.USER_ID,), with_attributes=True)
        tagged = clean_users(frame, source, max_text_chars=limit)
        cleaned.append(_tag(stack, "users", source=source, frame=frame, tagged=tagged))
    required = [c.USER_ID, c.ITEM_ID]
    required += [c.EVENT] * bool(config.event_values) + [c.SPLIT] * (config.split.by == "column")
    source = config.interactions
    frame = _read(job, "interactions", source=source, required=required, optional=c.INTERACTION_COLUMNS)
    if c.TIMESTAMP not in frame.columns:
        log.warning(
            "prepare.interactions: no column %s, so that the order of a user's rows is arbitrary; if there is one of "
            "another name, name it in prepare.interactions.columns",
            c.TIMESTAMP,
        )
    tagged = clean_interactions(frame, config, items=items)
    cleaned.append(_tag(stack, "interactions", source=source, frame=frame, tagged=tagged))
    return cleaned


def _expect_fields(job: Job, cleaned: Sequence[Cleaned]) -> None:
    """Raises ConfigError where a prompt shows what the tables will lack, before a training waits for them."""
    fields = {one.name: accepted(one.tagged).columns for one in cleaned}
    items = [c.ITEM_ID, c.TITLE, *fields.get("items", ())]
    users = [name for name in fields.get("users", ()) if name != c.USER_ID]
    load_template(job.config.prompts.template).check(item_fields=items, user_fields=users)


def _read(
    job: Job,
    name: str,
    *,
    source: Source,
    required: Sequence[str],
    optional: Sequence[str] = (),
    with_attributes: bool = False,
) -> DataFrame:
    _expect_elsewhere(job, name, source)
    source, job.inputs[name] = pinned(job.spark, source)
    return read_source(
        job.spark,
        source,
        name=f"prepare.{name}",
        required=required,
        optional=optional,
        with_attributes=with_attributes,
    )


def _expect_elsewhere(job: Job, name: str, source: Source) -> None:
    """Raises ConfigError where a table would be written among the files that are read."""
    if source.path is None or job.config.tables.root is None or "://" in source.path:
        return
    own = Path(source.path).absolute()
    for table in schemas.NAMES:
        place = Path(files.local(job.tables.place(table))).absolute()
        if place == own or place in own.parents:
            raise ConfigError(
                f"prepare.{name}.path: got {source.path}, where the table {table} has its place, expected another; "
                "see tables.root"
            )


def _tag(stack: ExitStack, name: str, *, source: Source, frame: DataFrame, tagged: DataFrame) -> Cleaned:
    """Counts the rows that came in and, apart from that, those that came out."""
    stored = _stored(stack, tagged)
    with reading(source, f"prepare.{name}"):
        rows_in = frame.count()
        by_reason = {row[REFUSED]: row["count"] for row in stored.groupBy(REFUSED).count().collect()}
    if rows_in == 0:
        raise InputError(f"prepare.{name}: got no rows, expected at least one; at {source.place}")
    if rows_in != sum(by_reason.values()):
        raise InputError(
            f"prepare.{name}: got {rows_in} rows and then {sum(by_reason.values())}, expected the same twice; "
            f"{source.place} changed while it was read"
        )
    refused = {reason: n for reason, n in by_reason.items() if reason not in (None, REPEATED)}
    return Cleaned(name, stored, rows_in, refused)


def _stored(stack: ExitStack, frame: DataFrame) -> DataFrame:
    """The frame, computed once, until the stack ends."""
    stack.callback(frame.unpersist)
    return frame.persist(StorageLevel.MEMORY_AND_DISK)


def _count_rejects(job: Job, cleaned: Sequence[Cleaned]) -> None:
    job.counts["rows_in"] = sum(one.rows_in for one in cleaned)
    job.counts["rows_kept"] = sum(one.kept for one in cleaned)
    job.counts["rows_rejected"] = sum(one.rejected for one in cleaned)
    for one in cleaned:
        for reason, n in sorted(one.refused.items()):
            key = "reject_" + reason.replace(" ", "_")
            job.counts[key] = job.counts.get(key, 0) + n


def _write(job: Job, stack: ExitStack, cleaned: Sequence[Cleaned]) -> Splits:
    config = job.config.prepare
    kept = {one.name: accepted(one.tagged) for one in cleaned}
    with job.timed("interactions"):
        ordered = with_moments(kept["interactions"], seed=config.split.seed)
        every = with_splits(ordered, config.split)
        interactions = _stored(stack, without_repeats(every, config.repeats))
        job.tables.replace_if_changed(schemas.INTERACTIONS, interactions, job.metadata())
    with job.timed("items and users"):
        items = kept["items"] if "items" in kept else items_of(interactions)
        users = users_of(interactions, kept.get("users"))
        job.tables.replace_if_changed(schemas.items(attribute_types(items)), items, job.metadata())
        job.tables.replace_if_changed(schemas.users(attribute_types(users)), users, job.metadata())
    with job.timed("examples"):
        made = build_examples(
            interactions,
            history_length=job.config.prompts.history_length,
            targets_per_example=config.targets_per_example,
        )
        examples = _stored(stack, made)
        job.tables.replace_if_changed(schemas.EXAMPLES, examples, job.metadata())
    with job.timed("count"):
        counts = F.count("*"), F.count_if(c.IS_LIKED), F.count_distinct(c.USER_ID)
        times = F.count_if(doubts.is_odd_time(F.col(c.TIMESTAMP))), F.min(c.TIMESTAMP), F.max(c.TIMESTAMP)
        found = _by_split(interactions, *counts, *times)
        rows = {split: row[: len(counts)] for split, row in found.items()}
        asked = _by_split(examples, F.count("*"))
        n_rows, n_liked = (sum(row[place] for row in rows.values()) for place in (0, 1))
        job.counts |= {"interactions": n_rows, "items": items.count(), "users": users.count()}
        job.counts["repeats"] = next(one.kept for one in cleaned if one.name == "interactions") - n_rows
        job.counts["examples"] = sum(n for (n,) in asked.values())
        doubts.tell_of_one_label(interactions, n_rows, n_liked)
        n_odd = sum(row[len(counts)] for row in found.values())
        ends = [time for row in found.values() for time in row[len(counts) + 1 :] if time is not None]
        doubts.tell_of_odd_times(ends, n_odd=n_odd)
        doubts.tell_of_odd_splits({split: row[0] for split, row in rows.items()}, config.split)
    return {split: (*rows.get(split, (0, 0, 0)), *asked.get(split, (0,))) for split in c.SPLITS}


def _report(cleaned: Sequence[Cleaned], splits: Splits, *, n_repeats: int) -> None:
    """Prints what came in, what was refused and why, and how large the splits are."""
    came = Table("source", "rows", "kept", "refused", "reasons", title="What came in")
    for one in cleaned:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in by_count(one.refused))
        came.add_row(one.name, *(f"{n:,}" for n in (one.rows_in, one.kept, one.rejected)), reasons)
    asked = Table("split", "interactions", "liked", "users", "examples", title="What is asked when")
    for split, numbers in splits.items():
        asked.add_row(split, *(f"{n:,}" for n in numbers))
    console = Console()
    console.print(came, asked)
    if n_repeats:
        told = "of a user and an item one stays in a split, or, with prepare.repeats all, one of each moment"
        console.print(f"{n_repeats:,} interactions stand for no row of their own: {told}")


def _by_split(frame: DataFrame, *counts: Column) -> dict[str, tuple[Any, ...]]:
    return {row[0]: tuple(row[1:]) for row in frame.groupBy(c.SPLIT).agg(*counts).collect()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
