"""The segmented model: one pretrained model of any family, two segments, joined from `join_layer` on.

User tokens attend to the user segment only. Item tokens attend to the item segment only in layers below
`join_layer`, and to both segments from it on. So a user's states need no item, an item's states below the join
need no user, and what is computed once per user and once per item is exact, not an approximation.

    logit = w1 . x + w2 . u + s x . u / D + b  (+ b_user + b_item)

with x the last hidden state of the item's score token and u the mean of the user segment's last hidden states. A model
may have two such heads: `rating` says whether the user will like the item, `listing` whether it is what they like next.

With collaborative factors each segment may hold one token that is no word: a projection of the user's or item's
factors.

`join: attention` is `join_layer` L - 1 without the item's feed-forward in the last layer; `join: full` is the stock
model on the pair, kept as the reference.

An item's first token stands at `item_position` for every user. An encoder's user begins at position 0; a decoder's user
ends right before the item, so that a decoder meets the distances of the plain text.

Shapes: B users, P user tokens, N items, S item tokens, G items asked of each user, D hidden, H heads, K key-value
heads, E size of a head, Q item tokens that are computed on: all S, or the score token alone in the last layer.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm.families.base import Family, score_token
from flmrec_spark.lm.families.registry import family_of
from flmrec_spark.lm.heads import Head
from flmrec_spark.lm.states import ItemStates, Segment, UserStates, concatenated

__all__ = ["Head", "ItemStates", "Segment", "SegmentedModel", "UserStates", "concatenated"]

_START_DOT = 4.0  # two towers only: their one interaction must move the score from the first step


class SegmentedModel(nn.Module):
    """A pretrained model with one or two heads.

    Args:
      backbone: a stock transformers model of a known family.
      join: layer, attention or full.
      join_layer: 0 .. L; L - 1 for attention.
      item_position: position of an item's first token, the same for every user: prompts.user_tokens.
      has_listing: a second head, `listing`.
      n_factors: numbers of a segment's collaborative token; 0 where segments have none.

    Raises:
      ConfigError: join_layer out of range, more positions than the model has, or a family that runs whole pairs only.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        join: str,
        join_layer: int,
        item_position: int,
        item_tokens: int,
        has_listing: bool = False,
        n_factors: int = 0,
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
        dot = _START_DOT if self.is_two_towers else 0.0
        self.rating = Head(family.hidden, dot=dot)
        self.listing = Head(family.hidden, dot=dot) if has_listing else None
        width = int(backbone.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        self.user_token = nn.Linear(n_factors, width) if n_factors else None
        self.item_token = nn.Linear(n_factors, width) if n_factors else None

    @property
    def keeps_tokens(self) -> bool:
        """Item states hold every token, not the score token alone: there is a joined layer before the last."""
        return self.join_layer < self.family.n_layers - 1

    @property
    def is_two_towers(self) -> bool:
        return self.join == "layer" and self.join_layer == self.family.n_layers

    @property
    def heads(self) -> list[Head]:
        return [self.rating] if self.listing is None else [self.rating, self.listing]

    def encode_users(self, ids: Tensor, lengths: Tensor, factors: Tensor | None = None) -> UserStates:
        """ids (B, P), lengths (B,), factors (B, n_factors) -> states; not for `join: full`."""
        padded = _padded(ids, lengths)
        words = self._words(ids, factors, self.user_token)
        found = self.family.users(words, padded, self._user_positions(ids, lengths), self.join_layer)
        return UserStates(_mean(found.hidden, padded), found.keys, found.values, padded)

    def encode_items(self, ids: Tensor, lengths: Tensor, factors: Tensor | None = None) -> ItemStates:
        """ids (N, S), lengths (N,), factors (N, n_factors) -> states; not for `join: full`."""
        family = self.family
        padded, positions = _padded(ids, lengths), self._item_positions(ids)
        hidden = family.embed_items(self._words(ids, factors, self.item_token), positions)
        for layer in range(self.join_layer):
            hidden = family.alone(layer, hidden, padded, positions)
        if self.is_two_towers:
            last = score_token(hidden, padded, family.is_causal)
            return ItemStates(last, last.new_zeros(0), last.new_zeros(0), last.new_zeros(0), padded)
        return self._item_states(self.join_layer, hidden, padded)

    def join_items(self, users: UserStates, items: ItemStates, grid: Tensor) -> Tensor:
        """Rating logits (B, G) of the items grid (B, G), indices into `items`, for each user; without bias terms."""
        return cast(Tensor, self.rating(self.joined(users, items, grid), users.pooled[:, None]))

    def joined(self, users: UserStates, items: ItemStates, grid: Tensor) -> Tensor:
        """Last hidden states (B, G, D) of the same pairs' score tokens."""
        if self.is_two_towers:
            return items.hidden[grid][:, :, 0]
        return self._joined(users, items, grid)[:, :, 0]

    def pair(self, user: Segment, item: Segment) -> tuple[Tensor, Tensor]:
        """`join: full`, by the stock forward: the score token's last hidden states and the user's mean, (B, D)."""
        parts, places = [], (self._user_positions(user.ids, user.lengths), self._item_positions(item.ids))
        for part, positions, token in zip((user, item), places, (self.user_token, self.item_token), strict=True):
            words = self._words(part.ids, part.factors, token)
            parts.append((words, _padded(part.ids, part.lengths), positions.expand_as(part.ids)))
        user_hidden, item_hidden = self.family.pair(*parts)
        score = score_token(item_hidden, parts[1][1], self.family.is_causal)[:, 0]
        return score, _mean(user_hidden, parts[0][1])

    def _words(self, ids: Tensor, factors: Tensor | None, token: nn.Linear | None) -> Tensor:
        """Input vectors (B, T, ..) of ids (B, T); the place of the collaborative token holds the projected factors."""
        words: Tensor = self.backbone.get_input_embeddings()(ids.clamp(min=0))  # type: ignore[operator]
        if token is None:
            return words
        if factors is None:
            factors = words.new_zeros(len(ids), token.in_features)
        own: Tensor = token(factors.to(token.weight.dtype)).to(words.dtype)
        mixed: Tensor = torch.where((ids < 0)[..., None], own[:, None], words)
        return mixed

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
