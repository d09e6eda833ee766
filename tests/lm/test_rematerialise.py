"""Gradient checkpointing: the same gradients, less memory, the same checkpoint."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from flmrec_spark.config import FinetuneConfig
from flmrec_spark.lm import training
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.rematerialise import rematerialise
from flmrec_spark.lm.training import BiasTerms
from tests.lm.test_training import CATALOG, FLAT, FORMS, segmented, step
from tests.prepared import tiny_config

OWN = step([[0, 1, 2, 3], [1, 0, 2, -1]], [[1, 0], [0, 1]])


def gradients(model: SegmentedModel) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one step, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    offsets = np.array([0.3, -0.2, 0.1, 0.0], dtype=np.float32)
    bias = BiasTerms(offsets[:2], offsets)
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        logits, _ = training.step_logits(model, bias, OWN, CATALOG, bias_dropout=0.0)
        value = training.loss(logits, logits, OWN, whole=OWN, log_share=FLAT, config=FinetuneConfig(ranking_weight=0.5))
    value.backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {name: own.grad for name, own in model.named_parameters() if own.grad is not None}
    return found, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_and_less_is_kept(join, join_layer, dropout):
    plain = segmented(join, join_layer, dropout=dropout)
    lean = copy.deepcopy(plain)
    rematerialise(lean)
    expected, n_plain = gradients(plain)
    got, n_lean = gradients(copy.deepcopy(lean))  # as a working copy is made
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert n_lean < 0.75 * n_plain


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("model", [{"join_layer": 0}, {"join": "full"}])
def test_a_training_ends_with_the_same_weights(world, precision, model, dropout):
    settings = {"precision": precision, "dropout": dropout, "max_steps": 3}
    finetune(tiny_config(world, model=model, finetune=settings))
    plain = (world / "checkpoint/backbone/model.safetensors").read_bytes()
    finetune(tiny_config(world, model=model, finetune={**settings, "gradient_checkpointing": True}))
    assert (world / "checkpoint/backbone/model.safetensors").read_bytes() == plain
