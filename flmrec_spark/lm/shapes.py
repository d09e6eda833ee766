"""Shapes of well-known models, for benchmarks: speed does not depend on what the weights say."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from flmrec_spark.lm.families.loading import load_backbone

SHAPES: dict[str, dict[str, Any]] = {
    "MiniLM-L6": {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "BERT-base": {"model_type": "bert"},
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


def load(name: str, folder: str | None) -> Any:
    """The folder's model, or random weights of the shape."""
    if folder is not None:
        return load_backbone(folder)
    torch.manual_seed(1)
    values = dict(SHAPES[name])
    config: Any = AutoConfig
    made: Any = AutoModel
    options = {"add_pooling_layer": False} if values["model_type"] == "bert" else {}
    return made.from_config(config.for_model(values.pop("model_type"), **values), **options).train(False)
