"""What the segmented model asks of a pretrained one, and the part that encoders and decoders share.

A family works on the parts of the stock transformers modules and never copies their weights: a model that is saved
is the stock model. Queries come out already multiplied by the family's attention scale, so a logit is query . key.

Shapes: B rows, T tokens, P user tokens, S item tokens, D hidden, H heads, K key-value heads (H, or a divisor of it
where heads share keys), E size of a head, Q item tokens that are computed on: all S, or the score token alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flmrec_spark.lm.families.post_norm import LayerKernel, PostNorm
from flmrec_spark.lm.native import Kernel

USER, ITEM = 0, 1  # segment ids
UNBOUNDED = 1 << 30  # positions of a model that has no largest one


@dataclass(frozen=True)
class Begun:
    """A joined layer of an item up to where the user comes in."""

    residual: Tensor  # (N, Q, D): what the attention's output is added to
    query: Tensor  # (N, H, Q, E), scaled
    own: Tensor  # (N, H, Q, E): attention of the item to itself
    own_lse: Tensor  # (N, H, Q): its log-sum-exp; -inf where the item's own tokens are no keys of this attention


@dataclass(frozen=True)
class UserLayers:
    """A user through all layers."""

    keys: list[Tensor]  # per joined layer (B, K, P, E)
    values: list[Tensor]  # per joined layer (B, K, P, E)
    hidden: Tensor  # (B, P, D): last hidden states


class PairFamily(Protocol):
    """What `join: full` needs of a pretrained model.

    Positions are (T,) or (B, T). `padded` (B, T) is true where padded, and padding stands on the right.
    """

    n_layers: int  # that an item goes through
    hidden: int
    max_positions: int
    is_segmented: bool  # false: its parts do not give the exact segmented form, so it is no `Family`
    is_causal: bool  # an item's score token is its last one and the user ends right before the item; else its first

    def pair(self, user: tuple[Tensor, Tensor, Tensor], item: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The stock forward on whole pairs: ids, padded and positions of each segment, (B, P) and (B, S).

        Returns the last hidden states of the user (B, P, D) and the item (B, S, D).
        """
        ...


class Family(PairFamily, Protocol):
    """What a segmented model needs of a pretrained one."""

    n_heads: int
    head_size: int
    attention_dropout: float
    kernel: Kernel | None  # attends with it where it can: for inference on a CPU

    def users(self, ids: Tensor, padded: Tensor, positions: Tensor, join_layer: int) -> UserLayers:
        """ids (B, P) through all layers, with the keys and values of layers >= join_layer."""
        ...

    def embed_items(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (N, S) -> (N, S, D), input of layer 0."""
        ...

    def alone(self, layer: int, hidden: Tensor, padded: Tensor, positions: Tensor) -> Tensor:
        """A layer below the join: item tokens (N, S, D) that see their own segment only -> (N, S, D)."""
        ...

    def begin(self, layer: int, hidden: Tensor, padded: Tensor, positions: Tensor) -> Begun:
        """A joined layer up to the user: item tokens (N, S, D); in the last layer for the score token alone."""
        ...

    def finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        """Residual (.., D) and attention output (.., H * E) -> output of the layer (.., D).

        The last layer's output is the model's last hidden state: a final norm is part of it.
        """
        ...

    def post_norm(self, layer: int) -> PostNorm | None:
        """A layer's parts, where they are of this kind and the activation is GELU; else None."""
        ...


class SelfJoined(ABC):
    """Encoders and decoders: items see the user through the attention that they see themselves with."""

    is_segmented = True
    is_causal = False
    backbone: Any
    n_layers: int
    n_heads: int
    head_size: int
    attention_dropout: float
    kernel: Kernel | None = None  # for inference on a CPU; set by the scorer
    fused: Sequence[LayerKernel] | None = None  # the same, for families with `post_norm`

    @abstractmethod
    def embed(self, ids: Tensor, positions: Tensor, segment: int) -> Tensor:
        """ids (B, T) of one segment -> (B, T, D), input of layer 0."""

    @abstractmethod
    def project(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (B, T, D) -> scaled query (B, H, T, E), key and value (B, K, T, E)."""

    @abstractmethod
    def finish(self, layer: int, residual: Tensor, attended: Tensor, *, feed_forward: bool = True) -> Tensor:
        """As `Family.finish`."""

    def post_norm(self, layer: int) -> PostNorm | None:
        """As `Family.post_norm`: of another kind, unless a family says so."""
        return None

    def users(self, ids: Tensor, padded: Tensor, positions: Tensor, join_layer: int) -> UserLayers:
        hidden = self.embed(ids, positions, USER)
        keys, values = [], []
        for layer in range(self.n_layers):
            query, key, value = self.project(layer, hidden, positions)
            if layer >= join_layer:
                keys.append(key)
                values.append(value)
            hidden = self.finish(layer, hidden, self._attend(query, key, value, padded))
        return UserLayers(keys, values, hidden)

    def embed_items(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.embed(ids, positions, ITEM)

    def alone(self, layer: int, hidden: Tensor, padded: Tensor, positions: Tensor) -> Tensor:
        return self.finish(layer, hidden, self._attend(*self.project(layer, hidden, positions), padded))

    def begin(self, layer: int, hidden: Tensor, padded: Tensor, positions: Tensor) -> Begun:
        query, key, value = self.project(layer, hidden, positions)
        hidden_keys = padded[:, None, None, :]
        if layer == self.n_layers - 1:
            hidden, query = score_token(hidden, padded, self.is_causal), score_token(query, padded, self.is_causal)
        elif self.is_causal:  # the score token is the last real one: it sees every token that is no padding
            hidden_keys = hidden_keys | later_keys(hidden)
        key, value = expanded(key, self.n_heads), expanded(value, self.n_heads)
        own, own_lse = attend_with_lse(query, key, value, hidden_keys, dropout=self._dropout())
        return Begun(hidden, query, own, own_lse)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, padded: Tensor) -> Tensor:
        """Attention of a segment to itself: (B, T, H * E)."""
        if self.kernel is not None and self.kernel.fits_self(query.dtype, query.shape[-1]):
            return self.attend_by(self.kernel, query, key, value, padded)
        # Padding stands on the right, so that a causal mask hides it from every real token.
        seen = None if self.is_causal else ~padded[:, None, None, :]
        key, value = expanded(key, self.n_heads), expanded(value, self.n_heads)
        return merge_heads(
            nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=seen, is_causal=self.is_causal, dropout_p=self._dropout(), scale=1.0
            )
        )

    def attend_by(
        self,
        kernel: Kernel,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padded: Tensor,
        user: tuple[Tensor, Tensor, int] | None = None,
    ) -> Tensor:
        """The same by the kernel in C, for inference on a CPU; `user` as `Kernel.pack_user`, seen by all tokens."""
        query, key, value = (states.transpose(1, 2).contiguous() for states in (query, key, value))
        return kernel.attend_segments(query, key, value, (~padded).sum(-1), user=user, is_causal=self.is_causal)

    def _dropout(self) -> float:
        return self.attention_dropout if self.backbone.training else 0.0


def split_heads(states: Tensor, n_heads: int) -> Tensor:
    """(B, T, H * E) -> (B, H, T, E)"""
    return states.view(*states.shape[:2], n_heads, -1).transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    """(B, H, T, E) -> (B, T, H * E)"""
    return states.transpose(1, 2).flatten(2)


def expanded(states: Tensor, n_heads: int) -> Tensor:
    """Keys or values (.., K, T, E) of shared heads, once for each head that reads them: (.., H, T, E)."""
    n_shares = n_heads // states.shape[-3]
    return states if n_shares == 1 else states.repeat_interleave(n_shares, dim=-3)


def score_token(states: Tensor, padded: Tensor, is_last: bool) -> Tensor:
    """The score token's part of (N, S, D) or (N, H, S, E): S becomes 1. It is the last real token, or the first."""
    if not is_last:
        return states[..., :1, :]
    places = (~padded).sum(-1) - 1  # (N,)
    shape = (-1, *[1] * (states.ndim - 1))
    return states.gather(-2, places.view(shape).expand(*states.shape[:-2], 1, states.shape[-1]))


def later_keys(hidden: Tensor) -> Tensor:
    """(S, S) of hidden (N, S, D): true where the key comes after the query."""
    n_tokens = hidden.shape[1]
    return torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=hidden.device).triu(1)


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, hidden_keys: Tensor, *, dropout: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention of scaled queries and its log-sum-exp: (B, H, Q, E), (B, H, Q); hidden keys weigh nothing."""
    logits = (query @ key.transpose(-1, -2)).float()  # (B, H, Q, T)
    logits = logits.masked_fill(hidden_keys, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = nn.functional.dropout((logits - lse[..., None]).exp(), dropout, training=dropout > 0)
    return weights.to(value.dtype) @ value, lse
