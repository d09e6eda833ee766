"""The penalty of neighbours and their weight beside the learned factors: the likeliest on the valid split.

Of ratings that is the likelihood of the labels, of lists that of what was liked next among drawn items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flmrec_spark import metrics
from flmrec_spark.lm.blending import fit_logistic, sigmoid
from flmrec_spark.lm.collaborative import Bools, Factors, Floats, Places
from flmrec_spark.lm.factor_validation import Question
from flmrec_spark.lm.neighbours import Neighbours, Spectrum

Values = npt.NDArray[np.floating[Any]]

_PENALTIES = np.logspace(-1, 2.5, 8)  # in mean squares of a singular value
_FEWEST = 50  # held-out rows below which nothing is fitted
_DRAWN = 500  # items of a user that those liked next are told apart from


@dataclass(frozen=True)
class Choice:
    """What the valid split says of a spectrum."""

    penalty: float  # in mean squares of a singular value
    weight: float  # of the term
    of_factors: float  # by which the learned factors are multiplied beside it
    log_loss: float  # with the term, and without; of labels, or of what was liked next among drawn items
    log_loss_without: float


def choose_for_ratings(
    spectrum: Spectrum, factors: Factors, offset: Floats, user_offset: Floats, questions: Sequence[Question]
) -> Choice | None:
    """The penalty and weight with the least log-loss on held-out users beside `factors`; None where the term helps not.

    Args:
      offset: (N + 1,) of the items, in place of the factors' own.
      user_offset: (U,) of the users.
    """
    asked = [one for one in questions if len(one.targets)]
    labels = np.concatenate([one.labels for one in asked]) if asked else np.zeros(0, dtype=bool)
    if len(labels) < _FEWEST or len(np.unique(labels)) < 2:
        return None
    users = np.concatenate([np.full(len(one.targets), one.user) for one in asked])
    own = replace(factors, offset=offset)
    known = [own.scores(own.taste(one.items, one.history_labels), one.targets) for one in asked]
    base = np.column_stack([np.concatenate(known), user_offset[users]])

    def term(near: Neighbours) -> Values:
        return np.concatenate([near.target[one.targets] @ near.taste(one.items, one.history_labels) for one in asked])

    def fit(term: Values | None) -> tuple[Sequence[float], float]:
        columns = base if term is None else np.column_stack([base, term])
        weights, intercept = fit_logistic(columns, labels)
        return (weights[0], weights[-1]), metrics.log_loss(labels, sigmoid(columns @ weights + intercept))

    return _likeliest(spectrum, term, fit)


def choose_for_lists(
    spectrum: Spectrum, factors: Factors, questions: Sequence[Question], *, allowed: Bools
) -> Choice | None:
    """As `choose_for_ratings`, with the least loss of what was liked next among items that a list could hold.

    The loss of a user is the mean of -log(softmax), of each liked item among itself and _DRAWN others; `allowed` (N,).
    """
    contest = _Contest.of(questions, allowed)
    if contest is None:
        return None
    base = contest.values(lambda one, items: factors.scores(factors.taste(one.items, one.history_labels), items))

    def term(near: Neighbours) -> Values:
        return contest.values(lambda one, items: near.target[items] @ near.taste(one.items, one.history_labels))

    return _likeliest(spectrum, term, lambda term: contest.fitted([base] if term is None else [base, term]))


def _likeliest(
    spectrum: Spectrum,
    term_of: Callable[[Neighbours], Values],
    fit: Callable[[Values | None], tuple[Sequence[float], float]],
) -> Choice | None:
    """Of all penalties; `fit` gives the weights of the factors and of a term, or of the factors alone, and the loss."""
    _, without = fit(None)
    found: Choice | None = None
    for penalty in _PENALTIES.tolist():
        term = term_of(spectrum.neighbours(penalty, 1.0))
        size = float(term.std())
        if size == 0:
            continue
        weights, loss = fit(term / size)
        if min(weights) > 0 and loss < (without if found is None else found.log_loss):
            found = Choice(penalty, float(weights[1] / size), float(weights[0]), loss, without)
    return found


@dataclass(frozen=True)
class _Contest:
    """What each of U users liked next, R items in all, and M others of each that a list could hold."""

    asked: Sequence[Question]
    liked: Sequence[Places]  # of each user
    others: Places  # (U, M)

    @classmethod
    def of(cls, questions: Sequence[Question], allowed: Bools) -> _Contest | None:
        """None where too little was liked next."""
        asked, liked, others = [], [], []
        for row, one in enumerate(questions):
            relevant = np.setdiff1d(one.targets[one.labels], one.seen)
            left = allowed.copy()
            left[one.seen] = left[one.targets] = False
            if len(relevant) and left.any():
                asked.append(one)
                liked.append(relevant)
                random = np.random.default_rng([_DRAWN, row])
                others.append(random.choice(np.flatnonzero(left), size=_DRAWN))  # with repeats: every row as long
        return cls(asked, liked, np.stack(others)) if sum(len(one) for one in liked) >= _FEWEST else None

    def values(self, of: Callable[[Question, Places], Values]) -> Values:
        """(R + U M,) of the liked, then of the others."""
        asked = zip(self.asked, self.liked, self.others, strict=True)
        each = [of(one, np.append(liked, others)) for one, liked, others in asked]
        return np.concatenate([*(one[:-_DRAWN] for one in each), *(one[-_DRAWN:] for one in each)]).astype(np.float64)

    def fitted(self, parts: Sequence[Values]) -> tuple[list[float], float]:
        """Weights >= 0 of the parts, and the loss, which is convex in them."""
        from scipy.optimize import minimize

        sizes = np.array([len(one) for one in self.liked])
        users, n_liked = np.repeat(np.arange(len(sizes)), sizes), int(sizes.sum())
        liked = np.stack([part[:n_liked] for part in parts])
        others = np.stack([part[n_liked:].reshape(self.others.shape) for part in parts])
        shares = 1.0 / (sizes[users] * len(sizes))

        def loss(weights: Values) -> tuple[float, Values]:
            own, rest = weights @ liked, np.tensordot(weights, others, 1)
            peak = rest.max(1, keepdims=True)
            odds = np.exp(rest - peak)
            total = odds.sum(1)
            pull = (others * odds).sum(2) / total  # (parts, U): mean of the others by their odds
            rest_log = (np.log(total) + peak[:, 0])[users]
            whole = np.logaddexp(rest_log, own)
            gradient = (pull[:, users] - liked) * np.exp(rest_log - whole)
            return float((whole - own) @ shares), gradient @ shares

        start = np.ones(len(parts))
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(parts))
        return found.x.tolist(), float(found.fun)
