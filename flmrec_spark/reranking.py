"""Which items stand in a list together: maximal marginal relevance and caps, without Spark or a model.

The items of a list are chosen one by one from a pool, the user's best candidates. The next one has the greatest

    relevance * r(i) - (1 - relevance) * max over the chosen j of cosine(i, j)

(Carbonell and Goldstein, SIGIR'98) among those that every cap has room for; equal ones go by score, then by place. r(i)
is the score of i, scaled so that the pool's best is 1 and its last 0: a user's best scores may lie within a hundredth,
cosines do not. What was chosen is then ordered by score, so a list reads as any other.

Shapes: N items, S scores, P candidates of a pool, D numbers of a vector, V values that are capped, C of them in a pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from flmrec_spark.ranking import best

Places = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Room = tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]
"""Which of C values each candidate has, (P, C), and how many more items may have each, (C,)."""

STEPS = 2048  # in a vector's length


class Vectors(Protocol):
    """What items are compared by."""

    def of(self, items: Places) -> Any:
        """(P, D): sparse, rows of length 1 or 0, or dense as `in_steps` gives it."""
        ...


@dataclass(frozen=True)
class SparseVectors:
    matrix: Any  # CSR (N, D), rows of length 1 or 0

    def of(self, items: Places) -> Any:
        return self.matrix[items]


@dataclass(frozen=True)
class Caps:
    """At most most[v] items of a list have the value v; an item has none, one or several."""

    values: Any  # CSR (N, V)
    most: npt.NDArray[np.int64]  # (V,)

    def room(self, pool: Places, chosen: Places) -> Room:
        part, taken = self.values[pool], self.values[chosen].indices
        codes, columns = np.unique(part.indices, return_inverse=True)
        has = np.zeros((len(pool), len(codes)), dtype=bool)
        has[np.repeat(np.arange(len(pool)), np.diff(part.indptr)), columns] = True
        known = np.searchsorted(codes, taken[np.isin(taken, codes)])
        return has, self.most[codes] - np.bincount(known, minlength=len(codes))


@dataclass(frozen=True)
class Reranker:
    """Makes diverse lists. Without vectors relevance decides alone, without caps any item may follow."""

    relevance: float
    pool: int
    vectors: Vectors | None = None
    caps: Caps | None = None

    def best(self, scores: Floats, n: int, *, allowed: Any = None, items: Any = None) -> Places:
        """Places of the n chosen scores, best first, equal ones by place; otherwise as `ranking.best`.

        Where caps leave fewer than n in the pool, what stands behind it follows by score, as far as they allow.

        Args:
          items: whose scores these are, (S,); None: of all N in their order.
        """
        if self.vectors is None and self.caps is None:
            return best(scores, n, allowed=allowed)
        pool = best(scores, max(n, self.pool), allowed=allowed)
        every = np.arange(len(scores)) if items is None else items
        alike = None if self.vectors is None or not len(pool) else cosines(self.vectors.of(every[pool]))
        room = self._room(every[pool], every[pool[:0]])
        chosen = pool[marginal(scaled(scores[pool]), alike, relevance=self.relevance, n=n, room=room)]
        if len(chosen) < min(n, len(pool)):
            behind = best(scores, len(scores), allowed=allowed)[len(pool) :]
            for start in range(0, len(behind), self.pool):
                part = behind[start : start + self.pool]
                room = self._room(every[part], every[chosen])
                more = marginal(np.zeros(len(part)), None, relevance=1.0, n=n - len(chosen), room=room)
                chosen = np.concatenate([chosen, part[more]])
                if len(chosen) == n:
                    break
        return chosen[np.lexsort((chosen, -scores[chosen]))]

    def _room(self, pool: Places, chosen: Places) -> Room:
        if self.caps is None:
            return np.zeros((len(pool), 0), dtype=bool), np.zeros(0, dtype=np.int64)
        return self.caps.room(pool, chosen)


PLAIN = Reranker(relevance=1.0, pool=1)  # the best by score


def marginal(scores: Floats, alike: Floats | None, *, relevance: float, n: int, room: Room) -> list[int]:
    """Places of at most n candidates in the order in which they are chosen; fewer where the room ends.

    Args:
      scores: of the candidates, in the order in which equal ones are chosen (P,).
      alike: (P, P); None: no two are.
    """
    has, left = room[0], room[1].copy()
    is_open = np.ones(len(scores), dtype=bool)
    nearest = np.zeros(len(scores))
    chosen: list[int] = []
    while len(chosen) < n:
        may = is_open & ~has[:, left <= 0].any(axis=1)
        if not may.any():
            break
        worth = np.where(may, relevance * scores - (1.0 - relevance) * nearest, -np.inf)
        place = int(np.argmax(worth))
        is_open[place] = False
        left -= has[place]
        if alike is not None:
            nearest = np.maximum(nearest, alike[place]) if chosen else alike[place]
        chosen.append(place)
    return chosen


def scaled(scores: Floats) -> Floats:
    """The greatest becomes 1 and the least 0; all are 1 where all are equal."""
    spread = np.ptp(scores) if len(scores) else 0.0
    return (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))


def in_steps(vectors: Any) -> npt.NDArray[np.float32]:
    """Vectors (P, D) at the length STEPS, in whole steps; a vector of length 0 stays one.

    Every sum of products of two of them is a whole number below 2^24, which float32 holds: so a cosine has the same
    bits in whatever order a processor adds.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return np.rint(wide * (STEPS / np.where(lengths > 0, lengths, np.inf))).astype(np.float32)


def cosines(vectors: Any) -> Floats:
    """Of every two of the vectors that `Vectors.of` gives, (P, P)."""
    if sparse.issparse(vectors):
        return np.asarray((vectors @ vectors.T).toarray(), dtype=np.float64)
    return np.asarray(vectors @ vectors.T, dtype=np.float64) / STEPS**2


def values_of(value: Any, separator: str | None) -> list[str]:
    """The distinct values of an attribute: of a list its elements, of a text its parts between separators.

    No value for null, nan and blanks; spaces around a value do not count. `stages.audit` counts by the same rule.
    """
    if value is None or value != value:
        return []
    if isinstance(value, (list, tuple)):
        parts = [str(part) for part in value if part is not None]
    else:
        parts = [str(value)] if separator is None else str(value).split(separator)
    return sorted({part.strip(" ") for part in parts} - {""})


def caps_of(items: Sequence[Mapping[str, Any]], caps: Mapping[str, int], separators: Mapping[str, str]) -> Caps | None:
    """Caps per attribute, for items as rows of the table; None without any.

    Args:
      caps: attribute -> at most this many items of one value.
      separators: attribute -> what stands between the values of a text.
    """
    if not caps:
        return None
    codes: dict[tuple[str, str], int] = {}
    rows: list[int] = []
    columns: list[int] = []
    for row, item in enumerate(items):
        for name in caps:
            for value in values_of(item[name], separators.get(name)):
                rows.append(row)
                columns.append(codes.setdefault((name, value), len(codes)))
    shape = (len(items), len(codes))
    values = sparse.csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=shape)
    return Caps(values, np.array([caps[name] for name, _ in codes], dtype=np.int64))
