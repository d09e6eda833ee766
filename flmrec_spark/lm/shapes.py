"""Shapes of well-known models, for benchmarks: speed does not depend on what the weights say."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from flmrec_spark.lm.families.loading import load_backbone

SHAPES: dict[str, dict[str, Any]] = {
    "MiniLM-L6": {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "MiniLM-L12": {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1536},
    "DistilBERT": {"model_type": "distilbert"},
    "BERT-base": {"model_type": "bert"},
    "XLM-R-base": {
        "model_type": "xlm-roberta",
        "vocab_size": 250002,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "GPT-2": {"model_type": "gpt2"},
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "T5-small": {"model_type": "t5"},
    "mT5-small": {"model_type": "mt5"},
}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_SMALL_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
TINY: dict[str, dict[str, Any]] = {  # of each type, for a trial
    "bert": _SMALL,
    "xlm-roberta": _SMALL,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "qwen2": {**_SMALL, "num_key_value_heads": 1},
    "qwen3": {**_SMALL, "num_key_value_heads": 1, "head_dim": 16},
    "t5": _SMALL_T5,
    "mt5": _SMALL_T5,
}
_POOLED = {"bert", "xlm-roberta"}  # their class has a pooler, which no score needs


def load(name: str, folder: str | None, *, tiny: bool = False) -> Any:
    """The folder's model, or random weights of the shape; of a tiny model of its type for a trial."""
    if folder is not None:
        return load_backbone(folder)
    torch.manual_seed(1)
    values = dict(SHAPES[name])
    kind = values.pop("model_type")
    values |= {**TINY[kind], "vocab_size": 2000} if tiny else {}
    config: Any = AutoConfig
    made: Any = AutoModel
    options = {"add_pooling_layer": False} if kind in _POOLED else {}
    return made.from_config(config.for_model(kind, **values), **options).train(False)
