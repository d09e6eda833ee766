"""What prepare tells of in the log: times of 1970, and splits of another size than was asked for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flmrec_spark import columns as c
from flmrec_spark.config import SplitConfig
from flmrec_spark.stages import doubts


@pytest.mark.parametrize(
    ("years", "told"), [((1970, 1970), True), ((2020, 1970), False), ((2019, 2020), False), ((2150, 2200), True)]
)
def test_times_that_lie_far_off_as_a_whole_are_told_of(
    caplog: pytest.LogCaptureFixture, years: tuple[int, int], told: bool
) -> None:
    doubts.tell_of_odd_times([datetime(year, 8, 22, tzinfo=UTC) for year in years], n_odd=0)
    assert ("prepare.timestamp_format says how they are written" in caplog.text) == told


def test_rows_without_times_are_no_doubt(caplog: pytest.LogCaptureFixture) -> None:
    doubts.tell_of_odd_times([], n_odd=0)
    assert not caplog.text


def test_some_times_that_lie_far_off_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    doubts.tell_of_odd_times([datetime(year, 8, 22, tzinfo=UTC) for year in (1970, 2024)], n_odd=7)
    assert "prepare: 7 rows have times before 1980 or after 2100, and others have not" in caplog.text


@pytest.mark.parametrize(
    ("rows", "by", "told"),
    [
        ({c.TRAIN: 80, c.VALID: 10, c.TEST: 10}, "user_time", []),
        (
            {c.TRAIN: 62, c.VALID: 4, c.TEST: 34},
            "user_time",
            ["4 % of the rows are in split valid", "34 % of the rows"],
        ),
        ({c.TRAIN: 50, c.TEST: 50}, "global_time", ["0 % of the rows are in split valid", "50 % of the rows are in"]),
        ({c.TRAIN: 50, c.TEST: 50}, "column", []),
    ],
)
def test_splits_that_are_far_from_their_share_are_told_of(
    caplog: pytest.LogCaptureFixture, rows: dict[str, int], by: str, told: list[str]
) -> None:
    doubts.tell_of_odd_splits(rows, SplitConfig.model_validate({"by": by}))
    assert len(caplog.messages) == len(told)
    for message, text in zip(caplog.messages, told, strict=True):
        assert text in message
        assert ("five rows or fewer" in message) == (by == "user_time")
