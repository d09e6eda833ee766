"""The scorer: what depends on the items alone is computed once, then each user costs one pass over the catalogue.

For a last-layer join (`join_layer` L - 1, or `join: attention`) a pair is one softmax over the user's keys, in which
the item's own attention is one more key, one out-projection and one feed-forward of one token. Earlier joins run the
same model layer by layer on blocks of items, two towers a matrix product, `join: full` the stock pair.

A user is scored alone and items in fixed blocks, so a score does not depend on who else is in the batch.

Shapes: N items, T items of a block, P user tokens, D hidden, H heads, E = D / H.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.lm import item_states
from flmrec_spark.lm.attention import Attention, TorchAttention, attention_of
from flmrec_spark.lm.blending import Calibration
from flmrec_spark.lm.early_join import EarlyJoin, early_join_of
from flmrec_spark.lm.families.base import expanded
from flmrec_spark.lm.fused import FusedLast, fused_layers
from flmrec_spark.lm.kernels import pack_linears, quantize_linears
from flmrec_spark.lm.memory import Blocks
from flmrec_spark.lm.model import ItemStates, Segment, SegmentedModel, UserStates, concatenated
from flmrec_spark.lm.native import Kernel
from flmrec_spark.lm.precision import DTYPES
from flmrec_spark.lm.segments import TokenBlock
from flmrec_spark.lm.states import ItemPart

_ENCODE_BLOCK = 128  # items encoded at once
_LAST_BLOCK = {"cpu": 512, "cuda": 8192}  # items of a block: fits the cache, or fills the device
_EARLY_BLOCK = {"cpu": 128, "cuda": 2048}
Scores = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]
Work = Callable[[int, int], None]  # on items start .. stop - 1


class Scorer:
    """Scores users against one catalogue.

    Args:
      model: in eval mode; a copy of it is converted to a precision below float32.
      tokens: item segments, N rows; none for a scorer that only encodes.
      item_bias: learned offsets, float64 (N,); zeros where there are none.
      packed: multiply with `kernels.PackedLinear`, on a CPU; in a copy of the model.
      kernel: on a CPU, for whole layers or for attention, whichever fits the model.
      states: item states saved by an earlier scorer of the same model and items.
    """

    def __init__(
        self,
        model: SegmentedModel,
        tokens: TokenBlock,
        *,
        calibration: Calibration | None = None,
        item_bias: Scores | None = None,
        precision: str = "fp32",
        device: str = "cpu",
        packed: bool = False,
        kernel: Kernel | None = None,
        states: Path | None = None,
    ) -> None:
        self.device = device
        self.dtype = DTYPES[precision]
        changes = packed or precision != "fp32" or kernel is not None
        self.model = (copy.deepcopy(model) if changes else model).to(device)
        self.kernel = kernel if device == "cpu" else None
        self.is_last = model.join != "full" and model.join_layer == model.family.n_layers - 1
        self.calibration = calibration or Calibration()
        self.attention: Attention = TorchAttention()
        layers = None
        if model.join != "full":
            family: Any = self.model.family
            self.attention = attention_of(self.kernel, self.dtype, family.head_size)
            family.kernel, family.fused = self.kernel, (layers := fused_layers(family, self.kernel, precision))
        self.fused = FusedLast(layers[-1], feed_forward=model.join == "layer") if layers and self.is_last else None
        if layers is None:
            self._convert(precision, packed)
        kind = torch.device(device).type
        self._encode_blocks, self._early_blocks = Blocks(_ENCODE_BLOCK), Blocks(_EARLY_BLOCK[kind])
        self._last_blocks = Blocks(_LAST_BLOCK[kind])
        found = None
        if states is not None:
            found = item_states.load(states, self.device)
        elif model.join != "full" and len(tokens):
            found = self._laid_out(self.encode(tokens))
        self.items = ItemPart(tokens, found, np.zeros(len(tokens)) if item_bias is None else item_bias)
        self.early = early_join_of(self.model, self.kernel, found)

    def _convert(self, precision: str, packed: bool) -> None:
        self.model.backbone.to(self.dtype)
        if precision == "int8":
            if self.kernel is None or not self.kernel.multiplies_bytes:
                raise EnvironmentFault("score.precision: got int8, expected a CPU with AVX2 or VNNI, and a C compiler")
            quantize_linears(self.model.backbone, self.kernel)
        if packed:
            pack_linears(self.model.backbone)

    def score(self, user: list[int], *, user_bias: float = 0.0, items: Index | None = None) -> Scores:
        """Probabilities of one user for all items, or for those of an index: float64 (N,) or (len(items),).

        From the language model and the bias terms alone; `judge.Judge` adds collaborative factors.
        """
        bias = self.items.bias if items is None else self.items.bias[items]
        return self.calibration.probability(self.logits(user, items=items) + bias + user_bias)

    def logits(self, user: list[int], *, items: Index | None = None, factors: Floats | None = None) -> Scores:
        """As `score`, before bias terms and calibration; `factors` (F,) are the user's collaborative token."""
        return np.asarray(self.head_logits(user, items=items, factors=factors)[0])

    @torch.inference_mode()
    def head_logits(self, user: list[int], *, items: Index | None = None, factors: Floats | None = None) -> Scores:
        """`logits` of every head of the model, `rating` first: float64 (heads, N) or (heads, len(items))."""
        if self.model.join == "full":
            asked = self.items.tokens if items is None else self.items.tokens.take(items)
            return self._pair_logits(user, asked, factors)
        logits = self._score_states(self._encoded(user, factors), items)
        return np.asarray(logits.double().cpu().numpy())

    @torch.inference_mode()
    def pair_logits(self, user: list[int], items: TokenBlock) -> Scores:
        """Logits of one user for items that need not be in the catalogue: float64 (len(items),), without bias terms."""
        return np.asarray(self._pair_logits(user, items, None)[0])

    def _pair_logits(self, user: list[int], items: TokenBlock, factors: Floats | None) -> Scores:
        segment = Segment.of_one(user, factors, self.device)
        states = None if self.model.join == "full" else self._encoded(user, factors)
        result = np.zeros((len(self.model.heads), len(items)))

        def score_block(start: int, stop: int) -> None:
            block = Segment.of(items.take(np.arange(start, stop)), self.device)
            if states is None:
                hidden, pooled = self.model.pair(segment.repeated(stop - start), block)
            else:
                grid = torch.arange(stop - start, device=self.device)[None]
                encoded = self.model.encode_items(block.ids, block.lengths, block.factors)
                hidden, pooled = self.model.joined(states, encoded, grid)[0], states.pooled
            result[:, start:stop] = self._heads(hidden, pooled).double().cpu().numpy()

        self._early_blocks.run(len(items), score_block)
        return result

    @torch.inference_mode()
    def encode(self, tokens: TokenBlock) -> ItemStates:
        """States of some items, as the model gives them; not for `join: full`."""
        blocks = []

        def encode_block(start: int, stop: int) -> None:
            block = Segment.of(tokens.part(start, stop), self.device)
            blocks.append(self.model.encode_items(block.ids, block.lengths, block.factors).compact())

        self._encode_blocks.run(len(tokens), encode_block)
        return concatenated(blocks)

    @torch.inference_mode()
    def save_states(self, states: ItemStates, file: Path) -> None:
        """Writes what `encode` gave, as the kernel reads it, for processes to map into their memory."""
        item_states.save(self._laid_out(states), file)

    def _heads(self, hidden: Tensor, pooled: Tensor) -> Tensor:
        """(heads, n) of last hidden states (n, D)."""
        return torch.stack([head(hidden, pooled) for head in self.model.heads])

    def _laid_out(self, states: ItemStates) -> ItemStates:
        return (self.fused or self.attention).items(states) if self.is_last else states

    def _encoded(self, user: list[int], factors: Floats | None) -> UserStates:
        segment = Segment.of_one(user, factors, self.device)
        return self.model.encode_users(segment.ids, segment.lengths, segment.factors)

    def _score_states(self, user: UserStates, items: Index | None) -> Tensor:
        """Logits (heads, items)."""
        states, n_heads = self.items.states, len(self.model.heads)
        assert states is not None
        index = None if items is None else torch.from_numpy(items).to(self.device)
        if self.model.is_two_towers:
            hidden = states.hidden[:, 0] if index is None else states.hidden[index, 0]
            return self._heads(hidden, user.pooled)
        if self.is_last and index is not None:
            states = (self.fused or self.attention).take(states, index)
        if self.fused is not None:
            return self._fused_last(self.fused, user, states)
        n_items = len(states.hidden) if self.is_last or index is None else len(index)
        logits = torch.empty(n_heads, n_items, device=self.device)
        if self.is_last:
            self._last_blocks.run(n_items, self._last_layer(user, states, logits))
        elif self.early is not None and index is None:
            self._early_blocks.run(n_items, self._early_layers(self.early, user, logits))
        else:
            self._early_blocks.run(n_items, self._layers(user, states, index, logits))
        return logits

    def _layers(self, user: UserStates, items: ItemStates, index: Tensor | None, logits: Tensor) -> Work:
        """What writes the logits of some items, in the order of an index: the layers from the join on, by torch."""

        def score_block(start: int, stop: int) -> None:
            grid = torch.arange(start, stop, device=self.device) if index is None else index[start:stop]
            hidden = self.model.joined(user, items, grid[None])[0]
            logits[:, start:stop] = self._heads(hidden, user.pooled)

        return score_block

    def _early_layers(self, early: EarlyJoin, user: UserStates, logits: Tensor) -> Work:
        """As `_layers`, of all items and by the kernel."""
        known = early.user(user)

        def score_block(start: int, stop: int) -> None:
            hidden = early.last_hidden(known, start, stop)
            logits[:, start:stop] = self._heads(hidden, user.pooled)

        return score_block

    def _last_layer(self, user: UserStates, items: ItemStates, logits: Tensor) -> Work:
        """What writes the logits of the items start .. stop - 1: the last layer of one token each."""
        model = self.model
        known = self.attention.user(*self._keys(user))
        of_user = [head.of_user(user.pooled[0]) for head in model.heads]

        def score_block(start: int, stop: int) -> None:
            attended = self.attention.attend(items, known, slice(start, stop))
            layer, feed_forward = model.family.n_layers - 1, model.join != "attention"
            hidden = model.family.finish(layer, items.hidden[start:stop], attended, feed_forward=feed_forward)
            hidden = hidden.float()
            for row, (direction, constant) in enumerate(of_user):
                torch.addmv(constant, hidden, direction, out=logits[row, start:stop])

        return score_block

    def _fused_last(self, fused: FusedLast, user: UserStates, items: ItemStates) -> Tensor:
        """Logits (heads, N) of all of the items: the last layer and the heads in one call."""
        directions, constants = zip(*[head.of_user(user.pooled[0]) for head in self.model.heads], strict=True)
        return fused.dots(items, *self._keys(user), torch.stack(directions)) + torch.stack(constants)[:, None]

    def _keys(self, user: UserStates) -> tuple[Tensor, Tensor]:
        """Keys and values (H, P, E) of the last layer."""
        n_heads = self.model.family.n_heads
        return expanded(user.keys[0][0], n_heads), expanded(user.values[0][0], n_heads)
