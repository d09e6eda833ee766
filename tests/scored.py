"""A checkpoint of random weights, and the score of each pair as the plain model gives it: no cache, no Spark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flmrec_spark import columns as c
from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.blending import Blend, Calibration
from flmrec_spark.lm.checkpoint import Checkpoint
from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.segments import Interaction, Segmenter
from flmrec_spark.prompts import Template, load_template
from tests.tiny import tiny_bert, tiny_tokenizer
from tests.world import ITEMS

USER_TOKENS, ITEM_TOKENS, HISTORY_LENGTH = 64, 40, 6


def write_checkpoint(
    folder: Path, *, join: str = "layer", join_layer: int = 2, template: Template | None = None, weight: float = 0.3
) -> Path:
    """Saves a model of three layers that nothing trained; every bias is known but that of item i03 and user bob."""
    model = SegmentedModel(
        tiny_bert(), join=join, join_layer=join_layer, item_position=USER_TOKENS, item_tokens=ITEM_TOKENS
    ).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in (model.rating.item_weight, model.rating.user_weight):
        parameter.data.normal_(std=weight, generator=generator)
    model.rating.offset.data.fill_(-0.4)
    segmenter = Segmenter(
        tiny_tokenizer(),
        template or load_template("en"),
        user_tokens=USER_TOKENS,
        item_tokens=ITEM_TOKENS,
        history_length=HISTORY_LENGTH,
    )
    item_bias = {item: 0.05 * place - 0.3 for place, item in enumerate(ITEMS) if item != "i03"}
    checkpoint.save(
        folder,
        model=model,
        segmenter=segmenter,
        biases=Biases({"ann": 0.5, "u00": -0.5}, item_bias),
        blend=Blend(Calibration(0.8, 0.1)),
        metrics={},
        config={},
    )
    return folder


@torch.inference_mode()
def pair_scores(
    found: Checkpoint, items: Sequence[dict[str, Any]], *, user_id: str, profile: dict[str, Any], history: Sequence[Any]
) -> dict[str, float]:
    """The probability of one user for each item that fits, each pair on its own; history as in user_prompts."""
    model, segmenter, biases = found.model(), found.segmenter(), found.biases()
    fields = {item[c.ITEM_ID]: item for item in items}
    known = [Interaction(fields[item], is_liked, value) for item, is_liked, value in history if item in fields]
    user = segmenter.user(profile, known)
    assert user is not None
    torch.set_num_threads(1)  # waking a second thread takes longer than a tiny product
    ids, length = torch.tensor([user.ids]), torch.tensor([len(user.ids)])
    scores = {}
    for item, segment in zip(fields, segmenter.items(items), strict=True):
        if segment is None:
            continue
        item_ids, item_length = torch.tensor([segment]), torch.tensor([len(segment)])
        if model.join == "full":
            logit = model.rating(*model.pair(Segment(ids, length), Segment(item_ids, item_length)))[0]
        else:
            states = model.encode_users(ids, length), model.encode_items(item_ids, item_length)
            logit = model.join_items(*states, torch.tensor([[0]]))[0, 0]
        offset = biases.user.get(user_id, 0.0) + biases.item.get(item, 0.0)
        scaled = found.blend.calibration.slope * (float(logit) + offset) + found.blend.calibration.intercept
        scores[item] = float(torch.sigmoid(torch.tensor(scaled, dtype=torch.float64)))
    return scores
