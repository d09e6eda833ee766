"""Which format a run takes: a faster one if its lists hold, the next one if they do not, float32 in the end."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from flmrec_spark.lm import bundles, precision, trial, worker
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import Segmenter, UserSegment
from flmrec_spark.prompts import load_template
from tests.scored import ITEM_TOKENS, USER_TOKENS, write_checkpoint
from tests.tiny import tiny_tokenizer

N_ITEMS = 300
USERS = [
    trial.Asked(f"{at}", UserSegment([2, 5 + at, 9, 7 + at, 3], 0, [5 + at]), np.zeros(0, dtype=np.intp), [], [])
    for at in range(12)
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    write_checkpoint(folder / "checkpoint")
    draw = np.random.default_rng(1)
    rows = [{"item_id": f"{at:03}", "title": "".join(draw.choice(list("abcdefgh"), 6))} for at in range(N_ITEMS)]
    own = Segmenter(
        tiny_tokenizer(), load_template("en"), user_tokens=USER_TOKENS, item_tokens=ITEM_TOKENS, history_length=6
    )
    table = pa.Table.from_pylist(rows).append_column(
        worker.IS_LISTED, pa.array([at % 10 != 0 for at in range(N_ITEMS)])
    )
    table = table.append_column(worker.TOKENS, pa.array(own.items(rows), pa.list_(pa.int32())))
    bundles.pack(folder / "checkpoint", table, folder / "bundle.tar")
    content = (folder / "bundle.tar").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return bundles.unpack(folder / "executor", digest, lambda: io.BytesIO(content))


def choose(bundle: Path, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float], users: Any = USERS) -> trial.Choice:
    monkeypatch.setattr(precision, "rates", lambda device, kernel: rates)
    return trial.choose(bundle, users, n=10, packed=False, device="cpu")


def test_a_format_that_is_not_faster_is_not_tried(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trial, "_Sample")
    found = choose(bundle, monkeypatch, {"fp32": 2e11, "bf16": 1e11})
    assert found == trial.Choice("fp32", "fp32 200 GFLOP/s, bf16 100 GFLOP/s: none is faster")
    assert choose(bundle, monkeypatch, {"fp32": 1e11, "bf16": 4e11}, []).precision == "fp32"


def test_a_faster_format_whose_lists_hold_is_taken_and_the_numbers_are_told(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(precision.DTYPES, "half", torch.float32)  # a format without rounding
    found = choose(bundle, monkeypatch, {"fp32": 1e11, "half": 4e11})
    told = "fp32 100 GFLOP/s, half 400 GFLOP/s; half lists 1.000 of fp32's 10 best, loses at most 0.0e+00 of likes"
    assert found == trial.Choice("half", told)


def test_lists_that_lose_likes_lead_to_the_next_format(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(precision.DTYPES, "half", torch.float32)
    monkeypatch.setitem(precision.DTYPES, "broken", torch.float32)
    score = Scorer.head_logits
    n_models: list[int] = []

    def noisy(self: Scorer, user: list[int], **named: Any) -> Any:
        values = score(self, user, **named)
        if self in made:
            return values[:, ::-1].copy()
        return values

    made: list[Scorer] = []

    def init(self: Scorer, *given: Any, **named: Any) -> None:
        initial(self, *given, **named)
        n_models.append(len(self.items.tokens))
        if named["precision"] == "broken":
            made.append(self)

    initial = Scorer.__init__
    monkeypatch.setattr(Scorer, "__init__", init)
    monkeypatch.setattr(Scorer, "head_logits", noisy)
    rates = {"fp32": 1e11, "half": 4e11, "broken": 9e11}
    found = choose(bundle, monkeypatch, rates)
    assert found.precision == "half"
    assert found.reason.index("broken lists 0.") < found.reason.index("half lists 1.000")
    assert n_models == [trial.ITEMS] * 3
    assert choose(bundle, monkeypatch, {"fp32": 1e11, "broken": 9e11}).precision == "fp32"


def test_bytes_are_not_tried_of_a_model_that_has_no_layer_for_them(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "can_quantize", lambda backbone: False)
    monkeypatch.setitem(precision.DTYPES, "half", torch.float32)
    found = choose(bundle, monkeypatch, {"fp32": 1e11, "int8": 9e11, "half": 4e11})
    assert found.precision == "half" and "; int8 none of the model's layers; half lists 1.000" in found.reason


def test_bf16_is_compared_as_it_scores(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose(bundle, monkeypatch, {"fp32": 1e11, "bf16": 4e11})
    sample = trial._Sample(bundle, USERS, {"packed": False, "device": "cpu", "kernel": None})
    agreed = precision.agreement(sample.scores("fp32"), sample.scores("bf16"), 10)
    assert 0.5 < agreed.overlap <= 1.0
    assert (found.precision == "bf16") == agreed.is_good
    assert f"bf16 lists {agreed.overlap:.3f} of fp32's 10 best" in found.reason


def test_tastes_are_made_of_the_words_of_the_profile_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, own = [], trial.Judge.taste

    def taste(self: trial.Judge, *told: Any) -> Any:
        words.append(told[-1])
        return own(self, *told)

    monkeypatch.setattr(trial.Judge, "taste", taste)
    monkeypatch.setitem(precision.DTYPES, "half", torch.float32)
    choose(bundle, monkeypatch, {"fp32": 1e11, "half": 4e11})
    assert words == 2 * [one.segment.profile for one in USERS]
