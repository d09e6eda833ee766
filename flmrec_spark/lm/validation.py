"""How good a model is on held-out examples, measured as it is served, and what is fitted on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flmrec_spark import metrics, ranking
from flmrec_spark.elimination import without_idle
from flmrec_spark.lm.blending import (
    FEWEST_USERS,
    N_DRAWN,
    Blend,
    Bools,
    Calibration,
    ListBlend,
    Names,
    Scores,
    fit_calibration,
    fit_list_blend,
    smaller_by_one,
)
from flmrec_spark.lm.collaborative import LISTING, RATING, Floats, ItemFactors
from flmrec_spark.lm.dataset import Catalog, Examples, Index
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.parts import Lists, Parts, together
from flmrec_spark.lm.precision import can_pack
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.training import BiasTerms
from flmrec_spark.ranking import best

_K = 10  # cut-off of the validation's NDCG
_SEED = 7
_CELLS = 10_000_000  # users times items of whole lists that are kept


@dataclass(frozen=True)
class Validation:
    """Metrics of a model on held-out examples, and what they were computed from."""

    metrics: Mapping[str, float]
    asked: Parts  # of all targets
    labels: Floats
    drawn: Parts  # of each user's items liked next, and of N_DRAWN others
    is_relevant: npt.NDArray[np.bool_]
    weights: Scores  # by which the two sides of each user weigh 1
    lists: Lists  # whole ones, of the same users or of some of them
    of_new: tuple[Bools, Bools]  # rows of `asked` and of `drawn` whose user has no history
    n_new: int  # users without history
    n_known: int

    def blends(self) -> tuple[Blend, Blend | None]:
        """Of users with history, and of those without; None where the held-out ones are too few to tell them apart.

        Where most are without history and few have one, nothing here says what tastes are worth: they weigh as in
        training, and what is fitted on all is for users without.
        """
        new = (*self.of_new, self.lists.is_new)
        every = tuple(np.ones(len(rows), dtype=bool) for rows in new)
        of_all = self._fitted(*every)
        if self.n_known < min(FEWEST_USERS, self.n_new):
            known, unknown = self._as_trained(), of_all
        elif self.n_new < FEWEST_USERS:
            return of_all, None
        else:
            known, unknown = (
                self._fitted(*(~rows for rows in new), otherwise=of_all),
                self._fitted(*new, otherwise=of_all),
            )
        # What a hybrid is made of is the same for all users.
        return (of_all, None) if (known.listing is None) != (unknown.listing is None) else (known, unknown)

    def _fitted(self, asked: Bools, drawn: Bools, users: Bools, *, otherwise: Blend | None = None) -> Blend:
        """On some rows; a part that they say nothing of is as in `otherwise`."""
        parts, given = self.asked.take(asked), otherwise or Blend(Calibration(), None)
        calibration = fit_calibration(parts.text, parts.rating, self.labels[asked] > 0.5, parts.listing)
        calibration = given.calibration if calibration == Calibration() else calibration
        parts, sides = self.drawn.take(drawn), (self.is_relevant[drawn], self.weights[drawn])
        rating = calibration.log_odds(parts.text, parts.rating, parts.listing)
        whole = {"rating": rating, "head": parts.head, "factors": parts.listing}

        def fit(names: Names) -> ListBlend | None:
            own: list[Any] = [part if name in names else None for name, part in whole.items()]
            return fit_list_blend(own[0], own[1], own[2], *sides, parts.is_new)

        def value(listing: ListBlend) -> float:
            return self.lists.ndcg(Blend(calibration, listing), k=_K, of=users)

        names = frozenset(name for name, part in whole.items() if part is not None)
        is_enough = np.count_nonzero(users) >= FEWEST_USERS
        listing = without_idle(fit, value, names, smaller_by_one) if is_enough else fit(names)
        return Blend(calibration, listing or given.listing or self._untold())

    def _untold(self) -> ListBlend | None:  # as learned, where no list was asked for, as of the stock pair on a CPU
        return ListBlend(0.0, head=1.0, factors=1.0) if self.asked.has_listing and not len(self.weights) else None

    def _as_trained(self) -> Blend:
        """On all rows, with one weight for the sum of a rating's parts, and one for that of a list's."""
        whole = fit_calibration(self.asked.plain_rating(), None, self.labels > 0.5)
        calibration = Calibration(whole.slope, whole.intercept, factors=whole.slope)
        if not self.drawn.has_listing:
            return Blend(calibration, self._untold())
        rating = calibration.log_odds(self.drawn.plain_rating())
        told = rating, self.drawn.plain_listing(), None, self.is_relevant, self.weights, self.drawn.is_new
        listing = fit_list_blend(*told)
        return Blend(calibration, None if listing is None else replace(listing, factors=listing.head))


def validate(
    model: SegmentedModel,
    bias: BiasTerms,
    data: Examples,
    catalog: Catalog,
    *,
    seen: npt.NDArray[np.int64],
    precision: str,
    factors: tuple[ItemFactors, Floats] | None = None,
) -> Validation:
    """AUC, UAUC and log-loss on the observed targets; NDCG@10 of the liked ones among all items not seen in training.

    NDCG is nan for `join: full` on a CPU. `seen` holds sorted keys user * N + item. A row of `data` must hold all
    targets of its prefix, not a part of them. `factors` are those of the catalogue, and the tastes (R, F) of the rows.
    """
    was_training = model.training
    model.eval()
    asker = _Asker(model, bias, catalog, precision, factors)
    n_items, n_rows = len(catalog.item_ids), len(data)
    is_target = data.targets >= 0
    is_liked = is_target & (data.labels > 0.5)
    asked, drawn, relevance, weights = [], [], [], []
    new_of_drawn: list[Bools] = []
    tops, liked_next, kept = [], [], list[tuple[Parts, Index, bool]]()
    is_kept = np.random.default_rng(_SEED).permutation(n_rows) < _CELLS // n_items
    targets_of = [data.targets[row][is_target[row]] for row in range(n_rows)]
    # A catalogue of stock pairs a user would take hours on a CPU, and on a GPU too where it is a large one.
    has_lists = model.join != "full" or (not asker.is_on_cpu and n_rows * n_items <= _CELLS)
    for row, parts in enumerate(asker.each(data, None if has_lists else targets_of)):
        user, targets = int(data.users[row]), targets_of[row]
        if not has_lists:
            asked.append(parts)
            continue
        asked.append(parts.take(targets))
        own = np.searchsorted(seen, [user * n_items, (user + 1) * n_items])
        rated = seen[own[0] : own[1]] - user * n_items
        left = catalog.is_known & ~np.isin(np.arange(n_items), rated)
        tops.append(best(parts.plain_listing(), _K, allowed=left))
        relevant = np.setdiff1d(data.targets[row][is_liked[row]], rated)  # each once: a log repeats itself
        liked_next.append(relevant)
        others = _draw(left, targets, row)
        if len(relevant) and len(others):
            drawn.append(parts.take(np.concatenate([relevant, others])))
            relevance.append(np.arange(len(relevant) + len(others)) < len(relevant))
            weights.append(np.where(relevance[-1], 1 / len(relevant), 1 / len(others)))
            new_of_drawn.append(np.full(len(relevance[-1]), data.is_new[row]))
            if is_kept[row]:
                places = np.searchsorted(np.flatnonzero(left), relevant)
                kept.append((parts.take(left), places, bool(data.is_new[row])))
    model.train(was_training)
    users, labels = np.repeat(data.users, is_target.sum(1)), data.labels[is_target]
    every = together(asked)
    found = _measured(users, labels, every.plain_rating())
    found["ndcg"] = metrics.mean(ranking.ndcg(tops, liked_next, k=_K))
    sides, of_drawn = (np.concatenate(each) if each else np.zeros(0, dtype=bool) for each in (relevance, new_of_drawn))
    n_new = len(np.unique(data.users[data.is_new]))
    return Validation(
        found,
        every,
        labels,
        together(drawn),
        sides,
        np.concatenate(weights) if weights else np.zeros(0),
        Lists.of(kept),
        (np.repeat(data.is_new, is_target.sum(1)), of_drawn),
        n_new,
        len(np.unique(data.users)) - n_new,
    )


class _Asker:
    """A model as it is served, asked about whole users."""

    def __init__(
        self,
        model: SegmentedModel,
        bias: BiasTerms,
        catalog: Catalog,
        precision: str,
        factors: tuple[ItemFactors, Floats] | None,
    ) -> None:
        device = model.rating.offset.device
        self.is_on_cpu = device.type == "cpu"
        packed = self.is_on_cpu and can_pack()
        self.scorer = Scorer(model, catalog.tokens, precision=precision, device=str(device), packed=packed)
        self.user_bias, self.item_bias = (part.detach().cpu().numpy() for part in (bias.user, bias.item))
        self.factors = factors
        self.has_tokens = model.user_token is not None

    def each(self, data: Examples, items: Sequence[Index] | None) -> Iterator[Parts]:
        """Of some items of each row's user, or of all."""
        rows = range(len(data))
        if items is None:
            whole = self.scorer.head_logits_each((data.prefixes[row], self._token(row)) for row in rows)
            yield from (self._parts(row, int(data.users[row]), own, slice(None)) for row, own in enumerate(whole))
            return
        for row, chosen in enumerate(items):
            logits = self.scorer.head_logits(data.prefixes[row], items=chosen, factors=self._token(row))
            yield self._parts(row, int(data.users[row]), logits, chosen)

    def _token(self, row: int) -> Floats | None:
        return self.factors[1][row] if self.factors is not None and self.has_tokens else None

    def _parts(self, row: int, user: int, logits: Scores, chosen: Any) -> Parts:
        text = logits[0] + self.item_bias[chosen] + self.user_bias[user] if len(self.user_bias) else logits[0]
        head = logits[1] if len(logits) > 1 else None
        if self.factors is None:
            return Parts(text, None, head, None, None)
        rating, listing = (self.factors[0].term(kind, self.factors[1][row], chosen) for kind in (RATING, LISTING))
        return Parts(text, rating, head, listing, self.factors[0].is_new[chosen])


def _draw(left: npt.NDArray[np.bool_], targets: Index, row: int) -> Index:
    """Items that a list could hold and that the user was not asked about."""
    others = np.setdiff1d(np.flatnonzero(left), targets)
    random = np.random.default_rng([_SEED, row])
    return random.choice(others, size=min(N_DRAWN, len(others)), replace=False)


def _measured(users: Index, labels: Floats, logits: Scores) -> dict[str, float]:
    return {
        "auc": metrics.auc(labels, logits),
        "uauc": metrics.uauc(users, labels, logits),
        "log_loss": metrics.log_loss(labels, Calibration().probability(logits)),
    }
