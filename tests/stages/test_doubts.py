"""What prepare tells of in the log: times of 1970."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flmrec_spark.stages import doubts


@pytest.mark.parametrize(
    ("years", "told"), [((1970, 1970), True), ((2020, 1970), False), ((2019, 2020), False), ((2150, 2200), True)]
)
def test_times_that_lie_far_off_as_a_whole_are_told_of(
    caplog: pytest.LogCaptureFixture, years: tuple[int, int], told: bool
) -> None:
    doubts.tell_of_odd_times([datetime(year, 8, 22, tzinfo=UTC) for year in years])
    assert ("prepare.timestamp_format says how they are written" in caplog.text) == told


def test_rows_without_times_are_no_doubt(caplog: pytest.LogCaptureFixture) -> None:
    doubts.tell_of_odd_times([])
    assert not caplog.text
