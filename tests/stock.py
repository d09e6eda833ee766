"""Oracles: one unpadded pair through the stock transformers layers, with the mask that the design gives each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tiny import DECODERS, ENCODER_DECODERS


def stock_pair(backbone: Any, user: list[int], item: list[int], *, join_layer: int, item_position: int) -> Any:
    """Last hidden states: the user's (P, D) and the item's (S, D)."""
    kind = backbone.config.model_type
    if kind in ENCODER_DECODERS:
        return _encoder_decoder(backbone, user, item, join_layer)
    ids = torch.tensor([user + item])
    n_user, n_item = len(user), len(item)
    if kind in DECODERS:
        first = item_position - n_user
        positions = torch.arange(first, first + n_user + n_item)[None]
    else:
        positions = torch.cat([torch.arange(n_user), item_position + torch.arange(n_item)])[None]
    masks = [
        _mask(n_user, n_item, joined=layer >= join_layer, causal=kind in DECODERS) for layer in range(_n(backbone))
    ]
    hidden = _through(backbone, kind, ids, positions, torch.tensor([[0] * n_user + [1] * n_item]), masks)[0]
    return hidden[:n_user], hidden[n_user:]


def _n(backbone: Any) -> int:
    return int(backbone.config.num_hidden_layers)


def _mask(n_user: int, n_item: int, *, joined: bool, causal: bool) -> Tensor:
    mask = torch.full((n_user + n_item, n_user + n_item), -torch.inf)
    mask[:n_user, :n_user] = 0
    mask[n_user:, n_user:] = 0
    if joined:
        mask[n_user:, :n_user] = 0
    if causal:
        mask = mask + torch.full_like(mask, -torch.inf).triu(1)
    return mask[None, None]


def _through(backbone: Any, kind: str, ids: Tensor, positions: Tensor, segments: Tensor, masks: list[Tensor]) -> Tensor:
    if kind == "gpt2":
        hidden = backbone.wte(ids) + backbone.wpe(positions)
        for block, mask in zip(backbone.h, masks, strict=True):
            hidden = _first(block(hidden, None, mask))
        return backbone.ln_f(hidden)
    if kind in DECODERS:
        hidden = backbone.embed_tokens(ids)
        places = backbone.rotary_emb(hidden, positions)
        for block, mask in zip(backbone.layers, masks, strict=True):
            hidden = _first(block(hidden, attention_mask=mask, position_embeddings=places))
        return backbone.norm(hidden)
    if kind == "distilbert":
        hidden, layers = backbone.embeddings(ids, position_ids=positions), backbone.transformer.layer
    elif kind in ("roberta", "xlm-roberta", "camembert"):
        first = backbone.config.pad_token_id + 1
        hidden, layers = backbone.embeddings(ids, position_ids=positions + first), backbone.encoder.layer
    else:
        hidden = backbone.embeddings(ids, token_type_ids=segments, position_ids=positions)
        hidden = backbone.embeddings_project(hidden) if kind == "electra" else hidden
        layers = backbone.encoder.layer
    for block, mask in zip(layers, masks, strict=True):
        hidden = _first(block(hidden, mask))
    return hidden


def _encoder_decoder(backbone: Any, user: list[int], item: list[int], join_layer: int) -> tuple[Tensor, Tensor]:
    """The stock decoder's blocks, of which those below the join get no encoder output and skip the cross-attention."""
    encoded = backbone.encoder(torch.tensor([user])).last_hidden_state
    hidden = backbone.decoder.embed_tokens(torch.tensor([item]))
    causal = torch.full((len(item), len(item)), -torch.inf).triu(1)[None, None]
    bias = None
    for layer, block in enumerate(backbone.decoder.block):
        seen = encoded if layer >= join_layer else None
        hidden, bias, *_ = block(hidden, attention_mask=causal, position_bias=bias, encoder_hidden_states=seen)
    return encoded[0], backbone.decoder.final_layer_norm(hidden)[0]


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
