"""Items and users as people bring them -> typed rows, each accepted or refused with a reason; or, without a source,
the ids in the interactions.

Reasons, the first that applies: malformed row, missing item_id (user_id), text too long, unreadable <attribute>,
duplicate item (user). Of rows with one id the first by title and attributes is kept, in ascending order.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec_spark import columns as c
from flmrec_spark.config import Source
from flmrec_spark.stages.rejects import CONTENT, REFUSED, among_accepted, content, first_reason, is_blank
from flmrec_spark.tables.schemas import ATTRIBUTE_TYPES, BOOLEAN, DOUBLE, LONG, STRING
from flmrec_spark.tables.text_files import LOST, MALFORMED

_WHOLE = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_FRACTION = (T.FloatType, T.DoubleType, T.DecimalType)


def clean_items(frame: DataFrame, source: Source, *, max_text_chars: int) -> DataFrame:
    """Every row of the source, typed, with a title, REFUSED and CONTENT. `frame` is what `read_source` gives."""
    given = F.col(c.TITLE) if c.TITLE in frame.columns else F.lit(None).cast("string")
    titled = frame.withColumn(c.TITLE, F.when(is_blank(given), F.col(c.ITEM_ID)).otherwise(given))
    return _cleaned(titled, c.ITEM_ID, types=source.types, max_text_chars=max_text_chars)


def clean_users(frame: DataFrame, source: Source, *, max_text_chars: int) -> DataFrame:
    """Every row of the source, typed, with REFUSED and CONTENT. `frame` is what `read_source` gives."""
    return _cleaned(frame, c.USER_ID, types=source.types, max_text_chars=max_text_chars)


def items_of(interactions: DataFrame) -> DataFrame:
    """The items of the interactions, titled by their id."""
    return interactions.select(c.ITEM_ID, F.col(c.ITEM_ID).alias(c.TITLE)).distinct()


def users_of(interactions: DataFrame, profiles: DataFrame | None) -> DataFrame:
    """The users of the profiles and of the interactions; without a profile all attributes are null."""
    users = interactions.select(c.USER_ID).distinct()
    return users if profiles is None else profiles.join(users, on=c.USER_ID, how="full")


def attribute_types(frame: DataFrame) -> dict[str, T.DataType]:
    """Attribute -> type, of accepted items or users."""
    return {field.name: field.dataType for field in frame.schema if field.name not in (c.ITEM_ID, c.USER_ID, c.TITLE)}


def _cleaned(frame: DataFrame, key: str, *, types: Mapping[str, str], max_text_chars: int) -> DataFrame:
    given = [field for field in frame.schema if field.name != MALFORMED]
    kinds = {
        field.name: _kind(field.dataType, types.get(field.name)) for field in given if field.name not in (key, c.TITLE)
    }
    read = {
        f"read:{name}": _read(F.col(name), source=frame.schema[name].dataType, kind=kind)
        for name, kind in kinds.items()
    }
    parsed = frame.withColumns(read) if read else frame
    texts = [key, *([c.TITLE] if c.TITLE in frame.columns else [])]
    texts += [f"read:{name}" for name, kind in kinds.items() if kind == STRING]
    longest = F.greatest(F.lit(0), *[F.length(name) for name in texts])
    reasons = {
        "malformed row": F.col(MALFORMED).isNotNull(),
        f"missing {key}": is_blank(F.col(key)),
        "unreadable id": F.col(key).contains(LOST),
        "text too long": longest > max_text_chars,
    }
    for name, kind in kinds.items():
        if kind != STRING:
            reasons[f"unreadable {name}"] = F.col(f"read:{name}").isNull() & _is_given(frame.schema[name])
    reason = first_reason(reasons)
    names = [field.name for field in given]
    tagged = parsed.select(
        *[F.col(f"read:{name}").alias(name) if name in kinds else F.col(name) for name in names],
        reason.alias(REFUSED),
        content(reason, (*names, MALFORMED)).alias(CONTENT),
    )
    return _without_duplicates(tagged, key=key, names=names)


def _without_duplicates(tagged: DataFrame, *, key: str, names: list[str]) -> DataFrame:
    order = [F.asc_nulls_last(name) for name in (c.TITLE, *names) if name in names]
    frame, window = among_accepted(tagged, keys=(key,), order=order)
    repeat = F.when(F.row_number().over(window) > 1, F.lit(f"duplicate {key.removesuffix('_id')}"))
    numbered = frame.withColumn("row:repeat", repeat)
    first = F.coalesce(F.col(REFUSED), F.col("row:repeat"))
    written = F.coalesce(F.col(CONTENT), content(first, names))
    return numbered.select(*names, first.alias(REFUSED), written.alias(CONTENT))


def _kind(source: T.DataType, wanted: str | None) -> T.DataType:
    if wanted is not None:
        return ATTRIBUTE_TYPES[wanted]
    if isinstance(source, _WHOLE):
        return LONG
    if isinstance(source, _FRACTION):
        return DOUBLE
    return BOOLEAN if isinstance(source, T.BooleanType) else STRING


def _read(column: Column, *, source: T.DataType, kind: T.DataType) -> Column:
    """The attribute in its type; null where it is not given or cannot be read. Arrays are joined by commas."""
    if isinstance(source, T.ArrayType):
        column = F.array_join(column.cast("array<string>"), ", ")
    if isinstance(source, T.DateType):  # Spark has no cast of a date to a number
        column = column.cast("string")
    if kind == LONG and isinstance(source, _FRACTION):
        return F.when(column == F.floor(column), column.try_cast("long"))
    if kind == LONG and isinstance(source, T.StringType):  # pandas writes a column of numbers with gaps as 1995.0
        number = column.try_cast("double")
        return F.coalesce(column.try_cast("long"), F.when(number == F.floor(number), number.try_cast("long")))
    if kind == DOUBLE:
        number = column.try_cast("double")
        return F.when(~F.isnan(number), number)
    return column.try_cast(kind)


def _is_given(field: T.StructField) -> Column:
    """Not null, not blank; NaN is how pandas writes null."""
    column = F.col(field.name)
    if isinstance(field.dataType, (T.FloatType, T.DoubleType)):
        return column.isNotNull() & ~F.isnan(column)
    return ~is_blank(F.concat_ws("", column) if isinstance(field.dataType, T.ArrayType) else column.cast("string"))
