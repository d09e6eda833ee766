"""Profiles in a checkpoint, and read in training, on held-out rows, by a teacher and by a segmenter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import checkpoint, factor_files, factor_stage, profiles
from flmrec_spark.lm.collaborative import LISTING, RATING, Collaborative
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.held_out import HeldOut
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.prompts import parse_template
from tests.lm.test_factor_stage import with_factors
from tests.lm.test_profiles import with_profile
from tests.tiny import tiny_tokenizer
from tests.world import ITEMS, USERS


def test_both_editions_of_a_checkpoint_have_profiles_in_the_same_words(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "_FEWEST", 5)
    done = finetune(with_factors(world))
    told = done["factors"][LISTING]  # type: ignore[index]
    assert told["profiles_ndcg"] > told["ndcg_without"]  # who likes what depends on the group alone in this world
    found = checkpoint.load(world / "checkpoint")
    whole, train = found.collaborative(), found.collaborative(of_train=True)
    assert whole is not None and train is not None
    one, other = whole.factors[LISTING].profile, train.factors[LISTING].profile
    assert one is not None and other is not None and whole.factors[RATING].profile is None
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert not np.allclose(one.target[:3], other.target[:3])
    assert found.settings.n_factors == whole.width
    config = with_factors(world)
    data = load_data(config, read_tables(config.tables.root))
    x, y = (data.segmenter.user({"group": kind}, []) for kind in "xy")
    assert x is not None and y is not None
    by_user = dict(zip(data.user_ids, data.profiles, strict=True))
    assert (by_user[USERS[0]], by_user[USERS[1]]) == (x.profile, y.profile) and x.profile != y.profile
    likes = [one.target[:-1] @ one.taste(own.profile) for own in (x, y)]
    ids = whole.item_ids.to_pylist()
    parity = np.array([ITEMS.index(item) % 2 for item in ids])
    assert (likes[0][parity == 0].mean(), likes[1][parity == 1].mean()) > (0, 0)
    assert max(likes[0][parity == 1].mean(), likes[1][parity == 0].mean()) < 0


def test_profiles_that_are_not_wanted_are_not_looked_at(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_FEWEST", 5)
    monkeypatch.setattr(factor_stage, "load_backbone", lambda _: pytest.fail("embeddings of nothing"))
    config = with_factors(world).model_copy(deep=True)
    own = config.model.collaborative.model_copy(update={"profile": 0})
    config = config.model_copy(update={"model": config.model.model_copy(update={"collaborative": own})})
    prepared = read_tables(config.tables.root)
    fitted = factor_stage.fitted(config, prepared, load_data(config, prepared), torch.device("cpu"))
    assert fitted is not None and fitted[0].train.factors[LISTING].profile is None


def test_files_hold_profiles_and_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    whole = Collaborative(pa.array(["a", "b", "c"], pa.string()), {LISTING: with_profile()}, 5)
    factor_files.save(tmp_path, whole)
    again = factor_files.load(tmp_path)
    assert again is not None
    own = again.factors[LISTING].profile
    assert own is not None and whole.factors[LISTING].profile is not None
    for part in ("tokens", "target"):
        np.testing.assert_array_equal(getattr(own, part), getattr(whole.factors[LISTING].profile, part))
    cut = replace(with_profile(), profile=profiles.Profile(own.tokens, own.target[:-1]))
    short = replace(with_profile(), popular=own.target[0])
    factor_files.save(tmp_path, replace(whole, factors={LISTING: short}))
    with pytest.raises(CheckpointError, match=r"listing: got popularity of shape \(2,\), expected \(4,\)"):
        factor_files.load(tmp_path)
    factor_files.save(tmp_path, replace(whole, factors={LISTING: cut}))
    with pytest.raises(CheckpointError, match=r"listing: got profiles of shapes \(8, 2\) and \(3, 2\), expected"):
        factor_files.load(tmp_path)


def test_every_taste_is_made_of_the_profile_of_its_own_user(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, on held-out rows and in a teacher's eyes."""
    monkeypatch.setattr(profiles, "_FEWEST", 5)
    config = with_factors(world)
    finetune(config)
    prepared = read_tables(config.tables.root)
    own = Trainer(config, prepared, load_data(config, prepared))
    found = checkpoint.load(world / "checkpoint")
    factors_of = {of_train: found.collaborative(of_train=of_train) for of_train in (True, False)}
    segmenter = found.segmenter()
    held_out = HeldOut.of(prepared, found, 100)
    (world / "checkpoint").rename(world / "teacher")
    taught = with_factors(world, teacher=str(world / "teacher"), teacher_weight=0.5)
    pupil = Trainer(taught, prepared, load_data(taught, prepared))
    assert own.shown is not None and held_out.factors is not None and pupil.teacher is not None
    kinds = {user: "xy"[place % 2] for place, user in enumerate(USERS)}
    data = own.data
    for tastes, rows, user_ids, of_train in (
        (own.shown.train, data.train, data.user_ids, True),
        (own.shown.valid, data.valid, data.user_ids, True),
        (held_out.tastes, held_out.rows, held_out.user_ids, False),
        (pupil.teacher.tastes, pupil.data.train, pupil.data.user_ids, True),
    ):
        assert tastes is not None and len(tastes) == len(rows)
        factors = factors_of[of_train]
        assert factors is not None
        profile = factors.factors[LISTING].profile
        assert profile is not None
        for taste, user in zip(tastes, rows.users, strict=True):
            segment = segmenter.user({"group": kinds[user_ids[user]]}, [])
            assert segment is not None
            np.testing.assert_allclose(taste[held_out.factors.is_profile], profile.taste(segment.profile), rtol=1e-5)


def test_profiles_that_say_nothing_or_are_refused_have_no_words(world: Path) -> None:
    config = with_factors(world)
    data = load_data(config, read_tables(config.tables.root))
    template = replace(data.segmenter.template, user=parse_template(LITERAL, where="here").user)
    own = Segmenter(tiny_tokenizer(), template, user_tokens=40, item_tokens=20, history_length=3)
    x, nobody, long = {"group": "x"}, {"group": None}, {"group": "x" * 100}
    told = own.user(x, [])
    assert told is not None and own.user(long, []) is None
    assert own.profiles([x, nobody, long, x, {}]) == [told.profile, [], [], told.profile, []]
    assert told.profile and own.user(nobody, []).profile == []  # type: ignore[union-attr]


LITERAL = """
name: literal
user: ["Who is it?", " {group}"]
history: {liked: "+{title}", disliked: "-{title}", none: ""}
item: ["{title}"]
"""
