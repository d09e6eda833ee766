"""Staged rows, the published part of them, and who got no list."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.stages import scores, top_n
from flmrec_spark.tables import schemas

ROWS = [
    ("u'1", 2, "b", 0.5, 0.6, True, 0, None),
    ("u'1", 1, "a", 0.9, 0.4, True, 0, None),
    ("u'1", 3, "c", 0.1, 0.2, True, 0, None),
    ("007", 1, "a", 0.3, None, False, 2, None),
    ("none", 0, None, None, None, True, 1, "no item left to list"),
]


@pytest.fixture(scope="module")
def staged(spark: SparkSession) -> DataFrame:
    return top_n.staged(spark.createDataFrame(ROWS, scores.OUTPUT), run_id="run '1'")


def test_staged_rows_fit_the_table_top_n(staged: DataFrame) -> None:
    rows = schemas.TOP_N.select(staged).collect()
    assert sorted(tuple(row)[1:] for row in rows) == sorted(ROWS)
    assert {row.run_id for row in rows} == {"run '1'"}


def test_published_is_the_head_of_each_list_with_a_users_rows_in_order(staged: DataFrame) -> None:
    rows = schemas.RECOMMENDATIONS.select(top_n.published(staged, n=2)).collect()
    assert [tuple(row) for row in rows] == [
        ("007", 1, "a", 0.3, None, False, "run '1'"),
        ("u'1", 1, "a", 0.9, 0.4, True, "run '1'"),
        ("u'1", 2, "b", 0.5, 0.6, True, "run '1'"),
    ]


def test_a_user_without_a_list_comes_with_the_reason(staged: DataFrame) -> None:
    assert [tuple(row) for row in top_n.without_list(staged).collect()] == [("none", "no item left to list")]
