"""Checkpoint folders: what goes in comes out, whatever is damaged is named, and a kill loses nothing."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flmrec_spark.errors import CheckpointError, EnvironmentFault
from flmrec_spark.lm import checkpoint, folders, manifest
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.blending import Blend, Calibration, ListBlend
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import load_template
from tests.tiny import save_tiny, tiny_bert, tiny_tokenizer

ODD = {"007": 0.5, "用户 甲": -0.25, 'it\'em "q"': 1.0, " ": 2.0, "null": -1.0, "": 0.125}
FILES = (
    "backbone/config.json",
    "backbone/model.safetensors",
    "biases.parquet",
    "biases.train.parquet",
    "calibration.json",
    "flmrec.json",
    "head.safetensors",
    "metrics.json",
    "template.yaml",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)


def segmented() -> SegmentedModel:
    model = SegmentedModel(tiny_bert(n_layers=2), join="layer", join_layer=1, item_position=30, item_tokens=10)
    for weight in (model.rating.item_weight, model.rating.user_weight):
        weight.data.normal_(generator=torch.Generator().manual_seed(7))
    return model.eval()


def save(folder: Path, **changed: Any) -> str:
    own = Segmenter(tiny_tokenizer(), load_template("zh"), user_tokens=30, item_tokens=10, history_length=4)
    content: dict[str, Any] = {
        "model": segmented(),
        "segmenter": own,
        "biases": Biases(ODD, {key: -value for key, value in ODD.items()}),
        "blend": Blend(Calibration(1.5, -0.25)),
        "metrics": {"fingerprint": "f", "validation": {"auc": 0.75}},
        "config": {"model": {"path": "p"}},
    }
    return checkpoint.save(folder, **{**content, **changed})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def remake_manifest(folder: Path) -> None:
    (folder / manifest.NAME).unlink()
    manifest.write(folder)


def read_all(folder: Path) -> None:
    """What scoring reads."""
    found = checkpoint.load(folder)
    found.segmenter(), found.model(), found.biases()


def test_all_of_it_comes_back(saved):
    found = checkpoint.load(saved)
    assert found.digest == manifest.verify(saved) == manifest.digest_of(saved)
    assert (found.settings.join, found.settings.join_layer, found.settings.history_length) == ("layer", 1, 4)
    assert (found.settings.user_tokens, found.settings.item_tokens) == (30, 10)
    assert found.blend.calibration == Calibration(1.5, -0.25)
    assert found.template == load_template("zh") or found.template.to_yaml() == load_template("zh").to_yaml()
    assert dict(found.biases().user) == ODD
    assert dict(found.biases().item) == {key: -value for key, value in ODD.items()}
    assert checkpoint.read_metrics(saved)["validation"] == {"auc": 0.75}
    model, expected = found.model(), segmented()
    assert not model.training
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_the_biases_of_train_are_kept_beside_the_whole_ones(saved, tmp_path):
    assert checkpoint.load(saved).biases(of_train=True) == checkpoint.load(saved).biases()
    save(tmp_path / "c", train_biases=Biases({"u": 0.25}, {"i": -0.5}))
    found = checkpoint.load(tmp_path / "c")
    assert found.biases(of_train=True) == Biases({"u": 0.25}, {"i": -0.5})
    assert dict(found.biases().user) == ODD


def test_how_new_users_are_blended_comes_back_and_must_be_finite(saved, tmp_path):
    assert checkpoint.load(saved).new_users is None
    blend = Blend(Calibration(0.5, 0.25), ListBlend(1.0, 2.0, 3.0, 4.0, 5.0))
    save(tmp_path / "c", blend=Blend(Calibration(), ListBlend(0.5, 0.0, 1.0)), new_users=blend)
    assert checkpoint.load(tmp_path / "c").new_users == blend
    save(tmp_path / "c", new_users=Blend(Calibration(0.0), None))
    with pytest.raises(CheckpointError, match=r"calibration.json: got .*slope=0.0.*, expected a slope above 0"):
        checkpoint.load(tmp_path / "c")


def test_no_biases_come_back_as_none(tmp_path):
    save(tmp_path / "c", biases=Biases({}, {}))
    assert checkpoint.load(tmp_path / "c").biases() == Biases({}, {})


def test_the_same_content_has_the_same_digest_and_other_content_another(saved, tmp_path):
    first = checkpoint.load(saved).digest
    assert save(tmp_path / "again") == first
    assert save(tmp_path / "other", blend=Blend(Calibration(1.5, -0.5))) != first


def test_nothing_executable_is_in_it(saved):
    assert manifest.files(saved) == sorted(FILES)


@pytest.mark.parametrize("name", [*FILES, manifest.NAME])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: not found"):
        read_all(folder)


@pytest.mark.parametrize("name", [*FILES, manifest.NAME])
def test_a_truncated_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        read_all(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_found_and_its_file_named(folder, flip, name, share):
    flip(folder / name, int(share * ((folder / name).stat().st_size - 1)))
    with pytest.raises(CheckpointError, match=f"{name}: damaged: its SHA-256"):
        read_all(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_manifest_never_passes(folder, saved, place, bit):
    content = bytearray((saved / manifest.NAME).read_bytes())
    content[place % len(content)] ^= 1 << bit
    (folder / manifest.NAME).write_bytes(content)
    try:
        manifest.verify(folder)
    except CheckpointError:
        return
    assert json.loads(content) == json.loads((saved / manifest.NAME).read_bytes())  # another white space, at most


@pytest.mark.parametrize("entry", [None, 5, {}, {"sha256": 1, "bytes": 1}, {"sha256": "a", "bytes": "1"}])
def test_a_manifest_with_an_odd_entry_is_damaged(folder, entry):
    content = json.loads((folder / manifest.NAME).read_text())
    content["files"]["head.safetensors"] = entry
    (folder / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"manifest.json: damaged: head.safetensors: got .*, expected its sha256"):
        checkpoint.load(folder)


def test_a_folder_that_is_not_there_or_foreign_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere/manifest.json: not found, expected a checkpoint"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"manifest.json: not found, expected a checkpoint"):
        checkpoint.load(save_tiny(tmp_path / "stock"))


@pytest.mark.parametrize("content", ['{"format": 1, "files": {}, "digest": "x"}', '{"name": "web app"}', "[]", "{"])
def test_another_format_is_refused(folder, content):
    (folder / manifest.NAME).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest.json: (got format .* expected 3|damaged)"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "backbone/../../secret", "link"])
def test_a_manifest_that_names_a_file_outside_is_refused(folder, name):
    (folder.parent / "secret").write_text("s")
    (folder / "link").symlink_to(folder.parent / "secret")
    content = json.loads((folder / manifest.NAME).read_text())
    content["files"][name] = {"sha256": manifest.sha256(folder.parent / "secret"), "bytes": 1}
    (folder / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"manifest.json: names .*, expected files of the folder"):
        checkpoint.load(folder)


def test_another_tokenizer_does_not_match_even_with_a_manifest_made_for_it(folder):
    other = tiny_tokenizer()
    other.add_tokens(["story"])
    other.save_pretrained(folder / "tokenizer")
    remake_manifest(folder)
    with pytest.raises(CheckpointError, match="tokenizer: does not match the model"):
        read_all(folder)


@pytest.mark.parametrize(
    "calibration",
    [
        '{"rating": {"slope": -1.0}, "listing": null, "new_users": null}',
        '{"rating": {"slope": 1.0, "intercept": NaN}, "listing": null, "new_users": null}',
    ],
)
def test_a_calibration_that_turns_the_order_is_refused(folder, calibration):
    (folder / "calibration.json").write_text(calibration)
    remake_manifest(folder)
    with pytest.raises(CheckpointError, match=r"calibration.json: got Blend.*, expected a slope above 0, all finite"):
        checkpoint.load(folder)


def test_files_of_another_project_are_refused(folder):
    (folder / "flmrec.json").write_text('{"weights": 1}')
    remake_manifest(folder)
    with pytest.raises(CheckpointError, match="not this project's"):
        checkpoint.load(folder)


class Trap:
    """Unpickled, it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_beside_the_files_is_never_opened(folder, tmp_path):
    for name in ("backbone/pytorch_model.bin", "backbone/model.pt", "head.bin", "tokenizer/tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    read_all(folder)
    assert not (tmp_path / "trace").exists()


def test_a_pretrained_folder_of_pickles_alone_is_refused(tmp_path):
    model = save_tiny(tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model.safetensors: not found, expected a pretrained model"):
        load_backbone(model)


def test_a_pretrained_model_that_lacks_a_tensor_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = save_tiny(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, such as encoder.layer.1.output.dense.weight"):
        load_backbone(model)


def test_a_pretrained_folder_without_a_tokenizer_is_refused(tmp_path):
    model = save_tiny(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"got no tokenizer, expected one of tokenizer.json, vocab.txt"):
        checkpoint.load_tokenizer(model)
    with pytest.raises(CheckpointError, match="not found, expected a folder with a tokenizer"):
        checkpoint.load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_of_sentencepiece_alone_loads_and_is_kept_as_json(tmp_path):
    import sentencepiece

    (tmp_path / "texts").write_text("the quick brown fox jumps 喜欢 这部 电影\n" * 50, encoding="utf-8")
    trainer = {"model_prefix": str(tmp_path / "spiece"), "vocab_size": 60, "hard_vocab_limit": False}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "texts"), minloglevel=2, **trainer, **ids)
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "spiece.model").rename(folder / "spiece.model")
    (folder / "config.json").write_text('{"model_type": "t5"}')
    found = checkpoint.load_tokenizer(folder)
    asked = "the fox 喜欢 电影"
    assert found.decode(found(asked)["input_ids"]) == f"{asked}</s>"
    found.save_pretrained(tmp_path / "kept")
    assert (tmp_path / "kept/tokenizer.json").is_file()
    assert checkpoint.load_tokenizer(tmp_path / "kept")(asked) == found(asked)


def test_a_save_that_fails_leaves_the_old_one(folder, monkeypatch):
    before = checkpoint.load(folder).digest

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(manifest, "write", fail)
    with pytest.raises(EnvironmentFault, match="checkpoint: not written: no space left"):
        save(folder, blend=Blend(Calibration(9.0, 0.0)))
    assert checkpoint.load(folder).digest == before


def test_a_save_killed_between_its_two_renames_loses_nothing(folder, monkeypatch):
    before, rename = checkpoint.load(folder).digest, Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".draft"):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                save(folder, blend=Blend(Calibration(9.0, 0.0)))
            assert not folder.exists()
            assert checkpoint.load(folder).digest == before
            read_all(folder)
            assert checkpoint.read_metrics(folder)["fingerprint"] == "f"
    after = save(folder, blend=Blend(Calibration(9.0, 0.0)))
    assert checkpoint.load(folder).digest == after != before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis: got something that is no checkpoint"):
        save(tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_made_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"checkpoint: .*file/in cannot be made"):
        folders.expect_room(tmp_path / "file/in/checkpoint", mark=manifest.NAME)


def test_a_number_that_is_none_is_null_to_other_readers(tmp_path):
    file = tmp_path / "metrics.json"
    manifest.write_json(file, {"ndcg": float("nan"), "deep": [{"loss": float("inf")}], "é": 1.5})

    def refused(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(file.read_text(encoding="utf-8"), parse_constant=refused) == {
        "ndcg": None,
        "deep": [{"loss": None}],
        "é": 1.5,
    }
