"""Item states made by several processes: each slice once, all of them as one process would make them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flmrec_spark.lm import item_states
from flmrec_spark.lm.model import ItemStates, SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from tests.tiny import tiny_bert

N_ITEMS = 1300  # three slices


def catalog() -> TokenBlock:
    random = np.random.default_rng(3)
    lengths = random.integers(1, 9, N_ITEMS).astype(np.int32)
    lengths[0] = 8
    return TokenBlock(random.integers(5, 60, (N_ITEMS, 8)).astype(np.int32), lengths)


def encoder(join_layer: int = 1) -> Scorer:
    torch.set_num_threads(1)
    model = SegmentedModel(
        tiny_bert(n_layers=2), join="layer", join_layer=join_layer, item_position=20, item_tokens=8
    ).eval()
    return Scorer(model, catalog().take(np.arange(0)))


def make(target: Path, notes: Path, scorer: Scorer) -> None:
    def encode(tokens: TokenBlock) -> ItemStates:
        with notes.open("a") as file:
            file.write(f"{tokens.ids[0].tolist()}\n")
        return scorer.encode(tokens)

    item_states.make(catalog(), target, encode=encode, write=scorer.save_states)


@pytest.mark.parametrize("join_layer", [0, 1, 2])
def test_slices_together_are_what_one_pass_gives(tmp_path: Path, join_layer: int) -> None:
    scorer = encoder(join_layer)
    make(tmp_path / "states", tmp_path / "notes", scorer)
    scorer.save_states(scorer.encode(catalog()), tmp_path / "whole")
    got, whole = load_file(tmp_path / "states"), load_file(tmp_path / "whole")
    assert set(got) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(got[name], tensor), name
    assert not any(file.stat().st_size for file in (tmp_path / "states.slices").iterdir())  # locks


def test_processes_that_come_at_once_encode_each_slice_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    scorer = encoder()
    arguments = (tmp_path / "states", tmp_path / "notes", scorer)
    processes = [context.Process(target=make, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    noted = (tmp_path / "notes").read_text().splitlines()
    assert len(noted) == len(set(noted)) == 3
    assert len(load_file(tmp_path / "states")["hidden"]) == N_ITEMS


def test_a_process_may_come_while_another_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = encoder()
    folder = tmp_path / "states.slices"
    folder.mkdir()
    is_dir = Path.is_dir

    def ends_now(path: Path) -> bool:  # asked by mkdir, once it was told that the folder is there
        if path == folder:
            monkeypatch.undo()
            make(tmp_path / "states", tmp_path / "notes", scorer)
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", ends_now)
    make(tmp_path / "states", tmp_path / "notes", scorer)
    assert Path.is_dir is is_dir, "the other one never came"
    assert len((tmp_path / "notes").read_text().splitlines()) == 3


def test_what_a_killed_process_left_is_used_or_made_anew(tmp_path: Path) -> None:
    scorer = encoder()
    (tmp_path / "notes").touch()  # which slice comes first depends on the process: it may be the one that is killed

    def killed(tokens: TokenBlock) -> ItemStates:
        if tokens.ids[0].tolist() == catalog().ids[2 * item_states.SLICE].tolist():
            raise KeyboardInterrupt
        with (tmp_path / "notes").open("a") as file:
            file.write("encoded\n")
        return scorer.encode(tokens)

    with pytest.raises(KeyboardInterrupt):
        item_states.make(catalog(), tmp_path / "states", encode=killed, write=scorer.save_states)
    done = len((tmp_path / "notes").read_text().splitlines())
    (tmp_path / f"states.slices/{2 * item_states.SLICE}.draft").write_bytes(b"half")
    make(tmp_path / "states", tmp_path / "notes", scorer)
    assert len((tmp_path / "notes").read_text().splitlines()) == 3
    assert done <= 2
    scorer.save_states(scorer.encode(catalog()), tmp_path / "whole")
    assert (tmp_path / "states").read_bytes() == (tmp_path / "whole").read_bytes()
