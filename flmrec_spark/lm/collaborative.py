"""Collaborative factors: who liked and disliked what tells more of a warm item than its text does.

    taste(u) = sum over the history, newest first:  w(a) v[item, liked or not],  a = 0, 1, ... its age
    w(a)     = long / sqrt(H) + recent exp(-a / recency) / sqrt(recency),  H entries in the history
    score    = taste(u) . target[item] + offset[item], with what `neighbours` say, and of lists `profiles`

Offsets that were learned beside tastes are those of users who have one. Of a user without history nothing is known but
what is popular, so the log of an item's likes takes their place in lists.

An asymmetric factor model: a user is the sum of what they did (Paterek 2007; Koren 2008, section 4), so a user who came
after the training has a taste from their first interaction on, and one whose history grew has another taste at once. An
item that training did not meet has the factors that its text speaks for (`text_factors`). Two of them are learned, see
`factor_training`: `rating` tells liked from disliked among rated items, `listing` tells what a user likes next from
all other items.

Shapes: N items of the training, d dimensions, H entries of one user's history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flmrec_spark.lm.grades import Grades
from flmrec_spark.lm.neighbours import Neighbours
from flmrec_spark.lm.profiles import Profile, Words
from flmrec_spark.lm.text_map import TextMap

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

RATING, LISTING = "rating", "listing"
_SUMMED = 20_000  # items at most that stand for all in a sum over them


@dataclass(frozen=True)
class Factors:
    """One set of learned factors."""

    history: Floats  # (2 N, d): liked items, then disliked ones
    target: Floats  # (N + 1, d), the last row zeros
    offset: Floats  # (N + 1,), the last one that of an unknown item: the mean
    mix: Floats  # (2,): long and recent
    recency: float
    near: Neighbours | None = None  # further dimensions behind these
    profile: Profile | None = None  # and behind those
    popular: Floats | None = None  # (N + 1,) and last: what a user without history adds to the offsets

    @property
    def n_items(self) -> int:
        return len(self.target) - 1

    def scaled(self, times: float) -> Factors:
        """What was learned by steps, times a number."""
        return replace(self, target=self.target * np.float32(times), offset=self.offset * np.float32(times))

    @property
    def width(self) -> int:
        """f: numbers of an item, those of its neighbours and of profiles included."""
        return sum(part.shape[1] for part in self._targets())

    @property
    def of_profile(self) -> slice:
        """Which of the f are of profiles."""
        stop = self.width - (self.popular is not None)
        return slice(stop - (0 if self.profile is None else self.profile.target.shape[1]), stop)

    def taste(self, items: Places, labels: Any, words: Words = ()) -> Floats:
        """What a history, newest first, and the words of a profile come to, (f,).

        Items are places in the factors, labels above 1/2 are liked.
        """
        found = np.zeros(self.width, dtype=np.float32)
        if self.profile is not None:
            found[self.of_profile] = self.profile.taste(words)
        if not len(items):
            if self.popular is not None:
                found[-1] = 1.0
            return found
        weights, d = ages(len(items), self.mix, self.recency), self.target.shape[1]
        is_liked = np.asarray(labels) > 0.5
        found[:d] = weights @ self.history[rows_of(items, is_liked, self.n_items)]
        if self.near is not None:
            found[d : d + self.near.target.shape[1]] = self.near.taste(items, labels)
        return found

    def vectors(self, items: Places) -> Floats:
        """(len(items), f) float32; zeros for -1, an unknown item."""
        first, *more = self._targets()
        return np.concatenate([first[items], *(part[items] for part in more)], axis=1) if more else first[items]

    def _targets(self) -> list[Floats]:
        parts = [part.target for part in (self.near, self.profile) if part is not None]
        return [self.target, *parts, *([] if self.popular is None else [self.popular[:, None]])]

    def scores(self, taste: Floats, items: Places) -> Floats:
        """(len(items),) float32 of one taste (f,); -1 for an unknown item."""
        return np.asarray(self.vectors(items) @ taste + self.offset[items])

    def log_total(self, taste: Floats) -> float:
        """ln of the sum of exp(score) over all items that the factors know, by which a score is the log of a share.

        Of more than _SUMMED items so many at even distances stand for all.
        """
        vectors, offset, more = self._summed
        scores = (vectors @ taste + offset).astype(np.float64)
        most = scores.max()
        return float(most + np.log(np.exp(scores - most).sum())) + more

    @cached_property
    def _summed(self) -> tuple[Floats, Floats, float]:
        n = min(self.n_items, _SUMMED)
        places = np.linspace(0, self.n_items - 1, n).astype(np.intp)
        return self.vectors(places), self.offset[places], math.log(self.n_items / n)


def ages(n: int, mix: Any, recency: float) -> Any:
    """Weights of n entries, newest first: (n,)."""
    recent = np.exp(-np.arange(n) / recency) / math.sqrt(recency)
    return (mix[0] / math.sqrt(n) + mix[1] * recent).astype(np.float32)


def rows_of(items: Places, is_liked: Bools, n_items: int) -> Places:
    """Rows of `Factors.history`."""
    return np.where(is_liked, items, n_items + items)


@dataclass(frozen=True)
class Collaborative:
    """The factors of a checkpoint, by name, and the items that they know, ids ascending."""

    item_ids: pa.Array
    factors: Mapping[str, Factors]
    history_length: int  # newest interactions that a taste is made of
    texts: TextMap | None = None  # None: a new item's vectors are 0, its offsets the mean
    grades: Grades | None = None  # None: an interaction was liked or not, and no more is told

    def places(self, ids: pa.Array) -> Places:
        """Place of each id in the factors, -1 for an unknown one: (len(ids),)."""
        found = pc.fill_null(pc.index_in(ids.cast(pa.string()), value_set=self.item_ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.intp)

    @property
    def width(self) -> int:
        """F: numbers of all factors of an item or a user together."""
        return sum(one.width for one in self.factors.values())

    def of_items(self, places: Places, features: Callable[[Places], Floats] | None = None) -> ItemFactors:
        """Targets and offsets of items by their places, behind each other by the name of the factors.

        Args:
          places: (N,), -1 for a new item.
          features: rows (M,) of the N -> (M, D), the mean embedding of each one's tokens; asked for new items alone.
        """
        ends = np.cumsum([one.width for one in self.factors.values()]).tolist()
        vectors = np.concatenate([one.vectors(places) for one in self.factors.values()], axis=1)
        offsets = np.stack([one.offset[places] for one in self.factors.values()], axis=1)
        is_new = places < 0
        if self.texts is not None and features is not None and is_new.any():
            own = self.texts.says(features, np.flatnonzero(is_new))
            vectors[is_new], offsets[is_new] = own[:, : self.width], own[:, self.width :]
        return ItemFactors(
            vectors,
            offsets,
            np.array([one.offset[-1] for one in self.factors.values()], dtype=np.float32),
            {name: (start, end) for name, start, end in zip(self.factors, [0, *ends], ends, strict=False)},
            is_new,
            self._of_profiles(),
            self.taste(np.zeros(0, dtype=np.intp), np.zeros(0)),
            self.factors[LISTING].log_total if LISTING in self.factors else None,
        )

    def _of_profiles(self) -> Bools:
        found = np.zeros(self.width, dtype=bool)
        start = 0
        for one in self.factors.values():
            found[start : start + one.width][one.of_profile] = True
            start += one.width
        return found

    @property
    def reads_profiles(self) -> bool:
        """A taste is made of a profile too."""
        return any(one.profile is not None for one in self.factors.values())

    def taste(self, places: Places, labels: Any, words: Words = ()) -> Floats:
        """Tastes of one history, newest first, and of a profile's words, behind each other as in `of_items`: (F,).

        Unknown items do not count.
        """
        known = places >= 0
        places, labels = places[known][: self.history_length], np.asarray(labels)[known][: self.history_length]
        return np.concatenate([one.taste(places, labels, words) for one in self.factors.values()])

    def labels(self, values: Any, is_liked: Any) -> Floats:
        """How much interactions (H,) with these values, or None, were liked: (H,) float32 in 0 .. 1."""
        if self.grades is None:
            return np.asarray(is_liked, dtype=np.float32)
        return self.grades.labels(values, is_liked)


@dataclass(frozen=True)
class FactorsOfSplits:
    """What was learned from the train split, and what went on to learn from train and valid."""

    train: Collaborative
    whole: Collaborative


@dataclass(frozen=True)
class ItemFactors:
    """The factors of a catalogue, all kinds behind each other."""

    vectors: Floats  # (N, F)
    offsets: Floats  # (N, kinds)
    unknown: Floats  # (kinds,) offsets of an item of which nothing is known
    spans: Mapping[str, tuple[int, int]]  # kind -> where it stands among the F
    is_new: Bools  # (N,) true for an unknown item
    is_profile: Bools  # (F,) true where a user's number is of their profile
    unmet: Floats  # (F,) taste of a user of whom nothing is known
    log_total: Callable[[Floats], float] | None = None  # of LISTING's own numbers of a taste; None: not learned

    def log_totals(self, tastes: Floats) -> Floats | None:
        """`log_total` of each of tastes (R, F), float32 (R,); None where lists were not learned."""
        if self.log_total is None:
            return None
        own = slice(*self.spans[LISTING])
        return np.array([self.log_total(taste[own]) for taste in tastes], dtype=np.float32)

    def term(self, kind: str, taste: Floats, items: Any = slice(None)) -> Floats | None:
        """What a kind says of items to one user with the taste (F,); None when it was not learned.

        RATING: what it adds to the logits. LISTING: that too, as the log of an item's share among those of the factors,
        which is the same order and says the same of users whose tastes are of different lengths.
        """
        if kind not in self.spans:
            return None
        start, end = self.spans[kind]
        place, own = list(self.spans).index(kind), taste[start:end]
        told = self.vectors[items, start:end] @ own + self.offsets[items, place]
        return np.asarray(told - np.float32(self.log_total(own)) if kind == LISTING and self.log_total else told)
