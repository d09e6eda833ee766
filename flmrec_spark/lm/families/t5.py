"""T5, mT5: the encoder reads the user, the decoder reads the item and looks at the user by cross-attention.

A decoder layer has its own attention, then the cross-attention, then the feed-forward, each added to the residual. So
an item's own tokens are no keys of the joined attention: what `Begun` holds of them weighs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flmrec_spark.lm.families.base import (
    UNBOUNDED,
    Begun,
    UserLayers,
    later_keys,
    merge_heads,
    score_token,
    split_heads,
)
from flmrec_spark.lm.families.post_norm import PostNorm
from flmrec_spark.lm.native import Kernel


class T5:
    """T5, v1.1 and mT5. Positions are relative within each stack, so those that are given do not matter."""

    is_segmented = True
    is_causal = True
    kernel: Kernel | None = None  # relative positions are added to its own logits, which the kernel does not do

    def __init__(self, backbone: Any) -> None:
        config = backbone.config
        self.backbone = backbone
        self.n_layers = int(config.num_decoder_layers)
        self.n_heads = int(config.num_heads)
        self.hidden, self.head_size = int(config.d_model), int(config.d_kv)
        self.max_positions = UNBOUNDED
        self.attention_dropout = float(config.dropout_rate)

    def users(self, ids: Tensor, padded: Tensor, positions: Tensor, join_layer: int) -> UserLayers:
        hidden: Tensor = self.backbone.encoder(ids, attention_mask=(~padded).long()).last_hidden_state
        joined = [self._block(layer).layer[1].EncDecAttention for layer in range(join_layer, self.n_layers)]
        keys = [split_heads(cross.k(hidden), self.n_heads) for cross in joined]
        values = [split_heads(cross.v(hidden), self.n_heads) for cross in joined]
        return UserLayers(keys, values, hidden)

    def embed_items(self, ids: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = self.backbone.decoder.dropout(self.backbone.decoder.embed_tokens(ids))
        return embedded

    def alone(self, layer: int, hidden: Tensor, padded: Tensor, positions: Tensor) -> Tensor:
        return self._feed_forward(layer, self._own(layer, hidden, padded, whole=True))

    def begin(self, layer: int, hidden: Tensor, padded: Tensor, positions: Tensor) -> Begun:
        residual = self._own(layer, hidden, padded, whole=layer < self.n_layers - 1)
        cross = self._block(layer).layer[1]
        query = split_heads(cross.EncDecAttention.q(cross.layer_norm(residual)), self.n_heads)
        nothing = torch.full(query.shape[:-1], -torch.inf, dtype=torch.float32, device=query.device)
        return Begun(residual, query, torch.zeros_like(query), nothing)

    def finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        cross = self._block(layer).layer[1]
        joined = residual + cross.dropout(cross.EncDecAttention.o(attended))
        return self._feed_forward(layer, joined) if feed_forward else self._normed(layer, joined)

    def post_norm(self, layer: int) -> PostNorm | None:
        return None

    def pair(self, user: tuple[Tensor, Tensor, Tensor], item: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        output = self.backbone(
            input_ids=user[0],
            attention_mask=(~user[1]).long(),
            decoder_input_ids=item[0],
            decoder_attention_mask=(~item[1]).long(),
            use_cache=False,
        )
        return output.encoder_last_hidden_state, output.last_hidden_state

    def _block(self, layer: int) -> Any:
        return self.backbone.decoder.block[layer]

    def _own(self, layer: int, hidden: Tensor, padded: Tensor, *, whole: bool) -> Tensor:
        """The item's attention to itself, added to the residual: (N, S, D), or (N, 1, D) of the score token."""
        block = self._block(layer).layer[0]
        own, normed = block.SelfAttention, block.layer_norm(hidden)
        query, key, value = (split_heads(part(normed), self.n_heads) for part in (own.q, own.k, own.v))
        n_tokens = hidden.shape[1]
        bias = self._block(0).layer[0].SelfAttention.compute_bias(n_tokens, n_tokens).to(query.dtype)  # (1, H, S, S)
        bias = bias.masked_fill(later_keys(hidden), -torch.inf)
        if not whole:
            query, hidden = score_token(query, padded, True), score_token(hidden, padded, True)
            bias = bias[0, :, (~padded).sum(-1) - 1].transpose(0, 1)[:, :, None]  # (N, H, 1, S)
        dropout = self.attention_dropout if self.backbone.training else 0.0
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=1.0
        )
        joined: Tensor = hidden + block.dropout(own.o(merge_heads(attended)))
        return joined

    def _feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        return self._normed(layer, self._block(layer).layer[-1](hidden))

    def _normed(self, layer: int, hidden: Tensor) -> Tensor:
        decoder = self.backbone.decoder
        return decoder.dropout(decoder.final_layer_norm(hidden)) if layer == self.n_layers - 1 else hidden
