"""Measurements in the table `evaluation`: written by a run, and read back by the same run called again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from flmrec_spark import columns as c
from flmrec_spark import metrics
from flmrec_spark.config import EvaluateConfig
from flmrec_spark.errors import ConflictError
from flmrec_spark.list_metrics import LIST_QUALITIES
from flmrec_spark.ranking import LISTS
from flmrec_spark.stages.diversity import Diverse
from flmrec_spark.stages.measurements import Measurement
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Metadata, Tables, run_predicate
from flmrec_spark.tables.history import State

INPUTS = ("interactions", "items", "users")
_FINGERPRINT, _COUNTS, _VERSIONS = "fingerprint", "counts", "versions"


def fingerprint(
    states: Iterable[State],
    evaluate: EvaluateConfig,
    *,
    checkpoint: str,
    precision: str,
    exclude_seen: bool,
    diverse: Diverse | None = None,
    strategy: str = "flm",
    made_by: Sequence[str] = (),
) -> str:
    """What the measurements depend on, 12 hex digits; also the names of all that is measured.

    Args:
      states: of the tables of INPUTS, as they are measured.
      checkpoint: digest of the model's.
      exclude_seen: of lists.
      diverse: lists that are measured beside the plain ones.
      strategy: whose.
      made_by: what the baselines depend on besides the tables.
    """
    settings = evaluate.model_dump(exclude={"report_users"}) | {"precision": precision, "exclude_seen": exclude_seen}
    if diverse is not None:
        settings |= {"diversity": diverse.config.model_dump(), "n": diverse.n, "strategy": strategy}
    # A table that was removed and made anew counts its versions from 0 again, so its content speaks too.
    contents = [(state.of_rows, state.made.get("content")) for state in states]
    names = [*metrics.POINTWISE, *metrics.LIST_METRICS, *LIST_QUALITIES, *metrics.CALIBRATION]
    made_of = json.dumps([LISTS, checkpoint, contents, settings, names, *made_by], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


def write(
    spark: SparkSession,
    tables: Tables,
    measured: Sequence[Measurement],
    *,
    run_id: str,
    split: str,
    made_of: str,
    metadata: Metadata,
    counts: Mapping[str, int],
    versions: Mapping[str, str],
) -> None:
    """Replaces the run's rows, in one commit, which keeps the run's counts and versions too.

    Args:
      made_of: their `fingerprint`.
    """
    schema = T.StructType([T.StructField(col.name, col.type) for col in schemas.EVALUATION.columns])
    run_of = {c.RUN_ID: run_id, c.SPLIT: split}
    frame = spark.createDataFrame([{**asdict(row), **run_of} for row in measured], schema)
    noted = {**metadata, _FINGERPRINT: made_of, _COUNTS: dict(counts), _VERSIONS: dict(versions)}
    tables.replace_rows(schemas.EVALUATION, frame.coalesce(1), run_predicate(run_id), noted)


@dataclass(frozen=True)
class Stored:
    """What a run has measured, in any order, and its counts and versions."""

    measured: list[Measurement]
    counts: dict[str, int]
    versions: dict[str, str]


def read(tables: Tables, run_id: str, *, made_of: str, is_done: bool) -> Stored | None:
    """None when the run has measured nothing yet, or its rows were deleted.

    Args:
      is_done: the run ended well; one that has not may measure something else now.

    Raises:
      ConflictError: it is done, and its `fingerprint` was another.
    """
    written = [commit for commit in tables.commits(schemas.EVALUATION.name) if commit.get(c.RUN_ID) == run_id]
    if not written:
        return None
    last = written[0]
    if last.get(_FINGERPRINT) != made_of:
        if not is_done:
            return None
        raise ConflictError(f"run {run_id}: it has measured other inputs or settings; give this one another --run-id")
    rows = tables.read(schemas.EVALUATION.name).where(run_predicate(run_id))
    names = [field.name for field in fields(Measurement)]
    measured = [Measurement(**row) for row in rows.select(*names).toArrow().to_pylist()]
    if not measured or _COUNTS not in last:  # or of a version that kept none
        return None
    return Stored(measured, last[_COUNTS], last[_VERSIONS])
