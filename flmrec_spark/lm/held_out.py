"""A checkpoint asked about the held-out rows of the test split, without Spark: for benchmarks of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flmrec_spark import columns as c
from flmrec_spark import metrics
from flmrec_spark.bootstrap import Floats, Statistic, interval, mean_over_users, resamples
from flmrec_spark.lm import dataset
from flmrec_spark.lm.checkpoint import Checkpoint
from flmrec_spark.lm.collaborative import ItemFactors
from flmrec_spark.lm.dataset import Catalog, Examples
from flmrec_spark.lm.judge import Asked, Judge, Rules, Taste
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.prepared import Prepared, drawn_users
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.training_factors import tastes
from flmrec_spark.ranking import best

K = 10
NDCG = f"ndcg@{K}"
METRICS = ("auc", "uauc", NDCG)
_HISTORY = [c.TRAIN, c.VALID]


@dataclass(frozen=True)
class Answers:
    """What a checkpoint said of the held-out rows: R rated pairs of U users, and hits (U, K), or none."""

    users: dataset.Index
    labels: dataset.Floats
    scores: Floats
    hits: np.ndarray[Any, Any] | None
    n_relevant: np.ndarray[Any, Any]

    def statistics(self) -> dict[str, Statistic]:
        parts = self.users, self.labels, self.scores
        found = metrics.pointwise(*parts, probabilities=None, n_users=len(self.n_relevant))
        if self.hits is not None:
            found[NDCG] = mean_over_users(metrics.ndcg(self.hits, self.n_relevant, k=K))
        return found


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of the test split as a checkpoint's own prompts."""

    model: SegmentedModel
    rules: Rules
    catalog: Catalog
    factors: ItemFactors | None  # of the catalogue
    item_bias: Floats
    user_ids: list[str]
    rows: Examples  # one of each user
    tastes: dataset.Floats | None  # (U, F)
    seen: dataset.Index  # sorted keys row's user * N + item

    @classmethod
    def of(cls, prepared: Prepared, found: Checkpoint, n_users: int) -> HeldOut:
        segmenter, model, rules = found.segmenter(), found.model(), Rules.of(found, of_train=False)
        items = dataset.catalog(prepared.tables["items"], segmenter)
        user_ids = sorted(prepared.tables["users"][c.USER_ID].to_pylist())
        drawn = drawn_users(prepared, c.TEST, n=n_users, seed=[1])
        rows = dataset.examples(prepared, c.TEST, items, segmenter, width=None, user_ids=user_ids, only=drawn)
        factors, own = rules.of_items(items.ids(), items.tokens, model), None
        if rules.factors is not None and factors is not None:
            profiles = dataset.profiles(prepared, segmenter, user_ids, are_read=rules.factors.reads_profiles)
            own = tastes(rules.factors, profiles, prepared, items, user_ids, rows, _HISTORY)
            if rules.has_tokens:
                items = replace(items, tokens=replace(items.tokens, factors=factors.vectors))
        item_bias = rules.item_bias(items.item_ids)
        seen = dataset.seen(prepared, items, user_ids, splits=_HISTORY)
        return cls(model, rules, items, factors, item_bias, user_ids, rows, own, seen)

    def answers(self, scorer: Scorer, *, lists: bool) -> Answers:
        """Of a scorer of the catalogue with `item_bias`; without lists, it is asked about the rated pairs alone."""
        judge = Judge(scorer, self.rules, self.factors, None)
        n_items, is_target = len(self.catalog.item_ids), self.rows.targets >= 0
        is_liked = is_target & (self.rows.labels > 0.5)
        hits = np.zeros((len(self.rows), K), dtype=bool) if lists else None
        found, n_relevant = [], np.zeros(len(self.rows))
        targets_of = [self.rows.targets[row][is_target[row]] for row in range(len(self.rows))]
        asked = [self._asked(row, None if lists else targets) for row, targets in enumerate(targets_of)]
        for row, said in enumerate(judge.says_each(asked)):
            if hits is None:
                found.append(said.rating)
                continue
            found.append(said.rating[targets_of[row]])
            user = int(self.rows.users[row])
            first, stop = np.searchsorted(self.seen, [user * n_items, (user + 1) * n_items])
            known = self.seen[first:stop] - user * n_items
            top = best(said.score, K, allowed=self.catalog.is_known & ~np.isin(np.arange(n_items), known))
            relevant = np.setdiff1d(self.rows.targets[row][is_liked[row]], known)
            hits[row, : len(top)] = np.isin(top, relevant)
            n_relevant[row] = len(relevant)
        users = np.repeat(np.arange(len(self.rows)), is_target.sum(1))
        return Answers(users, self.rows.labels[is_target], np.concatenate(found), hits, n_relevant)

    def _asked(self, row: int, items: Any) -> Asked:
        taste = Taste(None if self.tastes is None else self.tastes[row], bool(self.rows.is_new[row]))
        return Asked(self.rows.prefixes[row], self.user_ids[self.rows.users[row]], taste, items)


def compared(own: Sequence[Answers], base: Sequence[Answers], *, n_resamples: int) -> dict[str, Any]:
    """Each metric as the mean over trainings of different seeds, and its difference from `base`, where that has it.

    Intervals are percentiles over resamples of users, of differences paired by user; `NAME_seeds` are the values of the
    single trainings.
    """
    drawn = np.vstack([np.ones(len(own[0].n_relevant)), resamples(len(own[0].n_relevant), n=n_resamples, seed=1)])
    ours, theirs = ([_values(one, drawn) for one in side] for side in (own, base))
    found: dict[str, Any] = {}
    for name in (name for name in METRICS if name in ours[0]):
        mean = np.mean([one[name] for one in ours], axis=0)
        found |= {name: float(mean[0]), f"{name}_interval": interval(mean[1:])}
        found |= {f"{name}_seeds": [float(one[name][0]) for one in ours]}
        if name in theirs[0]:
            less = mean - np.mean([one[name] for one in theirs], axis=0)
            found |= {f"{name}_difference": float(less[0]), f"{name}_difference_interval": interval(less[1:])}
    return found


def told(row: Mapping[str, Any]) -> dict[str, str]:
    """The metrics of a row as a table shows them: value, difference and that one's interval in one cell."""
    cells = {}
    for name in METRICS:
        cells[name] = f"{row[name]:.4f}" if name in row else ""
        if f"{name}_difference" in row:
            low, high = row[f"{name}_difference_interval"]
            cells[name] += f" {row[f'{name}_difference']:+.4f} ({low:+.4f} .. {high:+.4f})"
    return cells


def _values(answers: Answers, weights: Floats) -> dict[str, Floats]:
    return {name: statistic(weights) for name, statistic in answers.statistics().items()}
