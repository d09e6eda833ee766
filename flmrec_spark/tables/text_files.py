"""csv and tsv as they are, every column a string."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec_spark.config import Source
from flmrec_spark.errors import InputError

log = logging.getLogger("flmrec")

# A colon is in no attribute's name, so names of working columns cannot clash with the user's.
MALFORMED = "row:malformed"

LOST = "\ufffd"  # what Spark makes of bytes that are no text in the encoding
OPTIONS = {
    "csv": {"quote": '"', "escape": '"'},
    "tsv": {"sep": "\t", "quote": "", "escape": ""},
}
_LOOKED_AT, _MOST_SPOILT = 1000, 0.5  # rows, and the share of them with bytes that are no text


def read_text(spark: SparkSession, source: Source, *, name: str) -> DataFrame:
    """The columns as strings and MALFORMED, the raw text of a line that does not split into them, as the last.

    Raises:
      InputError: an empty file, or bytes that are no text in the encoding.
    """
    options: dict[str, str | int | bool] = {"header": True, "encoding": "UTF-8"}
    options |= OPTIONS[str(source.format)] | source.options
    names = spark.read.options(**options).csv(source.place).columns
    if not names:
        raise InputError(f"{name}: got an empty file, expected a {source.format} with rows; at {source.place}")
    if any("\x00" in column or LOST in column for column in names):
        raise InputError(
            f"{name}: got bytes that are no {options['encoding']} text, expected a {source.format}, "
            f"or its encoding in {name}.options.encoding; at {source.place}"
        )
    if twice := _twice(spark, source, names, options):
        raise InputError(
            f"{name}: got the column {twice!r} more than once, expected each name once in the header; at {source.place}"
        )
    # A header without a name, such as that of a pandas index, is named _c0 by Spark and would fail the check that
    # every file of a folder has the same header.
    is_named = not any(re.fullmatch(r"_c\d+", column) for column in names)
    schema = T.StructType([T.StructField(column, T.StringType()) for column in (*names, MALFORMED)])
    forced: dict[str, str | bool] = {
        "mode": "PERMISSIVE",
        "columnPruning": False,  # with it, a line is not malformed as long as the wanted columns are there
        "columnNameOfCorruptRecord": MALFORMED,
        "enforceSchema": not is_named,
    }
    if not is_named and options["header"] is True:
        _expect_one_order(spark, source, options, name=name)
    found = _malformed_last(spark.read.options(**options).options(**forced).schema(schema).csv(source.place))
    _expect_text(found.limit(_LOOKED_AT), f"{name}: got bytes that are no {options['encoding']} text", source, name)
    return found


def _expect_one_order(
    spark: SparkSession, source: Source, options: Mapping[str, str | int | bool], *, name: str
) -> None:
    """Raises InputError where a file of the folder has the names of the first one's header in another order."""
    lines = by_place(spark.read.options(**{**options, "header": False}).csv(source.place))
    first = lines.first()
    assert first is not None
    cells = F.array(*[F.coalesce(F.col(column), F.lit("")) for column in lines.columns])
    given = F.array(*[F.lit(cell or "") for cell in first])
    if not lines.where((F.array_sort(cells) == F.array_sort(given)) & (cells != given)).isEmpty():
        raise InputError(f"{name}: got files with other headers, expected the same in all of them; at {source.place}")


def _twice(
    spark: SparkSession, source: Source, names: Sequence[str], options: Mapping[str, str | int | bool]
) -> str | None:
    """A name that stands twice in the header; Spark has put its place behind each of them by now."""
    ends = [(column, str(place)) for place, column in enumerate(names)]
    numbered = [
        column.removesuffix(end).lower() for column, end in ends if column.endswith(end)
    ]  # Note is note to Spark
    if len(numbered) == len(set(numbered)):
        return None
    first = spark.read.options(**{**options, "header": False}).csv(source.place).first()
    given = [] if first is None else [str(value).lower() for value in first]
    return next((column for column in given if given.count(column) > 1 and column in numbered), None)


def by_place(frame: DataFrame) -> DataFrame:
    """The columns as _0, _1, ...: names of people may hold dots, colons and backticks, or differ only by case."""
    return frame.toDF(*[f"_{place}" for place in range(len(frame.columns))])


def _malformed_last(frame: DataFrame) -> DataFrame:
    """The columns that folders name, as split=train does, stand behind all others when Spark reads them."""
    order = sorted(range(len(frame.columns)), key=lambda place: frame.columns[place] == MALFORMED)
    return by_place(frame).select(*[f"_{place}" for place in order]).toDF(*[frame.columns[place] for place in order])


def _expect_text(frame: DataFrame, got: str, source: Source, name: str) -> None:
    """Raises InputError where many of the rows hold what Spark makes of bytes that it cannot read."""
    placed = by_place(frame)
    spoilt = F.concat_ws(" ", *placed.columns).contains(LOST)
    row = placed.agg(F.count("*").alias("rows"), F.count_if(spoilt).alias("spoilt")).collect()[0]
    if row["spoilt"] > _MOST_SPOILT * row["rows"]:
        raise InputError(
            f"{got} in {row['spoilt']} of {row['rows']} rows, expected a {source.format}, or its encoding in "
            f"{name}.options.encoding, with {name}.options.multiLine: true where that is UTF-16 or UTF-32; "
            f"at {source.place}"
        )
    if row["spoilt"]:
        log.warning(
            "%s in %d of the first %d rows, and what they stood for is lost; %s.options.encoding names the encoding "
            "where it is another one; at %s",
            got,
            row["spoilt"],
            row["rows"],
            name,
            source.place,
        )
