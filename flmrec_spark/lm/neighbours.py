"""What the items that resemble one say of it: who liked more of them than expected likes it, who met them meets it.

    term     = sum over the history:  x(u, j) B[j, i]
    x(u, j)  = e(u, j) - sum e(u, .) / (H + 4)           of ratings; H entries in the history
    e(u, j)  = label - expected[j]                       expected: level and shrunk offset of item j
    x(u, j)  = 1                                         of lists

B is a ridge regression of x of every item on those of all others (EASE: Steck 2019, eq. 8), kept in low rank so that a
large catalogue has room: with the right singular vectors V and values s of the sparse matrix x and a penalty p,

    B = V diag(w) V' diag(1 / (1 - sum_k V[i, k]^2 w[k])),      w = s^2 / (s^2 + p)

so a user is one vector and an item another, and their product is part of the factors. (An item of the history
adds to itself, which EASE forbids while it learns; lists leave such items out by default.) Vectors that learn by
steps (`factor_training`) miss what few interactions tell of two items; this is exact, and has no order or recency. The
penalty, and the weight beside the learned factors, are fitted by `neighbour_choice`.

Shapes: N items of the training, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from flmrec_spark.lm.collaborative import Floats, Places
    from flmrec_spark.lm.sequences import Sequences

_USER_SHRINK, _ITEM_SHRINK = 4.0, 8.0  # interactions that an average user or item counts for
_ROUNDS = 5


@dataclass(frozen=True)
class Neighbours:
    """Vectors whose product is the term."""

    history: Floats  # (N, d)
    target: Floats  # (N + 1, d), the last row zeros: an unknown item
    expected: Floats | None  # (N,); None: whatever was met counts, once and alike

    def taste(self, items: Places, labels: Floats) -> Floats:
        """(d,) of a history in any order; labels in 0 .. 1."""
        if self.expected is None:
            return np.asarray(self.history[np.unique(items)].sum(0), dtype=np.float32)
        over = np.asarray(labels, dtype=np.float32) - self.expected[items]
        over = over - over.sum() / (len(over) + np.float32(_USER_SHRINK))
        return np.asarray(over @ self.history[items], dtype=np.float32)


@dataclass(frozen=True)
class Spectrum:
    """Singular vectors (N, d) and values (d,) of x, and the expected label of each item (N,) where x has one.

    In a world of fewer users or items than dimensions the last ones are zeros.
    """

    vectors: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    expected: npt.NDArray[np.float64] | None

    @classmethod
    def of_labels(cls, sequences: Sequences, dimension: int, *, seed: int) -> Spectrum | None:
        """Of ratings; None where there are fewer than two users or items."""
        shape = sequences.n_users, sequences.n_items
        users, items, labels = sequences.users, sequences.items, sequences.labels.astype(np.float64)
        level = labels.mean()
        of_item, of_user = np.zeros(shape[1]), np.zeros(shape[0])
        for _ in range(_ROUNDS):
            of_item = _shrunk_means(labels - level - of_user[users], items, shape[1], _ITEM_SHRINK)
            of_user = _shrunk_means(labels - level - of_item[items], users, shape[0], _USER_SHRINK)
        found = _decomposed(sequences, labels - level - of_item[items] - of_user[users], dimension, seed)
        return None if found is None else cls(*found, level + of_item)

    @classmethod
    def of_met(cls, sequences: Sequences, dimension: int, *, seed: int) -> Spectrum | None:
        """Of lists; None where there are fewer than two users or items."""
        found = _decomposed(sequences, None, dimension, seed)
        return None if found is None else cls(*found, None)

    def neighbours(self, penalty: float, weight: float) -> Neighbours:
        """Of one penalty, in mean squares of a singular value, and a weight > 0."""
        shares = self.shares(penalty)
        unscaled = self.vectors * shares / (1.0 - (self.vectors**2 @ shares))[:, None]
        size = np.sqrt(weight)  # half of it to each side, as no other vectors have one side that is far larger
        history, target = self.vectors * size, unscaled * size
        return Neighbours(
            history.astype(np.float32),
            np.vstack([target, np.zeros((1, target.shape[1]))]).astype(np.float32),
            None if self.expected is None else self.expected.astype(np.float32),
        )

    def shares(self, penalty: float) -> npt.NDArray[np.float64]:
        """w (d,), in 0 .. 1."""
        squares = self.values**2
        mean = squares.sum() / max(1, np.count_nonzero(squares))
        return np.asarray(squares / (squares + max(penalty * mean, np.finfo(np.float64).tiny)))


def turned(near: Neighbours, other: Neighbours, places: Places) -> Neighbours:
    """The same products in the directions of an earlier edition, which a language model may have learned to read.

    The orthogonal turn with the least squares between the histories of the items that both know (Schoenemann 1966);
    `places` (N,) in the other, -1 for a new item.
    """
    both = places >= 0
    left, _, right = np.linalg.svd(near.history[both].T @ other.history[places[both]])
    turn = (left @ right).astype(np.float32)
    return replace(near, history=near.history @ turn, target=near.target @ turn)


def _decomposed(
    sequences: Sequences, values: npt.NDArray[np.float64] | None, dimension: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Right singular vectors (N, d) and values (d,) of the sparse matrix of the rows' values, or of 1 for each pair."""
    from scipy.sparse import csr_array  # here: a second, and what scores learns nothing
    from sklearn.utils.extmath import randomized_svd

    shape = sequences.n_users, sequences.n_items
    size = min(dimension, min(shape) - 1)
    if size < 1:
        return None
    own = np.ones(len(sequences.items)) if values is None else values
    matrix = csr_array((own, (sequences.users, sequences.items)), shape=shape)
    if values is None:
        matrix.data[:] = 1.0  # in however many rows it stands
    _, some, directions = randomized_svd(matrix, size, random_state=seed)
    vectors, sizes = np.zeros((shape[1], dimension)), np.zeros(dimension)
    vectors[:, :size], sizes[:size] = directions.T, some
    return vectors, sizes


def _shrunk_means(values: npt.NDArray[np.float64], places: Places, n: int, shrink: float) -> npt.NDArray[np.float64]:
    return np.asarray(np.bincount(places, weights=values, minlength=n) / (np.bincount(places, minlength=n) + shrink))
