"""What the keys of a config are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _expanded(place: str) -> str:
    """`~` is the home folder, as in a shell, which leaves it as it is behind a `=`."""
    return str(Path(place).expanduser()) if place.startswith("~") else place


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Place = Annotated[str, AfterValidator(_expanded)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
