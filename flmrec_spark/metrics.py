"""What is measured on held-out rows and on lists, in numpy, and how sure the numbers are.

Rows are flat arrays: row r is user `users[r]`, label `labels[r]` (liked or not), score or probability [r].
Lists are a matrix: `hits[u, j]` says whether the item at rank j + 1 of user u's list is relevant; a short or
missing list is padded with False, so a user without a list counts as zero.

Users without a relevant item are left out of the list metrics, and users without both labels out of UAUC.
Every metric is there as a Statistic too, to be weighted by user (see `bootstrap`).

Shapes: R rows, U users, K list length, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from flmrec_spark.bootstrap import Array, Floats, Statistic, divide, mean_over_users, ratio
from flmrec_spark.errors import InputError

THRESHOLD = 0.5  # predicted liked: probability >= this
CALIBRATION_BINS = 10
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "calibration_error"})
POINTWISE = ("auc", "uauc", "accuracy", "precision", "recall", "f1", "log_loss", "brier", "calibration_error")
CALIBRATION = ("calibration_predicted", "calibration_liked", "calibration_rows")


def auc(labels: Array, scores: Array) -> float:
    """P(score of a liked row > score of another), ties counting half; nan when all labels are the same."""
    return _of_all(_auc_statistic(np.zeros(len(labels), dtype=np.int64), labels, scores))


def uauc(users: Array, labels: Array, scores: Array) -> float:
    """Plain mean of AUC over the users who have both labels (CoLLM, arXiv 2310.19488); nan when none has."""
    return mean(user_auc(_codes(users), labels, scores))


def log_loss(labels: Array, probabilities: Array) -> float:
    """- mean of ln(probability of the label that came), probabilities kept eps of their type from 0 and 1."""
    return float(np.mean(_row_log_loss(labels, probabilities))) if len(labels) else float("nan")


def calibration_error(labels: Array, probabilities: Array) -> float:
    """ECE: sum over 10 equal bins b of (n_b / n) |mean label - mean probability| (Naeini et al., AAAI'15).

    Bin b holds [b / 10, (b + 1) / 10); the last one also holds 1.
    """
    users = np.zeros(len(labels), dtype=np.int64)
    return _of_all(_calibration_statistic(users, labels, probabilities, n_users=1))


def ndcg_at_k(users: Array, labels: Array, scores: Array, *, k: int) -> float:
    """Mean NDCG@k of each user's own rows ranked by score, over users with a liked row; nan when none has.

    Of rows with the same score the disliked ones come first, so a constant score earns nothing.
    """
    _expect_rows(labels, scores)
    codes = _codes(users)
    n_users = int(codes.max()) + 1 if len(codes) else 0
    order = np.lexsort((labels, -scores.astype(np.float64), codes))
    sizes = np.bincount(codes, minlength=n_users)
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    listed = rank < k
    hits = np.zeros((n_users, k), dtype=bool)
    hits[codes[order][listed], rank[listed]] = labels.astype(bool)[order][listed]
    return mean(ndcg(hits, _user_sums(codes, labels, n_users), k=k))


def user_auc(users: Array, labels: Array, scores: Array, *, n_users: int | None = None) -> Floats:
    """AUC within each user 0 .. n_users - 1, [U]; nan for a user without both labels."""
    _expect_rows(labels, scores)
    n_users = n_users if n_users is not None else (int(users.max()) + 1 if len(users) else 0)
    order = np.lexsort((scores, users))
    user, score, liked = users[order], scores[order], labels[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (score[1:] != score[:-1])][: len(user)])
    sizes = np.diff(np.r_[starts, len(user)])
    rank = np.repeat(starts + (sizes - 1) / 2, sizes)  # from 0 over all rows; tied rows share their mean
    rows = np.bincount(user, minlength=n_users)
    first = np.cumsum(rows) - rows
    n_liked = np.bincount(user, weights=liked, minlength=n_users)
    below = np.bincount(user, weights=liked * (rank - first[user]), minlength=n_users) - n_liked * (n_liked - 1) / 2
    return divide(below, n_liked * (rows - n_liked))


def pointwise(
    users: Array, labels: Array, scores: Array, *, probabilities: Array | None, n_users: int
) -> dict[str, Statistic]:
    """Every metric of POINTWISE on rows of users 0 .. n_users - 1; without probabilities only the rank metrics."""
    found = {
        "auc": _auc_statistic(users, labels, scores),
        "uauc": mean_over_users(user_auc(users, labels, scores, n_users=n_users)),
    }
    if probabilities is None:
        return found
    liked = labels.astype(bool)
    predicted = probabilities >= THRESHOLD
    rows, true = _user_sums(users, np.ones(len(users)), n_users), _user_sums(users, liked, n_users)
    positive, hit = _user_sums(users, predicted, n_users), _user_sums(users, liked & predicted, n_users)
    return found | {
        "accuracy": ratio(_user_sums(users, liked == predicted, n_users), rows),
        "precision": ratio(hit, positive),
        "recall": ratio(hit, true),
        "f1": ratio(2 * hit, positive + true),
        "log_loss": ratio(_user_sums(users, _row_log_loss(labels, probabilities), n_users), rows),
        "brier": ratio(_user_sums(users, (liked - probabilities.astype(np.float64)) ** 2, n_users), rows),
        "calibration_error": _calibration_statistic(users, labels, probabilities, n_users=n_users),
    }


def calibration_curve(
    users: Array, labels: Array, probabilities: Array, *, n_users: int
) -> dict[tuple[str, int], Statistic]:
    """The reliability diagram behind `calibration_error`: (metric of CALIBRATION, bin 1 .. 10) -> Statistic.

    In each bin the mean probability, the share of liked rows, and the bin's share of all rows.
    """
    _expect_probabilities(labels, probabilities)
    bins, liked = _bins(probabilities), labels.astype(bool)
    rows = _user_sums(users, np.ones(len(users)), n_users)
    found: dict[tuple[str, int], Statistic] = {}
    for number in range(CALIBRATION_BINS):
        own = bins == number
        count, predicted, hit = (_user_sums(users, own * each, n_users) for each in (own, probabilities, liked))
        statistics = ratio(predicted, count), ratio(hit, count), ratio(count, rows)
        found |= {(name, number + 1): one for name, one in zip(CALIBRATION, statistics, strict=True)}
    return found


def precision(hits: Array, n_relevant: Array, *, k: int) -> Floats:
    """Hits in the first k / k, also when the list is shorter; like all list metrics [U], nan without relevant items."""
    return divide(hits[:, :k].sum(axis=1), np.where(n_relevant > 0, k, 0))


def recall(hits: Array, n_relevant: Array, *, k: int) -> Floats:
    """Hits in the first k / relevant items."""
    return divide(hits[:, :k].sum(axis=1), n_relevant)


def hit_rate(hits: Array, n_relevant: Array, *, k: int) -> Floats:
    """1 when the first k hold a relevant item, else 0."""
    return divide(hits[:, :k].sum(axis=1) > 0, n_relevant > 0)


def ndcg(hits: Array, n_relevant: Array, *, k: int) -> Floats:
    """Sum over hits at ranks r <= k of 1 / log2(r + 1), over the same sum for ranks 1 .. min(k, relevant items)."""
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.r_[0.0, np.cumsum(gains)][np.minimum(n_relevant.astype(np.int64), k)]
    listed = hits[:, :k]
    return divide(listed @ gains[: listed.shape[1]], ideal)


def average_precision(hits: Array, n_relevant: Array, *, k: int) -> Floats:
    """Sum over hits at ranks r <= k of (hits in the first r) / r, over min(k, relevant items); its mean is MAP@k."""
    listed = hits[:, :k]
    at_rank = np.cumsum(listed, axis=1) / np.arange(1, listed.shape[1] + 1)
    return divide((at_rank * listed).sum(axis=1), np.minimum(n_relevant, k))


def reciprocal_rank(hits: Array, n_relevant: Array, *, k: int) -> Floats:
    """1 / rank of the first hit in the first k, 0 when there is none; its mean is MRR@k."""
    listed = hits[:, :k]
    if not listed.shape[1]:
        return divide(np.zeros(len(listed)), n_relevant > 0)
    return divide(listed.any(axis=1) / (listed.argmax(axis=1) + 1.0), n_relevant > 0)


LIST_METRICS: Mapping[str, Callable[..., Floats]] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "hit_rate": hit_rate,
    "map": average_precision,
    "mrr": reciprocal_rank,
}


def _auc_statistic(users: Array, labels: Array, scores: Array) -> Statistic:
    # Sorted once: a resample then costs one pass over the disliked rows and one over the liked.
    _expect_rows(labels, scores)
    order, liked = np.argsort(scores, kind="stable"), labels.astype(bool)
    up, down = order[liked[order]], order[~liked[order]]
    under = np.searchsorted(scores[down], scores[up], side="left")
    upto = np.searchsorted(scores[down], scores[up], side="right")
    up_users, down_users = users[up], users[down]

    def of_one(weights: Floats) -> float:
        down_weight = np.r_[0.0, np.cumsum(weights[down_users])]
        up_weight = weights[up_users]
        below = (down_weight[under] + down_weight[upto]) / 2  # disliked with a lower score, and half of the tied
        return float(divide(up_weight @ below, up_weight.sum() * down_weight[-1]))

    return lambda weights: np.array([of_one(row) for row in weights])


def _calibration_statistic(users: Array, labels: Array, probabilities: Array, *, n_users: int) -> Statistic:
    _expect_probabilities(labels, probabilities)
    bins = _bins(probabilities)
    gap = labels.astype(np.float64) - probabilities
    gaps = _user_sums(users * CALIBRATION_BINS + bins, gap, n_users * CALIBRATION_BINS)
    by_bin = gaps.reshape(n_users, CALIBRATION_BINS)
    rows = _user_sums(users, np.ones(len(users)), n_users)
    return lambda weights: divide(np.abs(weights @ by_bin).sum(axis=1), weights @ rows)


def _bins(probabilities: Array) -> Array:
    return np.minimum((probabilities * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def _row_log_loss(labels: Array, probabilities: Array) -> Floats:
    _expect_probabilities(labels, probabilities)
    eps = np.finfo(probabilities.dtype).eps
    clipped = np.clip(probabilities.astype(np.float64), eps, 1 - eps)
    return np.asarray(-np.log(np.where(labels, clipped, 1 - clipped)), dtype=np.float64)


def _user_sums(users: Array, values: Array, n_users: int) -> Floats:
    return np.bincount(users, weights=values.astype(np.float64), minlength=n_users).astype(np.float64)


def _codes(users: Array) -> Array:
    return np.unique(users, return_inverse=True)[1].reshape(-1)


def _of_all(statistic: Statistic) -> float:
    return float(statistic(np.ones((1, 1)))[0])


def mean(values: Floats) -> float:
    """Of the users who have a value; nan where none has."""
    return float(mean_over_users(values)(np.ones((1, len(values))))[0])


def _expect_rows(labels: Array, scores: Array) -> None:
    if len(labels) != len(scores):
        raise InputError(f"metrics: got {len(labels)} labels and {len(scores)} scores, expected as many")
    if not np.isfinite(scores).all():
        raise InputError(f"metrics: {int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")


def _expect_probabilities(labels: Array, probabilities: Array) -> None:
    _expect_rows(labels, probabilities)
    outside = int(((probabilities < 0) | (probabilities > 1)).sum())
    if outside:
        raise InputError(f"metrics: {outside} of {len(probabilities)} probabilities are outside [0, 1]")
