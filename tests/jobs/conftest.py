"""The worlds of the score job's tests."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from tests.prepared import write_prepared
from tests.score_world import copied, run, world_rows
from tests.scored import write_checkpoint


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tables` and `checkpoint` as prepare and finetune would leave them; not to be changed."""
    folder = tmp_path_factory.mktemp("score")
    write_prepared(folder / "tables", world_rows())
    write_checkpoint(folder / "checkpoint")
    return folder


@pytest.fixture
def world(spark: SparkSession, prepared: Path, tmp_path: Path) -> Path:
    """A copy of the test's own."""
    return copied(prepared, tmp_path / "world")


@pytest.fixture(scope="session")
def published(spark: SparkSession, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with run `first` and the line that it printed; tests that share it leave what it has published as it is.

    The checkpoint has a template of its own: nobody reads the one that the config names.
    """
    folder = copied(prepared, tmp_path_factory.mktemp("published") / "world", database="score_published")
    with redirect_stdout(io.StringIO()) as printed:
        assert run(folder, "--run-id", "first", "prompts.template=nowhere.yaml") == 0
    (folder / "line.json").write_text(printed.getvalue().splitlines()[-1])
    shutil.copytree(folder, folder.with_name("untouched"))
    return folder


@pytest.fixture
def done(published: Path, tmp_path: Path) -> Path:
    """A copy of the test's own, with run `first` and nothing that others did to it since."""
    return copied(published.with_name("untouched"), tmp_path / "world")
