"""The segmented model: one pretrained encoder, two segments, joined from `join_layer` on.

User tokens attend to the user segment only. Item tokens attend to the item segment only in layers below
`join_layer`, and to both segments from it on. So a user's states need no item, an item's states below the join
need no user, and what is computed once per user and once per item is exact, not an approximation.

    logit = w1 . x + w2 . u + s x . u / D + b  (+ b_user + b_item)

with x the last hidden state of the item's score token and u the mean of the user segment's last hidden states.

`join: attention` is `join_layer` L - 1 without the item's feed-forward in the last layer; `join: full` is the stock
bidirectional pair, kept as the reference.

Shapes: B users, P user tokens, N items, S item tokens, G items asked of each user, D hidden, H heads, E = D / H,
Q item tokens that are computed on: all S, or the score token alone in the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm.families import family_of

USER, ITEM = 0, 1  # segment ids
_START_DOT = 4.0  # two towers only: their one interaction must move the score from the first step


@dataclass(frozen=True)
class UserStates:
    """Everything of B users that an item needs."""

    pooled: Tensor  # (B, D)
    keys: list[Tensor]  # per joined layer (B, H, P, E)
    values: list[Tensor]  # per joined layer (B, H, P, E)
    hidden_mask: Tensor  # (B, P), true where padded


@dataclass(frozen=True)
class ItemStates:
    """Everything of N items that no user changes: the join layer's input and the item's own part of its attention."""

    hidden: Tensor  # (N, Q, D): residual input of the join layer; with two towers the last hidden state, Q = 1
    query: Tensor  # (N, H, Q, E)
    own: Tensor  # (N, H, Q, E): attention of the item to itself
    own_lse: Tensor  # (N, H, Q): its log-sum-exp
    hidden_mask: Tensor  # (N, S), true where padded

    def take(self, index: Tensor) -> ItemStates:
        """Some of the items."""
        hidden, query, own, own_lse, mask = (part[index] if len(part) else part for part in self.parts())
        return ItemStates(hidden, query, own, own_lse, mask)

    def padded(self, n_tokens: int, *, keeps_tokens: bool) -> ItemStates:
        """As if the items had been encoded with more padding: S = n_tokens, and Q too where every token is kept."""
        n_more = n_tokens - self.hidden_mask.shape[1]
        pad = nn.functional.pad
        mask = pad(self.hidden_mask, (0, n_more), value=True)
        if not keeps_tokens:
            return ItemStates(self.hidden, self.query, self.own, self.own_lse, mask)
        hidden, query, own = (pad(part, (0, 0, 0, n_more)) for part in (self.hidden, self.query, self.own))
        return ItemStates(hidden, query, own, pad(self.own_lse, (0, n_more)), mask)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.hidden, self.query, self.own, self.own_lse, self.hidden_mask


def concatenated(states: Sequence[ItemStates]) -> ItemStates:
    """Items of several encodings, in their order."""
    return ItemStates(*[torch.cat(parts) for parts in zip(*[one.parts() for one in states], strict=True)])


class SegmentedModel(nn.Module):
    """A pretrained encoder with a score head.

    Args:
      backbone: a stock transformers model of a known family.
      join: layer, attention or full.
      join_layer: 0 .. L; L - 1 for attention.
      item_position: position of an item's first token, the same for every user: prompts.user_tokens.

    Raises:
      ConfigError: join_layer out of range, or more positions than the model has.
    """

    def __init__(
        self, backbone: nn.Module, *, join: str, join_layer: int, item_position: int, item_tokens: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.join = join
        self.join_layer = join_layer
        self.item_position = item_position
        family = self.family = family_of(backbone)
        if not 0 <= join_layer <= family.n_layers:
            raise ConfigError(f"model.join_layer: got {join_layer}, expected 0 .. {family.n_layers}")
        if item_position + item_tokens > family.max_positions:
            raise ConfigError(
                f"prompts: got user_tokens + item_tokens = {item_position + item_tokens}, "
                f"expected at most the model's {family.max_positions} positions"
            )
        self.item_weight = nn.Parameter(torch.zeros(family.hidden))
        self.user_weight = nn.Parameter(torch.zeros(family.hidden))
        self.dot = nn.Parameter(torch.tensor(_START_DOT if self.is_two_towers else 0.0))
        self.offset = nn.Parameter(torch.zeros(()))

    @property
    def keeps_tokens(self) -> bool:
        """Item states hold every token, not the score token alone: there is a joined layer before the last."""
        return self.join_layer < self.family.n_layers - 1

    @property
    def is_two_towers(self) -> bool:
        return self.join == "layer" and self.join_layer == self.family.n_layers

    def encode_users(self, ids: Tensor, lengths: Tensor) -> UserStates:
        """ids (B, P), lengths (B,) -> states; not for `join: full`."""
        family = self.family
        padded = _padded(ids, lengths)
        hidden = family.embed(ids, torch.arange(ids.shape[1], device=ids.device), USER)
        keys, values = [], []
        for layer in range(family.n_layers):
            query, key, value = family.project(layer, hidden)
            if layer >= self.join_layer:
                keys.append(key)
                values.append(value)
            attended = self._attend_own(query, key, value, padded)
            hidden = family.finish(layer, hidden, _merge_heads(attended))
        return UserStates(_mean(hidden, padded), keys, values, padded)

    def encode_items(self, ids: Tensor, lengths: Tensor) -> ItemStates:
        """ids (N, S), lengths (N,) -> states; not for `join: full`."""
        family = self.family
        padded = _padded(ids, lengths)
        positions = torch.arange(ids.shape[1], device=ids.device) + self.item_position
        hidden = family.embed(ids, positions, ITEM)
        for layer in range(min(self.join_layer, family.n_layers - 1)):
            hidden = self._item_layer(layer, hidden, padded)
        if self.is_two_towers:
            last = self._item_layer(family.n_layers - 1, hidden, padded)[:, :1]
            return ItemStates(last, last.new_zeros(0), last.new_zeros(0), last.new_zeros(0), padded)
        return self._item_states(self.join_layer, hidden, padded)

    def join_items(self, users: UserStates, items: ItemStates, grid: Tensor) -> Tensor:
        """Logits (B, G) of the items grid (B, G), indices into `items`, for each user; without bias terms."""
        hidden = items.hidden[grid]  # (B, G, Q, D)
        if not self.is_two_towers:
            hidden = self._joined(users, items, grid)
        return self.head(hidden[:, :, 0], users.pooled[:, None])

    def pair(self, user_ids: Tensor, user_lengths: Tensor, item_ids: Tensor, item_lengths: Tensor) -> Tensor:
        """`join: full`: logits (B,) of B pairs by the stock bidirectional forward; ids (B, P) and (B, S)."""
        n_user = user_ids.shape[1]
        ids = torch.cat([user_ids, item_ids], dim=1)  # (B, P + S)
        device = ids.device
        user_places = torch.arange(n_user, device=device)
        item_places = torch.arange(item_ids.shape[1], device=device) + self.item_position
        positions = torch.cat([user_places, item_places]).expand_as(ids)
        segments = torch.cat([torch.zeros_like(user_ids), torch.ones_like(item_ids)], dim=1)
        user_padded = _padded(user_ids, user_lengths)
        mask = torch.cat([~user_padded, ~_padded(item_ids, item_lengths)], dim=1)
        hidden = self.family.pair(ids, positions, segments, mask.long())
        return self.head(hidden[:, n_user], _mean(hidden[:, :n_user], user_padded))

    def head(self, item: Tensor, user: Tensor) -> Tensor:
        """x (.., D) and u (.., D), broadcast -> logit (..), float32."""
        with torch.autocast(item.device.type, enabled=False):  # a logit of 8 bits could not tell items apart
            item, user = item.float(), user.float()
            linear = item @ self.item_weight + user @ self.user_weight
            return linear + self.dot * (item * user).mean(-1) + self.offset

    def _item_layer(self, layer: int, hidden: Tensor, padded: Tensor) -> Tensor:
        query, key, value = self.family.project(layer, hidden)
        attended = self._attend_own(query, key, value, padded)
        return self.family.finish(layer, hidden, _merge_heads(attended))

    def _attend_own(self, query: Tensor, key: Tensor, value: Tensor, padded: Tensor) -> Tensor:
        """Attention of a segment to itself: (B, H, T, E)."""
        seen = ~padded[:, None, None, :]
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=self._attention_dropout()
        )

    def _item_states(self, layer: int, hidden: Tensor, padded: Tensor) -> ItemStates:
        """What a joined layer needs of the items (.., S, D): only the score token's part in the last layer."""
        query, key, value = self.family.project(layer, hidden)
        if layer == self.family.n_layers - 1:
            query, hidden = query[:, :, :1], hidden[:, :1]
        own, own_lse = _attend_with_lse(query, key, value, padded[:, None, None, :], self._attention_dropout())
        return ItemStates(hidden, query, own, own_lse, padded)

    def _joined(self, users: UserStates, items: ItemStates, grid: Tensor) -> Tensor:
        """Layers join_layer .. L - 1 for the pairs of a grid (B, G) -> (B, G, 1, D)."""
        n_layers, states, index = self.family.n_layers, items, grid
        for step, layer in enumerate(range(self.join_layer, n_layers)):
            attended = self._attend_user(users, step, states, index)  # (B, G, Q, D)
            hidden = states.hidden[index]
            hidden = self.family.finish(layer, hidden, attended, feed_forward=self.join != "attention")
            if layer + 1 < n_layers:  # from here on every pair has states of its own
                padded = items.hidden_mask[grid].flatten(0, 1)
                states = self._item_states(layer + 1, hidden.flatten(0, 1), padded)
                index = torch.arange(grid.numel(), device=grid.device).view_as(grid)
        return hidden

    def _attend_user(self, users: UserStates, step: int, items: ItemStates, index: Tensor) -> Tensor:
        """Attention of item tokens to the user's keys, their own part merged in as one more key."""
        query, own = items.query[index], items.own[index]  # (B, G, H, Q, E)
        n_asked, n_tokens = query.shape[1], query.shape[3]
        flat = query.transpose(1, 2).flatten(2, 3)  # (B, H, G * Q, E)
        logits = flat @ users.keys[step].transpose(-1, -2) / math.sqrt(flat.shape[-1])  # (B, H, G * Q, P)
        logits = logits.masked_fill(users.hidden_mask[:, None, None, :], -torch.inf)
        own_logit = items.own_lse[index].transpose(1, 2).flatten(2, 3)[..., None]  # (B, H, G * Q, 1)
        weights = torch.cat([logits, own_logit.to(logits.dtype)], dim=-1).float().softmax(-1)
        weights = nn.functional.dropout(weights, self._attention_dropout(), training=self.training)
        to_user = weights[..., :-1].to(flat.dtype) @ users.values[step]  # (B, H, G * Q, E)
        merged = to_user + weights[..., -1:].to(flat.dtype) * own.transpose(1, 2).flatten(2, 3)
        heads = merged.view(*merged.shape[:2], n_asked, n_tokens, -1)  # (B, H, G, Q, E)
        return heads.permute(0, 2, 3, 1, 4).flatten(3)  # (B, G, Q, D)

    def _attention_dropout(self) -> float:
        return self.family.attention_dropout if self.training else 0.0


def _attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, padded: Tensor, dropout: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log-sum-exp: (B, H, Q, E), (B, H, Q); padded keys weigh nothing."""
    logits = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])  # (B, H, Q, T)
    logits = logits.masked_fill(padded, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = nn.functional.dropout((logits - lse[..., None]).exp(), dropout, training=dropout > 0)
    return weights.to(value.dtype) @ value, lse


def _merge_heads(states: Tensor) -> Tensor:
    return states.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, D)


def _padded(ids: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device)[None, :] >= lengths[:, None]  # (B, T)


def _mean(hidden: Tensor, padded: Tensor) -> Tensor:
    kept = (~padded).to(hidden.dtype)[..., None]  # (B, T, 1)
    return (hidden * kept).sum(1) / kept.sum(1)
