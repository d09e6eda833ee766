"""One thread for tiny models, a tiny pretrained folder and a tiny prepared world for all tests of the session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.prepared import write_prepared
from tests.tiny import save_tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny product costs less than waking a second thread for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def prepared_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tables` and `model`; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder / "tables")
    save_tiny(folder / "model", n_layers=2)
    return folder


@pytest.fixture
def world(prepared_world: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(prepared_world, tmp_path / "world"))


@pytest.fixture
def flip() -> Callable[[Path, int], None]:
    """Turns one bit of a file."""

    def flip_bit(file: Path, place: int) -> None:
        content = bytearray(file.read_bytes())
        content[place % len(content)] ^= 1
        file.write_bytes(bytes(content))

    return flip_bit
