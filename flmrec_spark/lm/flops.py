"""Floating-point operations of scoring, by the formula of the algorithm that is run: what a fraction of a peak, a
dry run and the split of the users over tasks count with.

With n = n_q + n_kv + n_o + n_f parameters in the linear layers of one of L layers, a = heads x head size, P user
tokens and S item tokens, real ones, a layer of t tokens that attend to k keys costs 2 n t + 4 a t k (the usual count:
two operations per parameter and token, and two products per query and key; causal masks are counted in full). So

    user         L (2 n P + 4 a P^2)
    pair         L - 1:      2 (n_o + n_f) + 4 a P                                one token; `join: attention` n_f = 0
                 j < L - 1:  S (2 (n_o + n_f) + 4 a P)                            layer j, whose own part is the item's
                             + (L - 2 - j) S (2 n + 4 a (P + S))                  layers between
                             + 2 n_q + 2 n_kv S + 4 a S + 2 (n_o + n_f) + 4 a P   last layer, of one token
                 L:          2 D
                 full:       L (2 n (P + S) + 4 a (P + S)^2)                      and nothing per user
    item         once: layers below the join, and Q, K, V of the joined one

after the count of shared prefixes: 2 n P_u + 4 L a c P_u^2 per user, 2 n S_i + 4 L a S_i (P_u + c S_i) per pair, which
is what join_layer 0 comes to without the shortcuts of its first and last layer. Of an encoder-decoder L is the
encoder's for a user and a whole pair, and the decoder's for all else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What the formula needs of a model; parameters are those of one layer."""

    n_layers: int  # that an item goes through
    n_user_layers: int  # that a user goes through, and a whole pair: others of an encoder-decoder alone
    hidden: int
    attention: int  # heads x size of a head
    query: int  # parameters of the linear layers: n_q, n_kv, n_o, n_f
    key_value: int
    out: int
    feed_forward: int
    join: str
    join_layer: int

    @property
    def layer(self) -> int:
        """Parameters of the linear layers of one layer."""
        return self.query + self.key_value + self.out + self.feed_forward


def shape_of(config: Any, *, join: str, join_layer: int) -> Shape:
    """The shape of a transformers config; no weights are made."""
    import torch
    from torch import nn
    from transformers import AutoModel

    with torch.device("meta"):
        backbone = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    n_user_layers, hidden = int(config.num_hidden_layers), int(config.hidden_size)
    stacks = [part for part in backbone.modules() if isinstance(part, nn.ModuleList) and len(part) == n_user_layers]
    matrices = [weight for weight in stacks[0][0].parameters() if weight.ndim == 2]
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or hidden // heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    attention = heads * size
    in_attention = 2 * attention * hidden + 2 * key_heads * size * hidden
    return Shape(
        n_layers=int(getattr(config, "num_decoder_layers", None) or n_user_layers),
        n_user_layers=n_user_layers,
        hidden=hidden,
        attention=attention,
        query=attention * hidden,
        key_value=2 * key_heads * size * hidden,
        out=attention * hidden,
        feed_forward=max(0, sum(weight.numel() for weight in matrices) - in_attention),
        join=join,
        join_layer=join_layer,
    )


def shape_of_checkpoint(folder: Path, *, join: str, join_layer: int) -> Shape:
    """The shape of the model in a checkpoint folder that was verified."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / "backbone", local_files_only=True, trust_remote_code=False)
    return shape_of(config, join=join, join_layer=join_layer)


# Token counts may be numbers, arrays or Spark columns: only + and * are used.


def layer_flops(shape: Shape, tokens: Any, keys: Any) -> Any:
    """One layer for `tokens` that attend to `keys`."""
    return tokens * (keys * (4.0 * shape.attention) + 2.0 * shape.layer)


def user_flops(shape: Shape, user_tokens: Any) -> Any:
    """What a user costs before any item."""
    if shape.join == "full":
        return user_tokens * 0.0
    return layer_flops(shape, user_tokens, user_tokens) * float(shape.n_user_layers)


def pair_flops(shape: Shape, user_tokens: Any, item_tokens: float) -> Any:
    """What a pair costs when the user's and the item's states are there."""
    if shape.join == "full":
        tokens = user_tokens + item_tokens
        return layer_flops(shape, tokens, tokens) * float(shape.n_user_layers)
    if shape.join_layer == shape.n_layers:
        return user_tokens * 0.0 + 2.0 * shape.hidden
    to_user = user_tokens * (4.0 * shape.attention)
    after = 2.0 * (shape.out + (0 if shape.join == "attention" else shape.feed_forward))
    last = to_user + after
    if shape.join_layer == shape.n_layers - 1:
        return last
    between = layer_flops(shape, item_tokens, user_tokens + item_tokens) * float(shape.n_layers - 2 - shape.join_layer)
    to_last = 2.0 * shape.query + item_tokens * (2.0 * shape.key_value + 4.0 * shape.attention)
    return (to_user + after) * item_tokens + between + last + to_last


def item_flops(shape: Shape, item_tokens: float) -> float:
    """What an item costs once, before any user."""
    if shape.join == "full":
        return 0.0
    own = float(layer_flops(shape, item_tokens, item_tokens)) * min(shape.join_layer, shape.n_layers)
    joined = item_tokens * (2.0 * (shape.query + shape.key_value) + 4.0 * shape.attention * item_tokens)
    return own + (joined if shape.join_layer < shape.n_layers else 0.0)
