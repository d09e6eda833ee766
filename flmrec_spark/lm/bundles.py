"""One tar of a checkpoint's files and the items, on its way to the executors.

It is unpacked once per executor, under its digest and behind a lock, and verified there.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from filelock import FileLock

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import manifest, native
from flmrec_spark.lm.native import Built

ITEMS_FILE = "items.arrow"
CHECKPOINT = "checkpoint"


def pack(checkpoint_folder: Path, items: pa.Table, target: Path, *, kernel: Built | None = None) -> str:
    """Writes a bundle: the manifest's files, the kernel's library where the driver could build it, and the items.

    The items carry their tokens and whether they may be listed. Returns the digest of the checkpoint that it has, by
    its manifest, which `unpack` holds every file to.
    """
    told = (checkpoint_folder / manifest.NAME).read_bytes()
    with tarfile.open(target, "w", dereference=True) as archive:  # links become files, also hard ones of one file
        _add(archive, f"{CHECKPOINT}/{manifest.NAME}", io.BytesIO(told))
        for name in manifest.files(checkpoint_folder):
            archive.add(checkpoint_folder / name, arcname=f"{CHECKPOINT}/{name}")
        if kernel is not None:
            archive.add(kernel.file, arcname=native.bundled_name(kernel.level))
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, items.schema) as writer:
            writer.write_table(items)
        _add(archive, ITEMS_FILE, sink)
    return str(json.loads(told)["digest"])


def _add(archive: tarfile.TarFile, name: str, content: io.BytesIO) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = content.seek(0, io.SEEK_END)
    content.seek(0)
    archive.addfile(entry, content)


def unpack(root: Path, digest: str, open_bundle: Callable[[], Any]) -> Path:
    """The bundle's folder on this executor, unpacked by the first process that asks.

    Args:
      root: folder of the executor.
      digest: SHA-256 of the bundle, which is its name.
      open_bundle: gives the tar as a seekable binary stream; called by that first process alone.

    Raises:
      CheckpointError: a byte was lost on the way.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / digest
    with FileLock(root / f"{digest}.lock"):
        if not folder.exists():
            draft = root / f"{digest}.draft"
            shutil.rmtree(draft, ignore_errors=True)
            with open_bundle() as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
                if found != digest:
                    raise CheckpointError(f"bundle {digest[:12]}: damaged on its way: got SHA-256 {found[:12]}")
                stream.seek(0)
                with tarfile.open(fileobj=stream, mode="r:") as archive:
                    _extract(archive, draft)
            manifest.verify(draft / CHECKPOINT)  # what a full disk would have spoilt
            draft.rename(folder)
    return folder


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Plain files below the folder, and nothing else; `extractall` knows no filter before Python 3.11.4."""
    for member in archive:
        path = PurePosixPath(member.name)
        if not member.isfile() or path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"bundle: got {member.name!r}, expected plain files below one folder")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        assert source is not None
        with source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
