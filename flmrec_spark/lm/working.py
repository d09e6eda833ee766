"""bf16 training: the backbone computes in a bfloat16 copy, float32 weights beside it take the updates.

Every product then reads weights that are bfloat16 already, where autocast would convert them at each call. The
softmax, layer norms and the log-sum-exp add up in float32 inside their kernels, and the head, the bias terms and the
loss are float32 throughout (Micikevicius et al. 2018, section 3.1: a master copy of the weights).
"""

from __future__ import annotations

import copy

import torch

from flmrec_spark.lm.model import SegmentedModel


class WorkingCopy:
    """A bfloat16 copy of a model's backbone; the model's own weights stay float32 and are the ones that are saved."""

    def __init__(self, master: SegmentedModel) -> None:
        self.model = copy.deepcopy(master)
        for parameter in self.model.backbone.parameters():
            parameter.data = parameter.data.bfloat16()
        pairs = zip(master.parameters(), self.model.parameters(), strict=True)
        self._pairs = [(weight, working) for weight, working in pairs if weight.requires_grad]

    @torch.no_grad()
    def refresh(self) -> SegmentedModel:
        """The copy, with the weights as they are now."""
        for weight, working in self._pairs:
            working.copy_(weight)
        return self.model

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the copy's gradients to the float32 ones, and clears them."""
        for weight, working in self._pairs:
            if working.grad is not None:
                gradient = working.grad.to(weight.dtype)
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
                working.grad = None
