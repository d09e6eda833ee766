"""Encoders: every token of a segment sees the whole segment, and the score is read at the item's first token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flmrec_spark.lm.families.base import ITEM, USER, SelfJoined, split_heads
from flmrec_spark.lm.families.post_norm import PostNorm


class Bert(SelfJoined):
    """BERT and MiniLM: absolute positions, segment embeddings, layer norm after each residual."""

    def __init__(self, backbone: Any) -> None:
        config = backbone.config
        self.backbone = backbone
        self.n_layers = int(config.num_hidden_layers)
        self.n_heads = int(config.num_attention_heads)
        self.hidden = int(config.hidden_size)
        self.head_size = self.hidden // self.n_heads
        self.max_positions = int(config.max_position_embeddings)
        self.attention_dropout = float(config.attention_probs_dropout_prob)

    def embed(self, words: Tensor, positions: Tensor, segment: int) -> Tensor:
        segment = min(segment, _last_kind(self.backbone.config))
        kinds = torch.full(words.shape[:2], segment, dtype=torch.long, device=words.device)
        embedded: Tensor = self.backbone.embeddings(
            inputs_embeds=words, token_type_ids=kinds, position_ids=positions.expand_as(kinds)
        )
        return embedded

    def project(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.fused is None:
            return self._project(layer, hidden)
        query, key, value = (split_heads(part, self.n_heads) for part in self.fused[layer].project(hidden))
        return query, key, value

    def finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        if self.fused is None:
            return self._finish(layer, residual, attended, feed_forward=feed_forward)
        return self.fused[layer].finish(residual, attended, feed_forward=feed_forward)

    def _project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = self.backbone.encoder.layer[layer].attention.self
        query = split_heads(own.query(hidden), self.n_heads)
        key, value = split_heads(own.key(hidden), self.n_heads), split_heads(own.value(hidden), self.n_heads)
        return query * query.shape[-1] ** -0.5, key, value

    def _finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool) -> Tensor:
        block = self.backbone.encoder.layer[layer]
        joined: Tensor = block.attention.output(attended, residual)
        if not feed_forward:
            return joined
        output: Tensor = block.output(block.intermediate(joined), joined)
        return output

    def post_norm(self, layer: int) -> PostNorm | None:
        if self.backbone.config.hidden_act != "gelu":
            return None
        block = self.backbone.encoder.layer[layer]
        own, after, output = block.attention.self, block.attention.output, block.output
        joined = (own.query, own.key, own.value, after.dense, after.LayerNorm)
        return PostNorm(*joined, block.intermediate.dense, output.dense, output.LayerNorm)

    def pair(self, user: tuple[Tensor, Tensor, Tensor], item: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        words, padded, positions = (torch.cat(parts, dim=1) for parts in zip(user, item, strict=True))
        kinds = torch.cat([torch.full_like(user[2], USER), torch.full_like(item[2], ITEM)], dim=1)
        hidden = self._stock(words, positions, kinds, (~padded).long())
        n_user = user[0].shape[1]
        return hidden[:, :n_user], hidden[:, n_user:]

    def _stock(self, words: Tensor, positions: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        kinds = kinds.clamp(max=_last_kind(self.backbone.config))
        output = self.backbone(inputs_embeds=words, attention_mask=mask, token_type_ids=kinds, position_ids=positions)
        last: Tensor = output.last_hidden_state
        return last


def _last_kind(config: Any) -> int:
    """Some models know one kind of segment alone."""
    return max(0, int(config.type_vocab_size) - 1)


class Roberta(Bert):
    """RoBERTa, XLM-R, CamemBERT: positions count from the padding id on, and there is one kind of segment."""

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        self._first = int(backbone.config.pad_token_id) + 1
        self.max_positions -= self._first

    def embed(self, words: Tensor, positions: Tensor, segment: int) -> Tensor:
        return super().embed(words, positions + self._first, USER)

    def _stock(self, words: Tensor, positions: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        return super()._stock(words, positions + self._first, torch.zeros_like(kinds), mask)


class Electra(Bert):
    """ELECTRA's discriminator: BERT whose embeddings may be narrower than its layers."""

    def embed(self, words: Tensor, positions: Tensor, segment: int) -> Tensor:
        embedded = super().embed(words, positions, segment)
        narrow = getattr(self.backbone, "embeddings_project", None)
        return embedded if narrow is None else narrow(embedded)


class DistilBert(Bert):
    """DistilBERT: BERT without kinds of segments."""

    def __init__(self, backbone: Any) -> None:
        config = backbone.config
        self.backbone = backbone
        self.n_layers, self.n_heads, self.hidden = int(config.n_layers), int(config.n_heads), int(config.dim)
        self.head_size = self.hidden // self.n_heads
        self.max_positions = int(config.max_position_embeddings)
        self.attention_dropout = float(config.attention_dropout)

    def embed(self, words: Tensor, positions: Tensor, segment: int) -> Tensor:
        places = positions.expand(words.shape[:2])
        embedded: Tensor = self.backbone.embeddings(None, inputs_embeds=words, position_ids=places)
        return embedded

    def _project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = self.backbone.transformer.layer[layer].attention
        query, key, value = (split_heads(part(hidden), self.n_heads) for part in (own.q_lin, own.k_lin, own.v_lin))
        return query * query.shape[-1] ** -0.5, key, value

    def _finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool) -> Tensor:
        block = self.backbone.transformer.layer[layer]
        joined: Tensor = block.sa_layer_norm(block.attention.out_lin(attended) + residual)
        if not feed_forward:
            return joined
        output: Tensor = block.output_layer_norm(block.ffn(joined) + joined)
        return output

    def post_norm(self, layer: int) -> PostNorm | None:
        if self.backbone.config.activation != "gelu":
            return None
        block = self.backbone.transformer.layer[layer]
        own, ffn = block.attention, block.ffn
        joined = (own.q_lin, own.k_lin, own.v_lin, own.out_lin, block.sa_layer_norm)
        return PostNorm(*joined, ffn.lin1, ffn.lin2, block.output_layer_norm)

    def _stock(self, words: Tensor, positions: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        output = self.backbone(inputs_embeds=words, attention_mask=mask, position_ids=positions)
        last: Tensor = output.last_hidden_state
        return last


class FullOnly:
    """ModernBERT and DeBERTa, whole pairs only.

    The segmented form knows an attention logit as query . key, and a key as seen by every token of the item. DeBERTa
    adds terms of the two tokens' distance to the product, and ModernBERT hides keys beyond a distance in most layers.
    """

    is_segmented = False
    is_causal = False

    def __init__(self, backbone: Any) -> None:
        config = backbone.config
        self.backbone = backbone
        self.n_layers = int(config.num_hidden_layers)
        self.hidden = int(config.hidden_size)
        self.max_positions = int(config.max_position_embeddings)

    def pair(self, user: tuple[Tensor, Tensor, Tensor], item: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Real tokens are moved together first: padding between the segments would change their distances."""
        words, padded = torch.cat([user[0], item[0]], dim=1), torch.cat([user[1], item[1]], dim=1)
        order = padded.int().argsort(dim=1, stable=True)  # (B, P + S)
        mask = (~padded).gather(1, order).long()
        moved = words.gather(1, order[..., None].expand_as(words))
        hidden: Tensor = self.backbone(inputs_embeds=moved, attention_mask=mask).last_hidden_state
        back = order.argsort(dim=1)[..., None].expand_as(hidden)
        hidden = hidden.gather(1, back)
        n_user = user[0].shape[1]
        return hidden[:, :n_user], hidden[:, n_user:]
