"""From what the parts of a model say to two numbers in [0, 1]: how probably a user likes an item, and where it stands.

    probability = sigmoid(slope text + factors rating_factors + listing (listing_factors - level) + intercept)
    score       = sigmoid(rating log-odds of the probability + head listing_head + factors listing_factors
                          + new is_new + intercept)

text is the rating head's logit with the bias terms; listing_factors is the log of the share that an item has of what
the user meets next, and level its mean on the valid split, so that it says nothing where it is not known; is_new is 1
for an item that the factors have not met, else 0. Both are fitted on the valid split: the probability by Platt's
scaling (Platt 1999), with the listing factors where they say more than a weight costs (Akaike 1974), the score as the
even-odds probability that an item is liked next rather than one of those that are not. So new items stand as high as
they are liked: where what comes next is new, above all that is known. A part without which the lists of the valid
split are no worse weighs nothing in the score, where 50 users of a kind say so. A model without a listing part has no
score of its own: its lists stand in the order of the probability.

Of a user without history the factors know offsets and a profile at most, and the text a profile, so that their weights
are fitted apart from the others' where the valid split has enough users of both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flmrec_spark import metrics

Scores = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Names = frozenset[str]  # of ListBlend's parts

N_DRAWN = 100  # items of a user that those liked next are told apart from
_IDLE = ("rating", "head", "factors")
FEWEST_USERS = 50  # of a kind, held out, below which nothing is fitted for them alone


def sigmoid(log_odds: Any) -> Scores:
    """float64 in [0, 1]; 0 and 1 only where float64 ends: no early ties."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(log_odds, dtype=np.float64))))


@dataclass(frozen=True)
class Calibration:
    """Of the rating parts; slope > 0, so that of equal factors it never changes an order."""

    slope: float = 1.0
    intercept: float = 0.0
    factors: float = 1.0
    listing: float = 0.0
    level: float = 0.0

    def log_odds(self, text: Any, factors: Any = None, listing: Any = None) -> Scores:
        """Logits of any shape, broadcast -> float64 of that shape; None: nothing is known."""
        found = self.slope * np.asarray(text, dtype=np.float64) + self.intercept
        found = found if factors is None else found + self.factors * factors
        return np.asarray(found if listing is None else found + self.listing * (listing - self.level))

    def probability(self, text: Any, factors: Any = None, listing: Any = None) -> Scores:
        """As `log_odds`, in [0, 1]."""
        return sigmoid(self.log_odds(text, factors, listing))


@dataclass(frozen=True)
class ListBlend:
    """Of the parts that order a list."""

    rating: float
    head: float
    factors: float
    intercept: float = 0.0
    new: float = 0.0

    def log_odds(self, rating: Any, head: Any = None, factors: Any = None, is_new: Any = None) -> Scores:
        """Log-odds of the probability, listing logits, factors and is_new, broadcast -> float64 of that shape.

        None: nothing is known.
        """
        weights, parts = (self.head, self.factors, self.new), (head, factors, is_new)
        found = self.rating * np.asarray(rating, dtype=np.float64) + self.intercept
        for weight, part in zip(weights, parts, strict=True):
            found = found if part is None else found + weight * part
        return np.asarray(found)


@dataclass(frozen=True)
class Blend:
    """How the two numbers are made of the parts."""

    calibration: Calibration
    listing: ListBlend | None = None  # None: lists stand in the order of the probability

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Blend:
        """What `told` gave. Raises KeyError or TypeError of something else."""
        listing = told["listing"]
        return cls(Calibration(**told["rating"]), None if listing is None else ListBlend(**listing))

    def told(self) -> dict[str, Any]:
        """As JSON may hold it."""
        return {"rating": asdict(self.calibration), "listing": None if self.listing is None else asdict(self.listing)}

    @property
    def is_sound(self) -> bool:
        """All numbers are finite, and a better text never makes a worse probability."""
        numbers = [number for part in self.told().values() if part is not None for number in part.values()]
        return self.calibration.slope > 0 and bool(np.isfinite(numbers).all())


def fit_calibration(text: Any, factors: Any | None, liked: Bools, listing: Any | None = None) -> Calibration:
    """Maximum likelihood on held-out rows (R,), of targets just inside 0 and 1.

    Stays the identity when there is one label only, or when the logits order the labels backwards; factors that order
    them backwards weigh nothing. Where the text would beside the factors, as when they say nearly the same, their sum
    has one weight. The listing factors are left out unless they add more to the log-likelihood than 1.
    """
    if len(np.unique(liked)) < 2:
        return Calibration()
    plain, loss = _calibrated(text, factors, None, liked)
    if listing is None or plain == Calibration():
        return plain
    level = float(np.mean(listing, dtype=np.float64))
    found, less = _calibrated(text, factors, np.asarray(listing) - level, liked)
    gained = len(liked) * (loss - less)
    return replace(found, level=level) if found.slope > 0 and found.listing > 0 and gained > 1 else plain


def _calibrated(text: Any, factors: Any | None, listing: Any | None, liked: Bools) -> tuple[Calibration, float]:
    """With the log-loss on the same rows."""
    parts = {"slope": np.asarray(text, dtype=np.float64), "factors": factors, "listing": listing}
    given = {name: part for name, part in parts.items() if part is not None}
    found, intercept = _weights(given, liked)
    if found["slope"] <= 0 < found.get("factors", 0.0):
        given["slope"] = given["slope"] + given.pop("factors")
        found, intercept = _weights(given, liked)
        found["factors"] = found["slope"]
    if found["slope"] <= 0:
        return Calibration(), np.inf
    unknown = 1.0 if factors is None else 0.0
    told = Calibration(found["slope"], intercept, found.get("factors", unknown), found.get("listing", 0.0))
    return told, metrics.log_loss(liked, told.probability(text, factors, listing))


def _weights(given: Mapping[str, Any], liked: Bools) -> tuple[dict[str, float], float]:
    """Of each part, and the intercept; what orders the labels backwards beside the text is left out."""
    weights, intercept = fit_logistic(np.column_stack(list(given.values())), liked, _platt(liked))
    found = dict(zip(given, weights, strict=True))
    backwards = [name for name, weight in found.items() if weight < 0 and name != "slope"]
    if backwards:
        return _weights({name: part for name, part in given.items() if name not in backwards}, liked)
    return found, intercept


def fit_list_blend(
    rating: Scores | None,
    head: Any | None,
    factors: Any | None,
    relevant: Bools,
    weights: Scores,
    is_new: Bools | None = None,
) -> ListBlend | None:
    """Parts (R,) of items that users liked next and of others; every user's two sides should weigh alike.

    None when there is no listing part, or nothing tells the two apart. A part that would count backwards weighs
    nothing; `is_new` may count either way. The targets are Platt's, of as many rows as they weigh.
    """
    parts = {"rating": rating, "head": head, "factors": factors}
    given = {name: part for name, part in parts.items() if part is not None}
    if list(given) == ["rating"] or len(np.unique(relevant)) < 2:
        return None
    columns = np.column_stack(list(given.values()))
    more: list[str] = []
    if is_new is not None and 0 < np.count_nonzero(is_new) < len(is_new):
        more = ["new"]
        columns, relevant, weights = _smoothed(np.column_stack([columns, is_new]), relevant, weights)
    left, names = list(given), [*given, *more]
    while left:
        chosen = columns[:, [names.index(name) for name in [*left, *more]]]
        found, intercept = fit_logistic(chosen, relevant, _platt(relevant, weights), weights)
        backwards = [name for name, weight in zip(left, found, strict=False) if weight < 0]
        if not backwards:
            told = dict.fromkeys([*parts, "new"], 0.0) | dict(zip([*left, *more], found, strict=True))
            return ListBlend(told["rating"], told["head"], told["factors"], intercept, told["new"])
        left = [name for name in left if name not in backwards]
    return None


def smaller_by_one(_: ListBlend, names: Names) -> list[Names]:
    """The parts less one, where one of lists stays; of parts that are not missed the rating goes first."""
    return [names - {name} for name in _IDLE if name in names and names - {name} - {"rating"}]


def _smoothed(columns: Any, relevant: Bools, weights: Scores) -> tuple[Any, Bools, Scores]:
    """Each side with one more row of weight 1 that is new, and one that is not; is_new is the last column.

    Laplace's rule: where all that was liked next is new, or nothing is, new would weigh infinitely.
    """
    rows = []
    for side in (True, False):
        usual = np.average(columns[relevant == side], axis=0, weights=weights[relevant == side])
        rows += [[*usual[:-1], is_new] for is_new in (0.0, 1.0)]
    sides = np.array([True, True, False, False])
    return np.vstack([columns, rows]), np.concatenate([relevant, sides]), np.concatenate([weights, np.ones(4)])


def _platt(liked: Bools, weights: Scores | None = None) -> Scores:
    """Platt's targets: without them separable rows would drive the slope, and every probability, to the limit."""
    each = np.ones(len(liked)) if weights is None else weights
    n_liked, n_others = each[liked].sum(), each[~liked].sum()
    return np.asarray(np.where(liked, (n_liked + 1) / (n_liked + 2), 1 / (n_others + 2)))


def fit_logistic(
    features: Any, labels: Bools, targets: Scores | None = None, weights: Scores | None = None
) -> tuple[Sequence[float], float]:
    """(weights, intercept) of a logistic regression without penalty, with targets (R,) between 0 and 1 if given."""
    from sklearn.linear_model import LogisticRegression  # here: a second, and what scores fits nothing

    if targets is None:
        fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(features, labels, sample_weight=weights)
    else:
        rows, sides = np.tile(features, (2, 1)), np.repeat([True, False], len(labels))
        shares = np.concatenate([targets, 1 - targets]) * (1.0 if weights is None else np.tile(weights, 2))
        fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(rows, sides, sample_weight=shares)
    return [float(weight) for weight in fitted.coef_[0]], float(fitted.intercept_[0])
