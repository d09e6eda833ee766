"""What the config may name is what can be fitted, and what is too large is left out of a comparison."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import pytest

from flmrec_spark import fitting, sections
from flmrec_spark.errors import CheckpointError
from flmrec_spark.fitting import FITS, Tools, fit_all
from flmrec_spark.prompts import load_template
from flmrec_spark.stages.baselines import neighbours
from flmrec_spark.stages.baselines.content import Content, tf_idf
from flmrec_spark.stages.models import WITH_PROBABILITY, WITHOUT_LISTS
from flmrec_spark.strategies import NEEDS_CHECKPOINT, depends_on
from tests.small_world import world_of
from tests.tiny import save_tiny

TOOLS = Tools(Mock(), lambda: load_template("en"), "nowhere")


def test_every_name_of_the_config_can_be_fitted_and_what_lists_is_a_strategy() -> None:
    assert set(get_args(sections.Baseline)) == set(FITS)
    assert set(get_args(sections.Strategy)) - NEEDS_CHECKPOINT == set(FITS) - WITHOUT_LISTS
    assert set(sections.CHEAP) == set(FITS) - {"content_lm"}


def test_who_gives_probabilities_is_told_by_the_baselines_themselves() -> None:
    world = world_of()
    for name in set(FITS) - {"als", "content_lm"}:
        assert FITS[name](world, TOOLS).is_probability is (name in WITH_PROBABILITY), name


def test_a_baseline_that_a_world_is_too_large_for_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(neighbours, "EASE_MAX_ITEMS", 3)
    fitted = fit_all(["popularity", "ease", "markov"], world_of(), TOOLS, timed=lambda _: nullcontext())
    assert list(fitted) == ["popularity", "markov"]
    assert "ease: got 6 items, expected at most 3" in caplog.text


def test_content_depends_on_the_template_and_on_every_file_of_its_model(tmp_path: Path) -> None:
    assert depends_on(["ease", "als"], tools=TOOLS) == ["ease", "als"]
    assert depends_on(["content_tfidf"], tools=TOOLS) == ["content_tfidf", TOOLS.template.to_yaml()]
    assert depends_on(["als"], tools=TOOLS, compares_texts=True) == ["als", TOOLS.template.to_yaml()]
    with pytest.raises(CheckpointError, match="nowhere: got no folder, expected a pretrained model"):
        depends_on(["content_lm"], tools=TOOLS)
    folder = save_tiny(tmp_path / "model", max_shard_size="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    known = [depends_on(["content_lm"], tools=replace(TOOLS, model_path=str(folder)))]
    for shard in shards:
        shard.write_bytes(shard.read_bytes() + b" ")
        known.append(depends_on(["content_lm"], tools=replace(TOOLS, model_path=str(folder))))
    assert len({tuple(one) for one in known}) == len(known)


def test_texts_are_what_the_template_makes_of_the_items() -> None:
    assert fitting.Tools(TOOLS.spark, TOOLS.read_template, "x").texts(world_of())[0].startswith("title a")


def test_what_is_made_of_texts_is_made_once_while_these_and_the_model_are_the_same() -> None:
    made: list[list[str]] = []

    def make(texts: list[str]) -> Content:
        made.append(texts)
        return tf_idf(texts)

    tools, whole = Tools(Mock(), lambda: load_template("en"), "nowhere"), world_of()
    early = replace(whole, items=whole.items[:3], users=whole.users[:3], liked=whole.liked[:3])
    first = tools.of_texts("content_tfidf", whole, make)
    assert tools.of_texts("content_tfidf", early, make) is first and len(made) == 1
    other = replace(whole, item_fields=[{**fields, "title": "other"} for fields in whole.item_fields])
    assert tools.of_texts("content_tfidf", other, make) is not first and len(made) == 2
    elsewhere = replace(tools, model_path="elsewhere")
    assert elsewhere.of_texts("content_tfidf", other, make) and len(made) == 3
    assert FITS["content_tfidf"](whole, TOOLS) is FITS["content_tfidf"](early, TOOLS)
