"""A bundle holds plain files alone, and one whose names lead out of its folder is refused whole.

What is in a good one is in test_worker.py.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import bundles, manifest


def tar_of(name: str, kind: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size = kind, 1 if kind == tarfile.REGTYPE else 0
        entry.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else ""
        archive.addfile(entry, io.BytesIO(b"x") if entry.size else None)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../out", tarfile.REGTYPE), ("/out", tarfile.REGTYPE), ("a/../../out", tarfile.REGTYPE), ("a", tarfile.SYMTYPE)],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    content = tar_of(name, kind)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(CheckpointError, match=r"bundle: got '.*', expected plain files below one folder"):
        bundles.unpack(tmp_path / "executor/root", digest, lambda: io.BytesIO(content))
    assert not (tmp_path / "executor/root" / digest).exists()
    assert not list(tmp_path.rglob("out"))


def test_links_within_a_checkpoint_travel_as_files(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "a").write_bytes(b"weights")
    (folder / "b").hardlink_to(folder / "a")
    (folder / "c").symlink_to("a")
    manifest.write(folder)
    found = bundles.pack(folder, pa.table({"item_id": ["i"]}), tmp_path / "bundle.tar")
    content = (tmp_path / "bundle.tar").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    unpacked = bundles.unpack(tmp_path / "executor", digest, lambda: io.BytesIO(content)) / bundles.CHECKPOINT
    assert manifest.verify(unpacked) == found
    files = [unpacked / name for name in "abc"]
    assert [file.read_bytes() for file in files] == [b"weights"] * 3
    assert not any(file.is_symlink() for file in files)
