"""What the config may name is what can be fitted, and what is too large is left out of a comparison."""

from __future__ import annotations

from contextlib import nullcontext
from typing import get_args
from unittest.mock import Mock

import pytest

from flmrec_spark import fitting, sections
from flmrec_spark.fitting import FITS, Tools, fit_all
from flmrec_spark.prompts import load_template
from flmrec_spark.stages.baselines import neighbours
from flmrec_spark.stages.models import WITH_PROBABILITY, WITHOUT_LISTS
from flmrec_spark.strategies import NEEDS_CHECKPOINT, depends_on
from tests.small_world import world_of

TOOLS = Tools(Mock(), load_template("en"), "nowhere")


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


def test_content_depends_on_the_template_and_a_hybrid_on_its_parts() -> None:
    assert depends_on("als", names=["ease"], tools=TOOLS) == ["als", "als"]
    assert depends_on("hybrid", names=["ease", "als"], tools=TOOLS) == ["hybrid", "ease", "als"]
    assert depends_on("content_tfidf", names=[], tools=TOOLS)[2:] == [TOOLS.template.to_yaml()]
    assert fitting.Tools(TOOLS.spark, TOOLS.template, "x").texts(world_of())[0].startswith("title a")
