"""Every family fine-tuned and scored in Spark, one of each kind by the jobs up to its evaluation; one world."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from flmrec_spark import columns as c
from flmrec_spark.config import load_config
from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.families.registry import FAMILIES
from jobs import evaluate, score
from scripts import finetune
from tests.prepared import N_RATED, prepared_rows, write_prepared
from tests.recommended import recommended
from tests.scored import pair_scores
from tests.tiny import save_family
from tests.world import ITEMS, USERS, write_config

# Each family in one of its forms, so that together they run all of them.
MODELS = {
    "roberta": {"join": "attention"},
    "electra": {"join_layer": 1},
    "distilbert": {"join_layer": 0},
    "modernbert": {"join": "full"},
    "deberta-v2": {"join": "full"},
    "gpt2": {"join_layer": 2},
    "llama": {"join_layer": 0, "head": "answer"},
    "qwen3": {"join": "attention", "head": "answer"},
    "t5": {"join": "attention"},
    "mt5": {"join_layer": 0, "head": "answer"},
}
WHOLE = ["modernbert", "llama", "t5"]  # a stock pair, a layer with an answer, attention; bert's is in test_pipeline
SAME_CODE = {"camembert", "mistral", "qwen2", "xlm-roberta"}  # tests/lm/families hold them all
ASKED = USERS[1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables that jobs/prepare.py would leave."""
    folder = tmp_path_factory.mktemp("families")
    write_prepared(folder / "tables")
    return folder


def test_every_class_but_berts_whose_own_test_is_test_pipeline_is_here():
    assert {*MODELS, *SAME_CODE, "bert"} == set(FAMILIES)
    assert {FAMILIES[name] for name in SAME_CODE} <= {FAMILIES[name] for name in MODELS}


def written(folder: Path, prepared: Path, family: str) -> str:
    """The family's model and a config beside it."""
    save_family(folder / "model", family, n_layers=2)
    return str(
        write_config(
            folder,
            tables={"root": str(prepared / "tables"), "database": "families"},
            prompts={"item_tokens": 32},
            model=MODELS[family],
            finetune={"epochs": 1, "max_steps": 2, "learning_rate": 1e-3, "dropout": 0.0},
            evaluate={"k": [3], "bootstrap": 0, "baselines": ["popularity"], "against": "popularity"},
        )
    )


def rows(prepared: Path, name: str) -> list[dict[str, Any]]:
    return DeltaTable(str(prepared / "tables" / name)).to_pyarrow_table().to_pylist()


def expect_lists(found: list[dict[str, Any]], folder: Path, family: str) -> None:
    """Everybody's, and the asked user's is of each pair alone."""
    assert {row[c.USER_ID] for row in found} == set(USERS)
    listed = {row[c.ITEM_ID]: row[c.PROBABILITY] for row in found if row[c.USER_ID] == ASKED}
    expected = expected_scores(folder / "checkpoint")
    assert len(listed) == 3
    assert listed == pytest.approx({item: expected[item] for item in listed}, abs=2e-5)
    if MODELS[family].get("join") != "full":  # the stock pair's lists go by its listing head, as it was learned
        assert set(listed) == set(sorted(expected, key=lambda item: -expected[item])[:3])


@pytest.mark.parametrize("family", WHOLE)
def test_a_family_goes_through_every_step(spark: SparkSession, prepared: Path, tmp_path: Path, family: str):
    config = written(tmp_path, prepared, family)
    for main in (finetune.main, score.main, evaluate.main):
        assert main(["--config", config]) == 0
    expect_lists(rows(prepared, "recommendations"), tmp_path, family)
    assert any(row["model"] == "flm" and math.isfinite(row["value"]) for row in rows(prepared, "evaluation"))


@pytest.mark.parametrize("family", [family for family in MODELS if family not in WHOLE])
def test_a_family_is_fine_tuned_and_lists_its_own_pairs(
    spark: SparkSession, prepared: Path, tmp_path: Path, family: str
):
    path = written(tmp_path, prepared, family)
    assert finetune.main(["--config", path]) == 0
    expect_lists(recommended(spark, load_config(path)), tmp_path, family)


def expected_scores(folder: Path) -> dict[str, float]:
    """Of the asked user, for the items that they have not seen: each pair alone, without Spark and without a cache."""
    tables = prepared_rows()
    seen = [row for row in tables["interactions"] if row[c.USER_ID] == ASKED]
    assert len(seen) == N_RATED
    history = [(row[c.ITEM_ID], row[c.IS_LIKED], row[c.VALUE]) for row in reversed(seen)]
    profile = {key: value for key, value in tables["users"][1].items() if key != c.USER_ID}
    found = pair_scores(checkpoint.load(folder), tables["items"], user_id=ASKED, profile=profile, history=history)
    return {item: found[item] for item in ITEMS if item not in {row[c.ITEM_ID] for row in seen}}
