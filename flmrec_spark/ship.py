"""Sends a checkpoint and a catalogue to the executors: as a Spark broadcast, or as a file above a size limit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark import Broadcast, SparkFiles
from pyspark.errors import PySparkException
from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType

from flmrec_spark import columns as c
from flmrec_spark.config import ScoreConfig
from flmrec_spark.errors import ConfigError, ConflictError, InputError
from flmrec_spark.stages.partitions import CostModel
from flmrec_spark.stages.scores import Bundle, Shipped
from flmrec_spark.stages.trial import chosen_precision
from flmrec_spark.stages.usage import usage_of
from flmrec_spark.tables.delta import content_digest
from flmrec_spark.tables.spark_errors import spark_message

if TYPE_CHECKING:
    from flmrec_spark.lm.checkpoint import Checkpoint
    from flmrec_spark.lm.segments import Segmenter

_MB = 1 << 20
_ENTRIES = 100  # items whose tokens in a history are counted, to estimate what users cost


def load_libraries() -> None:
    """What `ship` needs of torch and transformers, and the kernel: seconds, where they were not there yet."""
    from flmrec_spark.lm import native, worker  # noqa: F401

    native.build()


def ship(
    spark: SparkSession,
    *,
    checkpoint: str,
    items: DataFrame,
    users: DataFrame,
    score: ScoreConfig,
    item_filter: str | None = None,
) -> Shipped:
    """Verifies the checkpoint, tokenises the items once and gives both to every executor.

    Args:
      items: the table; all of it travels, since histories show items that may no longer be listed.
      users: the table; only its columns are looked at, to see that the template finds what it shows.
      item_filter: SQL predicate over items; those for which it is not true are not listed.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, foreign, or its tokenizer does not match.
      ConfigError: the template shows a column that the tables lack, or as `listable` does.
      InputError: no item may be listed.
    """
    from flmrec_spark.lm import checkpoint as checkpoints
    from flmrec_spark.lm import native, worker
    from flmrec_spark.lm.precision import can_pack
    from flmrec_spark.lm.segments import TOO_LONG_ITEM

    building = Thread(target=native.build)  # while the checkpoint is read and the items are tokenised
    building.start()
    found = checkpoints.load(checkpoint)
    segmenter = found.segmenter()
    found.template.check(item_fields=items.columns, user_fields=[name for name in users.columns if name != c.USER_ID])
    table = _collect(items, item_filter)
    rows = table.drop_columns([worker.IS_LISTED]).to_pylist()
    segments = segmenter.items(rows)
    allowed = table[worker.IS_LISTED].to_pylist()
    listed = [is_allowed and segment is not None for is_allowed, segment in zip(allowed, segments, strict=True)]
    rejected = [
        (row[c.ITEM_ID], TOO_LONG_ITEM)
        for row, segment, is_allowed in zip(rows, segments, allowed, strict=True)
        if segment is None and is_allowed
    ]
    if not any(listed):
        raise InputError(
            f"items: got {table.num_rows} of which none may be listed, expected some: {sum(allowed)} pass "
            f"score.item_filter, and {len(rejected)} of those are longer than prompts.item_tokens"
        )
    bundle_items = table.set_column(
        table.column_names.index(worker.IS_LISTED), worker.IS_LISTED, pa.array(listed)
    ).append_column(worker.TOKENS, pa.array([segment or [] for segment in segments], pa.list_(pa.int32())))
    building.join()
    bundle, broadcast, file = _send(spark, found, bundle_items, score.broadcast_limit_mb)
    lengths = [len(segment) for is_one, segment in zip(listed, segments, strict=True) if is_one and segment]
    return Shipped(
        digest=found.digest,
        history_length=found.settings.longest_history,
        n_items=sum(listed),
        rejected=rejected,
        bundle=Bundle(bundle, score.precision, can_pack(), score.gpus_per_task > 0, broadcast, file),
        profile=_profile(spark, score),
        cost=_cost_model(found, segmenter, rows, lengths),
        usage=usage_of(spark),
    )


def settled(shipped: Shipped, prompts: DataFrame, score: ScoreConfig) -> tuple[Shipped, dict[str, str]]:
    """`score.precision: auto` resolved, once and for every executor; and precision, precision_because for the record.

    Args:
      prompts: as `user_prompts.user_prompts`; lists of a few of these users are compared.
    """
    if score.precision != "auto":
        return shipped, {"precision": score.precision, "precision_because": "score.precision"}
    found = chosen_precision(prompts, shipped, n=score.n).collect()[0]
    told = {"precision": found["precision"], "precision_because": found["reason"]}
    return replace(shipped, bundle=replace(shipped.bundle, precision=found["precision"])), told


def listable(items: DataFrame, item_filter: str | None) -> DataFrame:
    """The items for which the filter is true.

    Raises:
      ConfigError: the filter does not parse, names a column that items lack, or is no predicate.
    """
    if item_filter is None:
        return items
    with _named(item_filter, items):
        kinds = [field.dataType for field in items.select(F.expr(item_filter)).schema.fields]
        if kinds != [BooleanType()]:
            got = ", ".join(kind.simpleString() for kind in kinds)
            raise ConfigError(f"score.item_filter: got {item_filter!r}, which is {got}, expected a predicate")
        return items.where(item_filter)


def filter_digest(items: DataFrame, item_filter: str | None) -> str | None:
    """Which items the filter lets through now: one such as `from_day <= current_date()` changes its mind."""
    if item_filter is None:
        return None
    with _named(item_filter, items):
        return content_digest(listable(items, item_filter).select(c.ITEM_ID))


@contextmanager
def _named(item_filter: str | None, items: DataFrame) -> Iterator[None]:
    try:
        yield
    except PySparkException as fault:
        if item_filter is None:
            raise
        columns = ", ".join(items.columns)
        raise ConfigError(
            f"score.item_filter: got {item_filter!r}, expected a predicate over {columns}: {spark_message(fault)}"
        ) from None


def _collect(items: DataFrame, item_filter: str | None) -> pa.Table:
    from flmrec_spark.lm import worker

    listable(items, item_filter)
    with _named(item_filter, items):
        is_listed = F.lit(True) if item_filter is None else F.coalesce(F.expr(item_filter), F.lit(False))
        return items.withColumn(worker.IS_LISTED, is_listed).orderBy(c.ITEM_ID).toArrow()


def _send(
    spark: SparkSession, found: Checkpoint, items: pa.Table, limit_mb: int
) -> tuple[str, Broadcast[bytes] | None, str | None]:
    """(digest of the bundle, the broadcast or None, the name of the distributed file or None)."""
    from flmrec_spark.lm import bundles, native

    # The application's own folder: it lives as long as executors may ask for the file, and Spark removes it.
    target = Path(SparkFiles.getRootDirectory()) / "flmrec-driver" / "bundle.tar"
    target.parent.mkdir(exist_ok=True)
    packed = bundles.pack(found.folder, items, target, kernel=native.build())
    if packed != found.digest:
        raise ConflictError(f"checkpoint {found.folder}: another one took its place meanwhile; run again")
    with target.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if target.stat().st_size <= limit_mb * _MB:
        payload = target.read_bytes()
        target.unlink()
        return digest, spark.sparkContext.broadcast(payload), None
    named = target.rename(target.with_name(f"{digest}.tar"))
    spark.sparkContext.addFile(str(named))
    return digest, None, named.name


def _cost_model(found: Checkpoint, segmenter: Segmenter, rows: list[dict[str, Any]], lengths: list[int]) -> CostModel:
    from flmrec_spark.lm.flops import shape_of_checkpoint

    settings = found.settings
    entries = [segmenter.entry_tokens(row) for row in rows[:: max(1, len(rows) // _ENTRIES)]]
    empty = segmenter.user({}, [])
    return CostModel(
        shape=shape_of_checkpoint(found.folder, join=settings.join, join_layer=settings.join_layer),
        n_items=len(lengths),
        item_tokens=sum(lengths) / len(lengths),
        head_tokens=float(len(empty.ids) if empty is not None else settings.user_tokens),
        entry_tokens=sum(entries) / len(entries),
        history_length=settings.history_length,
        user_tokens=settings.user_tokens,
    )


def _profile(spark: SparkSession, score: ScoreConfig) -> ResourceProfile | None:
    """A profile that asks for GPUs in the score stage alone; None on CPUs and for a local master, which has none."""
    master = str(spark.sparkContext.master)
    if score.gpus_per_task == 0 or (master.startswith("local") and not master.startswith("local-cluster")):
        return None
    cpus = int(spark.sparkContext.getConf().get("spark.task.cpus", "1") or 1)
    requests = TaskResourceRequests().cpus(cpus).resource("gpu", score.gpus_per_task)
    return ResourceProfileBuilder().require(requests).build
