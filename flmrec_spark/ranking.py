"""From scores to an order: the same scores give the same list everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def best(scores: npt.NDArray[np.float64], n: int, *, allowed: Any = None) -> npt.NDArray[np.intp]:
    """Places of the n best scores, best first, equal ones by place; fewer when fewer are allowed (bool (N,))."""
    places = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    if len(places) > n:
        chosen = scores[places]
        places = places[chosen >= np.partition(chosen, len(chosen) - n)[len(chosen) - n]]
    return places[np.lexsort((places, -scores[places]))][:n]
