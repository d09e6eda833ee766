"""The sections of a config that training reads: `finetune`, `pretrain` and `tune`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from flmrec_spark.fields import Count, Place, Section, Share

Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class AdapterConfig(Section):
    """Parameter-efficient tuning: small matrices are trained beside frozen ones, and merged into them at the end."""

    method: Literal["none", "lora", "dora", "adalora"] = "none"
    rank: Count = Field(8, description="of each pair of matrices; adalora: on average, after it began with half more")
    alpha: Rate = Field(16.0, description="the product of the matrices is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="of the adapter's input")
    modules: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = Field(
        "auto", description="ends of module names, such as [query, value]; auto: every product in the layers"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _mergeable(cls, value: object) -> object:
        if isinstance(value, str) and value.lower().startswith(("prefix", "prompt", "p_tuning", "p-tuning", "ptuning")):
            raise ValueError(
                f"got {value}, expected none, lora, dora or adalora: keys and values in front of a prompt are no part "
                "of a stock model's weights, so they could not be merged into them"
            )
        return value


class AugmentConfig(Section):
    """History augmentation in training; drawn anew for every step, the same for the same seed."""

    drop: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="share of the history entries left out")
    crop: Share = Field(0.0, description="share of the prompts that show a random stretch of their history alone")
    reorder: Share = Field(0.0, description="share of the prompts in which a random stretch is shuffled")

    @property
    def is_on(self) -> bool:
        return self.drop > 0.0 or self.crop > 0.0 or self.reorder > 0.0


class FactorTrainingConfig(Section):
    """How collaborative factors are learned, before the language model is fine-tuned."""

    epochs: Count = Field(24, description="passes over the train split at most")
    patience: Count = Field(5, description="epochs without a better validation before training stops")
    targets_per_row: Count = Field(2, description="interactions that share one history; fewer: nearer to what is next")
    rows_per_step: Count = Field(256, description="such rows in an optimizer step")
    learning_rate: Rate = 3e-3
    weight_decay: Weight = 1.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.3, description="of a user's vector of lists")
    rating_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.5, description="of a user's vector of ratings")
    history_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="share of entries left out")
    graded_labels: bool = Field(
        True, description="labels of rating vectors say how much a row was liked, by the order of values; false: 1 or 0"
    )
    hidden_share: Share = Field(
        0.3,
        description="share of users and items whose factors fine-tuning hides; an item has those of its text then",
    )


class EarlyStoppingConfig(Section):
    metric: Literal["uauc", "auc", "log_loss", "ndcg"] = "uauc"
    patience: Count = Field(3, description="validations without a better value before training stops")


class FinetuneConfig(Section):
    epochs: Annotated[int, Field(ge=0)] = Field(3, description="0: the pretrained model as it is, calibrated")
    max_steps: Count | None = Field(None, description="stop after this many optimizer steps; null: after the epochs")
    examples_per_step: Count = Field(64, description="user prefixes in an optimizer step")
    accumulate_steps: Count = Field(1, description="parts in which a step's examples are computed, to save memory")
    negatives: Annotated[int, Field(ge=0)] = Field(64, description="items drawn per step; unrated ones compete")
    negative_power: Share = Field(0.0, description="0: uniform; 1: by popularity; between: popularity to this power")
    rating_weight: Weight = Field(1.0, description="weight of binary cross-entropy on ratings")
    ranking_weight: Weight = Field(0.2, description="weight of softmax against the negatives")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Rate = 5e-5
    head_learning_rate: Rate = Field(1e-3, description="for the head, started from nothing")
    bias_learning_rate: Rate = Field(1e-3, description="for the bias terms")
    weight_decay: Weight = 0.01
    momentum: Share = Field(0.9, description="sgd only")
    warmup_share: Share = Field(0.1, description="share of the steps in which the rate rises from 0")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: Annotated[float, Field(gt=0.0)] = Field(1.0, description="largest norm of the gradient")
    dropout: Share = 0.1
    bias_dropout: Share = Field(
        0.2,
        description="share of bias terms set to 0, as of unknown ids; of users alone where factors hide items'",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: the faster of the two here")
    validate_every: Count | None = Field(
        None, description="steps between validations; null: once an epoch, at least every 100"
    )
    valid_users: Count = Field(2000, description="users in a validation, drawn by seed")
    save_every: Count | None = Field(None, description="steps between resume points; null: at each validation")
    factors: FactorTrainingConfig = FactorTrainingConfig()
    adapter: AdapterConfig = AdapterConfig()
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="factor on the learning rate per layer below the last; 1: none"
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of each rating label that is replaced by 1/2"
    )
    augment: AugmentConfig = AugmentConfig()
    gradient_checkpointing: bool = Field(False, description="compute layers again in the backward pass, to save memory")
    memory_check: Literal["refuse", "warn"] = Field(
        "refuse", description="what to do when the estimated memory is more than there is"
    )
    teacher: Place | None = Field(None, description="folder of a checkpoint whose probabilities are learned too")
    teacher_weight: Share = Field(0.5, description="share of the teacher's part in the loss; needs `teacher`")
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1

    @model_validator(mode="after")
    def _something_to_learn(self) -> FinetuneConfig:
        if self.rating_weight == 0.0 and self.ranking_weight == 0.0:
            raise ValueError("rating_weight and ranking_weight: got 0 and 0, expected one above 0")
        if self.ranking_weight > 0.0 and self.negatives == 0:
            raise ValueError("negatives: got 0, expected >= 1 as ranking_weight is above 0")
        return self

    @property
    def n_negatives(self) -> int:
        """Those that something is learned from: by a list's softmax, or by a teacher, who is asked about all pairs."""
        return self.negatives if self.ranking_weight > 0.0 or self.teacher is not None else 0


class PretrainConfig(Section):
    """Domain pre-training on the texts of items and users, before fine-tuning."""

    output: Place = Field("build/pretrained", description="folder of the new model, for model.path")
    epochs: Count = Field(1, description="passes over the texts")
    max_steps: Count | None = Field(None, description="stop after this many steps; null: after the epochs")
    texts_per_step: Count = Field(64, description="prompts in an optimizer step")
    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.15, description="encoders: share of tokens to guess")
    learning_rate: Rate = 5e-5
    weight_decay: Weight = 0.01
    warmup_share: Share = Field(0.1, description="share of the steps in which the rate rises from 0")
    clip_norm: Rate = Field(1.0, description="largest norm of the gradient")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1


class Range(Section):
    """Numbers between two ends, both included; whole ones when both ends are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="drawn evenly by size: as many between 1 and 10 as between 10 and 100")

    @model_validator(mode="after")
    def _ascends(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"got low {self.low} and high {self.high}, expected low < high, above 0 if log")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


class TuneConfig(Section):
    space: dict[str, Range | Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="key of prompts, model or finetune: a list of values, or {low, high, log}"
    )
    trials: Count = Field(20, description="fine-tunings in all, those of an earlier call included")
    max_minutes: Annotated[float, Field(gt=0.0)] | None = Field(None, description="no trial starts after this long")
    metric: Literal["uauc", "auc", "log_loss", "ndcg"] = Field("uauc", description="of the best validation of a trial")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(1, description="of the search; a trial has finetune.seed")
