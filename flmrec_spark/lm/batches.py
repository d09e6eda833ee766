"""Training steps from examples: which prefixes go together and which unrated items they are compared with.

Everything is a function of (seed, epoch) or (seed, step), so a resumed run meets the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from flmrec_spark.config import AugmentConfig
from flmrec_spark.lm.augmentation import augmented
from flmrec_spark.lm.dataset import Examples, Floats, Index, Source
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.token_block import TokenBlock

Mask = npt.NDArray[np.bool_]

_BUCKET = 16  # steps whose examples are sorted by length together, so that little is padded


@dataclass(frozen=True)
class Step:
    """What one forward needs. B prefixes, G observed targets and K negatives each, M distinct items."""

    prefixes: TokenBlock  # B rows
    users: Index  # (B,)
    distinct: Index  # (M,) places of the items
    grid: Index  # (B, G + K) into `distinct`; observed targets first
    items: Index  # (B, G + K) places of the items; -1 where there is none, or the user knows the negative
    labels: Floats  # (B, G)
    rows: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (B,) places of the examples

    @property
    def is_observed(self) -> Mask:
        """(B, G): a target, and not the filling of a short row."""
        return self.items[:, : self.labels.shape[1]] >= 0

    @property
    def is_ranked(self) -> Mask:
        """(B, G): liked, and there is a negative to rank it above."""
        has_negative = (self.items[:, self.labels.shape[1] :] >= 0).any(axis=1, keepdims=True)
        return self.is_observed & (self.labels > 0.5) & has_negative

    def split(self, n_parts: int) -> Iterator[Step]:
        """The rows in about equal parts, for gradient accumulation."""
        for rows in np.array_split(np.arange(len(self.users)), n_parts):
            if len(rows):
                yield self.take(rows)

    def share(self, rank: int, size: int) -> Step | None:
        """The rows of one of `size` processes; None when there are fewer rows than processes."""
        rows = np.array_split(np.arange(len(self.users)), size)[rank]
        return self.take(rows) if len(rows) else None

    def take(self, rows: Index) -> Step:
        """Some of the rows."""
        places = self.rows[rows] if len(self.rows) else self.rows
        return step_of(self.prefixes.take(rows), self.users[rows], self.items[rows], self.labels[rows], places)


@dataclass(frozen=True)
class Negatives:
    """Draws items that a step's users are compared with: one draw for all of them, so each item is encoded once."""

    share: npt.NDArray[np.float64]  # (N,): probability ~ interactions ** power, 0 for an item that no prompt can show
    log_share: Floats  # (N,): log of how much more often than the mean item each is drawn; 0 when uniform
    known: Index  # sorted keys user * N + item that are no negatives

    @classmethod
    def of(cls, counts: Floats, *, power: float, known: Index, drawable: Mask, n: int) -> Negatives:
        """counts (N,): interactions of each item; one without any counts as 1, or power would hide it forever.

        `n` items are drawn at a time. None is drawn twice, so the most popular are drawn less often than n times their
        share: what logits are corrected for is the probability of being among them.
        """
        weights = np.where(drawable, np.maximum(counts, 1.0).astype(np.float64) ** power, 0.0)
        share = weights / weights.sum()
        drawn = _inclusion(share, n)
        with np.errstate(divide="ignore"):
            log_share = np.log(drawn / drawn[drawable].mean())
        return cls(share, log_share.astype(np.float32), known)

    def draw(self, users: Index, n: int, random: np.random.Generator) -> Index:
        """(B, n) places of n distinct items, the same for each user; -1 where the user has rated the item."""
        n_items = len(self.share)
        n_drawn = min(n, int((self.share > 0).sum()))
        drawn = np.sort(random.choice(n_items, size=n_drawn, replace=False, p=self.share))
        drawn = np.concatenate([drawn, np.full(n - n_drawn, -1)])
        keys = users[:, None] * n_items + drawn
        places = np.searchsorted(self.known, keys).clip(max=max(len(self.known) - 1, 0))
        is_known = self.known[places] == keys if len(self.known) else np.zeros(keys.shape, dtype=bool)
        return np.where(is_known, -1, np.broadcast_to(drawn, keys.shape))


def _inclusion(share: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """(N,) about how probably each item is among n that are drawn one after the other without being put back.

    An item that waits a time with rate `share` for its turn has had it by a time t with 1 - exp(-share t); t is when n
    of them have (Rosen 1972, successive sampling).
    """
    if n == 0 or n >= (share > 0).sum():
        return (share > 0).astype(np.float64)

    def drawn_by(time: float) -> npt.NDArray[np.float64]:
        return np.asarray(-np.expm1(-share * time))

    last = 2.0 * n
    while drawn_by(last).sum() < n:
        last *= 2
    return drawn_by(float(brentq(lambda time: drawn_by(time).sum() - n, 0.0, last, xtol=1e-12)))


def epoch_order(lengths: Index, *, per_step: int, seed: int, epoch: int) -> list[Index]:
    """Rows of each step of an epoch: every row once, rows of similar length together, steps shuffled."""
    random = np.random.default_rng([seed, 1, epoch])
    shuffled = random.permutation(len(lengths))
    steps = []
    for start in range(0, len(shuffled), per_step * _BUCKET):
        bucket = shuffled[start : start + per_step * _BUCKET]
        ordered = bucket[np.argsort(lengths[bucket], kind="stable")]
        steps += [ordered[at : at + per_step] for at in range(0, len(ordered), per_step)]
    return [steps[place] for place in random.permutation(len(steps))]


def make_step(
    rows: Index,
    data: Examples,
    segmenter: Segmenter,
    negatives: Negatives,
    *,
    n_negatives: int,
    seed: int,
    number: int,
    augment: AugmentConfig | None = None,
    tastes: Floats | None = None,
) -> Step:
    """The rows of an order as one step; `number` counts the steps of the whole training.

    `tastes` (R, F) of all examples, where there are collaborative factors.
    """
    users = data.users[rows]
    drawn = negatives.draw(users, n_negatives, np.random.default_rng([seed, 2, number]))
    items = np.concatenate([data.targets[rows], drawn], axis=1)
    prefixes = [data.prefixes[row] for row in rows]
    if augment is not None and augment.is_on:
        random = np.random.default_rng([seed, 4, number])
        prefixes = [
            _augmented(prefix, data.sources[row], segmenter, augment, random)
            for prefix, row in zip(prefixes, rows, strict=True)
        ]
    block = segmenter.block(prefixes)
    if tastes is not None:
        block = replace(block, factors=tastes[rows])
    return step_of(block, users, items, data.labels[rows], rows)


def _augmented(
    prefix: list[int], source: Source, segmenter: Segmenter, augment: AugmentConfig, random: np.random.Generator
) -> list[int]:
    # What was cut before would come into view when newer entries are left out: it is the same history.
    segment = segmenter.user(source.profile, augmented(source.history, augment, random))
    return prefix if segment is None else segment.ids


def step_of(prefixes: TokenBlock, users: Index, items: Index, labels: Floats, rows: Index) -> Step:
    """A step of these rows; `items` (B, G + K) are places, -1 where there is none."""
    distinct, grid = np.unique(np.maximum(items, 0), return_inverse=True)
    return Step(prefixes, users, distinct, grid.reshape(items.shape), items, labels, rows)
