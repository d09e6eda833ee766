"""Triton kernels of a GPU: attention of many users' items in one launch, and a residual with its norm in one pass.

Attention never holds a matrix of logits, and what users share (an item's query and own part) is read where it lies:
nothing is copied per pair. Softmax, sums and norms are float32, products of the states' own dtype.

Shapes: B users, P user tokens, T items, S tokens of an item, Q of them that ask, H heads, K key-value heads, E size of
a head, D hidden, V vectors. Triton needs powers of two: E is one, other sides are masked.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from flmrec_spark.lm import device_programs as programs

_ROWS, _KEYS = 64, 64  # of a program's tile
_STAGES = 3  # tiles of keys and of values that Triton keeps on their way


def attends(head_size: int, n_tokens: int, *, itemsize: int = 4, shared_bytes: float = math.inf) -> bool:
    """Whether heads of this size and items of so many tokens go through the two kernels.

    Args:
      itemsize: bytes of a number of the states.
      shared_bytes: what a program may have of the GPU's fast memory, see `shared_bytes_of`: heads of 128 in float32 ask
        for more than most GPUs have.
    """
    is_tile = 16 <= head_size <= 128 and head_size & (head_size - 1) == 0 and n_tokens <= _ROWS
    return is_tile and 2 * _STAGES * _KEYS * head_size * itemsize <= shared_bytes


def shared_bytes_of(device: torch.device) -> float:
    """Fast memory that a program may have on a device; no limit where nothing is known of one."""
    if device.type != "cuda":
        return math.inf
    return float(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", math.inf))


def attend_known(query: Tensor, own: Tensor, own_lse: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Items to users, the items' own part being known: in the first joined layer and in the last.

    Args:
      query, own: (U, T, H, Q, E), scaled, with U = 1 where all users are asked about the same items, else U = B.
      own_lse: float32 (U, T, H, Q).
      keys, values: (B, K, P, E).
      lengths: int (B,), real tokens of each user.

    Returns:
      (B, T, Q, H * E)
    """
    n_users, n_shared, _, size = keys.shape
    _, n_items, n_heads, n_asking, _ = query.shape
    result = query.new_empty(n_users, n_items, n_asking, n_heads * size)
    grid = (triton.cdiv(n_items * n_asking, _ROWS), n_heads, n_users)
    own_lse = own_lse.float()
    programs.known[grid](
        *(query, own, own_lse, keys, values, lengths, result),
        *(_of_user(query), *query.stride()[1:4]),
        *(_of_user(own), *own.stride()[1:4]),
        *(_of_user(own_lse), *own_lse.stride()[1:]),
        *(*keys.stride()[:3], *values.stride()[:3]),
        *(n_items, n_heads, n_heads // n_shared),
        **_sides(size, query.dtype, n_asking),
    )
    return result


def attend_tokens(
    states: tuple[Tensor, Tensor, Tensor],
    item_lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    is_causal: bool,
) -> Tensor:
    """Every token of every pair to its own item and its user: in the joined layers between the first and the last.

    Args:
      states: scaled query (B * T, H, S, E), key and value (B * T, K, S, E), user by user; S as `attends` has it.
      item_lengths: int (T,), real tokens of each item.
      keys, values: (B, K, P, E) of the users.
      lengths: int (B,).
      is_causal: a token sees those of its item up to itself.

    Returns:
      (B, T, S, H * E)
    """
    query, key, value = states
    n_users, n_shared, _, size = keys.shape
    n_items, (_, n_heads, n_tokens, _) = len(item_lengths), query.shape
    result = query.new_empty(n_users, n_items, n_tokens, n_heads * size)
    grid = (triton.cdiv(n_items, _ROWS // n_tokens), n_heads, n_users)
    programs.tokens[grid](
        *(query, key, value, item_lengths, keys, values, lengths, result),
        *(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3]),
        *(*keys.stride()[:3], *values.stride()[:3]),
        *(n_items, n_heads, n_heads // n_shared),
        IS_CAUSAL=is_causal,
        **_sides(size, query.dtype, n_tokens),
    )
    return result


def add_norm(states: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """norm(residual + states): states (.., D), residual of the last of their rows, repeated for all before them."""
    rows, shared = states.view(-1, states.shape[-1]), residual.reshape(-1, states.shape[-1])
    result = torch.empty_like(rows)
    programs.add_norm[(len(rows),)](
        *(rows, shared, weight, bias, result, result, result),
        *(len(shared), shared.stride(0), 1, 0, rows.shape[1], epsilon),
        **_row(rows.shape[1]),
        N_VECTORS=0,
    )
    return result.view(states.shape)


def norm_dots(
    states: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float, vectors: Tensor
) -> Tensor:
    """Dot products of norm(residual + states) with vectors of each user: float32 (V, B, T).

    Args:
      states: (B, T, D).
      residual: (T, D) or (B, T, D).
      vectors: float32 (B, V, D).
    """
    n_users, n_items, hidden = states.shape
    n_vectors = vectors.shape[1]
    rows, shared = states.reshape(-1, hidden), residual.reshape(-1, hidden)
    result = torch.empty(n_vectors, n_users, n_items, dtype=torch.float32, device=states.device)
    programs.add_norm[(len(rows),)](
        *(rows, shared, weight, bias, rows, vectors.contiguous(), result),
        *(len(shared), shared.stride(0), n_items, len(rows), hidden, epsilon),
        **_row(hidden),
        N_VECTORS=n_vectors,
    )
    return result


def _of_user(states: Tensor) -> int:
    """The stride from user to user: none where users share."""
    return 0 if states.shape[0] == 1 else states.stride(0)


def _sides(size: int, dtype: torch.dtype, n_asking: int) -> dict[str, Any]:
    exact = "ieee" if dtype == torch.float32 else "tf32"  # of bf16 it says nothing
    return {"Q": n_asking, "E": size, "ROWS": _ROWS, "KEYS": _KEYS, "EXACT": exact, "num_warps": 4}


def _row(hidden: int) -> dict[str, Any]:
    side = triton.next_power_of_2(hidden)
    return {"SIDE": side, "num_warps": min(8, max(1, side // 256))}
