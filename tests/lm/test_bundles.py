"""A bundle whose names lead out of its folder is refused whole; what is in a good one is in test_worker.py."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import bundles


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
