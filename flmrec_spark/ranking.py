"""From scores to an order: the same scores give the same list everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flmrec_spark import metrics

LISTS = 3  # raised where a release makes other lists of the same inputs, so that no run takes older ones for its own


def best(scores: npt.NDArray[np.float64], n: int, *, allowed: Any = None) -> npt.NDArray[np.intp]:
    """Places of the n best scores, best first, equal ones by place; fewer when fewer are allowed (bool (N,))."""
    places = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    if len(places) > n:
        chosen = scores[places]
        places = places[chosen >= np.partition(chosen, len(chosen) - n)[len(chosen) - n]]
    return places[np.lexsort((places, -scores[places]))][:n]


def ndcg(lists: Sequence[Any], relevant: Sequence[Any], *, k: int) -> npt.NDArray[np.float64]:
    """NDCG@k of each list of places, best first, against its relevant ones, [U]; nan where nothing is relevant."""
    hits = np.zeros((len(lists), k), dtype=bool)
    for row, (listed, own) in enumerate(zip(lists, relevant, strict=True)):
        hits[row, : len(listed)] = np.isin(listed[:k], own)
    return metrics.ndcg(hits, np.array([len(own) for own in relevant]), k=k)
