"""What the items that resemble one say of it: a user who liked more of them than expected will like it too.

    e(u, j)  = label - expected[j]                       expected: level and shrunk offset of item j
    x(u, j)  = e(u, j) - sum e(u, .) / (H + 4)           H entries in the history
    term     = sum over the history:  x(u, j) B[j, i]

B is a ridge regression of the residuals x of every item on those of all others (EASE: Steck 2019, eq. 8, there of who
met what), kept in low rank so that a large catalogue has room: with the right singular vectors V and values s of the
sparse matrix x and a penalty p,

    B = V diag(w) V' diag(1 / (1 - sum_k V[i, k]^2 w[k])),      w = s^2 / (s^2 + p)

so a user is one vector and an item another, and their product is part of the rating's factors. (An item of the history
adds to itself, which EASE forbids while it learns; lists leave such items out by default.) Vectors that learn by
steps (`factor_training`) miss what few interactions tell of two items; this is exact, and has no order or recency. The
penalty, and the weight beside the learned factors, are those with the least log-loss on the valid split.

Shapes: N items of the training, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flmrec_spark import metrics
from flmrec_spark.lm.blending import fit_logistic, sigmoid

if TYPE_CHECKING:
    from flmrec_spark.lm.collaborative import Factors, Floats, Places
    from flmrec_spark.lm.factor_validation import Question
    from flmrec_spark.lm.sequences import Sequences

_USER_SHRINK, _ITEM_SHRINK = 4.0, 8.0  # interactions that an average user or item counts for
_ROUNDS = 5
_PENALTIES = np.logspace(-1, 2.5, 8)  # in mean squares of a singular value
_FEWEST = 50  # held-out rows below which nothing is fitted


@dataclass(frozen=True)
class Neighbours:
    """Vectors whose product is the term."""

    history: Floats  # (N, d)
    target: Floats  # (N + 1, d), the last row zeros: an unknown item
    expected: Floats  # (N,)

    def taste(self, items: Places, labels: Floats) -> Floats:
        """(d,) of a history in any order; labels in 0 .. 1."""
        over = np.asarray(labels, dtype=np.float32) - self.expected[items]
        over = over - over.sum() / (len(over) + np.float32(_USER_SHRINK))
        return np.asarray(over @ self.history[items], dtype=np.float32)


@dataclass(frozen=True)
class Spectrum:
    """Singular vectors (N, d) and values (d,) of the residuals, and the expected label of each item (N,).

    In a world of fewer users or items than dimensions the last ones are zeros.
    """

    vectors: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    expected: npt.NDArray[np.float64]

    @classmethod
    def of(cls, sequences: Sequences, dimension: int, *, seed: int) -> Spectrum | None:
        """None where there are fewer than two users or items."""
        from scipy.sparse import csr_array  # here: a second, and what scores learns nothing
        from sklearn.utils.extmath import randomized_svd

        shape = sequences.n_users, sequences.n_items
        size = min(dimension, min(shape) - 1)
        if size < 1:
            return None
        users, items, labels = sequences.users, sequences.items, sequences.labels.astype(np.float64)
        level = labels.mean()
        of_item, of_user = np.zeros(shape[1]), np.zeros(shape[0])
        for _ in range(_ROUNDS):
            of_item = _shrunk_means(labels - level - of_user[users], items, shape[1], _ITEM_SHRINK)
            of_user = _shrunk_means(labels - level - of_item[items], users, shape[0], _USER_SHRINK)
        residuals = csr_array((labels - level - of_item[items] - of_user[users], (users, items)), shape=shape)
        _, some, directions = randomized_svd(residuals, size, random_state=seed)
        vectors, values = np.zeros((shape[1], dimension)), np.zeros(dimension)
        vectors[:, :size], values[:size] = directions.T, some
        return cls(vectors, values, level + of_item)

    def neighbours(self, penalty: float, weight: float) -> Neighbours:
        """Of one penalty, in mean squares of a singular value, and a weight > 0."""
        shares = self.shares(penalty)
        unscaled = self.vectors * shares / (1.0 - (self.vectors**2 @ shares))[:, None]
        size = np.sqrt(weight)  # half of it to each side, as no other vectors have one side that is far larger
        history, target = self.vectors * size, unscaled * size
        return Neighbours(
            history.astype(np.float32),
            np.vstack([target, np.zeros((1, target.shape[1]))]).astype(np.float32),
            self.expected.astype(np.float32),
        )

    def shares(self, penalty: float) -> npt.NDArray[np.float64]:
        """w (d,), in 0 .. 1."""
        squares = self.values**2
        mean = squares.sum() / max(1, np.count_nonzero(squares))
        return np.asarray(squares / (squares + max(penalty * mean, np.finfo(np.float64).tiny)))


@dataclass(frozen=True)
class Choice:
    """What the valid split says of a spectrum."""

    penalty: float  # in mean squares of a singular value
    weight: float  # beside the learned factors
    log_loss: float  # with the term, and without
    log_loss_without: float


def choose(
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


def turned(near: Neighbours, other: Neighbours, places: Places) -> Neighbours:
    """The same products in the directions of an earlier edition, which a language model may have learned to read.

    The orthogonal turn with the least squares between the histories of the items that both know (Schoenemann 1966);
    `places` (N,) in the other, -1 for a new item.
    """
    both = places >= 0
    left, _, right = np.linalg.svd(near.history[both].T @ other.history[places[both]])
    turn = (left @ right).astype(np.float32)
    return replace(near, history=near.history @ turn, target=near.target @ turn)


def _shrunk_means(values: npt.NDArray[np.float64], places: Places, n: int, shrink: float) -> npt.NDArray[np.float64]:
    return np.asarray(np.bincount(places, weights=values, minlength=n) / (np.bincount(places, minlength=n) + shrink))
