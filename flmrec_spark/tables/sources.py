"""Reading what people bring: csv, tsv, Parquet or Delta, by path or catalog name, under our column names.

Ids, title, event and split come out as strings, exactly as given; rating, timestamp and attributes keep the
type of the source, which for csv and tsv is string. Nothing is dropped: a line that does not split into the
columns comes out with its raw text in MALFORMED. A csv follows RFC 4180 but for line breaks inside quotes, which
need the option `multiLine: true`; a tsv has no quoting.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec_spark import columns as c
from flmrec_spark.config import Source
from flmrec_spark.errors import ConfigError, InputError
from flmrec_spark.prompts import ATTRIBUTES, PROFILE
from flmrec_spark.tables import nested
from flmrec_spark.tables.pins import VERSION
from flmrec_spark.tables.spark_errors import spark_message
from flmrec_spark.tables.text_files import MALFORMED, OPTIONS, by_place, read_text

log = logging.getLogger("flmrec")

# Columns that later frames and templates hold beside the attributes.
RESERVED = frozenset(
    {c.USER_ID, c.ITEM_ID, c.TITLE, c.RATING, c.MOMENT, c.HISTORY, c.HISTORY_LENGTH, c.TARGETS}
    | {c.CANDIDATES, c.EXCLUDED, c.HAS_HISTORY, PROFILE, ATTRIBUTES}
)
_WHOLE = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_NUMBER = (*_WHOLE, T.FloatType, T.DoubleType, T.DecimalType)
_TIME = (T.DateType, T.TimestampType, T.TimestampNTZType)
_SIMPLE = (T.StringType, T.BooleanType, *_NUMBER, *_TIME)
_KINDS: dict[str, tuple[type[T.DataType], ...]] = {
    c.RATING: (T.StringType, T.BooleanType, *_NUMBER),
    c.TIMESTAMP: (T.StringType, *_NUMBER, *_TIME),
    c.TITLE: _SIMPLE,
}
_NAMES = (c.USER_ID, c.ITEM_ID, c.EVENT, c.SPLIT)
_AS_TEXT = (*_NAMES, c.TITLE)
_OURS = {"mode", "columnpruning", "columnnameofcorruptrecord", "enforceschema", "inferschema"}


def read_source(
    spark: SparkSession,
    source: Source,
    *,
    name: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    with_attributes: bool = False,
) -> DataFrame:
    """The standard columns that the source has, its attributes, and MALFORMED.

    Args:
      name: the source's section in the config, for messages.
      required: standard columns that must be there.
      optional: standard columns that are taken when they are there.
      with_attributes: take `source.attributes` too; null means every further column with a plain name.

    Raises:
      ConfigError: the mapping names a column that is none of ours, or an attribute that is reserved or unknown.
      InputError: no such file or table, not of that format, empty, or a column missing or of a wrong type.
    """
    _expect_known(source, name, known=(*required, *optional), with_attributes=with_attributes)
    frame = _opened(spark, source, name=name)
    theirs = {field.name: field.dataType for field in frame.schema.fields[:-1]}
    chosen = _standard(source, name, theirs=list(theirs), required=required, optional=optional)
    if with_attributes:
        chosen |= _attributes(source, name, theirs=theirs, taken=set(chosen.values()))
    placed = by_place(frame)
    picked = []
    for ours, column in chosen.items():
        at = F.col(f"_{frame.columns.index(column)}")
        picked.append(_as_ours(at, ours, kind=theirs[column], where=f"{name}: column {column!r}").alias(ours))
    return placed.select(*picked, F.col(f"_{len(frame.columns) - 1}").alias(MALFORMED))


@contextmanager
def reading(source: Source, name: str) -> Iterator[None]:
    """Around the first action on a source: turns damage that shows only then into an InputError."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as fault:
        if not _is_damage(fault):
            raise
        raise _damaged(source, name, fault) from fault


def _is_damage(fault: Exception) -> bool:
    return "FAILED_READ_FILE" in str(fault)


def _damaged(source: Source, name: str, fault: PySparkException | Py4JJavaError) -> InputError:
    return InputError(f"{name}: {source.place} is not readable to its end: {spark_message(fault)}")


def _expect_known(source: Source, name: str, *, known: Sequence[str], with_attributes: bool) -> None:
    for ours in source.columns:
        if ours not in known and not (with_attributes and source.columns[ours] is None):
            cure = f"; name it in {name}.attributes" if with_attributes else ""
            raise ConfigError(f"{name}.columns.{ours}: got no column of ours, expected one of {', '.join(known)}{cure}")
    if not with_attributes and (source.attributes or source.types):
        raise ConfigError(f"{name}: got attributes or types, expected none: they belong to items and users")
    taken = sorted(key for key in source.options if key.lower() in _OURS)
    if taken:
        raise ConfigError(f"{name}.options.{taken[0]}: not yours to set; every column is read as text, every line kept")


def _opened(spark: SparkSession, source: Source, *, name: str) -> DataFrame:
    """The source as it is, MALFORMED as its last column."""
    expected = "a catalog table" if source.path is None else f"a {source.format} file or folder"
    try:
        if source.path is not None and source.format != "delta":
            nested.expect_none(spark, source, name=name)
        if source.format in OPTIONS:
            return read_text(spark, source, name=name)
        reader = spark.read.options(**source.options)
        if source.path is None:
            is_pinned = VERSION in source.options
            frame = (reader.format("delta") if is_pinned else reader).table(source.place)
        else:
            if source.format == "parquet" and DeltaTable.isDeltaTable(spark, source.path):
                raise InputError(
                    f"{name}: got a Delta table, expected Parquet files; set format: delta for {source.path}"
                )
            frame = reader.format(str(source.format)).load(source.path)
    except (PySparkException, Py4JJavaError) as fault:
        condition = fault.getCondition() if isinstance(fault, PySparkException) else None
        if condition in ("PATH_NOT_FOUND", "TABLE_OR_VIEW_NOT_FOUND", "DELTA_PATH_DOES_NOT_EXIST"):
            raise InputError(f"{name}: got {source.place}, expected {expected}; there is none") from None
        if condition == "UNABLE_TO_INFER_SCHEMA":
            raise InputError(f"{name}: got an empty folder, expected {expected} with rows; at {source.place}") from None
        if source.format in OPTIONS and _is_damage(fault):  # these are looked into
            raise _damaged(source, name, fault) from fault
        raise InputError(f"{name}: {source.place} is not {expected}: {spark_message(fault)}") from fault
    return frame.withColumn(MALFORMED, F.lit(None).cast("string"))


def _standard(
    source: Source, name: str, *, theirs: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    """Standard column -> column of the source."""
    chosen: dict[str, str] = {}
    hint = ""
    if source.format in OPTIONS and source.options.get("header", True) is True:
        hint = f"; of a file without a header, set {name}.options.header: false and name _c0, _c1 .."
    for ours in (*required, *(column for column in optional if column not in required)):
        column = source.columns.get(ours, ours)
        if column is None and ours not in required:
            continue
        if column is not None and column in theirs:
            chosen[ours] = column
        elif ours in required or ours in source.columns:
            raise InputError(
                f"{name}: got no column {column!r}, expected one for {ours} (set {name}.columns.{ours}); "
                f"{source.place} has {_listed(theirs)}{hint}"
            )
    for column in chosen.values():
        if len(twice := [ours for ours, own in chosen.items() if own == column]) > 1:
            raise ConfigError(
                f"{name}.columns: got column {column!r} for {' and '.join(twice)}, expected one of its own for each"
            )
    return chosen


def _attributes(source: Source, name: str, *, theirs: dict[str, T.DataType], taken: set[str]) -> dict[str, str]:
    """Attribute -> column of the source."""
    if source.attributes is None:
        alone = {ours for ours, column in source.columns.items() if column is None}
        if nowhere := sorted(alone - {c.TITLE, *theirs}):
            raise ConfigError(
                f"{name}.columns.{nowhere[0]}: got null, expected a column to leave alone; {source.place} has "
                f"{_listed(list(theirs))}"
            )
        further = [column for column in theirs if column not in taken | alone]
        chosen = {column: column for column in further if _is_plain(column) and _is_attribute(theirs[column])}
        if len(chosen) < len(further):
            ignored = [column for column in further if column not in chosen]
            log.warning(
                "%s: left out, as no plain name or type: %s; to have one, give it a name in %s.attributes, which then "
                "lists all that are taken",
                name,
                _listed(ignored),
                name,
            )
    else:
        chosen = dict(source.attributes)
    for ours, column in chosen.items():
        if ours.lower() in RESERVED or not ours.isidentifier():
            raise ConfigError(
                f"{name}.attributes: got {ours!r}, expected a plain name that is none of {_listed(sorted(RESERVED))}; "
                f"map it in {name}.columns, leave it alone by {name}.columns: {{{ours}: null}}, or list the attributes "
                "that you want under names of your own"
            )
        if column not in theirs:
            raise InputError(
                f"{name}: got no column {column!r}, expected one for the attribute {ours}; "
                f"{source.place} has {_listed(list(theirs))}"
            )
    unknown = sorted(set(source.types) - set(chosen))
    if unknown:
        raise ConfigError(f"{name}.types.{unknown[0]}: no such attribute, known: {_listed(list(chosen))}")
    lower = [ours.lower() for ours in chosen]
    twice = sorted(ours for ours in chosen if lower.count(ours.lower()) > 1)
    if twice:
        raise ConfigError(f"{name}: got {_listed(twice)}, expected names that differ by more than case")
    return chosen


def _as_ours(column: Column, ours: str, *, kind: T.DataType, where: str) -> Column:
    if ours in _NAMES:
        fits = isinstance(kind, (T.StringType, *_WHOLE)) or (isinstance(kind, T.DecimalType) and kind.scale == 0)
        expected = "a string or a whole number"
    elif ours in _KINDS:
        fits, expected = isinstance(kind, _KINDS[ours]), "a string, a number" + ", a time" * (ours == c.TIMESTAMP)
    else:
        fits, expected = _is_attribute(kind), "a plain value or an array of them"
    if not fits:
        raise InputError(f"{where}: got type {kind.simpleString()}, expected {expected}")
    return column.cast("string") if ours in _AS_TEXT else column


def _is_plain(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def _is_attribute(kind: T.DataType) -> bool:
    return isinstance(kind.elementType if isinstance(kind, T.ArrayType) else kind, _SIMPLE)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) if name != name.strip() else name for name in names[:30])
    return f"{shown} and {len(names) - 30} more" if len(names) > 30 else shown or "none"
