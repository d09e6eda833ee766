"""The programs of `device_kernels`, in Triton's language: each instance computes a tile, or a row, of a result.

Names with an underscore and a letter are strides: from user to user (b), pair to pair (m), item to item (t), head to
head (h), asking token to asking token (q), key to key (p).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def over_user(
    asked,
    top,
    total,
    found,
    keys,
    values,
    n_keys,
    step_k,
    step_v,
    E: tl.constexpr,
    KEYS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The user's keys merged into a running softmax: top, total (R,), found (R, E); asked (R, E)."""
    e = tl.arange(0, E)
    for start in range(0, n_keys, KEYS):
        p = start + tl.arange(0, KEYS)
        is_key = p < n_keys
        key = tl.load(keys + p[:, None] * step_k + e[None, :], mask=is_key[:, None], other=0.0)
        value = tl.load(values + p[:, None] * step_v + e[None, :], mask=is_key[:, None], other=0.0)
        logits = tl.dot(asked, tl.trans(key), input_precision=EXACT)
        logits = tl.where(is_key[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp(logits - higher[:, None])
        fallen = tl.exp(top - higher)
        total = total * fallen + tl.sum(weights, 1)
        found = found * fallen[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=EXACT)
        top = higher
    return total, found


@triton.jit
def known(
    query, own, own_lse, keys, values, lengths, result,
    query_b, query_t, query_h, query_q,
    own_b, own_t, own_h, own_q,
    lse_b, lse_t, lse_h, lse_q,
    key_b, key_h, key_p, value_b, value_h, value_p,
    n_items, n_heads, n_shares,
    Q: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head, user = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_items * Q
    item, token, e = (row // Q).to(tl.int64), row % Q, tl.arange(0, E)
    at = user * query_b + item * query_t + head * query_h + token * query_q
    asked = tl.load(query + at[:, None] + e[None, :], mask=is_row[:, None], other=0.0)
    at = user * own_b + item * own_t + head * own_h + token * own_q
    found = tl.load(own + at[:, None] + e[None, :], mask=is_row[:, None], other=0.0).to(tl.float32)
    at = user * lse_b + item * lse_t + head * lse_h + token * lse_q
    top = tl.load(own_lse + at, mask=is_row, other=0.0)
    total = tl.full((ROWS,), 1.0, tl.float32)
    shared = head // n_shares
    total, found = over_user(
        asked, top, total, found, keys + user * key_b + shared * key_h, values + user * value_b + shared * value_h,
        tl.load(lengths + user), key_p, value_p, E, KEYS, EXACT,
    )  # fmt: skip
    at = ((user * n_items * Q + row) * n_heads + head) * E
    found = (found / total[:, None]).to(result.dtype.element_ty)
    tl.store(result + at[:, None] + e[None, :], found, mask=is_row[:, None])


@triton.jit
def tokens(
    query, key, value, item_lengths, keys, values, lengths, result,
    query_m, query_h, query_q, own_key_m, own_key_h, own_key_q, own_value_m, own_value_h, own_value_q,
    key_b, key_h, key_p, value_b, value_h, value_p,
    n_items, n_heads, n_shares,
    IS_CAUSAL: tl.constexpr,
    Q: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head, user = tl.program_id(1), tl.program_id(2).to(tl.int64)
    shared = head // n_shares
    place, e = tl.arange(0, ROWS), tl.arange(0, E)
    item, token = tl.program_id(0) * (ROWS // Q) + place // Q, place % Q  # whole items: none lies in two tiles
    is_row = (place < ROWS // Q * Q) & (item < n_items)
    pair = user * n_items + item
    asked_at = pair * query_m + head * query_h + token * query_q
    asked = tl.load(query + asked_at[:, None] + e[None, :], mask=is_row[:, None], other=0.0)
    key_at = pair * own_key_m + shared * own_key_h + token * own_key_q
    own_key = tl.load(key + key_at[:, None] + e[None, :], mask=is_row[:, None], other=0.0)
    value_at = pair * own_value_m + shared * own_value_h + token * own_value_q
    own_value = tl.load(value + value_at[:, None] + e[None, :], mask=is_row[:, None], other=0.0)
    n_tokens = tl.load(item_lengths + item, mask=is_row, other=0)
    is_seen = (item[:, None] == item[None, :]) & (token < n_tokens)[None, :] & is_row[None, :]
    if IS_CAUSAL:
        is_seen = is_seen & (token[None, :] <= token[:, None])
    logits = tl.dot(asked, tl.trans(own_key), input_precision=EXACT)
    logits = tl.where(is_seen, logits, float("-inf"))
    top = tl.maximum(tl.max(logits, 1), -1e30)  # rows that are none see nothing
    weights = tl.exp(logits - top[:, None])
    total = tl.sum(weights, 1)
    found = tl.dot(weights.to(own_value.dtype), own_value, input_precision=EXACT)
    total, found = over_user(
        asked, top, total, found, keys + user * key_b + shared * key_h, values + user * value_b + shared * value_h,
        tl.load(lengths + user), key_p, value_p, E, KEYS, EXACT,
    )  # fmt: skip
    at = ((pair * Q + token) * n_heads + head) * E
    found = (found / total[:, None]).to(result.dtype.element_ty)
    tl.store(result + at[:, None] + e[None, :], found, mask=is_row[:, None])


@triton.jit
def add_norm(
    states, residual, weight, bias, result, vectors, dots,
    n_shared, shared_step, n_items, n_rows, hidden, epsilon,
    SIDE: tl.constexpr, N_VECTORS: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, SIDE)
    is_side = d < hidden
    value = tl.load(states + row * hidden + d, mask=is_side, other=0.0).to(tl.float32)
    value += tl.load(residual + row % n_shared * shared_step + d, mask=is_side, other=0.0).to(tl.float32)
    value = tl.where(is_side, value - tl.sum(value, 0) / hidden, 0.0)
    scale = tl.rsqrt(tl.sum(value * value, 0) / hidden + epsilon)
    value = value * scale * tl.load(weight + d, mask=is_side, other=0.0).to(tl.float32)
    value += tl.load(bias + d, mask=is_side, other=0.0).to(tl.float32)
    if N_VECTORS == 0:
        tl.store(result + row * hidden + d, value.to(result.dtype.element_ty), mask=is_side)
    else:
        user = row // n_items
        for v in tl.static_range(N_VECTORS):
            vector = tl.load(vectors + (user * N_VECTORS + v) * hidden + d, mask=is_side, other=0.0)
            tl.store(dots + v * n_rows + row, tl.sum(value * vector, 0))
