"""What the parts of a model say of held-out users' items, before they are blended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flmrec_spark import metrics, ranking
from flmrec_spark.lm.blending import Blend, Bools, Scores
from flmrec_spark.lm.collaborative import Floats, Places
from flmrec_spark.ranking import best


@dataclass(frozen=True)
class Parts:
    """What the parts of a model say of one user's items, float64 (N,) each; None for a part that there is not."""

    text: Scores  # logit of the rating head with the bias terms
    rating: Scores | Floats | None  # factors
    head: Scores | None  # logit of the listing head
    listing: Scores | Floats | None  # factors: the log of an item's share
    is_new: npt.NDArray[np.bool_] | None  # items that the factors have not met

    def take(self, places: Any) -> Parts:
        return Parts(*[None if part is None else part[places] for part in vars(self).values()])  # type: ignore[arg-type]

    @property
    def has_listing(self) -> bool:
        return self.head is not None or self.listing is not None

    def plain_rating(self) -> Scores:
        """The logit as training has it, before anything is fitted."""
        return self.text if self.rating is None else self.text + self.rating

    def plain_listing(self) -> Scores:
        if not self.has_listing:
            return self.plain_rating()
        parts: Any = [part for part in (self.head, self.listing) if part is not None]
        return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def together(parts: Sequence[Parts]) -> Parts:
    """All items of some users behind each other."""
    if not parts:
        return Parts(np.zeros(0), None, None, None, None)
    columns = [[getattr(one, name) for one in parts] for name in vars(parts[0])]
    return Parts(*[None if column[0] is None else np.concatenate(column) for column in columns])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lists:
    """The items that the list of each of some users could hold, what was liked next among them, and who is new."""

    parts: Sequence[Parts]  # (N,) of each user
    relevant: Sequence[Places]  # places in them
    is_new: Bools  # (U,) without history

    @classmethod
    def of(cls, each: Sequence[tuple[Parts, Places, bool]]) -> Lists:
        return cls(
            [parts for parts, *_ in each], [own for _, own, _ in each], np.array([new for *_, new in each], bool)
        )

    def ndcg(self, blend: Blend, *, k: int, of: Bools | None = None) -> float:
        """Mean NDCG@k of the lists by a blend, or of those of some users; nan without any."""
        asked = range(len(self.parts)) if of is None else np.flatnonzero(of).tolist()
        lists = [best(self._scores(blend, self.parts[user]), k) for user in asked]
        return metrics.mean(ranking.ndcg(lists, [self.relevant[user] for user in asked], k=k))

    def _scores(self, blend: Blend, parts: Parts) -> Scores:
        assert blend.listing is not None
        rating = blend.calibration.log_odds(parts.text, parts.rating, parts.listing)
        return blend.listing.log_odds(rating, parts.head, parts.listing, parts.is_new)
