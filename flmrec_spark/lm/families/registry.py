"""Which class runs which type of model, by the `model_type` of its config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm.families.base import Family, PairFamily
from flmrec_spark.lm.families.decoders import Gpt2, Llama
from flmrec_spark.lm.families.encoders import Bert, DistilBert, Electra, FullOnly, Roberta
from flmrec_spark.lm.families.t5 import T5

ENCODERS: dict[str, Callable[[Any], Family | PairFamily]] = {
    "bert": Bert,
    "camembert": Roberta,
    "deberta-v2": FullOnly,
    "distilbert": DistilBert,
    "electra": Electra,
    "modernbert": FullOnly,
    "roberta": Roberta,
    "xlm-roberta": Roberta,
}
DECODERS: dict[str, Callable[[Any], Family | PairFamily]] = {
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
}
ENCODER_DECODERS: dict[str, Callable[[Any], Family | PairFamily]] = {"mt5": T5, "t5": T5}
FAMILIES = {**ENCODERS, **DECODERS, **ENCODER_DECODERS}


def family_of(backbone: nn.Module) -> Family | PairFamily:
    """The family of a stock model. Raises CheckpointError for one that is not supported."""
    kind = str(getattr(backbone.config, "model_type", "?"))
    if kind not in FAMILIES:
        raise CheckpointError(f"model: got type {kind}, expected one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind](backbone)
