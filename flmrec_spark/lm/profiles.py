"""What the profile of a user says of their lists: all that is known of one who is new, a hint beside any history.

    x(u) = mean over the tokens before the history of their rows of a table; 0 where a profile is empty   (d,)
    term = x(u) . w(i)

The table has the language model's word embeddings in the d directions in which profiles differ most (the principal
components of their standardised means), scaled so that x has a mean square of 1. A profile in any language, with values
that nobody else has, is a vector too. The w are one Newton step, from popularity, of a log-linear model of who likes
what, which is a closed form for any number of items:

    likes(u, i) ~ Poisson(n(u) p(i) exp(term)),  w(i) ~ Normal(0, v)          n likes of the user, p share of the item
    w(i) = (p(i) H + 1 / v)^-1 sum over u of (likes(u, i) - n(u) p(i)) x(u),  H = sum over u of n(u) x(u) x(u)'

v, the variance of the term before anything is known, is chosen by lists made by popularity and the term alone for users
left out of the fit, in five parts: the least whose NDCG@10 is within a standard error of the best (Breiman and others
1984). There is no term where that is not above popularity's by a standard error.

Shapes: U users, N items of the training, V words, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flmrec_spark import ranking
from flmrec_spark.lm.mean_embeddings import features
from flmrec_spark.lm.token_block import TokenBlock

if TYPE_CHECKING:
    from flmrec_spark.lm.collaborative import Bools, Floats
    from flmrec_spark.lm.sequences import Sequences

Words = Sequence[int]  # the tokens of one profile
Values = npt.NDArray[np.float64]

_VARIANCES = np.logspace(-2.5, -0.5, 9)
_FEWEST = 50  # users with likes below which nothing is learned
_MOST = 20_000  # users whose profiles the directions are made of
_ASKED = 2_000  # users of a part whose lists are made, at most
_CELLS = 20_000_000  # and these users times items
_FOLDS = 5
_K = 10
_BLOCK = 4096  # words that are turned at once
_SMALL = 1e-6  # variance of a direction, as a share of the largest, below which it is rounding


@dataclass(frozen=True)
class Profile:
    """Vectors whose product is the term."""

    tokens: Floats  # (V, d)
    target: Floats  # (N + 1, d), the last row zeros: an unknown item

    def taste(self, words: Words) -> Floats:
        """(d,) of a profile; zeros for one without a word."""
        width = self.tokens.shape[1]
        return self.tokens[np.asarray(words)].mean(0) if len(words) else np.zeros(width, dtype=np.float32)


@dataclass(frozen=True)
class Choice:
    """What lists of users left out say of the variance."""

    variance: float
    ndcg: float
    ndcg_without: float


def token_table(embeddings: Floats, words: TokenBlock, dimension: int) -> Floats | None:
    """The directions of embeddings (V, D) in which profiles differ most: (V, d), d at most `dimension`.

    None where no two profiles differ.
    """
    told = np.flatnonzero(words.lengths)
    if len(told) > _MOST:
        told = np.random.default_rng(_MOST).choice(told, size=_MOST, replace=False)
    if len(told) < 2:
        return None
    means = features(embeddings, words.take(told)).astype(np.float64)
    middle, scale = means.mean(0), means.std(0)
    scale = np.where(scale > 0, scale, np.inf)
    sizes, directions = np.linalg.eigh(np.cov((means - middle) / scale, rowvar=False, bias=True))
    kept = np.flatnonzero(sizes > max(sizes[-1], 1.0) * _SMALL)[::-1][:dimension]
    if not len(kept):
        return None
    turn = directions[:, kept] / np.sqrt(sizes[kept].sum())
    blocks = range(0, len(embeddings), _BLOCK)
    return np.concatenate(
        [((embeddings[at : at + _BLOCK] - middle) / scale @ turn).astype(np.float32) for at in blocks]
    )


def choose(x: Values, likes: Any, *, allowed: Bools, seed: int) -> Choice | None:
    """The variance for profiles x (U, d) and a sparse matrix of likes (U, N); `allowed` (N,) are what a list may hold.

    None where the term does not help, or users are too few.
    """
    users = np.flatnonzero(np.diff(likes.indptr))
    if len(users) < _FEWEST:
        return None
    random = np.random.default_rng([seed, 6])
    own, without = [], []
    n_asked = max(1, min(_ASKED, _CELLS // likes.shape[1]))
    for left in np.array_split(random.permutation(users), _FOLDS):
        others = np.setdiff1d(users, left)
        popular = np.log(np.asarray(likes[others].sum(0)).ravel() + 0.5)
        known = _Counts.of(x[others], likes[others])
        asked = left[:n_asked]
        told = popular, x[asked], likes[asked], allowed
        without.append(_listed(None, *told))
        own.append(np.stack([_listed(known.targets(variance), *told) for variance in _VARIANCES]))
    base = np.concatenate(without)
    gains = np.concatenate(own, axis=1) - base  # (variances, users)
    mean, error = gains.mean(1), gains.std(1) / np.sqrt(gains.shape[1])
    top = int(np.argmax(mean))
    least = int(np.flatnonzero(mean >= mean[top] - error[top])[0])
    if mean[least] <= error[least]:
        return None
    return Choice(float(_VARIANCES[least]), float(base.mean() + mean[least]), float(base.mean()))


def fit(table: Floats, x: Values, sequences: Sequences, variance: float) -> Profile:
    """The term from all rows; x (U, d) of the profiles, by the table."""
    own = _Counts.of(x, likes_of(sequences)).targets(variance)
    return Profile(table, np.vstack([own, np.zeros((1, own.shape[1]))]).astype(np.float32))


def likes_of(sequences: Sequences) -> Any:
    """1 where a user liked an item, however often: a sparse matrix (U, N)."""
    from scipy.sparse import csr_array  # here: what scores learns nothing

    pairs = sequences.users[sequences.liked], sequences.items[sequences.liked]
    found = csr_array((np.ones(len(pairs[0])), pairs), shape=(sequences.n_users, sequences.n_items))
    found.sum_duplicates()
    found.data[:] = 1.0
    return found


@dataclass(frozen=True)
class _Counts:
    """What the Newton step needs of the users, in the directions in which H is diagonal."""

    gradient: Values  # (N, d)
    shares: Values  # (N,) p
    sizes: Values  # (d,)
    directions: Values  # (d, d)

    @classmethod
    def of(cls, x: Values, likes: Any) -> _Counts:
        n, of_item = np.asarray(likes.sum(1)).ravel(), np.asarray(likes.sum(0)).ravel() + 0.5
        shares = of_item / of_item.sum()
        sizes, directions = np.linalg.eigh((x * n[:, None]).T @ x)
        gradient = likes.T @ x - shares[:, None] * (n @ x)
        return cls(gradient @ directions, shares, sizes.clip(min=0.0), directions)

    def targets(self, variance: float) -> Values:
        """w (N, d)."""
        return np.asarray(self.gradient / (self.shares[:, None] * self.sizes + 1.0 / variance) @ self.directions.T)


def _listed(targets: Values | None, popular: Values, x: Values, likes: Any, allowed: Bools) -> Values:
    """NDCG@10 of each user (U,), by popularity (N,) and the term, if given."""
    scores = (popular if targets is None else popular + targets @ own for own in x)
    lists = [ranking.best(each, _K, allowed=allowed) for each in scores]
    return ranking.ndcg(lists, np.split(likes.indices, likes.indptr[1:-1]), k=_K)
