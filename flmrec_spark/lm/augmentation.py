"""History augmentation: the same user with entries left out, a stretch shown alone, or a stretch shuffled.

Crop, mask and reorder as in Xie et al. 2022 (CL4SRec), section 3.2, but as training data of the same objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmrec_spark.config import AugmentConfig
from flmrec_spark.lm.segments import Interaction


def augmented(
    history: Sequence[Interaction], settings: AugmentConfig, random: np.random.Generator
) -> list[Interaction]:
    """A history, newest first, after crop, drop and reorder, in this order; at least one entry of it stays."""
    entries = list(history)
    if len(entries) > 1 and random.random() < settings.crop:
        start, stop = _stretch(len(entries), random)
        entries = entries[start:stop]
    if len(entries) > 1 and settings.drop > 0.0:
        kept = random.random(len(entries)) >= settings.drop
        kept[random.integers(len(entries))] |= not kept.any()
        entries = [entry for entry, stays in zip(entries, kept, strict=True) if stays]
    if len(entries) > 1 and random.random() < settings.reorder:
        start, stop = _stretch(len(entries), random)
        order = start + random.permutation(stop - start)
        entries[start:stop] = [entries[place] for place in order]
    return entries


def _stretch(n: int, random: np.random.Generator) -> tuple[int, int]:
    """A stretch of at least half of n places, at least 2 where there are 2."""
    size = int(random.integers(max(min(n, 2), n // 2), n + 1))
    start = int(random.integers(n - size + 1))
    return start, start + size
