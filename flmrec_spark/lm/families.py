"""How each pretrained family embeds tokens and runs a layer, so that `model` can join segments where it wants.

A family gives the parts of the stock transformers modules, never copies of their weights: a model that is saved
is the stock model. Shapes: B rows, T tokens, D hidden, H heads, E = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as hf_logging

from flmrec_spark.errors import CheckpointError


class Family(Protocol):
    """What a segmented model needs of a pretrained one."""

    n_layers: int
    n_heads: int
    hidden: int
    max_positions: int
    attention_dropout: float

    def embed(self, ids: Tensor, positions: Tensor, segment: int) -> Tensor:
        """ids (B, T), positions (T,) -> (B, T, D), input of layer 0."""
        ...

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (B, T, D) -> q, k, v, each (B, H, T, E)."""
        ...

    def finish(self, layer: int, hidden: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        """Residual input (.., D) and attention output (.., D) -> output of the layer (.., D)."""
        ...

    def pair(self, ids: Tensor, positions: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """The stock forward on whole pairs: ids, positions, segments, mask (B, T) -> last hidden (B, T, D)."""
        ...


class Bert:
    """BERT and MiniLM: absolute positions, segment embeddings, layer norm after each residual."""

    def __init__(self, backbone: Any) -> None:
        config = backbone.config
        self.backbone = backbone
        self.n_layers = int(config.num_hidden_layers)
        self.n_heads = int(config.num_attention_heads)
        self.hidden = int(config.hidden_size)
        self.max_positions = int(config.max_position_embeddings)
        self.attention_dropout = float(config.attention_probs_dropout_prob)

    def embed(self, ids: Tensor, positions: Tensor, segment: int) -> Tensor:
        kinds = torch.full_like(ids, segment)
        places = positions.expand_as(ids)
        embedded: Tensor = self.backbone.embeddings(ids, token_type_ids=kinds, position_ids=places)
        return embedded

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = self.backbone.encoder.layer[layer].attention.self
        return self._heads(own.query(hidden)), self._heads(own.key(hidden)), self._heads(own.value(hidden))

    def finish(self, layer: int, hidden: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        block = self.backbone.encoder.layer[layer]
        joined: Tensor = block.attention.output(attended, hidden)
        if not feed_forward:
            return joined
        output: Tensor = block.output(block.intermediate(joined), joined)
        return output

    def pair(self, ids: Tensor, positions: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        output = self.backbone(ids, attention_mask=mask, token_type_ids=segments, position_ids=positions)
        last: Tensor = output.last_hidden_state
        return last

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.n_heads, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)


FAMILIES: dict[str, type[Bert]] = {"bert": Bert}


def family_of(backbone: nn.Module) -> Family:
    """The family of a stock model. Raises CheckpointError for one that is not supported."""
    kind = str(getattr(backbone.config, "model_type", "?"))
    if kind not in FAMILIES:
        raise CheckpointError(f"model: got type {kind}, expected one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind](backbone)


def load_backbone(folder: str | Path, *, dropout: float | None = None) -> nn.Module:
    """A stock model from a local folder, safetensors only; `dropout` overrides its own.

    Raises:
      CheckpointError: the folder, its config.json or its weights are missing, damaged or of an unknown type.
    """
    path = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: not found, expected a pretrained model with safetensors weights")
    kinds = ", ".join(sorted(FAMILIES))
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as fault:
        raise CheckpointError(f"{path / 'config.json'}: not loadable: {_one_line(fault)}") from fault
    if config.model_type not in FAMILIES:
        raise CheckpointError(f"{path / 'config.json'}: got model type {config.model_type}, expected one of {kinds}")
    if dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    try:
        with _quiet():
            backbone, report = AutoModel.from_pretrained(
                path,
                config=config,
                add_pooling_layer=False,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as fault:
        raise CheckpointError(f"{path / 'model.safetensors'}: not loadable: {_one_line(fault)}") from fault
    if missing := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise CheckpointError(f"{path / 'model.safetensors'}: lacks {len(missing)} tensors, such as {missing[0]}")
    found: nn.Module = backbone
    return found


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
