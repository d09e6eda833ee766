"""What a blend of parts lists, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flmrec_spark.lm.blending import Blend, Calibration, ListBlend
from flmrec_spark.lm.parts import Lists, Parts


def test_lists_tell_the_ndcg_of_a_blend_of_all_users_and_of_some():
    random = np.random.default_rng(8)
    parts, places, by_hand = [], [], []
    blend = Blend(Calibration(0.5, 0.1, 2.0), ListBlend(0.3, 0.7, 1.2, new=-0.5))
    for _ in range(30):
        text, rating, head, listing = random.normal(size=(4, 60))
        is_new, relevant = random.random(60) < 0.2, np.sort(random.choice(60, size=5, replace=False))
        parts.append(Parts(text, rating, head, listing, is_new))
        places.append(relevant)
        score = 0.3 * (0.5 * text + 2 * rating) + 0.7 * head + 1.2 * listing - 0.5 * is_new
        gains = np.isin(np.argsort(-score)[:10], relevant) / np.log2(np.arange(2, 12))
        by_hand.append(gains.sum() / (1 / np.log2(np.arange(2, 7))).sum())
    found = Lists(parts, places, np.arange(30) % 2 == 1)
    assert found.ndcg(blend, k=10) == pytest.approx(np.mean(by_hand))
    assert found.ndcg(blend, k=10, of=found.is_new) == pytest.approx(np.mean(by_hand[1::2]))
    assert math.isnan(found.ndcg(blend, k=10, of=np.zeros(30, dtype=bool)))
