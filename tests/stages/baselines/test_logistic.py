"""Logistic regression against scikit-learn on a design matrix that is written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from flmrec_spark.stages.baselines import logistic
from flmrec_spark.stages.baselines.world import User
from tests.small_world import ITEM_IDS, ROWS, user_of, world_of

WORLD = world_of()
YEARS = np.array([1990, 1991, 2000, 2010, 1995], dtype=float)
ITEM_FEATURES = {"action": "ab6", "drama": "cd6"}  # words that two items have; a longer value is each one item's


def year(value: float | None) -> float:
    return 0.0 if value is None else (value - YEARS.mean()) / YEARS.std()


def item_row(place: int) -> list[float]:
    mark = "abcde6"[place]
    values = [1990, 1991, 2000, None, 2010, 1995]
    return [float(mark in marks) for marks in ITEM_FEATURES.values()] + [year(values[place])]


def user_row(age: float | None) -> list[float]:
    ages = np.array([20.0, 30.0, 40.0, 60.0])
    return [0.0 if age is None else (age - ages.mean()) / ages.std()]


def test_weights_are_those_of_the_design_matrix_written_out() -> None:
    ages = {fields["user_id"]: fields["age"] for fields in WORLD.user_fields}
    design = []
    for user, item, _ in ROWS:
        one_user = [float(user == other) for other in WORLD.user_ids]
        one_item = [float(item == other) for other in ITEM_IDS]
        design.append([*one_user, *one_item, *user_row(ages[user]), *item_row(ITEM_IDS.index(item))])
    oracle = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(design, [is_liked for _, _, is_liked in ROWS])
    fitted = logistic.logistic_regression(WORLD)
    for user in (*WORLD.user_ids, "new"):
        own = user_of(WORLD, user)
        asked = [
            [
                *[float(user == other) for other in WORLD.user_ids],
                *[float(place == other) for other in range(len(ITEM_IDS))],
                *user_row(ages.get(user)),
                *item_row(place),
            ]
            for place in range(len(ITEM_IDS))
        ]
        assert fitted.scores(own) == pytest.approx(oracle.decision_function(asked), abs=2e-2)


def test_a_new_user_is_known_by_their_profile_and_a_value_never_seen_says_nothing() -> None:
    fitted = logistic.logistic_regression(WORLD)
    none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    bare = fitted.scores(User("new", *none))
    assert fitted.scores(User("new", *none, {"age": 60})) != pytest.approx(bare)
    assert fitted.scores(User("new", *none, {"age": None, "city": "Bonn"})) == pytest.approx(bare)


def test_likes_alone_tell_nothing_apart() -> None:
    world = world_of([(user, item, True) for user, item, _ in ROWS])
    found = logistic.logistic_regression(world).scores(user_of(world, "ann"))
    assert found == pytest.approx([np.log((12 + 1) / 1)] * len(ITEM_IDS))


def test_numbers_that_hardly_differ_are_not_blown_up() -> None:
    equal = [{"tax": 0.1}] * 50
    mean, deviation = logistic._scales(equal)["tax"]
    assert (mean, deviation) == (pytest.approx(0.1), 1.0)  # and not 1.4e-17
    assert logistic._scales([{"tax": 1.0}, {"tax": 3.0}])["tax"] == (2.0, 1.0)


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert logistic._WORD.findall("红色运动鞋 sci-fi's 3D") == ["红", "色", "运", "动", "鞋", "sci-fi's", "3D"]
