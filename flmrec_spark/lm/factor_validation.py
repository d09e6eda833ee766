"""How good collaborative factors are alone, on held-out users."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from flmrec_spark import metrics
from flmrec_spark.lm.collaborative import LISTING, RATING, Bools, Factors, Floats, Places
from flmrec_spark.ranking import best

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
    hits, n_relevant = np.zeros((len(questions), _K), dtype=bool), np.zeros(len(questions))
    for row, one in enumerate(questions):
        taste = factors.taste(one.items, one.history_labels)
        if objective == RATING:
            scores.append(factors.scores(taste, one.targets))
            users.append(np.full(len(one.targets), one.user))
            labels.append(one.labels)
            continue
        left = allowed.copy()
        left[one.seen] = False
        top = best(factors.scores(taste, every).astype(np.float64), _K, allowed=left)
        relevant = np.setdiff1d(one.targets[one.labels], one.seen)
        hits[row, : len(top)] = np.isin(top, relevant)
        n_relevant[row] = len(relevant)
    if objective == RATING:
        return metrics.uauc(np.concatenate(users), np.concatenate(labels), np.concatenate(scores))
    found = metrics.ndcg(hits, n_relevant, k=_K)
    return float(np.nanmean(found)) if np.isfinite(found).any() else math.nan
