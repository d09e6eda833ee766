"""The page where something is missing: baselines, a comparison, what was met before."""

from __future__ import annotations

import pytest

from flmrec_spark.report import page
from flmrec_spark.report.content import Result
from tests.report.pages import cells, parsed
from tests.report.test_page import RUN, result, section


def test_a_model_alone_has_its_segments_too() -> None:
    both = result()
    alone = Result([row for row in both.rows if row.model == "flm"], ("flm",), "flm")
    read = parsed(page.render(alone, RUN, training=[], examples=[], speeds=[]))
    tables = [one for one in section(read, "segments") if one.tag == "table"]
    assert cells(tables[0])[0] == ["segment", "users", "flm"]
    assert "warm users" in [row[0] for row in cells(tables[0])[1:]]
    assert not read.all("circle", class_="theirs")


def test_a_stack_is_compared_with_the_model_by_the_model_alone() -> None:
    both = result()
    stacked = Result(both.rows, ("flm", "popularity", "item_mean"), "item_mean", {"popularity"})
    named = {grid.title: [name for name, _ in grid.rows] for grid in stacked.differences()}
    assert named["flm less each other"] == ["popularity", "item mean"]
    assert "flm" not in named.get("popularity less each other", [])


@pytest.mark.parametrize(("exclude_seen", "said"), [(True, "without what the user has met"), (False, "with what the")])
def test_the_page_says_whether_lists_hold_what_was_met(exclude_seen: bool, said: str) -> None:
    text = page.render(result(), RUN, training=[], examples=[], speeds=[], exclude_seen=exclude_seen)
    assert f"made from the whole catalogue, {said}" in text
