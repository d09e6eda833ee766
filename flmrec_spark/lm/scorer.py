"""The scorer: what depends on the items alone is computed once, then each user costs one pass over the catalogue.

For a last-layer join (`join_layer` L - 1, or `join: attention`) a pair is one softmax over the user's keys, in which
the item's own attention is one more key, one out-projection and one feed-forward of one token. Earlier joins run the
same model layer by layer on blocks of items, two towers a matrix product, `join: full` the stock pair.

On a CPU a user is scored alone and items in fixed blocks, on a GPU users go in steps of one shape, so a score does not
depend on who else is in the batch.

Shapes: N items, T items of a block, P user tokens, D hidden, H heads, E = D / H.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flmrec_spark.errors import ConfigError, EnvironmentFault
from flmrec_spark.lm import item_states
from flmrec_spark.lm.attention import Attention, TorchAttention, attention_of
from flmrec_spark.lm.blending import Calibration
from flmrec_spark.lm.fused import FusedLast, fused_layers
from flmrec_spark.lm.kernels import pack_linears, quantize_linears
from flmrec_spark.lm.memory import Blocks
from flmrec_spark.lm.model import ItemStates, Segment, SegmentedModel, UserStates, concatenated
from flmrec_spark.lm.native import Kernel
from flmrec_spark.lm.one_by_one import EARLY_BLOCK, OneByOne, heads_of
from flmrec_spark.lm.precision import DTYPES
from flmrec_spark.lm.states import ItemPart
from flmrec_spark.lm.token_block import TokenBlock

log = logging.getLogger("flmrec")

_ENCODE_BLOCK = 128  # items encoded at once
Scores = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]
User = tuple[list[int], Floats | None]  # a segment and its collaborative token


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
        changes = packed or precision != "fp32" or kernel is not None or torch.device(device).type == "cuda"
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
        self.uses_batches = kind == "cuda" and _uses_device_layers(self.model, tokens.ids.shape[1])
        self._encode_blocks, self._pair_blocks = Blocks(_ENCODE_BLOCK), Blocks(EARLY_BLOCK[kind])
        found = None
        if states is not None:
            found = item_states.load(states, self.device)
        elif model.join != "full" and len(tokens):
            found = self._laid_out(self.encode(tokens))
        self.items = ItemPart(tokens, found, np.zeros(len(tokens)) if item_bias is None else item_bias)
        self.batches = _batches_of(self.model, found, device) if self.uses_batches and found is not None else None
        self.one: OneByOne | None = None
        if found is not None and self.batches is None:
            self.one = OneByOne(self.model, found, self.attention, self.fused, self.kernel)

    def _convert(self, precision: str, packed: bool) -> None:
        self.model.backbone.to(self.dtype)
        if precision == "int8":
            if self.kernel is None or not self.kernel.multiplies_bytes:
                raise EnvironmentFault("score.precision: got int8, expected a CPU with AVX2 or VNNI, and a C compiler")
            if not quantize_linears(self.model.backbone, self.kernel):
                raise ConfigError("score.precision: got int8, expected a model with layers whose sides 16 divides")
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
            asked = self.items.tokens if items is None else self.items.tokens.take(items, in_same_width=True)
            return self._pair_logits(user, asked, factors)
        if self.batches is not None:
            own = self.batches if items is None else self.batches.take(torch.from_numpy(items).to(self.device))
            found = np.asarray(own.of_one((user, factors)))
            self.batches.step_tokens = min(self.batches.step_tokens, own.step_tokens)  # halved, it stays halved
            return found
        assert self.one is not None  # there are items
        logits = self.one.logits(self._encoded(user, factors), items)
        return np.asarray(logits.double().cpu().numpy())

    def head_logits_each(self, users: Iterable[User]) -> Iterator[Scores]:
        """`head_logits` of each user for all items, in their order; on a GPU many at a time, while others are used."""
        if self.batches is not None:
            yield from self.batches.logits(users)
            return
        for user, factors in users:
            yield self.head_logits(user, factors=factors)

    @torch.inference_mode()
    def pair_logits(self, user: list[int], items: TokenBlock) -> Scores:
        """Logits of one user for items that need not be in the catalogue: float64 (len(items),), without bias terms."""
        return np.asarray(self._pair_logits(user, items, None)[0])

    def _pair_logits(self, user: list[int], items: TokenBlock, factors: Floats | None) -> Scores:
        segment = Segment.of_one(user, factors, self.device)
        states = None if self.model.join == "full" else self._encoded(user, factors)
        result = np.zeros((len(self.model.heads), len(items)))

        def score_block(start: int, stop: int) -> None:
            block = Segment.of(items.part(start, stop), self.device)  # its width decides the last bits of a sum
            if states is None:
                hidden, pooled = self.model.pair(segment.repeated(stop - start), block)
            else:
                grid = torch.arange(stop - start, device=self.device)[None]
                encoded = self.model.encode_items(block.ids, block.lengths, block.factors)
                hidden, pooled = self.model.joined(states, encoded, grid)[0], states.pooled
            result[:, start:stop] = heads_of(self.model, hidden, pooled).double().cpu().numpy()

        self._pair_blocks.run(len(items), score_block)
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

    @torch.inference_mode()
    def item_hidden(self, items: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """States of some items below the join, float64 (len(items), Q, D), and which of the Q are padding.

        One token is kept, the score's, where an item meets the user in the last layer. Not for `join: full`.
        """
        states = self.items.states
        assert states is not None
        index = torch.from_numpy(items).to(self.device)
        hidden = states.hidden[index] if self.fused is None else self.fused.rows(states.hidden, index)
        hidden = (hidden if hidden.dim() == 3 else hidden[:, None]).double()
        one = torch.zeros(len(items), 1, dtype=torch.bool, device=hidden.device)
        return hidden, one if hidden.shape[1] == 1 else states.hidden_mask[index]

    def _laid_out(self, states: ItemStates) -> ItemStates:
        return (self.fused or self.attention).items(states) if self.is_last and not self.uses_batches else states

    def _encoded(self, user: list[int], factors: Floats | None) -> UserStates:
        segment = Segment.of_one(user, factors, self.device)
        return self.model.encode_users(segment.ids, segment.lengths, segment.factors)


def _uses_device_layers(model: SegmentedModel, n_tokens: int) -> bool:
    """Prepares a model for `user_batches` where it fits them and Triton is there."""
    try:
        from flmrec_spark.lm import device_join  # here: a CPU needs no Triton
    except ImportError as fault:
        log.warning("score: no Triton on this GPU's machine (%s): torch alone, slower", fault)
        return False
    if model.join == "full":
        return False
    device_join.use_device_layers(model)
    return device_join.fits(model, n_tokens)


def _batches_of(model: SegmentedModel, states: ItemStates, device: str) -> Any:
    from flmrec_spark.lm.device_join import DeviceJoin
    from flmrec_spark.lm.user_batches import UserBatches

    return UserBatches(DeviceJoin(model, states), device)
