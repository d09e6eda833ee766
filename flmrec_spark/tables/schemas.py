"""Every table: name, key, columns with comments, constraints; in the order of the data flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec_spark import columns as c
from flmrec_spark.errors import InputError

STRING, LONG, INT, DOUBLE = T.StringType(), T.LongType(), T.IntegerType(), T.DoubleType()
FLOAT, BOOLEAN, TIME = T.FloatType(), T.BooleanType(), T.TimestampType()

INTERACTION = T.StructType(
    [
        T.StructField(c.ITEM_ID, STRING),
        T.StructField(c.IS_LIKED, BOOLEAN),
        T.StructField(c.VALUE, DOUBLE),
    ]
)
ATTRIBUTE_TYPES: Mapping[str, T.DataType] = {"string": STRING, "int": LONG, "double": DOUBLE, "boolean": BOOLEAN}


@dataclass(frozen=True)
class Column:
    name: str
    type: T.DataType
    comment: str
    nullable: bool = False


@dataclass(frozen=True)
class TableSchema:
    """A Delta table's contract. `key` columns are unique together; `checks` hold for every row."""

    name: str
    comment: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: tuple[tuple[str, str], ...] = ()
    partition_by: tuple[str, ...] = ()
    may_change: bool = False  # the columns follow the user's data, so a new prepare may change them

    def constraints(self) -> dict[str, str]:
        """Constraint name -> SQL predicate; the columns that are never null come first."""
        required = {f"{col.name}_given": f"{col.name} IS NOT NULL" for col in self.columns if not col.nullable}
        return required | dict(self.checks)

    def select(self, frame: DataFrame) -> DataFrame:
        """The frame's columns in schema order with their comments.

        Raises:
          InputError: a column is missing or has another type.
        """
        types = {field.name: field.dataType for field in frame.schema.fields}
        wrong = [
            f"{col.name}: got {types[col.name].simpleString() if col.name in types else 'nothing'}, "
            f"expected {col.type.simpleString()}"
            for col in self.columns
            if col.name not in types or types[col.name].simpleString() != col.type.simpleString()
        ]
        if wrong:
            raise InputError(f"table {self.name}: {'; '.join(wrong)}")
        return frame.select(
            *[F.col(f"`{col.name}`").alias(col.name, metadata={"comment": col.comment}) for col in self.columns]
        )


INTERACTIONS = TableSchema(
    "interactions",
    "One row per accepted interaction",
    (c.USER_ID, c.ITEM_ID, c.MOMENT),
    (
        Column(c.USER_ID, STRING, "who"),
        Column(c.ITEM_ID, STRING, "what"),
        Column(c.MOMENT, INT, "order of the user's interactions from 1; rows of one timestamp share a moment"),
        Column(c.TIMESTAMP, TIME, "when, UTC; null when the source has no times", nullable=True),
        Column(c.RATING, DOUBLE, "rating as given", nullable=True),
        Column(c.EVENT, STRING, "event as given", nullable=True),
        Column(c.VALUE, DOUBLE, "the rating, or the worth of the event, or 1"),
        Column(c.IS_LIKED, BOOLEAN, "value >= prepare.liked_at_least"),
        Column(c.SPLIT, STRING, "train, valid or test"),
    ),
    checks=(
        ("moment_from_1", f"{c.MOMENT} >= 1"),
        ("value_finite", f"NOT isnan({c.VALUE}) AND abs({c.VALUE}) < double('Infinity')"),
        ("split_known", f"{c.SPLIT} IN ('train', 'valid', 'test')"),
    ),
)


def items(attributes: Mapping[str, T.DataType]) -> TableSchema:
    return TableSchema(
        "items",
        "One row per item, with what prompts may show",
        (c.ITEM_ID,),
        (
            Column(c.ITEM_ID, STRING, "item"),
            Column(c.TITLE, STRING, "title, or the id where the source has no title"),
            *[Column(name, kind, "attribute", nullable=True) for name, kind in attributes.items()],
        ),
        may_change=True,
    )


def users(attributes: Mapping[str, T.DataType]) -> TableSchema:
    return TableSchema(
        "users",
        "One row per user, from the profiles and from the interactions",
        (c.USER_ID,),
        (
            Column(c.USER_ID, STRING, "user"),
            *[Column(name, kind, "profile", nullable=True) for name, kind in attributes.items()],
        ),
        may_change=True,
    )


EXAMPLES = TableSchema(
    "examples",
    "One row per user prefix at a moment, with the interactions that it is asked about",
    (c.USER_ID, c.SPLIT, c.MOMENT),
    (
        Column(c.USER_ID, STRING, "who"),
        Column(c.MOMENT, INT, "the history lies strictly before it"),
        Column(c.SPLIT, STRING, "split of the targets"),
        Column(c.HISTORY, T.ArrayType(INTERACTION), "what the prompt may show, newest first"),
        Column(c.TARGETS, T.ArrayType(INTERACTION), "what the model is asked about"),
    ),
    checks=(("asks_something", f"size({c.TARGETS}) >= 1"),),
)

REJECTS = TableSchema(
    "rejects",
    "Every row, item or user that a job refused, and why",
    (c.RUN_ID, "job", "source", "row"),
    (
        Column(c.RUN_ID, STRING, "run that refused it"),
        Column("job", STRING, "job that refused it"),
        Column("source", STRING, "interactions, items, users, or top_n for a user without a list"),
        Column("row", LONG, "number of the refused row within run and source; not its place in the file"),
        Column(c.REASON, STRING, "why"),
        Column("content", STRING, "the row as JSON, at most 2,000 characters", nullable=True),
    ),
    partition_by=(c.RUN_ID,),
)

TOP_N = TableSchema(
    "top_n",
    "Staged lists of every run; one row of rank 0 says why a user has none",
    (c.RUN_ID, c.USER_ID, c.RANK),
    (
        Column(c.RUN_ID, STRING, "run"),
        Column(c.USER_ID, STRING, "for whom"),
        Column(c.RANK, INT, "1 is best; 0 when there is no list"),
        Column(c.ITEM_ID, STRING, "what", nullable=True),
        Column(c.SCORE, DOUBLE, "what orders the list, 0 to 1", nullable=True),
        Column(c.PROBABILITY, DOUBLE, "calibrated probability that the user likes the item", nullable=True),
        Column(c.HAS_HISTORY, BOOLEAN, "false: a user without history"),
        Column("history_cut", INT, "interactions of the history that the token budget left out"),
        Column(c.REASON, STRING, "why there is no list", nullable=True),
    ),
    checks=(
        (
            "list_or_reason",
            f"({c.RANK} >= 1 AND {c.REASON} IS NULL AND {c.ITEM_ID} IS NOT NULL AND {c.SCORE} IS NOT NULL) "
            f"OR ({c.RANK} = 0 AND {c.REASON} IS NOT NULL AND {c.ITEM_ID} IS NULL)",
        ),
    ),
    partition_by=(c.RUN_ID,),
)

RECOMMENDATIONS = TableSchema(
    "recommendations",
    "The published lists: read these. Replaced whole, in one commit, by a run that passed its audit",
    (c.USER_ID, c.RANK),
    (
        Column(c.USER_ID, STRING, "for whom"),
        Column(c.RANK, INT, "1 is best, without gaps"),
        Column(c.ITEM_ID, STRING, "what"),
        Column(c.SCORE, DOUBLE, "what orders the list, 0 to 1: how probably the item is what the user likes next"),
        Column(c.PROBABILITY, DOUBLE, "calibrated probability that the user likes the item", nullable=True),
        Column(c.HAS_HISTORY, BOOLEAN, "false: a user without history"),
        Column(c.RUN_ID, STRING, "run that made the list; see the table runs"),
    ),
    checks=(
        ("rank_from_1", f"{c.RANK} >= 1"),
        ("score_in_unit", f"NOT isnan({c.SCORE}) AND {c.SCORE} BETWEEN 0 AND 1"),
        ("probability_in_unit", f"{c.PROBABILITY} IS NULL OR {c.PROBABILITY} BETWEEN 0 AND 1"),
    ),
)

EVALUATION = TableSchema(
    "evaluation",
    "Quality of the model and of simple baselines on held-out interactions",
    (c.RUN_ID, "model", "metric", "k", "segment"),
    (
        Column(c.RUN_ID, STRING, "run"),
        Column("model", STRING, "flm, hybrid or a baseline; NAME_diverse; A - B for a difference"),
        Column("metric", STRING, "auc, uauc, ndcg, ..."),
        Column("k", INT, "cut-off of a top-n metric, tenth of a calibration curve; 0 for the others"),
        Column("segment", STRING, "all, or a group of users or items"),
        Column(c.SPLIT, STRING, "held-out split"),
        Column("value", DOUBLE, "the metric; null when the segment has nothing to measure", nullable=True),
        Column("low", DOUBLE, "lower end of the 95 % interval, bootstrap over users", nullable=True),
        Column("high", DOUBLE, "upper end of the 95 % interval", nullable=True),
        Column("n_users", LONG, "users measured"),
    ),
    partition_by=(c.RUN_ID,),
)

RUNS = TableSchema(
    "runs",
    "One row per run of a job",
    (c.RUN_ID, "job"),
    (
        Column(c.RUN_ID, STRING, "run"),
        Column("job", STRING, "prepare, score or evaluate"),
        Column("verdict", STRING, "done, or failed"),
        Column("message", STRING, "why it failed", nullable=True),
        Column("started_at", TIME, "UTC"),
        Column("finished_at", TIME, "UTC"),
        Column("counts", T.MapType(STRING, LONG), "rows, users, items, rejects, ..."),
        Column("seconds", T.MapType(STRING, DOUBLE), "wall time by part"),
        Column("inputs", T.MapType(STRING, STRING), "table -> version read; checkpoint -> digest"),
        Column("versions", T.MapType(STRING, STRING), "flmrec, python, pyspark"),
        Column("config", STRING, "the effective config, YAML"),
    ),
    partition_by=("job",),
)

ALL = (INTERACTIONS, EXAMPLES, REJECTS, TOP_N, RECOMMENDATIONS, EVALUATION, RUNS)
NAMES = tuple(schema.name for schema in (*ALL, items({}), users({})))
