"""The manifest of a checkpoint folder: SHA-256 and size of each file, and one digest for the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmrec_spark.errors import CheckpointError

FORMAT = 3
NAME = "manifest.json"

_PRETRAINED = {".safetensors", ".json", ".txt", ".model"}


def verify(folder: Path) -> str:
    """Checks every file of the manifest; returns the digest of the whole.

    Raises:
      CheckpointError: the manifest or a file is missing, damaged, of another format or not of this project.
    """
    manifest = _read(folder)
    for name, entry in manifest["files"].items():
        _verify_file(folder, name, entry)
    if _digest(manifest["files"]) != manifest.get("digest"):
        raise CheckpointError(f"{folder / NAME}: its digest is not that of its files")
    return str(manifest["digest"])


def digest_of(folder: str | Path) -> str:
    """The digest that the manifest names, unchecked. Raises CheckpointError as `verify` does of the manifest."""
    return str(_read(Path(folder))["digest"])


def files(folder: Path) -> list[str]:
    """Names of the files that the manifest lists, relative to the folder."""
    return sorted(_read(folder)["files"])


def write(folder: Path) -> str:
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    files = {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    digest = _digest(files)
    write_json(folder / NAME, {"format": FORMAT, "digest": digest, "files": files})
    return digest


def _digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _verify_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder / NAME}: names {name}, expected files of the folder")
    if not file.is_file():
        raise CheckpointError(f"{file}: not found, expected {entry['bytes']:,} bytes by the manifest")
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise CheckpointError(f"{file}: damaged: got {size:,} bytes, expected {entry['bytes']:,}")
    if sha256(file) != entry["sha256"]:
        raise CheckpointError(f"{file}: damaged: its SHA-256 is not that of the manifest")


def sha256(file: Path) -> str:
    """Hex digits. Raises CheckpointError when the file may not be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as fault:
        raise CheckpointError(f"{file}: not readable: {one_line(fault)}") from fault


def _read(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / NAME)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict) or "digest" not in manifest:
        raise CheckpointError(
            f"{folder / NAME}: got format {manifest.get('format')!r}, expected {FORMAT}: "
            "another version's, or not this project's"
        )
    for name, entry in manifest["files"].items():
        is_whole = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
        if not is_whole or not isinstance(entry.get("bytes"), int):
            raise CheckpointError(f"{folder / NAME}: damaged: {name}: got {entry!r}, expected its sha256 and bytes")
    return manifest


def read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: not found, expected a checkpoint of this project") from None
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{file}: damaged: {one_line(fault)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: damaged: got {type(value).__name__}, expected an object")
    return value


def write_json(file: Path, value: Mapping[str, object]) -> None:
    """A number that is none is null: other readers of JSON know no NaN."""
    told = json.loads(json.dumps(value), parse_constant=lambda _: None)
    file.write_text(json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def pretrained_files(folder: Path) -> list[tuple[str, str]]:
    """(name, SHA-256) of each file of a pretrained folder that a model or its tokenizer is read from.

    Raises:
      CheckpointError: there are no safetensors weights, or a file may not be read.
    """
    names = sorted(file for file in folder.glob("*") if file.suffix in _PRETRAINED)
    if not any(file.suffix == ".safetensors" for file in names):
        found = "no safetensors file" if folder.is_dir() else "no folder"
        raise CheckpointError(f"{folder}: got {found}, expected a pretrained model with safetensors weights")
    return [(file.name, sha256(file)) for file in names]


def text_digest(text: str) -> str:
    """First 12 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300]
