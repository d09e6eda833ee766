"""What lists are like beyond their hits, in numpy: concentration, popularity, novelty, diversity, serendipity.

`places[u, j]` is the place in the catalogue of the item at rank j + 1 of user u's list, -1 where there is none.
`counts[i]` is how often item i stands in the history. What has a value per user is nan for a user without a list.

Shapes: U users, K list length, I items, T terms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from flmrec_spark.bootstrap import Array, Floats, divide

HEAD_SHARE = 0.2  # of the items
OF_ALL_LISTS = ("coverage", "gini")
PER_LIST = ("novelty", "average_popularity", "head_share", "diversity", "serendipity")
LIST_QUALITIES = (*OF_ALL_LISTS, *PER_LIST)
LOWER_IS_LESS_POPULAR = frozenset({"gini", "average_popularity", "head_share"})

_USERS_AT_ONCE = 4096


def times_listed(places: Array, n_items: int, *, k: int) -> Array:
    """In how many lists each item stands among the first k, int [I]."""
    listed = places[:, :k]
    return np.bincount(listed[listed >= 0], minlength=n_items)


def coverage(times: Array) -> float:
    """Items that stand in some list / items of the catalogue; `times` as `times_listed`."""
    return float((times > 0).mean()) if len(times) else float("nan")


def gini(times: Array) -> float:
    """Gini index of how often items are listed: 0 when all equally often, 1 when one item alone.

    sum over i of (2 i - I - 1) p_i / (I - 1), p_i the i-th smallest share, i = 1 .. I, items that are never listed
    included (Castells, Hurley and Vargas, Recommender Systems Handbook). nan without lists or a second item.
    """
    n_items, total = len(times), times.sum()
    if n_items < 2 or not total:
        return float("nan")
    order = 2.0 * np.arange(1, n_items + 1) - n_items - 1
    return float(order @ np.sort(times) / total / (n_items - 1))


def self_information(counts: Array) -> Floats:
    """- log2 of an item's share of the history, in bits [I] (Zhou et al., PNAS 2010).

    One interaction is added to every item, so that an item without any has a finite value.
    """
    return np.asarray(-np.log2((counts + 1.0) / (counts.sum() + len(counts))), dtype=np.float64)


def head_items(counts: Array) -> Array:
    """bool [I]: the fifth of the items with the most interactions (Abdollahpouri et al., RMSE'19); ties by place."""
    head = np.zeros(len(counts), dtype=bool)
    head[np.argsort(-counts, kind="stable")[: round(HEAD_SHARE * len(counts))]] = True
    return head & (counts > 0)


def mean_of_items(values: Array, places: Array, *, k: int) -> Floats:
    """Mean over the first k of each list of a value per item [I] -> [U].

    Of `self_information` it is the novelty (Vargas and Castells, RecSys'11), of `counts` the average recommendation
    popularity (Yin et al., VLDB'12), of `head_items` the share of popular items.
    """
    listed = places[:, :k]
    is_there = listed >= 0
    return divide((values[listed] * is_there).sum(axis=1), is_there.sum(axis=1))


def diversity(features: Any, places: Array, *, k: int) -> Floats:
    """Mean of 1 - cosine over the pairs of items in the first k of each list (Ziegler et al., WWW'05), [U].

    `features` is a sparse matrix [I, T] whose rows have length 1, or 0 for an item that is like no other. nan for
    a list of fewer than two items.
    """
    listed = places[:, :k]
    length = (np.asarray(features.multiply(features).sum(axis=1)).reshape(-1) > 0).astype(np.float64)
    found = np.empty(len(places))
    for start in range(0, len(places), _USERS_AT_ONCE):
        part = listed[start : start + _USERS_AT_ONCE]
        user, rank = np.nonzero(part >= 0)
        item = part[user, rank]
        shape = (len(part), features.shape[0])
        total = sparse.csr_array((np.ones(len(user)), (user, item)), shape=shape) @ features
        # sum over pairs of x_i . x_j = (|sum of x_i|^2 - sum of |x_i|^2) / 2
        own = np.bincount(user, weights=length[item], minlength=len(part))
        alike = (np.asarray(total.multiply(total).sum(axis=1)).reshape(-1) - own) / 2
        size = np.bincount(user, minlength=len(part)).astype(np.float64)
        found[start : start + len(part)] = 1.0 - divide(alike, size * (size - 1) / 2)
    return found


def serendipity(hits: Array, places: Array, expected: Array, n_relevant: Array, *, k: int) -> Floats:
    """Relevant items of the first k that are not in the first k of `expected` / k, [U]; nan without relevant items.

    `expected` is the list that popularity makes for the same user, the primitive recommender of Ge, Delgado-Battenfeld
    and Jannach (RecSys'10). `hits` bool as `places`: whether the item there is relevant.
    """
    listed = places[:, :k]
    is_expected = np.zeros(listed.shape, dtype=bool)
    for place in expected[:, :k].T:
        is_expected |= listed == place[:, None]
    surprising = (hits[:, :k] & ~is_expected).sum(axis=1)
    return divide(surprising, np.where(n_relevant > 0, k, 0))
