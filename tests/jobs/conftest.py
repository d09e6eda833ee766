"""The worlds of the score job's tests."""

from __future__ import annotations

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
    """A world with run `first`; tests that share it leave what it has published as it is."""
    folder = copied(prepared, tmp_path_factory.mktemp("published") / "world", database="score_published")
    assert run(folder, "--run-id", "first") == 0
    return folder
