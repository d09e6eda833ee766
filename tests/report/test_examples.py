"""Example users out of collected rows: order, hits, and what has no title."""

from __future__ import annotations

from typing import Any

from flmrec_spark import list_metrics, metrics
from flmrec_spark.report.examples import ExampleUser, Listed, example_users
from flmrec_spark.report.words import MEANINGS, NAMES, clipped


def entry(item: str, is_liked: bool) -> dict[str, Any]:
    return {"item_id": item, "is_liked": is_liked, "value": 1.0}


def held(user: str, item: str, moment: int, is_liked: bool) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "moment": moment, "is_liked": is_liked}


def test_lists_come_by_rank_and_what_was_liked_later_by_moment() -> None:
    prompts = [
        {"user_id": "ann", "history": [entry("a", True), entry("gone", False)]},
        {"user_id": "no list", "history": [entry("a", True)]},
    ]
    lists = [
        {"user_id": "ann", "rank": 2, "item_id": "b", "score": 0.4},
        {"user_id": "other", "rank": 1, "item_id": "a", "score": 0.9},
        {"user_id": "ann", "rank": 1, "item_id": "c", "score": 0.6},
    ]
    rows = [
        held("ann", "b", 9, True),
        held("ann", "d", 7, True),
        held("ann", "b", 8, True),
        held("ann", "c", 6, False),
        held("other", "c", 1, True),
    ]
    titles = {"a": "Alien", "b": "Brazil", "c": "Casablanca", "d": "D" * 200}
    assert example_users(prompts, lists, rows, titles, {"ann": 2, "no list": 1}) == [
        ExampleUser(
            2,
            [("Alien", True), ("–", False)],
            [Listed("Casablanca", 0.6, False), Listed("Brazil", 0.4, True)],
            ["D" * 159 + "…", "Brazil"],
        )
    ]


def test_a_long_history_is_cut_and_counted() -> None:
    prompts = [{"user_id": "ann", "history": [entry(f"i{n}", True) for n in range(30)]}]
    lists = [{"user_id": "ann", "rank": 1, "item_id": "x", "score": 0.5}]
    (found,) = example_users(prompts, lists, [], {f"i{n}": f"title {n}" for n in range(30)}, {"ann": 340})
    assert (found.n_history, found.history[0], len(found.history)) == (340, ("title 0", True), 12)


def test_every_metric_has_a_name_and_what_is_explained_exists() -> None:
    known = {*metrics.POINTWISE, *metrics.LIST_METRICS, *list_metrics.LIST_QUALITIES}
    assert set(NAMES) == known
    assert set(MEANINGS) == known - {"f1"}  # told with accuracy
    assert (clipped("abc", length=3), clipped("abcd", length=3)) == ("abc", "ab…")
