"""What a checkpoint says of a user, all parts together: how probably they like each item, and its place.

The language model is asked by the scorer; bias terms and collaborative factors are added here, and blended as the
checkpoint was calibrated. Shapes: N items of the scorer, F factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import text_factors
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.blending import Blend, Scores, sigmoid
from flmrec_spark.lm.checkpoint import Checkpoint
from flmrec_spark.lm.collaborative import LISTING, RATING, Collaborative, Floats, ItemFactors, Places
from flmrec_spark.lm.profiles import Words
from flmrec_spark.lm.scorer import Index, Scorer
from flmrec_spark.lm.token_block import TokenBlock


@dataclass(frozen=True)
class Said:
    """Of some items, float64 (N,) each and in [0, 1]."""

    score: Scores  # orders the list
    probability: Scores  # that the user likes the item
    rating: Scores  # log-odds of the probability
    listing: Scores | None  # log-odds of the score, where it is not the probability


@dataclass(frozen=True)
class Taste:
    """What collaborative factors make of one history and profile."""

    factors: Floats | None = None  # (F,), None where there are none
    is_new: bool = False  # nothing in it is of the catalogue


@dataclass(frozen=True)
class Asked:
    """One user, and the items that are asked about: rows of the scorer, or None for all."""

    segment: list[int]
    user_id: str
    taste: Taste
    items: Index | None = None


@dataclass(frozen=True)
class Rules:
    """How a checkpoint makes two numbers of the parts."""

    blend: Blend
    new_users: Blend  # of users without history
    biases: Biases
    factors: Collaborative | None
    has_tokens: bool  # the factors are a token of each segment

    @classmethod
    def of(cls, found: Checkpoint, *, of_train: bool) -> Rules:
        """`of_train`: with the factors and bias terms that have not seen the valid split."""
        factors = found.collaborative(of_train=of_train)
        biases = found.biases(of_train=of_train)
        return cls(found.blend, found.new_users or found.blend, biases, factors, found.settings.n_factors > 0)

    def item_bias(self, ids: Sequence[str]) -> Scores:
        """The learned offset of each item, 0 for one that training did not meet: float64 (len(ids),)."""
        return np.array([self.biases.item.get(item, 0.0) for item in ids], dtype=np.float64)

    def of_items(self, ids: pa.Array, tokens: TokenBlock, model: Any) -> ItemFactors | None:
        """The factors of a catalogue; those of new items by what the model's word embeddings say of their tokens."""
        return None if self.factors is None else text_factors.of_items(self.factors, ids, tokens, model)


class Judge:
    """A scorer and all that is added to what it says.

    Args:
      items: factors of the scorer's items; None where the checkpoint has none.
      place_in_factors: place in the factors of every place of the catalogue, by which histories are given.

    Raises:
      CheckpointError: a score that it is asked for is no number.
    """

    def __init__(
        self, scorer: Scorer, rules: Rules, items: ItemFactors | None, place_in_factors: Places | None
    ) -> None:
        self.scorer, self.rules, self.items, self.place_in_factors = scorer, rules, items, place_in_factors

    def taste(self, history: Places, is_liked: Any, values: Any, words: Words) -> Taste:
        """Of a history of places in the catalogue, newest first; -1 for an item that has left it.

        `values` (H,) are what each interaction was worth, None where that is not known; `words` those of the profile.
        """
        known = history >= 0
        is_new = not known.any()
        if self.rules.factors is None or self.place_in_factors is None:
            return Taste(None, is_new)
        places: Places = self.place_in_factors[history[known]]
        labels = self.rules.factors.labels(values, is_liked)[known]
        return Taste(self.rules.factors.taste(places, labels, words), is_new)

    def says(self, asked: Asked) -> Said:
        """Of one user alone."""
        return self._said(asked, self.scorer.head_logits(asked.segment, items=asked.items, factors=self._shown(asked)))

    def says_each(self, asked: Sequence[Asked]) -> Iterator[Said]:
        """Of each user, in their order; those who are asked about all items go together where the scorer does so."""
        whole = ((one.segment, self._shown(one)) for one in asked if one.items is None)
        logits = self.scorer.head_logits_each(whole)
        for one in asked:
            yield self._said(one, next(logits)) if one.items is None else self.says(one)

    def _shown(self, asked: Asked) -> Floats | None:
        return asked.taste.factors if self.rules.has_tokens else None

    def _said(self, asked: Asked, logits: Scores) -> Said:
        rules, factors = self.rules, asked.taste.factors
        blend = rules.new_users if asked.taste.is_new else rules.blend
        chosen: Any = slice(None) if asked.items is None else asked.items
        text = logits[0] + self.scorer.items.bias[chosen] + rules.biases.user.get(asked.user_id, 0.0)
        own = self._term(LISTING, factors, chosen)
        rating = blend.calibration.log_odds(text, self._term(RATING, factors, chosen), own)
        if blend.listing is None:
            probability = _score(rating)
            return Said(probability, probability, rating, None)
        head = logits[1] if len(logits) > 1 else None
        is_new = None if self.items is None else self.items.is_new[chosen]
        listing = blend.listing.log_odds(rating, head, own, is_new)
        return Said(_score(listing), sigmoid(rating), rating, listing)

    def _term(self, kind: str, factors: Floats | None, chosen: Any) -> Floats | None:
        return None if self.items is None or factors is None else self.items.term(kind, factors, chosen)


def _score(log_odds: Scores) -> Scores:
    """Raises CheckpointError where one is no number: `ranking.best` would leave it out unseen."""
    is_finite = np.isfinite(log_odds)
    if not is_finite.all():
        raise CheckpointError(
            f"checkpoint: {np.count_nonzero(~is_finite):,} of {len(log_odds):,} scores are no numbers, expected finite "
            "ones: the checkpoint's weights, biases or factors hold some"
        )
    return sigmoid(log_odds)
