"""The scorer: what depends on the items alone is computed once, then each user costs one pass over the catalogue.

For a last-layer join (`join_layer` L - 1, or `join: attention`) a pair is one softmax over the user's keys, in which
the item's own attention is one more key, one out-projection and one feed-forward of one token. Earlier joins run the
same model layer by layer on blocks of items, two towers a matrix product, `join: full` the stock pair.

A user is scored alone and items in fixed blocks, so a score does not depend on who else is in the batch.

Shapes: N items, T items of a block, P user tokens, D hidden, H heads, E = D / H.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flmrec_spark.lm.checkpoint import Calibration
from flmrec_spark.lm.kernels import pack_linears
from flmrec_spark.lm.model import ItemStates, SegmentedModel, UserStates
from flmrec_spark.lm.precision import DTYPES
from flmrec_spark.lm.segments import TokenBlock

_ENCODE_BLOCK = 128  # items encoded at once
_LAST_BLOCK = {"cpu": 512, "cuda": 8192}  # items of a block: fits the cache, or fills the device
_EARLY_BLOCK = {"cpu": 128, "cuda": 2048}
_STATES = ("hidden", "query", "own", "own_lse", "hidden_mask")

Scores = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class ItemPart:
    """The catalogue as the kernel reads it: for a last-layer join heads come first and the query is scaled."""

    tokens: TokenBlock
    states: ItemStates | None  # None for `join: full`
    bias: Scores  # (N,)


class Scorer:
    """Scores users against one catalogue.

    Args:
      model: in eval mode; a copy of it is converted to a precision below float32.
      tokens: item segments, N rows.
      item_bias: learned offsets, float64 (N,); zeros where there are none.
      packed: multiply with `kernels.PackedLinear`, on a CPU; in a copy of the model.
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
        states: Path | None = None,
    ) -> None:
        self.device = device
        self.dtype = DTYPES[precision]
        changes = packed or precision != "fp32"
        self.model = (copy.deepcopy(model) if changes else model).to(device)
        self.model.backbone.to(self.dtype)
        if packed:
            pack_linears(self.model.backbone)
        self.calibration = calibration or Calibration()
        self.is_last = model.join != "full" and model.join_layer == model.family.n_layers - 1
        found = self._load_states(states) if states is not None else self._encode(tokens)
        bias = np.zeros(len(tokens)) if item_bias is None else item_bias
        self.items = ItemPart(tokens, found, bias)

    def score(self, user: list[int], *, user_bias: float = 0.0, items: Index | None = None) -> Scores:
        """Probabilities of one user for all items, or for those of an index: float64 (N,) or (len(items),)."""
        bias = self.items.bias if items is None else self.items.bias[items]
        return self.calibration.probability(self.logits(user, items=items) + bias + user_bias)

    @torch.inference_mode()
    def logits(self, user: list[int], *, items: Index | None = None) -> Scores:
        """As `score`, before bias terms and calibration."""
        if self.model.join == "full":
            return self.pair_logits(user, self.items.tokens if items is None else self.items.tokens.take(items))
        logits = self._score_states(self.model.encode_users(*self._user(user)), items)
        return np.asarray(logits.double().cpu().numpy())

    @torch.inference_mode()
    def pair_logits(self, user: list[int], items: TokenBlock) -> Scores:
        """Logits of one user for items that need not be in the catalogue: float64 (len(items),), without bias terms."""
        users, n_tokens = self._user(user)
        states = None if self.model.join == "full" else self.model.encode_users(users, n_tokens)
        size = _EARLY_BLOCK[torch.device(self.device).type]
        result = np.zeros(len(items))
        for start in range(0, len(items), size):
            block = items.take(np.arange(start, min(start + size, len(items))))
            ids, lengths = self._tensors(block, 0, size)
            if states is None:
                logits = self.model.pair(users.expand(len(ids), -1), n_tokens.expand(len(ids)), ids, lengths)
            else:
                grid = torch.arange(len(ids), device=self.device)[None]
                logits = self.model.join_items(states, self.model.encode_items(ids, lengths), grid)[0]
            result[start : start + size] = logits.double().cpu().numpy()
        return result

    @torch.inference_mode()
    def save_states(self, file: Path) -> None:
        """Writes the item states, for other processes to map into their memory."""
        states = self.items.states
        save_file({name: getattr(states, name).contiguous() for name in _STATES} if states is not None else {}, file)

    def _load_states(self, file: Path) -> ItemStates | None:
        tensors = load_file(file, device=self.device)
        return ItemStates(*[tensors[name] for name in _STATES]) if tensors else None

    @torch.inference_mode()
    def _encode(self, tokens: TokenBlock) -> ItemStates | None:
        if self.model.join == "full":
            return None
        blocks = []
        for start in range(0, len(tokens), _ENCODE_BLOCK):
            ids, lengths = self._tensors(tokens, start, start + _ENCODE_BLOCK)
            blocks.append(self.model.encode_items(ids, lengths))
        states = ItemStates(*[torch.cat([getattr(block, name) for block in blocks]) for name in _STATES])
        return _for_last_layer(states) if self.is_last else states

    def _user(self, user: list[int]) -> tuple[Tensor, Tensor]:
        return torch.tensor([user], device=self.device), torch.tensor([len(user)], device=self.device)

    def _tensors(self, tokens: TokenBlock, start: int, stop: int) -> tuple[Tensor, Tensor]:
        ids = torch.from_numpy(tokens.ids[start:stop]).to(self.device, torch.long)
        return ids, torch.from_numpy(tokens.lengths[start:stop]).to(self.device)

    def _score_states(self, user: UserStates, items: Index | None) -> Tensor:
        states = self.items.states
        assert states is not None
        index = None if items is None else torch.from_numpy(items).to(self.device)
        if self.model.is_two_towers:
            hidden = states.hidden[:, 0] if index is None else states.hidden[index, 0]
            return self.model.head(hidden, user.pooled)
        if self.is_last and index is not None:
            chosen = (states.hidden[index], states.query[:, index], states.own[:, index], states.own_lse[:, index])
            states = ItemStates(*chosen, states.hidden_mask)
        n_items = len(states.hidden) if self.is_last or index is None else len(index)
        size = (_LAST_BLOCK if self.is_last else _EARLY_BLOCK)[torch.device(self.device).type]
        logits = torch.empty(n_items, device=self.device)
        for start in range(0, n_items, size):
            block = slice(start, min(start + size, n_items))
            if self.is_last:
                logits[block] = self._last_layer(user, states, block)
            else:
                grid = torch.arange(block.start, block.stop, device=self.device) if index is None else index[block]
                logits[block] = self.model.join_items(user, states, grid[None])[0]
        return logits

    def _last_layer(self, user: UserStates, items: ItemStates, block: slice) -> Tensor:
        """Logits (T,) of a block of items: the last layer of one token each."""
        logits = torch.bmm(items.query[:, block], user.keys[0][0].transpose(1, 2)).float()  # (H, T, P)
        own_logit = items.own_lse[:, block]  # (H, T)
        top = torch.maximum(logits.amax(-1), own_logit)
        weights = logits.sub_(top[..., None]).exp_()
        own_weight = (own_logit - top).exp_()
        total = weights.sum(-1).add_(own_weight)
        attended = torch.bmm(weights.to(self.dtype), user.values[0][0])  # (H, T, E)
        attended = torch.addcmul(attended.float(), items.own[:, block].float(), own_weight[..., None])
        attended = attended.div_(total[..., None]).to(self.dtype).transpose(0, 1).flatten(1)  # (T, D)
        layer = self.model.family.n_layers - 1
        feed_forward = self.model.join != "attention"
        hidden = self.model.family.finish(layer, items.hidden[block], attended, feed_forward=feed_forward)
        return self.model.head(hidden, user.pooled)


def _for_last_layer(states: ItemStates) -> ItemStates:
    scale = math.sqrt(states.query.shape[-1])
    return ItemStates(
        hidden=states.hidden[:, 0].contiguous(),  # (N, D)
        query=(states.query[:, :, 0] / scale).transpose(0, 1).contiguous(),  # (H, N, E)
        own=states.own[:, :, 0].transpose(0, 1).contiguous(),  # (H, N, E)
        own_lse=states.own_lse[:, :, 0].transpose(0, 1).contiguous(),  # (H, N)
        hidden_mask=states.hidden_mask,
    )
