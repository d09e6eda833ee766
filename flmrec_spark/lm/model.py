"""The segmented model: one pretrained model of any family, two segments, joined from `join_layer` on.

User tokens attend to the user segment only. Item tokens attend to the item segment only in layers below
`join_layer`, and to both segments from it on. So a user's states need no item, an item's states below the join
need no user, and what is computed once per user and once per item is exact, not an approximation.

    logit = w1 . x + w2 . u + s x . u / D + b  (+ b_user + b_item)

with x the last hidden state of the item's score token and u the mean of the user segment's last hidden states.

`join: attention` is `join_layer` L - 1 without the item's feed-forward in the last layer; `join: full` is the stock
model on the pair, kept as the reference.

An item's first token stands at `item_position` for every user. An encoder's user begins at position 0; a decoder's user
ends right before the item, so that a decoder meets the distances of the plain text.

Shapes: B users, P user tokens, N items, S item tokens, G items asked of each user, D hidden, H heads, K key-value
heads, E size of a head, Q item tokens that are computed on: all S, or the score token alone in the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm.families.base import Family, score_token
from flmrec_spark.lm.families.registry import family_of

_START_DOT = 4.0  # two towers only: their one interaction must move the score from the first step


@dataclass(frozen=True)
class UserStates:
    """Everything of B users that an item needs."""

    pooled: Tensor  # (B, D)
    keys: list[Tensor]  # per joined layer (B, K, P, E)
    values: list[Tensor]  # per joined layer (B, K, P, E)
    hidden_mask: Tensor  # (B, P), true where padded


@dataclass(frozen=True)
class ItemStates:
    """Everything of N items that no user changes: the join layer's input and the item's own part of its attention."""

    hidden: Tensor  # (N, Q, D): residual input of the join layer; with two towers the last hidden state, Q = 1
    query: Tensor  # (N, H, Q, E), scaled: a logit is query . key
    own: Tensor  # (N, H, Q, E): attention of the item to itself
    own_lse: Tensor  # (N, H, Q): its log-sum-exp; -inf where the item's own tokens are no keys, as in T5
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
    """A pretrained model with a score head.

    Args:
      backbone: a stock transformers model of a known family.
      join: layer, attention or full.
      join_layer: 0 .. L; L - 1 for attention.
      item_position: position of an item's first token, the same for every user: prompts.user_tokens.

    Raises:
      ConfigError: join_layer out of range, more positions than the model has, or a family that runs whole pairs only.
    """

    def __init__(
        self, backbone: nn.Module, *, join: str, join_layer: int, item_position: int, item_tokens: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.join = join
        self.join_layer = join_layer
        self.item_position = item_position
        family = family_of(backbone)
        if join != "full" and not family.is_segmented:
            kind = getattr(backbone.config, "model_type", "?")
            raise ConfigError(
                f"model.join: got {join}, expected full: attention of type {kind} depends on the distance "
                "of two tokens in a way that the segmented form does not have"
            )
        self.family = cast(Family, family)  # of one that is not segmented only `pair` is asked
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

    @torch.no_grad()
    def start_head(self, weight: Tensor, offset: float) -> None:
        """Makes the untrained logit weight . x + offset, weight (D,): no other term counts."""
        self.item_weight.copy_(weight)
        self.user_weight.zero_()
        self.dot.zero_()
        self.offset.fill_(offset)

    def encode_users(self, ids: Tensor, lengths: Tensor) -> UserStates:
        """ids (B, P), lengths (B,) -> states; not for `join: full`."""
        padded = _padded(ids, lengths)
        found = self.family.users(ids, padded, self._user_positions(ids, lengths), self.join_layer)
        return UserStates(_mean(found.hidden, padded), found.keys, found.values, padded)

    def encode_items(self, ids: Tensor, lengths: Tensor) -> ItemStates:
        """ids (N, S), lengths (N,) -> states; not for `join: full`."""
        family = self.family
        padded, positions = _padded(ids, lengths), self._item_positions(ids)
        hidden = family.embed_items(ids, positions)
        for layer in range(self.join_layer):
            hidden = family.alone(layer, hidden, padded, positions)
        if self.is_two_towers:
            last = score_token(hidden, padded, family.is_causal)
            return ItemStates(last, last.new_zeros(0), last.new_zeros(0), last.new_zeros(0), padded)
        return self._item_states(self.join_layer, hidden, padded)

    def join_items(self, users: UserStates, items: ItemStates, grid: Tensor) -> Tensor:
        """Logits (B, G) of the items grid (B, G), indices into `items`, for each user; without bias terms."""
        hidden = items.hidden[grid]  # (B, G, Q, D)
        if not self.is_two_towers:
            hidden = self._joined(users, items, grid)
        return self.head(hidden[:, :, 0], users.pooled[:, None])

    def pair(self, user_ids: Tensor, user_lengths: Tensor, item_ids: Tensor, item_lengths: Tensor) -> Tensor:
        """`join: full`: logits (B,) of B pairs by the stock forward; ids (B, P) and (B, S)."""
        user_padded, item_padded = _padded(user_ids, user_lengths), _padded(item_ids, item_lengths)
        user_positions = self._user_positions(user_ids, user_lengths).expand_as(user_ids)
        item_positions = self._item_positions(item_ids).expand_as(item_ids)
        user, item = self.family.pair((user_ids, user_padded, user_positions), (item_ids, item_padded, item_positions))
        return self.head(score_token(item, item_padded, self.family.is_causal)[:, 0], _mean(user, user_padded))

    def head(self, item: Tensor, user: Tensor) -> Tensor:
        """x (.., D) and u (.., D), broadcast -> logit (..), float32."""
        with torch.autocast(item.device.type, enabled=False):  # a logit of 8 bits could not tell items apart
            item, user = item.float(), user.float()
            linear = item @ self.item_weight + user @ self.user_weight
            return linear + self.dot * (item * user).mean(-1) + self.offset

    def _user_positions(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(P,), or (B, P) where users end right before the item."""
        places = torch.arange(ids.shape[1], device=ids.device)
        if not self.family.is_causal:
            return places
        return (places + self.item_position - lengths[:, None]).clamp(max=self.item_position - 1)  # padding: anywhere

    def _item_positions(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[1], device=ids.device) + self.item_position  # (S,)

    def _item_states(self, layer: int, hidden: Tensor, padded: Tensor) -> ItemStates:
        """What a joined layer needs of the items (N, S, D): only the score token's part in the last layer."""
        begun = self.family.begin(layer, hidden, padded, self._item_positions(padded))
        return ItemStates(begun.residual, begun.query, begun.own, begun.own_lse, padded)

    def _joined(self, users: UserStates, items: ItemStates, grid: Tensor) -> Tensor:
        """Layers join_layer .. L - 1 for the pairs of a grid (B, G) -> (B, G, 1, D)."""
        n_layers, states, index = self.family.n_layers, items, grid
        for step, layer in enumerate(range(self.join_layer, n_layers)):
            attended = self._attend_user(users, step, states, index)  # (B, G, Q, H * E)
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
        n_users, n_asked, n_heads, n_tokens, size = query.shape
        keys, values = users.keys[step], users.values[step]  # (B, K, P, E)
        shared = (
            n_users,
            keys.shape[1],
            -1,
            size,
        )  # heads that share keys read them together: (B, K, H / K * G * Q, E)
        flat = query.transpose(1, 2).reshape(shared)
        logits = flat @ keys.transpose(-1, -2)  # (B, K, H / K * G * Q, P)
        logits = logits.masked_fill(users.hidden_mask[:, None, None, :], -torch.inf)
        own_logit = items.own_lse[index].transpose(1, 2).reshape(*shared[:-1], 1)
        weights = torch.cat([logits, own_logit.to(logits.dtype)], dim=-1).float().softmax(-1)
        weights = nn.functional.dropout(weights, self._attention_dropout(), training=self.training)
        merged = weights[..., :-1].to(flat.dtype) @ values
        merged = merged + weights[..., -1:].to(flat.dtype) * own.transpose(1, 2).reshape(shared)
        heads = merged.view(n_users, n_heads, n_asked, n_tokens, size)
        return heads.permute(0, 2, 3, 1, 4).flatten(3)  # (B, G, Q, H * E)

    def _attention_dropout(self) -> float:
        return self.family.attention_dropout if self.training else 0.0


def _padded(ids: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device)[None, :] >= lengths[:, None]  # (B, T)


def _mean(hidden: Tensor, padded: Tensor) -> Tensor:
    kept = (~padded).to(hidden.dtype)[..., None]  # (B, T, 1)
    return (hidden * kept).sum(1) / kept.sum(1)
