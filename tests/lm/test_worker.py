"""What a scoring process holds: one bundle on disk per executor, one model in memory per process."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from flmrec_spark.errors import CheckpointError, EnvironmentFault
from flmrec_spark.lm import bundles, checkpoint, manifest, worker
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.blending import Blend, Calibration, ListBlend
from flmrec_spark.lm.judge import Asked, Judge, Rules, Taste
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import load_template
from tests.tiny import tiny_bert, tiny_tokenizer

TITLES = {"0042": "ab", "i1": "abc", 'it\'em "q"': "xyz", "用户": "x" * 30, "z": "c"}
LISTED = [True, False, True, False, True]
BIASES = Biases({"u": 0.5}, {"0042": 0.25, "z": -0.75})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """(tar, its SHA-256) of a tiny checkpoint and five items of which three may be listed."""
    folder = tmp_path_factory.mktemp("bundle")
    model = SegmentedModel(tiny_bert(n_layers=2), join="layer", join_layer=1, item_position=30, item_tokens=24).eval()
    model.rating.item_weight.data.normal_(generator=torch.Generator().manual_seed(1))
    own = Segmenter(tiny_tokenizer(), load_template("en"), user_tokens=30, item_tokens=24, history_length=4)
    checkpoint.save(
        folder / "checkpoint",
        model=model,
        segmenter=own,
        biases=BIASES,
        blend=Blend(Calibration(2.0, 0.5)),
        metrics={},
        config={},
    )
    rows = [{"item_id": item, "title": title, "tokens": "mine"} for item, title in TITLES.items()]
    table = pa.Table.from_pylist(rows).append_column(worker.IS_LISTED, pa.array(LISTED))
    tokens = [segment or [] for segment in own.items(rows)]
    table = table.append_column(worker.TOKENS, pa.array(tokens, pa.list_(pa.int32())))
    (folder / "checkpoint/unlisted.bin").write_bytes(b"not to be sent")
    bundles.pack(folder / "checkpoint", table, folder / "bundle.tar")
    content = (folder / "bundle.tar").read_bytes()
    return content, hashlib.sha256(content).hexdigest()


@pytest.fixture
def unpacked(bundle: tuple[bytes, str], tmp_path: Path) -> Path:
    return bundles.unpack(tmp_path / "executor", bundle[1], lambda: io.BytesIO(bundle[0]))


def fail() -> io.BytesIO:
    raise AssertionError("opened twice")


def test_a_bundle_is_unpacked_under_its_digest_and_holds_the_listed_files_alone(bundle, unpacked):
    assert unpacked.name == bundle[1]
    assert manifest.verify(unpacked / "checkpoint")
    names = {str(file.relative_to(unpacked)) for file in unpacked.rglob("*") if file.is_file()}
    listed = {f"checkpoint/{name}" for name in manifest.files(unpacked / "checkpoint")}
    assert names == {*listed, "checkpoint/manifest.json", bundles.ITEMS_FILE}


def test_a_bundle_is_opened_once(bundle, unpacked):
    assert bundles.unpack(unpacked.parent, bundle[1], fail) == unpacked


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_bundle_that_lost_a_bit_is_refused_and_leaves_no_folder(bundle, tmp_path, share):
    content = bytearray(bundle[0])
    content[int(share * len(content))] ^= 1
    with pytest.raises(CheckpointError, match=f"bundle {bundle[1][:12]}: damaged on its way"):
        bundles.unpack(tmp_path / "executor", bundle[1], lambda: io.BytesIO(bytes(content)))
    assert [path.suffix for path in (tmp_path / "executor").iterdir()] in ([], [".lock"])
    assert bundles.unpack(tmp_path / "executor", bundle[1], lambda: io.BytesIO(bundle[0])).is_dir()


def test_what_a_killed_process_left_is_replaced(bundle, tmp_path):
    half = tmp_path / f"{bundle[1]}.draft"
    (half / "checkpoint").mkdir(parents=True)
    (half / "checkpoint/strange").write_text("half")
    folder = bundles.unpack(tmp_path, bundle[1], lambda: io.BytesIO(bundle[0]))
    assert not half.exists()
    assert not (folder / "checkpoint/strange").exists()


def _unpack_and_note(root: Path, digest: str, source: Path, notes: Path) -> None:
    def opened() -> io.BytesIO:
        with notes.open("a") as file:
            file.write("opened\n")
        return io.BytesIO(source.read_bytes())

    bundles.unpack(root, digest, opened)


def test_processes_that_come_at_once_open_it_once(bundle, tmp_path):
    (tmp_path / "bundle").write_bytes(bundle[0])
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "executor", bundle[1], tmp_path / "bundle", tmp_path / "notes")
    processes = [context.Process(target=_unpack_and_note, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "notes").read_text() == "opened\n"


@pytest.fixture
def loaded(unpacked: Path) -> worker.Worker:
    return worker.load(unpacked, precision="fp32", packed=False, device="cpu")


def test_a_process_loads_once(loaded, unpacked):
    assert worker.load(unpacked, precision="fp32", packed=False, device="cpu") is loaded


def test_a_loaded_worker_scores_as_the_checkpoint_does(loaded, unpacked):
    found = checkpoint.load(unpacked / "checkpoint")
    own = found.segmenter()
    listed = [item for item, is_listed in zip(TITLES, LISTED, strict=True) if is_listed]
    segments = own.items([{"item_id": item, "title": TITLES[item], "tokens": "mine"} for item in listed])
    bias = np.array([BIASES.item.get(item, 0.0) for item in listed])
    scorer = Scorer(found.model(), own.block(segments), calibration=found.blend.calibration, item_bias=bias)
    user = own.user({}, [])
    assert user is not None
    got = loaded.scorer.score(user.ids, user_bias=loaded.judge.rules.biases.user["u"])
    np.testing.assert_allclose(got, scorer.score(user.ids, user_bias=0.5), rtol=1e-6)


def test_the_next_process_gives_the_same_bits(loaded, unpacked, monkeypatch):
    monkeypatch.setattr(worker, "_LOADED", {})
    monkeypatch.delattr(Scorer, "save_states")  # the states are there
    other = worker.load(unpacked, precision="fp32", packed=False, device="cpu")
    assert other is not loaded
    np.testing.assert_array_equal(other.scorer.score([2, 5, 6, 3]), loaded.scorer.score([2, 5, 6, 3]))


def test_what_has_not_seen_valid_reads_the_same_item_states(loaded, unpacked, monkeypatch):
    def encode(*_):
        raise AssertionError("encoded twice")

    monkeypatch.setattr(Scorer, "encode", encode)
    again = worker.load(unpacked, precision="fp32", packed=False, device="cpu", of_train=True)
    assert again is not loaded and len(again.catalogue.listed) == 3


@pytest.mark.parametrize("listing", [None, ListBlend(0.0, 1.0, 0.0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_each", [False, True])
def test_scores_that_are_no_numbers_are_told(listing, bad, is_each):
    """A list would leave nan out, and be short without a word."""
    logits = np.array([[0.5, -1.0, 2.0, 0.0], [0.5, -1.0, 2.0, 0.0]])
    scorer = SimpleNamespace(
        items=SimpleNamespace(bias=np.zeros(4)),
        head_logits=lambda segment, **_: logits,
        head_logits_each=lambda users: (logits for _ in users),
    )
    blend = Blend(Calibration(), listing)
    judge = Judge(scorer, Rules(blend, blend, Biases({}, {}), None, has_tokens=False), None, None)
    asked = Asked([2, 3], "u", Taste())

    def says():
        return next(judge.says_each([asked])) if is_each else judge.says(asked)

    assert np.isfinite(says().score).all()
    logits[:, 1:3] = bad
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(
            CheckpointError, match=r"^checkpoint: 2 of 4 scores are no numbers, expected finite ones: the checkpoint's"
        ),
    ):
        says()


def test_places_rows_and_fields_belong_to_the_same_items(loaded):
    catalogue = loaded.catalogue
    assert catalogue.ids.to_pylist() == list(TITLES)
    assert catalogue.listed.tolist() == [0, 2, 4]
    assert loaded.row_of_place.tolist() == [0, -1, 1, -1, 2]
    assert catalogue.places(pa.array(["z", "42", "0042", None])).tolist() == [4, -1, 0, -1]
    assert catalogue.fields[1] == {"item_id": "i1", "title": "abc", "tokens": "mine"}


def test_damaged_items_are_named(unpacked, monkeypatch):
    monkeypatch.setattr(worker, "_LOADED", {})
    (unpacked / bundles.ITEMS_FILE).write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"items.arrow: damaged"):
        worker.load(unpacked, precision="fp32", packed=False, device="cpu")


def test_a_task_without_a_gpu_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker.device_of(None, "0") == "cpu"


@pytest.mark.parametrize(
    ("addresses", "visible", "device"),
    [
        (["2"], None, "cuda:2"),
        (["1"], "0,1", "cuda:1"),
        (["5"], "4, 5", "cuda:1"),  # torch counts what the variable names
        (["3"], "3", "cuda:0"),
        (["3"], "GPU-1a2b", "cuda:0"),
        (["1"], "GPU-1a2b, GPU-3c4d", "cuda:1"),
        (["GPU-3c4d"], "GPU-1a2b,GPU-3c4d", "cuda:1"),
        (["1"], "2,3", "cuda:1"),
        ([], None, "cuda:0"),  # a local master gives none
        ([], "1,2", "cuda:0"),
    ],
)
def test_a_task_takes_the_gpu_that_spark_gave_it(monkeypatch, addresses, visible, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker.device_of(addresses, visible) == device


def test_a_gpu_that_is_none_of_several_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(EnvironmentFault, match=r"CUDA_VISIBLE_DEVICES: got 2,3, expected Spark's GPU 5 among them"):
        worker.device_of(["5"], "2,3")


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match=r"score.gpus_per_task: got a GPU from Spark, but torch finds no CUDA"):
        worker.device_of(["0"], None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(EnvironmentFault, match="CUDA_VISIBLE_DEVICES: got nothing"):
        worker.device_of(["0"], " ")


def test_the_task_s_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cpu", "cuda:1"):
        worker.use_device(device)
    assert chosen == ["cuda:1"]
