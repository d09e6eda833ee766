"""Decoders: a token sees itself and what stands before it, and the score is read at the item's last token.

The user's tokens stand right before the item's, so a prompt of two segments has the distances of the plain text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from flmrec_spark.lm.families.base import SelfJoined, split_heads


class Decoder(SelfJoined):
    """What decoders share: layer norm before each sublayer, one more after the last layer, one kind of segment."""

    is_causal = True

    def pair(self, user: tuple[Tensor, Tensor, Tensor], item: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        words, padded, positions = (torch.cat(parts, dim=1) for parts in zip(user, item, strict=True))
        output = self.backbone(
            inputs_embeds=words, attention_mask=(~padded).long(), position_ids=positions, use_cache=False
        )
        n_user = user[0].shape[1]
        return output.last_hidden_state[:, :n_user], output.last_hidden_state[:, n_user:]


class Gpt2(Decoder):
    """GPT-2: absolute positions, one product for query, key and value."""

    def __init__(self, backbone: Any) -> None:
        config = backbone.config
        self.backbone = backbone
        self.n_layers, self.n_heads, self.hidden = int(config.n_layer), int(config.n_head), int(config.n_embd)
        self.head_size = self.hidden // self.n_heads
        self.max_positions = int(config.n_positions)
        self.attention_dropout = float(config.attn_pdrop)

    def embed(self, words: Tensor, positions: Tensor, segment: int) -> Tensor:
        embedded: Tensor = self.backbone.drop(words + self.backbone.wpe(positions))
        return embedded

    def project(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block = self.backbone.h[layer]
        parts = block.attn.c_attn(block.ln_1(hidden)).split(self.hidden, dim=-1)
        query, key, value = (split_heads(part, self.n_heads) for part in parts)
        return query * block.attn.scaling, key, value

    def finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        block = self.backbone.h[layer]
        joined: Tensor = residual + block.attn.resid_dropout(block.attn.c_proj(attended))
        if feed_forward:
            joined = joined + block.mlp(block.ln_2(joined))
        return self.backbone.ln_f(joined) if layer == self.n_layers - 1 else joined


class Llama(Decoder):
    """Llama, Mistral, Qwen2, Qwen3: rotary positions, keys shared by several heads, gated feed-forward."""

    def __init__(self, backbone: Any) -> None:
        config = backbone.config
        self.backbone = backbone
        self.n_layers = int(config.num_hidden_layers)
        self.n_heads, self.n_shared = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.hidden = int(config.hidden_size)
        self.head_size = int(getattr(config, "head_dim", None) or self.hidden // self.n_heads)
        # Within its window a layer sees everything: a prompt that is no longer needs no window.
        window = getattr(config, "sliding_window", None) or config.max_position_embeddings
        self.max_positions = min(int(config.max_position_embeddings), int(window))
        self.attention_dropout = float(config.attention_dropout)

    def embed(self, words: Tensor, positions: Tensor, segment: int) -> Tensor:
        return words

    def project(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block = self.backbone.layers[layer]
        own, normed = block.self_attn, block.input_layernorm(hidden)
        query, key = split_heads(own.q_proj(normed), self.n_heads), split_heads(own.k_proj(normed), self.n_shared)
        if hasattr(own, "q_norm"):  # Qwen3
            query, key = own.q_norm(query), own.k_norm(key)
        cosine, sine = self.backbone.rotary_emb(query, positions if positions.ndim == 2 else positions[None])
        query, key = apply_rotary_pos_emb(query, key, cosine, sine)
        return query * own.scaling, key, split_heads(own.v_proj(normed), self.n_shared)

    def finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        block = self.backbone.layers[layer]
        joined: Tensor = residual + block.self_attn.o_proj(attended)
        if feed_forward:
            joined = joined + block.mlp(block.post_attention_layernorm(joined))
        return self.backbone.norm(joined) if layer == self.n_layers - 1 else joined
