"""One YAML per run -> one frozen Config. Every fault of a file and its overrides is reported at once.

Keys are `section.key`; `section.key=value` on the command line overrides the file, the value being YAML. A
key that does not exist is refused with the nearest one that does. Nothing is defaulted anywhere else.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from flmrec_spark.errors import ConfigError
from flmrec_spark.fields import Place, Section
from flmrec_spark.model_sections import CollaborativeConfig, ModelConfig
from flmrec_spark.sections import (
    DiversityConfig,
    EvaluateConfig,
    PrepareConfig,
    PromptsConfig,
    ScoreConfig,
    Source,
    SplitConfig,
    TablesConfig,
)
from flmrec_spark.training_sections import (
    AdapterConfig,
    AugmentConfig,
    EarlyStoppingConfig,
    FactorTrainingConfig,
    FinetuneConfig,
    PretrainConfig,
    Range,
    TuneConfig,
)
from flmrec_spark.yaml_text import Dumper, Loader

__all__ = [
    "AdapterConfig",
    "AugmentConfig",
    "CollaborativeConfig",
    "Config",
    "DiversityConfig",
    "EarlyStoppingConfig",
    "EvaluateConfig",
    "FactorTrainingConfig",
    "FinetuneConfig",
    "ModelConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PromptsConfig",
    "Range",
    "ScoreConfig",
    "Section",
    "Source",
    "SplitConfig",
    "TablesConfig",
    "TuneConfig",
    "known_keys",
    "load_config",
]

_UNION_MEMBER = re.compile(r"^(constrained-\w+|(literal|list|function-\w+)\[.*\])$")


class Config(Section):
    tables: TablesConfig
    prepare: PrepareConfig
    prompts: PromptsConfig = PromptsConfig()
    model: ModelConfig
    checkpoint: Place = Field(description="folder that fine-tuning writes and scoring reads")
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    score: ScoreConfig = ScoreConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if self.prepare.event_values and self.prepare.liked_at_least is None:
            raise ValueError("prepare.liked_at_least: got null, expected a worth, as prepare.event_values is set")
        if self.model.join == "full" and self.finetune.early_stopping.metric == "ndcg":
            raise ValueError("finetune.early_stopping.metric: got ndcg, which join: full is too slow to measure")
        if self.score.strategy == "hybrid" and not self.evaluate.baselines:
            raise ValueError("evaluate.baselines: got none, expected some, as score.strategy: hybrid is made of them")
        return self

    def as_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.dump(self.as_dict(), Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def digest(self, *sections: str) -> str:
        """First 12 hex digits of the SHA-256 of the named sections, or of the whole config."""
        values = self.as_dict()
        chosen = {name: values[name] for name in sections} if sections else values
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies `section.key=value` overrides.

    Raises:
      ConfigError: the file is missing or no YAML mapping, an override has no `=`, a key is unknown or a value
        is out of range; all faults in one message.
    """
    file = Path(path)
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=Loader)
    except FileNotFoundError:
        raise ConfigError(f"--config: got {path}, expected a YAML file; there is none") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise ConfigError(f"{path}: not readable as YAML: {_one_line(fault)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}, expected sections such as `score:`")
    values = _unshared(values)
    faults = [wrong for override in overrides if (wrong := _override(values, override))]
    try:
        config = Config.model_validate(values)
    except ValidationError as fault:
        faults = [*_described(fault), *faults]
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults))
    return config


def _unshared(value: Any) -> Any:
    """Where an alias stands there is a copy of its own, so that an override of one section is of no other."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _override(values: dict[str, Any], override: str) -> str | None:
    """Sets the value; returns what is wrong with the override, if anything."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        return f"override: got {override!r}, expected section.key=value"
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as fault:
        return f"override {name}: got {text!r}, expected a YAML value: {_one_line(fault)}"
    *sections, key = _keys(name)
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            return f"override {name}: {section} is no section"
        values = inner
    values[key] = value
    return None


def _keys(name: str) -> list[str]:
    """The keys of a dotted name; what follows one that holds names of its own, as tune.space does, is one of these."""
    parts = name.split(".")
    model: type[BaseModel] = Config
    for place, part in enumerate(parts[:-1], start=1):
        field = model.model_fields.get(part)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        if any(kind is dict or get_origin(kind) is dict for kind in kinds):
            return [*parts[:place], ".".join(parts[place:])]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return parts


def _described(fault: ValidationError) -> Iterator[str]:
    """One text per faulty key; the members of a union share one."""
    texts: dict[str, str] = {}
    for error in fault.errors():
        location = [str(part) for part in error["loc"] if not _UNION_MEMBER.match(str(part))]
        name, text = ".".join(location), _describe(error, location)
        texts[name] = f"{texts[name]} or {text.partition(', expected ')[2]}" if name in texts else text
    yield from texts.values()


def _describe(error: Any, location: Sequence[str]) -> str:
    name = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"{name}: unknown key{_hint(name)}"
    if error["type"] == "missing":
        return f"{name}: missing, expected a value"
    if error["type"] == "model_type":
        return f"{name}: got {error['input']!r}, expected a section of keys"
    if error["type"] == "value_error":
        return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    return f"{name}: got {error['input']!r}, expected {error['msg'].removeprefix('Input should be ')}"


def _hint(name: str) -> str:
    """The nearest key of the section, or one of that very name elsewhere but for a letter or two, or what there is."""
    section, _, own = name.rpartition(".")
    parts = [key.rpartition(".") for key in known_keys()]
    siblings = [last for of, _, last in parts if of == section]
    if near := difflib.get_close_matches(own, siblings, n=1):
        return f", did you mean {f'{section}.' if section else ''}{near[0]}?"
    if near := difflib.get_close_matches(own, [last for *_, last in parts], n=1, cutoff=0.8):
        return f", did you mean {_closest_path(name, [''.join(part) for part in parts if part[2] == near[0]])}?"
    return f", known: {', '.join(siblings)}" if siblings else ""


def _closest_path(name: str, candidates: Sequence[str]) -> str:
    return max(candidates, key=lambda key: difflib.SequenceMatcher(None, name, key).ratio())


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every `section.key` that a config may hold."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from known_keys(inner, f"{prefix}{name}.")


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())
