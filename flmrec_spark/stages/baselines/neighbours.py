"""Item to item: a user's score of an item is a sum over the items that the user liked.

item_knn   cosine of the items' columns of likes, shrunk: x_i . x_j / (|x_i| |x_j| + 20), the 50 nearest of each item
           (Sarwar et al., WWW'01; shrinkage as in Dacrema et al., RecSys'19)
ease       the weights B, of zero diagonal, that minimise |X - X B|^2 + 200 |B|^2, in closed form
           (Steck, WWW'19): with P = (X'X + 200 I)^-1, B_ij = - P_ij / P_jj
markov     items that followed the user's newest item at once: ln of (n(newest -> j) + 20 p_j) / (n(newest) + 20), where
           p_j = (n_j + 1) / (R + N) is the item's share of all interactions, liked or not. Rows of one moment follow
           each other in a fixed, arbitrary order

An item that nobody liked has no neighbours: item_knn and ease give it 0, what an unrelated item has. They know nothing
of a user whose likes have none at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines.world import Floats, User, World

NEIGHBOURS, COSINE_SHRINKAGE = 50, 20.0
RIDGE = 200.0
EASE_MAX_ITEMS = 10_000  # its matrix of items x items is inverted in the driver's memory: 1.6 GB at the limit
BACK_OFF = 20.0
_BLOCK_CELLS = 20_000_000  # similarities at one time, if every item is similar to every other


@dataclass(frozen=True)
class ItemKnn:
    weights: Any  # CSR float64 (N, N): row j holds what a like of j adds to each item
    is_probability: ClassVar[bool] = False

    def scores(self, user: User) -> Floats | None:
        return _of_neighbours(np.asarray(self.weights[user.liked_items].sum(axis=0)).ravel())


@dataclass(frozen=True)
class Ease:
    weights: npt.NDArray[np.float32]  # (N, N): row j as in ItemKnn
    is_probability: ClassVar[bool] = False

    def scores(self, user: User) -> Floats | None:
        return _of_neighbours(self.weights[user.liked_items].sum(axis=0, dtype=np.float64))


@dataclass(frozen=True)
class Markov:
    follows: Any  # CSR float64 (N, N): how often column came right after row
    share: Floats  # [N]
    is_probability: ClassVar[bool] = False

    def scores(self, user: User) -> Floats | None:
        if not len(user.items):
            return None
        followers = self.follows[int(user.items[0])]
        seen = BACK_OFF * self.share
        seen[followers.indices] += followers.data
        return np.asarray(np.log(seen / (float(followers.sum()) + BACK_OFF)))


def _of_neighbours(scores: Floats) -> Floats | None:
    """Nothing is known of a user none of whose likes has a neighbour."""
    return scores if scores.any() else None


def item_knn(world: World, *, neighbours: int = NEIGHBOURS, shrinkage: float = COSINE_SHRINKAGE) -> ItemKnn:
    likes = world.likes.tocsc()
    norm = np.sqrt(np.asarray(likes.sum(axis=0)).ravel())
    n = len(world.item_ids)
    step = max(1, _BLOCK_CELLS // max(1, n))
    nearest = [_nearest(likes, norm, start, min(start + step, n), neighbours, shrinkage) for start in range(0, n, step)]
    return ItemKnn(sparse.vstack(nearest).T.tocsr())


def _nearest(likes: Any, norm: Floats, start: int, stop: int, neighbours: int, shrinkage: float) -> Any:
    """Rows start..stop of the similarities, each with its nearest alone, equal ones by place: CSR (stop - start, N)."""
    together = (likes[:, start:stop].T @ likes).tocoo()
    rows, columns = together.row, together.col
    similar = together.data / (norm[start + rows] * norm[columns] + shrinkage)
    other = rows + start != columns
    rows, columns, similar = rows[other], columns[other], similar[other]
    order = np.lexsort((columns, -similar, rows))
    rows, columns, similar = rows[order], columns[order], similar[order]
    firsts = np.searchsorted(rows, np.arange(stop - start))
    is_near = np.arange(len(rows)) - firsts[rows] < neighbours
    shape = (stop - start, len(norm))
    return sparse.csr_matrix((similar[is_near], (rows[is_near], columns[is_near])), shape=shape)


def ease(world: World, *, ridge: float = RIDGE) -> Ease:
    """Raises InputError above EASE_MAX_ITEMS items."""
    n = len(world.item_ids)
    if n > EASE_MAX_ITEMS:
        raise InputError(f"ease: got {n:,} items, expected at most {EASE_MAX_ITEMS:,}; item_knn has no such limit")
    gram = (world.likes.T @ world.likes).toarray()
    gram[np.diag_indices(n)] += ridge
    inverse = linalg.inv(gram, overwrite_a=True, check_finite=False, assume_a="pos")
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices(n)] = 0.0
    return Ease(weights.astype(np.float32))


def markov(world: World) -> Markov:
    n = len(world.item_ids)
    is_next = world.users[1:] == world.users[:-1]
    before, after = world.items[:-1][is_next], world.items[1:][is_next]
    follows = sparse.csr_matrix((np.ones(len(before)), (before, after)), shape=(n, n))
    follows.sum_duplicates()
    return Markov(follows, (world.counts + 1.0) / (len(world.items) + n))
