"""Pretrained folders: the stock model, how its segments are marked, and rows of its language head.

Only safetensors are read, in one file or in the shards that an index names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as hf_logging

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm.families.registry import DECODERS, ENCODER_DECODERS, FAMILIES
from flmrec_spark.lm.segments import Layout

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_POOLED = {"bert", "camembert", "roberta", "xlm-roberta"}  # their class has a pooler, which no score needs
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),  # BERT and its kin, DeBERTa
    *("dropout", "attention_dropout"),  # DistilBERT; Llama and its kin have the second alone
    *("embd_pdrop", "attn_pdrop", "resid_pdrop"),  # GPT-2
    *("embedding_dropout", "mlp_dropout"),  # ModernBERT
    "dropout_rate",  # T5
)


def load_backbone(folder: str | Path, *, dropout: float | None = None) -> nn.Module:
    """A stock model from a local folder, without its language head; `dropout` overrides its own.

    Raises:
      CheckpointError: the folder, its config.json or its weights are missing, damaged or of an unknown type.
    """
    path = Path(folder)
    config = _config(path)
    weights = weights_file(path)
    for name in _DROPOUTS if dropout is not None else ():
        if hasattr(config, name):
            setattr(config, name, dropout)
    pooler = {"add_pooling_layer": False} if config.model_type in _POOLED else {}
    try:
        with _quiet():
            backbone, report = AutoModel.from_pretrained(
                path,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                **pooler,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as fault:
        raise CheckpointError(f"{weights}: not loadable: {_one_line(fault)}") from fault
    if missing := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise CheckpointError(f"{weights}: lacks {len(missing)} tensors, such as {missing[0]}")
    found: nn.Module = backbone
    return found


def layout_of(folder: str | Path) -> Layout:
    """How the segments of a pretrained folder's family are marked. Raises CheckpointError as `load_backbone` does."""
    config = _config(Path(folder))
    if config.model_type in DECODERS:
        return Layout("decoder")
    if config.model_type in ENCODER_DECODERS:
        return Layout(
            "encoder-decoder", int(getattr(config, "decoder_start_token_id", None) or config.pad_token_id or 0)
        )
    return Layout("encoder")


def vocabulary_of(folder: str | Path) -> int:
    """Tokens that a pretrained folder's model knows. Raises CheckpointError as `load_backbone` does."""
    return int(_config(Path(folder)).get_text_config().vocab_size)


def head_rows(folder: str | Path, backbone: nn.Module, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of the language head by which a token's logit is row . x + bias, x the model's last hidden state.

    Args:
      folder: the pretrained folder; `backbone` is loaded from it, which leaves the head out.

    Returns:
      rows float32 (len(ids), D) and bias float32 (len(ids),).

    Raises:
      CheckpointError: the folder has no language head.
    """
    path = Path(folder)
    config: Any = backbone.config
    weight, bias = (_rows(path, f"lm_head.{name}", ids) for name in ("weight", "bias"))
    if weight is None:
        if not getattr(config, "tie_word_embeddings", False):
            raise CheckpointError(
                f"{weights_file(path)}: got no lm_head.weight, expected a language head for model.head: answer"
            )
        weight = backbone.get_input_embeddings().weight[list(ids)].detach().float()  # type: ignore[operator]
    if getattr(config, "scale_decoder_outputs", False):  # T5, but not v1.1 and mT5
        weight = weight * float(config.d_model) ** -0.5
    return weight, torch.zeros(len(ids)) if bias is None else bias


def weights_file(path: Path) -> Path:
    """The file of the weights, or the index of their shards. Raises CheckpointError when there is neither."""
    for name in (_WEIGHTS, _INDEX):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path / _WEIGHTS}: not found, expected a pretrained model with safetensors weights")


def _config(path: Path) -> Any:
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path / 'config.json'}: not found, expected a pretrained model with safetensors weights"
        )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as fault:
        raise CheckpointError(f"{path / 'config.json'}: not loadable: {_one_line(fault)}") from fault
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(f"{path / 'config.json'}: got model type {config.model_type}, expected one of {known}")
    return config


def _rows(path: Path, name: str, ids: Sequence[int]) -> Tensor | None:
    """Some rows of a tensor, float32, without reading the others; None when there is no such tensor."""
    file = weights_file(path)
    try:
        if file.name == _INDEX:
            places = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
            if name not in places:
                return None
            file = path / places[name]
        with safe_open(file, framework="pt") as tensors:
            if name not in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                return None
            part = tensors.get_slice(name)
            return torch.stack([torch.as_tensor(part[row]) for row in ids]).float()
    except (OSError, ValueError, KeyError, SafetensorError) as fault:
        raise CheckpointError(f"{file}: not readable: {_one_line(fault)}") from fault


@contextmanager
def _quiet() -> Iterator[None]:
    # A pooler that is left out on purpose is reported at length, and a bar is drawn for a second's work.
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300]
