"""Scales, ticks and the escaping of what is drawn."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.report.charts import OURS, Dot, calibration, dots, lines, named_points
from flmrec_spark.report.svg import Canvas, Scale, padded, short, ticks
from tests.report.pages import parsed


def test_a_scale_maps_both_ends_also_upside_down() -> None:
    up = Scale(0, 10, 200, 20)
    assert (up(0), up(5), up(10)) == (200, 110, 20)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_round_evenly_spaced_and_within(low: float, length: float) -> None:
    found = ticks(low, low + length)
    assert 3 <= len(found) <= 8
    assert all(low - 1e-6 <= tick <= low + length + 1e-6 for tick in found)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
    assert max(steps) - min(steps) < 1e-6


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.02, 0.09, [0.02, 0.04, 0.06, 0.08]),
        (0, 1, [0, 0.5, 1]),
        (0.65, 0.81, [0.65, 0.7, 0.75, 0.8]),
        (-3, 12, [0, 5, 10]),
        (2, 2, [2]),
    ],
)
def test_ticks_by_hand(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_padded_range_is_never_empty_and_holds_its_values(values: list[float]) -> None:
    low, high = padded(values)
    assert low < high
    assert low <= min(values) and max(values) <= high


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.0, 0.25, 1000.0, 65000.0, -0.5)] == ["0", "0.25", "1000", "65k", "-0.5"]


def test_text_and_labels_are_escaped() -> None:
    canvas = Canvas(10, 10, 'a "label" <b>')
    canvas.text(1, 2, "</svg><script>")
    canvas.dot(1, 2, OURS, tip="<i>&amp;")
    drawn = parsed(str(canvas.markup())).every()
    assert [one.tag for one in drawn] == ["svg", "text", "circle", "title"]
    assert drawn[0].attributes["aria-label"] == 'a "label" <b>'
    assert (drawn[1].text(), drawn[3].text()) == ("</svg><script>", "<i>&amp;")


def test_without_a_value_there_is_no_drawing() -> None:
    assert dots([("a", [Dot(None, None, None, OURS)])], label="x") is None
    assert lines([], label="x", x_name="x") is None
    assert calibration([], [], label="x") is None


def test_a_value_without_interval_is_a_dot_without_whisker() -> None:
    drawing = dots([("a", [Dot(0.5, None, None, OURS)]), ("b", [Dot(None, None, None, OURS)])], label="x")
    read = parsed(str(drawing))
    assert len(read.all("circle")) == 1
    assert not read.all("line", class_="whisker")
    assert read.all("svg")[0].attributes["aria-label"] == "x: a 0.5000; b –"


@pytest.mark.parametrize(("rates", "expected"), [((2100, 6300), {"2100", "6300"}), ((900, 40_000), {"1000", "10k"})])
def test_marks_of_rates_are_rates_also_within_one_decade(rates: tuple[float, float], expected: set[str]) -> None:
    drawn = named_points([("a", rates[0], 0.6), ("b", rates[1], 0.7)], label="speed", x_name="rate", y_name="uauc")
    marks = [one.text() for one in parsed(str(drawn)).all("text", class_="middle") if "tick" in one.attributes["class"]]
    assert set(marks) == expected
