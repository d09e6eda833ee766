"""A whole joined layer by the kernel in C, `layer.c`, for encoders that normalise after each residual (BERT's kind).

What `families.*.finish` does in a dozen passes of torch is one pass here: a tile of items stays in the caches from its
attention to the dot products with the score's vectors. Products are of float32, of bf16, or of bytes (weights with a
scale per output, states with one per token and chunk of the feed-forward), sums and norms in float32; in bf16, and in
int8 where the CPU has bf16, attention multiplies bf16.

Shapes: N items, P user tokens, D hidden, H heads, E = size of a head, V vectors, T lanes of a tile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from flmrec_spark.lm.families.post_norm import PostNorm
from flmrec_spark.lm.model import ItemStates
from flmrec_spark.lm.native import Kernel, address

_EACH = {"fp32": 1, "bf16": 2, "int8": 4}  # numbers in a word of 32 bits
_LANES = 16  # sides are multiples of it
_CHUNK = 512  # of a feed-forward's inner numbers at once, at most: they stay in the first cache


class _Dense(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weights", "bias", "scale", "zeros")]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_double)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Dense) for name in ("query", "key", "value", "out", "inner", "outer")),
        *((name, _Norm) for name in ("first", "second")),
        *((name, ctypes.c_long) for name in ("n_heads", "width", "hidden", "n_inner", "chunk")),
    ]


class FusedLayer:
    """One layer's weights as the kernel reads them; `families.base.LayerKernel`, and the last layer to the score.

    Args:
      parts: in float32; they are copied.
    """

    def __init__(self, kernel: Kernel, parts: PostNorm, *, precision: str, n_heads: int, width: int) -> None:
        self.kernel, self.precision = kernel, precision
        self.dtype = _attended(kernel, precision)
        self.n_heads, self.width, self.hidden = n_heads, width, parts.out.out_features
        self.attention, n_inner = n_heads * width, parts.inner.out_features
        self.panel, self.step = kernel.sides_of(precision)
        self.chunk = max(n for n in range(_LANES, _CHUNK + 1, _LANES) if n_inner % n == 0)
        self._kept: list[Tensor] = []  # what the structures point to
        dense = (
            self._dense(parts.query, rows=self.attention, depth=self.hidden, scale=width**-0.5),
            self._dense(parts.key, rows=self.attention, depth=self.hidden),
            self._dense(parts.value, rows=self.attention, depth=self.hidden),
            self._dense(parts.out, rows=self.hidden, depth=self.attention),
            self._dense(parts.inner, rows=self.chunk, depth=self.hidden),
            self._dense(parts.outer, rows=self.hidden, depth=self.chunk),
        )
        norms = self._norm(parts.first), self._norm(parts.second)
        self._layers = {  # with its feed-forward, and without
            feed_forward: _Layer(*dense, *norms, n_heads, width, self.hidden, n_inner * feed_forward, self.chunk)
            for feed_forward in (True, False)
        }

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `LayerKernel.project`; query, key and value are contiguous."""
        rows = hidden.float().contiguous()
        query, key, value = (rows.new_empty(*rows.shape[:-1], self.attention, dtype=self.dtype) for _ in range(3))
        n_rows = rows.numel() // self.hidden
        self._call("project", True, (rows, query, key, value), (n_rows,), self._n_scratch(0))
        return query, key, value

    def finish(self, residual: Tensor, attended: Tensor, *, feed_forward: bool) -> Tensor:
        """As `LayerKernel.finish`."""
        rows, attended = residual.float().contiguous(), attended.to(self.dtype).contiguous()
        out = torch.empty_like(rows)
        n_rows = rows.numel() // self.hidden
        self._call("finish", feed_forward, (attended, rows, out), (n_rows,), self._n_scratch(0))
        return out

    def score(
        self, items: ItemStates, user: tuple[Tensor, Tensor, int], vectors: Tensor, *, feed_forward: bool
    ) -> Tensor:
        """Dot products (V, N) of the items' last hidden states with the vectors (V, D), float32.

        Args:
          items: as `FusedLast.items` gives them.
          user: keys and values of the kernel's dtype, as `Kernel.pack_user` gives them.
        """
        keys, values, n_keys = user
        out = torch.empty(len(vectors), len(items.query) * self.kernel.tile)
        vectors = vectors.float().contiguous()
        tensors = (items.query, items.own, items.own_lse, items.hidden, keys, values, vectors, out)
        sizes = (len(items.query), n_keys, keys.shape[1], len(vectors), out.shape[1])
        self._call("score", feed_forward, tensors, sizes, self._n_scratch(n_keys))
        return out[:, : len(items.hidden_mask)]

    def _call(
        self, name: str, feed_forward: bool, tensors: Sequence[Tensor], sizes: Sequence[int], n_scratch: int
    ) -> None:
        scratch = torch.empty(n_scratch * self.kernel.tile)
        function = self.kernel.function(f"{name}_{self.precision}")
        numbers = map(ctypes.c_long, sizes)
        function(ctypes.byref(self._layers[feed_forward]), *map(address, tensors), *numbers, address(scratch))

    def _n_scratch(self, n_keys: int) -> int:
        """Rows of a tile: attention's output, residual, a chunk, and the states of a product or the keys' weights."""
        panel, attention = self.panel, self.attention
        words = max(n_keys + self.kernel.key_step, attention, self.hidden + self.chunk) + 2 * self.step
        return attention + self.hidden + panel + max(self.chunk + panel, self.width) + words

    def _dense(self, linear: nn.Linear, *, rows: int, depth: int, scale: float = 1.0) -> _Dense:
        """The weight in chunks of `rows` outputs, or of `depth` inputs; each in panels. Outputs are scaled."""
        weight = linear.weight.detach().float() * scale
        steps = weight.abs().amax(1).clamp(min=1e-30) / 127.0  # of an output's bytes
        if self.precision == "int8":
            weight = (weight / steps[:, None]).round()
        chunks = [part for row in torch.split(weight, rows) for part in torch.split(row, depth, dim=1)]
        zeros = torch.cat([self._padded(-self.kernel.zero * part.sum(1)) for part in chunks]).to(torch.int32)
        padded_steps = torch.cat([self._padded(part) for part in torch.split(steps, rows)])
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float() * scale
        panels = torch.cat([self._panels(part).flatten() for part in chunks])
        return _Dense(*map(self._keep, (panels, bias, padded_steps, zeros)))

    def _panels(self, weight: Tensor) -> Tensor:
        """(n, depth) -> (panels, words, outputs of a panel, numbers of a word) in the format of the product.

        By tiles: (panels, steps, tiles of a panel, outputs of a tile, words of a step, numbers of a word).
        """
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[self.precision]
        each, panel = _EACH[self.precision], self.panel
        rows = self._padded(weight)
        if self.step > 1:
            rows = nn.functional.pad(rows, (0, -rows.shape[1] % (self.step * each)))
            tiles = rows.view(-1, panel // _LANES, _LANES, rows.shape[1] // self.step // each, self.step, each)
            return tiles.permute(0, 3, 1, 2, 4, 5).contiguous().to(dtype)
        return rows.view(-1, panel, rows.shape[1] // each, each).transpose(1, 2).contiguous().to(dtype)

    def _padded(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros(-len(rows) % self.panel, *rows.shape[1:])])

    def _norm(self, norm: nn.LayerNorm) -> _Norm:
        weight, bias = (self._keep(part.detach().float()) for part in (norm.weight, norm.bias))
        return _Norm(weight, bias, norm.eps)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


class FusedLast:
    """The last layer's form of `attention.Attention`: items in tiles. States: query, own, hidden (N / T, numbers, T) in
    words, own_lse (N / T, H, T)."""

    def __init__(self, layer: FusedLayer, *, feed_forward: bool) -> None:
        self.layer, self.feed_forward, self.tile = layer, feed_forward, layer.kernel.tile

    def items(self, states: ItemStates) -> ItemStates:
        """States of N items as `SegmentedModel` gives them -> as `logits` reads them."""
        query, own, hidden = (
            self._tiles(part.flatten(1).to(self.layer.dtype)) for part in (states.query, states.own, states.hidden)
        )
        return ItemStates(hidden, query, own, self._tiles(states.own_lse.flatten(1).float()), states.hidden_mask)

    def take(self, states: ItemStates, index: Tensor) -> ItemStates:
        """Some of the items, in the order of the index."""
        parts = [self._tiles(self.rows(part, index)) for part in states.parts()[:4]]
        return ItemStates(parts[0], parts[1], parts[2], parts[3], states.hidden_mask[index])

    def dots(self, states: ItemStates, keys: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        """Dot products (V, N) of the last hidden states with vectors (V, D); keys and values (H, P, E) of one user."""
        dtype = self.layer.dtype
        user = self.layer.kernel.pack_user(keys.to(dtype), values.to(dtype))
        return self.layer.score(states, user, vectors, feed_forward=self.feed_forward)

    def _tiles(self, rows: Tensor) -> Tensor:
        """(N, n) -> (N / T, n / numbers of a word, T, numbers of a word)"""
        each = 4 // rows.itemsize
        rows = torch.cat([rows, rows.new_zeros(-len(rows) % self.tile, rows.shape[1])])
        return rows.view(-1, self.tile, rows.shape[1] // each, each).transpose(1, 2).contiguous()

    def rows(self, tiles: Tensor, index: Tensor) -> Tensor:
        """A part of the states -> (len(index), n) of some items; nothing of the others is read."""
        return tiles[index // self.tile, :, index % self.tile].flatten(1)


def fused_layers(family: Any, kernel: Kernel | None, precision: str) -> list[FusedLayer] | None:
    """All layers of a family that has such ones, where this CPU has the instructions; None elsewhere.

    Args:
      family: of a model in float32.
    """
    if kernel is None or kernel.function(f"score_{precision}") is None:
        return None
    parts = [cast(PostNorm | None, family.post_norm(layer)) for layer in range(family.n_layers)]
    known = [part for part in parts if part is not None and fits(_sides(part, family.head_size))]
    if len(known) < len(parts) or not kernel.fits_self(_attended(kernel, precision), family.head_size):
        return None
    ways: dict[str, Any] = {"n_heads": family.n_heads, "width": family.head_size, "precision": precision}
    return [FusedLayer(kernel, part, **ways) for part in known]


def _attended(kernel: Kernel, precision: str) -> torch.dtype:
    """What attention multiplies, as `is_half` in kernel.h has it."""
    return torch.float32 if precision == "fp32" or kernel.function("score_bf16") is None else torch.bfloat16


def fits(sides: Sequence[int]) -> bool:
    """Whether the kernel's vectors divide all sides of a layer's products."""
    return all(side % _LANES == 0 for side in sides)


def _sides(parts: PostNorm, head_size: int) -> tuple[int, ...]:
    return head_size, parts.out.out_features, parts.out.in_features, parts.inner.out_features
