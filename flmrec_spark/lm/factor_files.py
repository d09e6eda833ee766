"""Collaborative factors as two files of a checkpoint: the arrays, and the ids of the items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm.collaborative import Collaborative, Factors
from flmrec_spark.lm.grades import Grades
from flmrec_spark.lm.neighbours import Neighbours
from flmrec_spark.lm.profiles import Profile
from flmrec_spark.lm.text_map import TextMap

_ARRAYS = ("history", "target", "offset", "mix")
_NEAR = ("history", "target", "expected")
_PROFILE = ("tokens", "target")
_GRADES = ("grades.liked", "grades.disliked")
_TEXTS = ("texts.weight", "texts.bias")
_FILE, _IDS = "factors.safetensors", "factors.parquet"
_SCHEMA = pa.schema([("item_id", pa.string())])


def save(folder: Path, found: Collaborative) -> None:
    """Writes two files, which `load` reads."""
    tensors = {
        f"{name}.{part}": np.ascontiguousarray(getattr(one, part))
        for name, one in found.factors.items()
        for part in _ARRAYS
    }
    told: dict[str, Any] = {
        f"{name}.recency": np.array(one.recency, dtype=np.float64) for name, one in found.factors.items()
    }
    for name, one in found.factors.items():
        if one.near is not None:
            parts = {part: getattr(one.near, part) for part in _NEAR}
            told |= {f"{name}.near_{part}": np.ascontiguousarray(own) for part, own in parts.items() if own is not None}
        if one.profile is not None:
            told |= {f"{name}.profile_{part}": np.ascontiguousarray(getattr(one.profile, part)) for part in _PROFILE}
        if one.popular is not None:
            told[f"{name}.popular"] = one.popular
    if found.grades is not None:
        told |= dict(zip(_GRADES, (found.grades.liked, found.grades.disliked), strict=True))
    if found.texts is not None:
        told |= dict(zip(_TEXTS, (found.texts.weight, found.texts.bias), strict=True))
    whole = tensors | told | {"history_length": np.array(found.history_length)}
    # Safetensors writes an array as it lies in memory, whatever the order of its axes.
    save_file({name: np.asarray(value, order="C") for name, value in whole.items()}, folder / _FILE)
    pq.write_table(pa.table([found.item_ids], schema=_SCHEMA), folder / _IDS)


def load(folder: Path) -> Collaborative | None:
    """The factors of a checkpoint folder; None where it has none.

    Raises:
      CheckpointError: a file is damaged, or the two do not fit.
    """
    if not (folder / _FILE).is_file():
        return None
    try:
        tensors = load_file(folder / _FILE)
        ids = pq.read_table(folder / _IDS, schema=_SCHEMA)["item_id"].combine_chunks()
        names = sorted({key.partition(".")[0] for key in tensors if "." in key and key not in (*_TEXTS, *_GRADES)})
        factors = {name: _factors(tensors, name) for name in names}
        texts = TextMap(*(tensors[name] for name in _TEXTS)) if _TEXTS[0] in tensors else None
        grades = Grades(*(tensors[name] for name in _GRADES)) if _GRADES[0] in tensors else None
        found = Collaborative(ids, factors, int(tensors["history_length"]), texts, grades)
    except (OSError, KeyError, SafetensorError, pa.ArrowException) as fault:
        raise CheckpointError(f"{folder / _FILE}: not readable: {' '.join(str(fault).split())[:300]}") from fault
    for name, one in factors.items():
        if one.n_items != len(ids) or len(one.history) != 2 * len(ids) or len(one.offset) != len(ids) + 1:
            raise CheckpointError(f"{folder / _FILE}: {name}: got factors of {one.n_items} items, expected {len(ids)}")
        if one.near is not None:
            parts = (one.near.history, one.near.target[1:], one.near.expected)
            got = {len(part) for part in parts if part is not None}
            if got != {len(ids)} or one.near.history.shape[1] != one.near.target.shape[1]:
                raise CheckpointError(
                    f"{folder / _FILE}: {name}: got neighbours of {min(got)} items, expected {len(ids)}"
                )
        if one.popular is not None and one.popular.shape != (len(ids) + 1,):
            raise CheckpointError(
                f"{folder / _FILE}: {name}: got popularity of shape {one.popular.shape}, expected ({len(ids) + 1},)"
            )
        if one.profile is not None:
            tokens, target = one.profile.tokens, one.profile.target
            if len(target) != len(ids) + 1 or tokens.shape[1:] != target.shape[1:]:
                raise CheckpointError(
                    f"{folder / _FILE}: {name}: got profiles of shapes {tokens.shape} and {target.shape}, expected "
                    f"(V, d) and ({len(ids) + 1}, d)"
                )
    width = found.width + len(factors)
    if texts is not None and (texts.weight.shape[1:], texts.bias.shape) != ((width,), (width,)):
        raise CheckpointError(f"{folder / _FILE}: {_TEXTS[0]}: got shape {texts.weight.shape}, expected (D, {width})")
    return found


def _factors(tensors: Mapping[str, Any], name: str) -> Factors:
    history, target, offset, mix = (tensors[f"{name}.{part}"] for part in _ARRAYS)
    near = None
    if f"{name}.near_target" in tensors:
        history_of, target_of = (tensors[f"{name}.near_{part}"] for part in _NEAR[:2])
        near = Neighbours(history_of, target_of, tensors.get(f"{name}.near_{_NEAR[2]}"))
    profile = None
    if f"{name}.profile_target" in tensors:
        profile = Profile(*(tensors[f"{name}.profile_{part}"] for part in _PROFILE))
    recency, popular = float(tensors[f"{name}.recency"]), tensors.get(f"{name}.popular")
    return Factors(history, target, offset, mix, recency, near, profile, popular)
