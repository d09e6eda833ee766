"""Distillation: what a teacher says of a step, and that the student comes nearer to it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flmrec_spark.config import Config
from flmrec_spark.errors import CheckpointError, ConfigError
from flmrec_spark.lm import checkpoint, manifest
from flmrec_spark.lm.blending import Calibration
from flmrec_spark.lm.finetuning import finetune, fingerprint
from flmrec_spark.lm.judge import Asked, Judge, Rules
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.teacher import Teacher, soft_loss
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.prompts import load_template
from tests.prepared import tiny_config
from tests.tiny import save_tiny

FLAT: dict[str, Any] = {"dropout": 0.0, "bias_dropout": 0.0, "ranking_weight": 0.0}


def taught(world: Path, weight: float, **settings: Any) -> Config:
    own = {**FLAT, "epochs": 10, "teacher": str(world / "teacher"), "teacher_weight": weight, **settings}
    return tiny_config(world, finetune=own, model={"bias_terms": False})


def trainer(config: Config) -> Trainer:
    prepared = read_tables(config.tables.root)
    return Trainer(config, prepared, load_data(config, prepared))


@pytest.fixture
def world(world: Path) -> Path:
    """With a teacher: the stock pair of three layers, other weights, other prompts, and bias terms."""
    save_tiny(world / "larger", seed=5, n_layers=3)
    own = {
        "model": {"path": str(world / "larger"), "join": "full"},
        "prompts": {"history_length": 2, "user_tokens": 48},
    }
    finetune(tiny_config(world, finetune={**FLAT, "max_steps": 4}, **own))
    (world / "checkpoint").rename(world / "teacher")
    return world


def test_a_teacher_says_of_a_pair_what_it_would_be_scored(world):
    told = world / "teacher" / "calibration.json"
    new_users = {"rating": asdict(Calibration(0.5, -1.0)), "listing": None}
    told.write_text(json.dumps(json.loads(told.read_text()) | {"new_users": new_users}))
    (world / "teacher" / manifest.NAME).unlink()
    manifest.write(world / "teacher")
    own = trainer(taught(world, 0.5))
    found = checkpoint.load(world / "teacher")
    segmenter, biases = found.segmenter(), found.biases(of_train=True)
    items = segmenter.block([segment or [segmenter.start] for segment in segmenter.items(own.data.catalog.fields)])
    step = next(own.steps())
    assert own.teacher is not None
    got = own.teacher.probabilities(step).numpy()
    assert (np.isnan(got) == (step.items < 0)).all()
    scorer = Scorer(found.model(), items)
    sources = [own.data.train.sources[row] for row in step.rows]
    assert not any(source.history for source in sources)  # what a user's first rows are asked with
    for row in range(len(step.users)):
        source = sources[row]
        prompt = segmenter.user(source.profile, source.history)
        assert prompt is not None
        asked = step.items[row][step.items[row] >= 0]
        logits = scorer.logits(prompt.ids, items=asked.astype(np.intp))
        user = biases.user[own.data.user_ids[step.users[row]]]
        item = np.array([biases.item[own.data.catalog.item_ids[place]] for place in asked])
        expected = Calibration(0.5, -1.0).probability(logits + user + item)
        np.testing.assert_allclose(got[row][step.items[row] >= 0], expected, atol=1e-5)


def test_a_teacher_with_factors_says_what_a_judge_says_with_the_share_that_lists_give_an_item(world):
    factors = {"epochs": 2, "rows_per_step": 8, "learning_rate": 0.02}
    own = {"dimension": 4, "history_length": 5, "neighbours": 3}
    finetune(tiny_config(world, model={"collaborative": own}, finetune={"factors": factors, "ranking_weight": 0.2}))
    shutil.rmtree(world / "teacher")
    (world / "checkpoint").rename(world / "teacher")
    told = world / "teacher" / "calibration.json"
    rating = asdict(Calibration(0.5, -1.0, 0.8, 0.6, -2.0))
    told.write_text(json.dumps(json.loads(told.read_text()) | {"rating": rating, "new_users": None}))
    (world / "teacher" / manifest.NAME).unlink()
    manifest.write(world / "teacher")
    student = trainer(taught(world, 0.5))
    found, data = checkpoint.load(world / "teacher"), student.data
    segmenter, model, rules = found.segmenter(), found.model(), Rules.of(found, of_train=True)
    ids, items = data.catalog.ids(), segmenter.block(segmenter.items(data.catalog.fields))
    known = rules.of_items(ids, items, model)
    assert rules.factors is not None and known is not None
    scorer = Scorer(model, items, item_bias=rules.item_bias(data.catalog.item_ids))
    judge, place = Judge(scorer, rules, known, rules.factors.places(ids)), data.catalog.item_ids.index
    steps = [step for step in student.steps() if all(data.train.sources[row].history for row in step.rows)]
    step = steps[0]
    assert student.teacher is not None
    got = student.teacher.probabilities(step).numpy()
    for row, user in enumerate(step.users):
        source = data.train.sources[step.rows[row]]
        prompt, history = segmenter.user(source.profile, source.history), source.history
        assert prompt is not None
        places = np.array([place(entry.item["item_id"]) for entry in history], dtype=np.intp)
        words = segmenter.profiles([source.profile])[0]
        taste = judge.taste(places, [one.is_liked for one in history], [one.value for one in history], words)
        asked = step.items[row][step.items[row] >= 0].astype(np.intp)
        said = judge.says(Asked(prompt.ids, data.user_ids[user], taste, asked))
        np.testing.assert_allclose(got[row][step.items[row] >= 0], said.probability, atol=1e-5)


def distance(config: Config) -> tuple[float, float]:
    """Mean squared difference of the student's logits from the teacher's, before and after the training."""
    own, found = trainer(config), []
    steps = list(own.steps())
    for learns in (False, True):
        for step in steps if learns else ():
            own.learn(step)
        own.model.eval()
        own.bias.eval()
        with torch.inference_mode():
            parts = []
            for step in steps[:4]:
                assert own.teacher is not None
                told = own.teacher.probabilities(step)
                states = own.model.encode_users(
                    torch.from_numpy(step.prefixes.ids).long(), torch.from_numpy(step.prefixes.lengths)
                )
                tokens = own.data.catalog.tokens
                items = own.model.encode_items(torch.from_numpy(tokens.ids).long(), torch.from_numpy(tokens.lengths))
                logits = own.model.join_items(states, items, torch.from_numpy(np.maximum(step.items, 0)))
                parts.append((logits - torch.logit(told))[~told.isnan()])
        found.append(float(torch.cat(parts).square().mean()))
    return found[0], found[1]


def test_a_student_moves_towards_its_teacher(world):
    before, after = distance(taught(world, 1.0, epochs=80))
    _, without = distance(taught(world, 0.0, epochs=80))
    assert after < 0.5 * before
    assert after < 0.5 * without


def test_the_soft_loss_is_the_mean_cross_entropy_of_the_told_pairs():
    logits = torch.tensor([[0.0, 2.0], [1.0, 5.0]])
    told = torch.tensor([[0.5, 0.8], [0.1, torch.nan]])
    terms = [(0.0, 0.5), (2.0, 0.8), (1.0, 0.1)]
    expected = sum(-p * np.log(1 / (1 + np.exp(-x))) - (1 - p) * np.log(1 / (1 + np.exp(x))) for x, p in terms)
    assert float(soft_loss(logits, told, 3)) == pytest.approx(expected / 3, rel=1e-5)


def test_a_taught_training_goes_on_to_the_same_bits(world):
    config = taught(world, 0.5, save_every=1, epochs=2, accumulate_steps=2)
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=3)
    assert finetune(config)["digest"] == first


def test_another_teacher_is_another_training(world):
    config = taught(world, 0.5)
    prepared = read_tables(config.tables.root)
    first = fingerprint(config, prepared)
    finetune(tiny_config(world, finetune={"max_steps": 1}))
    (world / "teacher").rename(world / "before")
    (world / "checkpoint").rename(world / "teacher")
    assert fingerprint(config, prepared) != first


def test_a_teacher_that_is_not_there_or_reads_other_tables_is_told(world):
    with pytest.raises(CheckpointError, match=r"nowhere/manifest.json: not found"):
        finetune(taught(world, 0.5, teacher=str(world / "nowhere")))
    template = world / "own.yaml"
    template.write_text(load_template("en").to_yaml().replace("{attributes}", "{genre}"))
    finetune(tiny_config(world, finetune={"max_steps": 1}, prompts={"template": str(template)}))
    (world / "checkpoint").rename(world / "foreign")
    own = trainer(taught(world, 0.5))
    data, fields = own.data, ([], ["group"])
    with pytest.raises(ConfigError, match=r"finetune.teacher: .*foreign: .*unknown field \{genre\}"):
        whole = data.catalog, data.train, data.user_ids, fields
        Teacher(str(world / "foreign"), *whole, torch.device("cpu"), lambda factors, _: np.zeros((0, factors.width)))
