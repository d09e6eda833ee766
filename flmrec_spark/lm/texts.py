"""Scores of rendered texts: what SQL asks of the model, one pair a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flmrec_spark.lm.scorer import Scorer, Scores
from flmrec_spark.lm.segments import Segmenter


@torch.inference_mode()
def score_texts(
    scorer: Scorer, segmenter: Segmenter, user_texts: Sequence[str | None], item_texts: Sequence[str | None]
) -> Scores:
    """Probabilities float64 (R,) of R pairs of texts; nan where one is null or the item exceeds its token budget.

    A user who stands in several rows is encoded once, an item's text is tokenised once, equal pairs score the same.
    """
    items = sorted({text for text in item_texts if text is not None})
    segments = dict(zip(items, segmenter.item_texts(items), strict=True))
    rows_of: dict[str, list[int]] = {}
    for row, (user, item) in enumerate(zip(user_texts, item_texts, strict=True)):
        if user is not None and item is not None and segments[item] is not None:
            rows_of.setdefault(user, []).append(row)
    result = np.full(len(user_texts), np.nan)
    for user, rows in rows_of.items():
        asked = list(dict.fromkeys(item_texts[row] or "" for row in rows))  # equal rows, equal scores to the last bit
        place = {item: at for at, item in enumerate(asked)}
        block = segmenter.block([segments[item] or [] for item in asked])
        values = scorer.calibration.probability(scorer.pair_logits(segmenter.user_text(user), block))
        result[rows] = values[[place[item_texts[row] or ""] for row in rows]]
    return result
