"""Top-n metrics against trec_eval, the field's reference implementation, on random lists and judgements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytrec_eval
from hypothesis import assume, given
from hypothesis import strategies as st

from flmrec_spark import metrics

N_ITEMS = 12
MEASURES = {"P", "recall", "success", "ndcg_cut", "map_cut", "recip_rank"}


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[list[int]], list[set[int]], int]:
    """Lists, relevant items, and the cut-off: up to 6 users, lists of up to 8 items, some of them empty."""
    n_users = draw(st.integers(1, 6))
    items = st.integers(0, N_ITEMS - 1)
    lists = draw(st.lists(st.lists(items, unique=True, max_size=8), min_size=n_users, max_size=n_users))
    relevant = draw(st.lists(st.sets(items, max_size=6), min_size=n_users, max_size=n_users))
    return lists, relevant, draw(st.sampled_from([1, 2, 3, 5, 8, 10]))


def by_trec_eval(lists: list[list[int]], relevant: list[set[int]], k: int) -> dict[str, list[float]]:
    """Each metric of each user with a list and a relevant item, as trec_eval has it at the cut-off."""
    asked = [user for user, items in enumerate(relevant) if items and lists[user]]
    judged = {f"{user:03}": {f"{item:03}": 1 for item in relevant[user]} for user in asked}
    ranked = {f"{user:03}": {f"{item:03}": -float(r) for r, item in enumerate(lists[user][:k])} for user in asked}
    names = {f"{name}.{k}" if name != "recip_rank" else name for name in MEASURES}
    found: Any = pytrec_eval.RelevanceEvaluator(judged, names).evaluate(ranked) if asked else {}
    ours = {
        "precision": f"P_{k}",
        "recall": f"recall_{k}",
        "hit_rate": f"success_{k}",
        "ndcg": f"ndcg_cut_{k}",
        "mrr": "recip_rank",
        "map": f"map_cut_{k}",
    }
    return {name: [found[f"{user:03}"][theirs] for user in asked] for name, theirs in ours.items()}


@given(worlds())
def test_list_metrics_are_trec_evals(world: tuple[list[list[int]], list[set[int]], int]) -> None:
    lists, relevant, k = world
    asked = [user for user, items in enumerate(relevant) if items and lists[user]]
    assume(asked)
    hits = np.zeros((len(lists), 8), dtype=bool)
    for user, row in enumerate(lists):
        hits[user, : len(row)] = [item in relevant[user] for item in row]
    n_relevant = np.array([len(items) for items in relevant])
    theirs = by_trec_eval(lists, relevant, k)
    # trec_eval divides the sum of precisions by all relevant items; MAP@k as recommenders have it by min(k, those)
    theirs["map"] = [
        value * len(relevant[user]) / min(k, len(relevant[user]))
        for user, value in zip(asked, theirs["map"], strict=True)
    ]
    assert set(theirs) == set(metrics.LIST_METRICS)
    for name, expected in theirs.items():
        got = metrics.LIST_METRICS[name](hits, n_relevant, k=k)
        assert got[asked].tolist() == pytest.approx(expected), name
        empty = [user for user in range(len(lists)) if relevant[user] and not lists[user]]
        assert not got[empty].any()
        assert np.isnan(got[[not items for items in relevant]]).all()
