"""Scores of rendered texts, as SQL asks for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flmrec_spark.lm.blending import Calibration
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.texts import score_texts
from flmrec_spark.prompts import load_template
from tests.tiny import tiny_bert, tiny_tokenizer

ITEMS = [{"item_id": "1", "title": "ab"}, {"item_id": "2", "title": "xyz"}]


@pytest.fixture(scope="module", params=["layer", "full"])
def parts(request: pytest.FixtureRequest) -> tuple[Scorer, Segmenter]:
    model = SegmentedModel(tiny_bert(), join=request.param, join_layer=2, item_position=30, item_tokens=10).eval()
    model.rating.item_weight.data.normal_(generator=torch.Generator().manual_seed(1))
    own = Segmenter(tiny_tokenizer(), load_template("en"), user_tokens=30, item_tokens=10, history_length=3)
    segments = [segment or [] for segment in own.items(ITEMS)]
    return Scorer(model, own.block(segments), calibration=Calibration(1.5, 0.5)), own


def test_texts_score_as_the_prompts_that_they_render(parts):
    scorer, own = parts
    user = own.user({"age": 7}, [])
    assert user is not None
    text = own.template.render_user({"age": 7}) + own.template.render_no_history()
    got = score_texts(scorer, own, [text, text], [own.template.render_item(item) for item in ITEMS])
    np.testing.assert_allclose(got, scorer.score(user.ids), rtol=1e-5)


def test_a_null_or_an_item_that_is_too_long_has_no_score(parts):
    scorer, own = parts
    got = score_texts(scorer, own, ["a", None, "a", "a"], ["b", "b", None, "b" * 99])
    assert np.isnan(got).tolist() == [False, True, True, True]


def test_equal_rows_have_equal_scores_and_rows_keep_their_order(parts):
    scorer, own = parts
    users, items = ["a", "b", "a", "b", ""], ["x", "x", "y", "x", ""]
    got = score_texts(scorer, own, users, items)
    assert got[1] == got[3]
    alone = [score_texts(scorer, own, [user], [item])[0] for user, item in zip(users, items, strict=True)]
    np.testing.assert_allclose(got, alone, rtol=1e-5)


def test_no_rows_have_no_scores(parts):
    assert score_texts(*parts, [], []).shape == (0,)
