"""Parameter-efficient tuning through peft: adapters in the backbone's own modules, merged into them at the end.

An adapter takes the place of a product inside the stock model, so the names by which a family finds its modules stay.
What is saved is the stock model with the adapter merged, and the adapter beside it in peft's own format.

    LoRA     W + alpha / r * B A                    Hu et al. 2021
    DoRA     m * (W + alpha / r * B A) / norm       Liu et al. 2024
    AdaLoRA  W + alpha / r * P diag(e) Q            Zhang et al. 2023; small e are cut in the course of the training

Prefix tuning is refused: its keys and values are no part of a stock model's weights, so it cannot be merged.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flmrec_spark.config import AdapterConfig
from flmrec_spark.errors import ConfigError
from flmrec_spark.lm.layers import layer_of

_NAME = "default"
_FEWEST_STEPS = 10  # AdaLoRA has a start, a cut and an end
_PEFT_PREFIX = "base_model.model."
_IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def expect_steps(settings: AdapterConfig, n_steps: int) -> None:
    """Raises ConfigError where the training is too short for AdaLoRA."""
    if settings.method == "adalora" and n_steps < _FEWEST_STEPS:
        raise ConfigError(f"finetune.adapter.method: got adalora with {n_steps} steps, expected {_FEWEST_STEPS}")


class Adapter:
    """The adapter of a backbone; everything else of the backbone is frozen.

    Args:
      backbone: a stock model; changed in place.
      n_steps: length of the training, by which AdaLoRA plans its cuts.

    Raises:
      ConfigError: no module has such a name, or the training is too short for AdaLoRA.
    """

    def __init__(self, backbone: nn.Module, settings: AdapterConfig, *, folder: str, n_steps: int) -> None:
        expect_steps(settings, n_steps)
        modules = _modules(backbone, settings)
        self.config = _config(settings, modules, folder, n_steps)
        self.config.fan_in_fan_out = any(isinstance(backbone.get_submodule(name), Conv1D) for name in modules)
        kind = AdaLoraModel if settings.method == "adalora" else LoraModel
        self.tuner: Any = kind(backbone, self.config, _NAME)

    @property
    def _is_adaptive(self) -> bool:
        return isinstance(self.config, AdaLoraConfig)

    def round_frozen(self) -> None:
        """Keeps frozen products in bfloat16 where that changes no number, as in models that are published so.

        For a training in bf16: autocast would round a frozen weight anew at each use, and keep every copy for the
        backward pass. DoRA reads norms of the weights, so it keeps them as they are.
        """
        if self.config.peft_type == "LORA" and self.config.use_dora:
            return
        for module in self.tuner.model.modules():
            if isinstance(module, BaseTunerLayer):
                weight: Any = module.get_base_layer().weight
                rounded = weight.data.bfloat16()
                if torch.equal(rounded.float(), weight.data):
                    weight.data = rounded

    def penalty(self) -> Tensor | None:
        """AdaLoRA: how far P and Q are from orthogonal, to be added to the loss (Zhang et al. 2023, eq. 4)."""
        if not self._is_adaptive:
            return None
        terms = []
        for name, value in self.tuner.model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                square = value @ value.T if "lora_A" in name else value.T @ value
                terms.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=value.device)))
        return float(self.config.orth_reg_weight) * torch.stack(terms).mean()

    def after_step(self, step: int) -> None:
        """AdaLoRA: cuts the rank by the gradients of a step, counted from 1; they must still be there."""
        if self._is_adaptive:
            for name, value in self.tuner.model.named_parameters():
                if "lora_" in name and value.requires_grad and value.grad is None:  # of a product that this join skips
                    value.grad = torch.zeros_like(value)
            self.tuner.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """What a resume point needs besides the parameters."""
        if not self._is_adaptive:
            return {}
        allocator = self.tuner.rankallocator
        tensors = {f"{kind}|{name}": value for kind in _IMPORTANCES for name, value in getattr(allocator, kind).items()}
        pattern = self.config.rank_pattern or {}
        return tensors | {f"rank_pattern|{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        if not self._is_adaptive:
            return
        found: dict[str, dict[str, Any]] = {kind: {} for kind in (*_IMPORTANCES, "rank_pattern")}
        for key, value in tensors.items():
            kind, _, name = key.partition("|")
            found[kind][name] = value.tolist() if kind == "rank_pattern" else value
        for kind in _IMPORTANCES:
            device = next(self.tuner.model.parameters()).device
            values = {name: value.to(device) for name, value in found[kind].items()}
            setattr(self.tuner.rankallocator, kind, values)
        self.config.rank_pattern = found["rank_pattern"] or None

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, as `PeftModel.from_pretrained` reads them."""
        folder.mkdir(parents=True)
        config = copy.deepcopy(self.config)
        config.inference_mode = True
        config.target_modules = sorted(config.target_modules)  # peft's set has another order in every process
        if self._is_adaptive:
            config.rank_pattern = None  # a rank that was cut is written with its e, which is 0
        backbone = self.tuner.model
        backbone.peft_config = {_NAME: config}
        weights = get_peft_model_state_dict(backbone, adapter_name=_NAME, save_embedding_layers=False)
        backbone.peft_config = self.tuner.peft_config
        found = {_PEFT_PREFIX + name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(found, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))


def merge(backbone: nn.Module) -> None:
    """Adds every adapter to the weights that it stands beside and leaves the stock model in float32, in place."""
    backbone.float()
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(backbone.get_submodule(parent), attribute, module.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config
    backbone.requires_grad_(True)


def _modules(backbone: nn.Module, settings: AdapterConfig) -> list[str]:
    """Full names of the modules that get an adapter: products of the layers, all or those with such an end."""
    products = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    products = [name for name in products if layer_of(name) is not None]
    if settings.modules == "auto":
        return products
    for end in settings.modules:
        if not any(f".{name}".endswith(f".{end}") for name in products):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in products}))
            raise ConfigError(f"finetune.adapter.modules: got {end}, expected ends of names such as {known}")
    return [name for name in products if any(f".{name}".endswith(f".{end}") for end in settings.modules)]


def _config(settings: AdapterConfig, modules: list[str], folder: str, n_steps: int) -> Any:
    shared: dict[str, Any] = {
        "target_modules": modules,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "base_model_name_or_path": folder,
    }
    if settings.method != "adalora":
        return LoraConfig(r=settings.rank, use_dora=settings.method == "dora", **shared)
    return AdaLoraConfig(
        target_r=settings.rank,
        init_r=math.ceil(1.5 * settings.rank),
        tinit=n_steps // 10,
        tfinal=n_steps // 3,
        total_step=n_steps,
        **shared,
    )


def n_parameters(backbone: nn.Module, settings: AdapterConfig) -> int:
    """Trained numbers of an adapter: rank * (inputs + outputs) of each product; AdaLoRA begins with half more rank."""
    rank = math.ceil(1.5 * settings.rank) if settings.method == "adalora" else settings.rank
    products: list[Any] = [backbone.get_submodule(name) for name in _modules(backbone, settings)]
    return sum(rank * sum(product.weight.shape) for product in products)


def n_adapted(backbone: nn.Module, settings: AdapterConfig) -> int:
    """Weights of the products that get an adapter."""
    products: list[Any] = [backbone.get_submodule(name) for name in _modules(backbone, settings)]
    return sum(product.weight.numel() for product in products)
