"""How much an interaction was liked, as a label between 0 and 1.

    label of a liked row      =  1 - 1/2 share of the liked rows with a higher value
    label of a disliked row   =      1/2 share of the disliked rows with a lower value

5 of 5 says more than 4 of 5 does, and 1 more than 3. Only the order of the values counts, so ratings, seconds and
numbers of purchases are read alike. A liked row stays above 1/2, a disliked one below; where all of a side have one
value, their labels are 1 or 0. What is asked of a model remains liked or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Knots = npt.NDArray[np.float64]

_KNOTS = 256  # of a side, so that a million different values take no more room


@dataclass(frozen=True)
class Grades:
    """Labels at some values, by which those between them are told: (K, 2) each, values ascending."""

    liked: Knots
    disliked: Knots

    @classmethod
    def of(cls, values: Any, is_liked: Any) -> Grades:
        """From the rows to learn from: values (R,), and whether each was liked (R,)."""
        own, liked = np.asarray(values, dtype=np.float64), np.asarray(is_liked, dtype=bool)
        return cls(_knots(own[liked], is_liked=True), _knots(own[~liked], is_liked=False))

    def labels(self, values: Any, is_liked: Any) -> Floats:
        """Labels (R,) float32 of rows; of a row without a value 1 or 0."""
        own, liked = np.asarray(values, dtype=np.float64), np.asarray(is_liked, dtype=bool)
        found = np.array(liked, dtype=np.float32)
        for side, knots in ((liked, self.liked), (~liked, self.disliked)):
            graded = side & ~np.isnan(own)
            if len(knots):
                found[graded] = np.interp(own[graded], knots[:, 0], knots[:, 1])
        return found


def _knots(values: Knots, *, is_liked: bool) -> Knots:
    values = np.sort(values[~np.isnan(values)])
    places, counts = np.unique(values, return_counts=True)
    if len(places) > _KNOTS:
        chosen = np.unique(np.linspace(0, len(places) - 1, _KNOTS).astype(np.intp))
    else:
        chosen = np.arange(len(places))
    up_to = np.cumsum(counts)
    beyond = up_to[-1:] - up_to if is_liked else up_to - counts
    share = 0.5 * beyond / max(1, len(values))
    return np.column_stack([places, 1.0 - share if is_liked else share])[chosen]
