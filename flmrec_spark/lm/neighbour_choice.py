"""The penalty of neighbours and their weight beside the learned factors: the likeliest on the valid split.

Of ratings that is the likelihood of the labels, of lists that of what was liked next among drawn items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from flmrec_spark import metrics
from flmrec_spark.lm.blending import fit_logistic, sigmoid
from flmrec_spark.lm.collaborative import Bools, Factors, Floats, Places
from flmrec_spark.lm.factor_validation import Question
from flmrec_spark.lm.neighbours import Spectrum

_Sides = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

_PENALTIES = np.logspace(-1, 2.5, 8)  # in mean squares of a singular value
_FEWEST = 50  # held-out rows below which nothing is fitted
_DRAWN = 500  # items of a user that those liked next are told apart from


@dataclass(frozen=True)
class Choice:
    """What the valid split says of a spectrum."""

    penalty: float  # in mean squares of a singular value
    weight: float  # beside the learned factors
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

    def fit(columns: npt.NDArray[np.float64]) -> tuple[Sequence[float], float]:
        weights, intercept = fit_logistic(columns, labels)
        return weights, metrics.log_loss(labels, sigmoid(columns @ weights + intercept))

    _, without = fit(base)
    found: Choice | None = None
    for penalty in _PENALTIES.tolist():
        near = spectrum.neighbours(penalty, 1.0)
        term = np.concatenate([near.target[one.targets] @ near.taste(one.items, one.history_labels) for one in asked])
        size = float(term.std())
        if size == 0:
            continue
        weights, loss = fit(np.column_stack([base, term / size]))
        if weights[0] > 0 and weights[-1] > 0 and loss < (without if found is None else found.log_loss):
            found = Choice(penalty, float(weights[-1] / size / weights[0]), loss, without)
    return found


def choose_for_lists(
    spectrum: Spectrum, factors: Factors, questions: Sequence[Question], *, allowed: Bools
) -> Choice | None:
    """As `choose_for_ratings`, with the least loss of what was liked next among items that a list could hold.

    The loss of a user is the mean of -log(softmax), of each liked item among itself and _DRAWN others; `allowed` (N,).
    """
    contest = _Contest.of(questions, allowed)
    if contest is None:
        return None
    base = contest.scores(lambda one: (factors.taste(one.items, one.history_labels), factors.vectors))
    offsets = [factors.offset[places] for places in (contest.liked, contest.others)]
    base = base[0] + offsets[0], base[1] + offsets[1]
    _, without = contest.fitted([base])
    found: Choice | None = None
    for penalty in _PENALTIES.tolist():
        near = spectrum.neighbours(penalty, 1.0)
        term = contest.scores(lambda one: (near.taste(one.items, one.history_labels), near.target.__getitem__))  # noqa: B023  called at once
        size = float(np.append(*term).std())
        if size == 0:
            continue
        weights, loss = contest.fitted([base, (term[0] / size, term[1] / size)])
        if min(weights) > 0 and loss < (without if found is None else found.log_loss):
            found = Choice(penalty, weights[1] / size / weights[0], loss, without)
    return found


@dataclass(frozen=True)
class _Contest:
    """Items liked next (R,), each with its place among the asked users, and others (U, M) that a list could hold."""

    asked: Sequence[Question]
    liked: Places
    users: Places
    others: Places

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
        if sum(len(one) for one in liked) < _FEWEST:
            return None
        users = np.repeat(np.arange(len(asked)), [len(one) for one in liked])
        return cls(asked, np.concatenate(liked), users, np.stack(others))

    def scores(self, side: Callable[[Question], tuple[Floats, Callable[[Places], Floats]]]) -> _Sides:
        """Products of each user's vector and the items', of the liked (R,) and the others (U, M)."""
        liked, others = np.zeros(len(self.liked)), np.zeros(self.others.shape)
        for place, one in enumerate(self.asked):
            taste, vectors = side(one)
            own = self.users == place
            liked[own] = vectors(self.liked[own]) @ taste
            others[place] = vectors(self.others[place]) @ taste
        return liked, others

    def fitted(self, parts: Sequence[_Sides]) -> tuple[list[float], float]:
        """Weights >= 0 of the parts, and the loss, which is convex in them."""
        from scipy.optimize import minimize

        liked, others = np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts])
        shares = 1.0 / np.bincount(self.users)[self.users] / len(self.asked)

        def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            own, rest = weights @ liked, np.tensordot(weights, others, 1)
            top = np.maximum(rest.max(1)[self.users], own)
            peak = rest.max(1, keepdims=True)
            odds = np.exp(rest - peak)
            total = odds.sum(1)
            pull = (others * odds).sum(2) / total  # (parts, U): mean of the others by their odds
            rest_log = (np.log(total) + peak[:, 0])[self.users]
            whole = top + np.log(np.exp(rest_log - top) + np.exp(own - top))
            share_of_rest = np.exp(rest_log - whole)
            gradient = (pull[:, self.users] - liked) * share_of_rest
            return float((whole - own) @ shares), gradient @ shares

        start = np.ones(len(parts))
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(parts))
        return found.x.tolist(), float(found.fun)
