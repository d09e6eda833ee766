"""A named file: its place is checked ahead, and it is replaced whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmrec_spark import files
from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.files import table_place


def test_a_file_replaces_another_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    files.write(file, "old", flag="--report")
    files.write(file, "new é", flag="--report")
    assert file.read_text(encoding="utf-8") == "new é"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_without_a_place_is_told_before_and_after(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "report.html"
    with pytest.raises(EnvironmentFault, match=r"--report: got .*none/report.html, expected a file in a folder that"):
        files.expect_room(missing, flag="--report")
    with pytest.raises(EnvironmentFault, match=r"--output: got .*, which is a folder, expected a file"):
        files.expect_room(tmp_path, flag="--output")
    with pytest.raises(EnvironmentFault, match="cannot be written: No such file or directory"):
        files.write(missing, "x", flag="--report")
    files.expect_room(tmp_path / "report.html", flag="--report")


def test_a_home_folder_and_the_root_of_all_are_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TablesConfig(root="~/lake").root == f"{tmp_path}/lake"
    assert TablesConfig(root="a~b").root == "a~b"
    assert table_place("/", "items") == "/items"
    assert table_place("file:///", "items") == "file:/items"
