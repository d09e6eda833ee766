"""The section `model` of a config."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flmrec_spark.fields import Count, Place, Section


class CollaborativeConfig(Section):
    """Collaborative factors: what users did as vectors, beside what items say as text."""

    dimension: Annotated[int, Field(ge=0)] = Field(64, description="numbers of a vector; 0: no factors")
    history_length: Count = Field(300, description="newest interactions that a user's vector is made of")
    recency: Annotated[float, Field(gt=0.0)] = Field(
        3.0, description="interactions after which the extra weight of a recent one has fallen to 1 / e"
    )
    neighbours: Annotated[int, Field(ge=0)] = Field(
        128, description="further numbers of a vector, of what items that resemble one say of it; 0: none"
    )
    profile: Annotated[int, Field(ge=0)] = Field(
        32, description="further numbers of a list's vector, of what a user's profile says of what they like; 0: none"
    )
    tokens: bool = Field(
        False, description="the vectors are a token of each segment too, not a term of the logit alone"
    )

    @model_validator(mode="after")
    def _tokens_of_something(self) -> CollaborativeConfig:
        if self.tokens and not self.dimension:
            raise ValueError("tokens: got true, expected false, as dimension is 0: there are no vectors")
        return self


class ModelConfig(Section):
    path: Place = Field(description="folder of a pretrained model with its tokenizer")
    join: Literal["attention", "layer", "full"] = Field(
        "attention",
        description="where an item sees the user: in the last layer's attention, from join_layer on, or everywhere",
    )
    join_layer: Annotated[int, Field(ge=0)] | Literal["last"] = Field(
        "last",
        description="of join: layer: first layer in which the item sees the user; 0 .. number of layers; last = "
        "layers - 1",
    )
    head: Literal["linear", "answer"] = Field(
        "linear", description="start of the head: from nothing, or from a language head's rows for yes and no"
    )
    keep_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="layers of the pretrained model that are kept, from 0; null: all"
    )
    bias_terms: bool = Field(True, description="learned offset per user and item, 0 for the unknown")
    collaborative: CollaborativeConfig = CollaborativeConfig()

    @model_validator(mode="after")
    def _layers_ascend(self) -> ModelConfig:
        kept = self.keep_layers
        if kept is not None and any(one >= other for one, other in pairwise(kept)):
            raise ValueError(f"keep_layers: got {kept}, expected ascending numbers such as [0, 2, 4]")
        return self

    @model_validator(mode="after")
    def _joins_once(self) -> ModelConfig:
        if self.join != "layer" and self.join_layer != "last":
            raise ValueError(f"join_layer: got {self.join_layer}, expected last, or join: layer; got {self.join}")
        return self
