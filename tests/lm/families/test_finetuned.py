"""Every family through fine-tuning and a checkpoint, without Spark, and a head that no training has touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_segmenter
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.starting import build_model
from tests.prepared import tiny_config
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, FULL_ONLY, save_family

FORMS = {
    **{family: {"join_layer": 1} for family in ENCODERS},
    **{family: {"join": "full"} for family in FULL_ONLY},
    **{family: {"join_layer": 1, "head": "answer"} for family in [*DECODERS, *ENCODER_DECODERS]},
}
# Precision is the trainer's, the same for all: bf16 for one of each kind.
RUNS = [(family, "fp32") for family in FORMS] + [(family, "bf16") for family in ("bert", "modernbert", "llama", "t5")]
ITEMS = [{"item_id": "1", "title": "ab", "genre": "x"}, {"item_id": "2", "title": "cde", "genre": "drama"}]


def config(world: Path, family: str, **finetune: object):
    save_family(world / "model", family, n_layers=2)
    prompts = {"template": "en", "user_tokens": 64, "item_tokens": 32, "history_length": 6}
    return tiny_config(world, prompts=prompts, model={"path": str(world / "model"), **FORMS[family]}, finetune=finetune)


@pytest.fixture
def world(world: Path) -> Path:
    """The tables without the BERT of the other tests."""
    for file in (world / "model").iterdir():
        file.unlink()
    return world


@torch.inference_mode()
def logits(model, segmenter) -> np.ndarray:
    user = segmenter.user({"group": "x"}, [])
    return Scorer(model, segmenter.block(segmenter.items(ITEMS))).logits(user.ids)


@pytest.mark.parametrize(("family", "precision"), RUNS)
def test_two_steps_change_the_model_and_its_checkpoint_loads_as_it_was_saved(world: Path, family: str, precision: str):
    settings = config(world, family, max_steps=2, epochs=1, precision=precision, accumulate_steps=2)
    segmenter = load_segmenter(settings)
    before = logits(build_model(settings, segmenter).eval(), segmenter)
    found = finetune(settings)
    assert (found["status"], found["steps"]) == ("done", 2)
    saved = checkpoint.load(settings.checkpoint)
    assert saved.segmenter().items(ITEMS) == segmenter.items(ITEMS)
    after = logits(saved.model(), saved.segmenter())
    assert np.isfinite(after).all()
    assert np.abs(after - before).max() > 1e-4
    again = finetune(settings, force=True)
    assert again["digest"] == found["digest"]  # the same weights, to the last bit
    files = {file.suffix for file in (Path(settings.checkpoint) / "backbone").iterdir()}
    assert files <= {".json", ".safetensors"}


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
def test_without_an_epoch_the_checkpoint_is_the_pretrained_model(world: Path, family: str):
    settings = config(world, family, epochs=0)
    segmenter = load_segmenter(settings)
    found = finetune(settings)
    assert (found["status"], found["steps"]) == ("done", 0)
    assert finetune(settings)["status"] == "already done"
    saved = checkpoint.load(settings.checkpoint)
    expected = logits(build_model(settings, segmenter).eval(), segmenter)
    np.testing.assert_allclose(logits(saved.model(), saved.segmenter()), expected, rtol=1e-6)
