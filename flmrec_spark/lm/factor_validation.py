"""How good collaborative factors are alone, on held-out users."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flmrec_spark import metrics, ranking
from flmrec_spark.lm.collaborative import LISTING, RATING, Bools, Factors, Floats, Places

_K = 10
METRIC = {RATING: "uauc", LISTING: "ndcg"}


@dataclass(frozen=True)
class Question:
    """A held-out user: what is known of them, what is asked, and what a list may not hold."""

    user: int
    items: Places  # history, newest first
    history_labels: Floats  # in 0 .. 1, liked above 1/2
    targets: Places
    labels: Bools
    seen: Places


def measured(
    factors: Factors, questions: list[Question], *, objective: str, allowed: Bools, offset: Floats | None = None
) -> float:
    """UAUC of the targets, or NDCG@10 of the liked ones among all allowed items that were not seen; nan for neither.

    `offset` (N + 1,) takes the place of the factors' own.
    """
    factors = factors if offset is None else replace(factors, offset=offset)
    every = np.arange(factors.n_items)
    scores, users, labels = [], [], []
    tops, relevant = [], []
    for one in questions:
        taste = factors.taste(one.items, one.history_labels)
        if objective == RATING:
            scores.append(factors.scores(taste, one.targets))
            users.append(np.full(len(one.targets), one.user))
            labels.append(one.labels)
            continue
        left = allowed.copy()
        left[one.seen] = False
        tops.append(ranking.best(factors.scores(taste, every).astype(np.float64), _K, allowed=left))
        relevant.append(np.setdiff1d(one.targets[one.labels], one.seen))
    if objective == RATING:
        return metrics.uauc(np.concatenate(users), np.concatenate(labels), np.concatenate(scores))
    return metrics.mean(ranking.ndcg(tops, relevant, k=_K))
