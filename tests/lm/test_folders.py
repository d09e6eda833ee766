"""Folders that are replaced whole: what may stand there, links, locks and full disks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from flmrec_spark.errors import ConflictError, EnvironmentFault
from flmrec_spark.lm import folders

MARK = "mark"


def made(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / MARK).write_text(content)
    return folder


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_points_to_is_replaced_again_and_again(tmp_path: Path, is_there: bool) -> None:
    real, link = tmp_path / "disk/real", tmp_path / "link"
    real.parent.mkdir()
    if is_there:
        made(real, "0")
    link.symlink_to(real)
    for content in ("1", "2"):
        folders.expect_room(link, mark=MARK)
        folders.replace(link, made(folders.beside(link, ".draft"), content))
        assert link.is_symlink()
        assert (folders.present(link) / MARK).read_text() == content
        assert [path.name for path in real.parent.iterdir()] == ["real"]


def test_after_a_kill_between_the_two_renames_the_previous_one_is_found_behind_a_link(tmp_path: Path) -> None:
    real, link = made(tmp_path / "real", "old"), tmp_path / "link"
    link.symlink_to(real)
    real.rename(folders.beside(link, ".previous"))
    assert (folders.present(link) / MARK).read_text() == "old"


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "volume")
    (tmp_path / "volume").mkdir()
    with pytest.raises(EnvironmentFault, match=r"volume, which is a mount point, expected a folder in it"):
        folders.expect_room(tmp_path / "volume", mark=MARK)
    folders.expect_room(tmp_path / "volume/checkpoint", mark=MARK)


def test_one_process_at_a_time_makes_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with folders.held(target):
        with pytest.raises(ConflictError, match=r"checkpoint: another process is making it"), folders.held(target):
            pass
        with folders.held(tmp_path / "other"):
            pass
    with folders.held(target):
        pass


@pytest.mark.parametrize(
    "fault", [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "No space left")]
)
def test_a_full_disk_is_a_fault_of_the_machine_that_names_the_folder(tmp_path: Path, fault: Exception) -> None:
    with (
        pytest.raises(EnvironmentFault, match=r"checkpoint: not written: .*No space left"),
        folders.written(tmp_path / "checkpoint"),
    ):
        raise fault
