"""One row of a user, an item and a split, against plain Python."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from pyspark.sql import SparkSession

from flmrec_spark import columns as c
from flmrec_spark.stages.repeats import without_repeats

Row = tuple[str, str, int, float, str]  # user, item, moment, value, split

CHOICE = {"best": lambda rows: min(rows, key=lambda row: (-row[3], row[2])), "last": max}


def log(seed: int) -> list[Row]:
    """Moments without gaps, several rows of one moment, and splits by time."""
    draw, rows = random.Random(seed), []
    for user in "uvw":
        moment, met = 1, set()
        for _ in range(60):
            item = draw.choice("abcde")
            if draw.random() < 0.7 or item in met:
                moment, met = moment + bool(met), set()
            met.add(item)
            split = c.TRAIN if moment < 30 else c.VALID if moment < 36 else c.TEST
            rows.append((user, item, moment, float(draw.randint(1, 3)), split))
    return draw.sample(rows, len(rows))


@pytest.mark.parametrize("repeats", ["best", "last"])
@pytest.mark.parametrize("seed", [1, 2])
def test_one_row_stays_and_moments_have_no_gaps(spark: SparkSession, repeats, seed):
    rows = log(seed)
    by_key = defaultdict(list)
    for user, item, moment, value, split in rows:
        by_key[user, item, split].append((moment, item, moment, value))
    chosen = {key: CHOICE[repeats](own) for key, own in by_key.items()}
    moments = defaultdict(set)
    for (user, _, _), (_, _, moment, _) in chosen.items():
        moments[user].add(moment)
    expected = {
        (user, item, 1 + sorted(moments[user]).index(moment), value, split)
        for (user, item, split), (_, _, moment, value) in chosen.items()
    }
    frame = spark.createDataFrame(rows, "user_id string, item_id string, moment int, value double, split string")
    found = [tuple(row) for row in without_repeats(frame, repeats).collect()]
    assert len(found) == len(expected) < len(rows)
    assert set(found) == expected
    assert without_repeats(frame, "all").collect() == frame.collect()
