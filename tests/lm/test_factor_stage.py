"""Fine-tuning with collaborative factors on the tiny prepared world: what is learned from what, kept, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from flmrec_spark import columns as c
from flmrec_spark.config import Config
from flmrec_spark.lm import checkpoint, factor_stage, neighbour_choice
from flmrec_spark.lm.checkpoint import Checkpoint
from flmrec_spark.lm.collaborative import LISTING, RATING
from flmrec_spark.lm.factor_stage import Known
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.segments import FACTORS
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.lm.training_factors import tastes
from tests.prepared import prepared_rows, tiny_config, write_prepared

LEARNED = {"epochs": 4, "rows_per_step": 8, "learning_rate": 0.02, "weight_decay": 0.01}


def with_factors(
    world: Path, *, tokens: bool = True, neighbours: int = 128, bias_terms: bool = True, **finetuning: Any
) -> Config:
    own = {"dimension": 4, "history_length": 5, "tokens": tokens, "neighbours": neighbours}
    return tiny_config(
        world,
        model={"collaborative": own, "bias_terms": bias_terms},
        finetune={"factors": LEARNED, "ranking_weight": 0.2, **finetuning},
    )


def trained(world: Path, **given: Any) -> tuple[Checkpoint, dict[str, Any]]:
    done: dict[str, Any] = finetune(with_factors(world, **given))
    return checkpoint.load(world / "checkpoint"), done


def test_a_checkpoint_holds_both_editions_both_heads_and_how_they_are_blended(world: Path) -> None:
    found, done = trained(world)
    assert set(done["factors"]) == {LISTING, RATING}
    assert set(done["factors"][RATING]) == {"uauc", "epoch"}
    settings = found.settings
    assert (settings.has_listing, settings.n_factors, settings.taste_length) == (True, 9, 5)  # and popularity
    assert settings.longest_history == max(settings.history_length, 5)
    assert found.blend.listing is not None
    assert found.segmenter().items([{"item_id": "x", "title": "ab"}])[0].count(FACTORS) == 1  # type: ignore[union-attr]
    whole, train = found.collaborative(), found.collaborative(of_train=True)
    assert whole is not None and train is not None
    model = found.model()
    assert model.listing is not None and model.user_token is not None and model.user_token.in_features == 9
    assert not torch.equal(model.listing.item_weight, model.rating.item_weight)
    assert not np.array_equal(whole.factors[RATING].target[:3], train.factors[RATING].target[:3])


def test_graded_labels_teach_the_factors_of_ratings_and_leave_those_of_lists(world: Path) -> None:
    rows = prepared_rows()
    for row in rows["interactions"]:
        row[c.VALUE] -= row[c.ITEM_ID] in ("i03", "i04")
    write_prepared(world / "tables", rows)
    prepared = read_tables(str(world / "tables"))
    found = {}
    for is_graded in (True, False):
        config = with_factors(world, factors=LEARNED | {"graded_labels": is_graded})
        fitted = factor_stage.fitted(config, prepared, load_data(config, prepared), torch.device("cpu"))
        assert fitted is not None
        found[is_graded] = fitted[0].whole.factors
    np.testing.assert_array_equal(*(found[each][LISTING].target for each in (True, False)))
    assert not np.allclose(*(found[each][RATING].target for each in (True, False)))


def test_neighbours_that_help_are_part_of_both_editions_in_the_same_directions(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour_choice, "_FEWEST", 10)
    found = {}
    for dimension in (3, 0):
        own = with_factors(world, neighbours=dimension)
        prepared = read_tables(own.tables.root)
        fitted = factor_stage.fitted(own, prepared, load_data(own, prepared), torch.device("cpu"))
        assert fitted is not None
        found[dimension] = fitted
    (editions, told), (without, told_without) = found[3], found[0]
    assert set(told) == {RATING, LISTING}
    assert (editions.train.width, without.train.width) == (15, 9)
    assert editions.train.grades is not None and editions.whole.grades is not None
    both = editions.whole.places(editions.train.item_ids)
    for objective, metric in ((RATING, "uauc"), (LISTING, "ndcg")):
        assert set(told[objective]) == {metric, "epoch", "neighbours_log_loss", "log_loss_without"}  # type: ignore[call-overload]
        assert set(told_without[objective]) == {metric, "epoch"}  # type: ignore[call-overload]
        near, newer = (each.factors[objective].near for each in (editions.train, editions.whole))
        assert near is not None and newer is not None
        assert without.whole.factors[objective].near is None
        assert (near.expected is None) == (newer.expected is None) == (objective == LISTING)
        assert (np.sum(near.history * newer.history[both], axis=1) > 0).mean() > 0.8
        sizes = []
        for each, other in ((editions.train, without.train), (editions.whole, without.whole)):
            own, plain = each.factors[objective].target, other.factors[objective].target
            sizes.append(float(np.vdot(own, plain) / np.vdot(plain, plain)))  # the learned ones, by one number
            np.testing.assert_allclose(own, sizes[-1] * plain, rtol=1e-3, atol=1e-6)
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-4) and sizes[0] > 0


def test_the_first_edition_knows_train_alone_and_the_second_what_came_after(world: Path) -> None:
    rows = prepared_rows()
    late = {row[c.ITEM_ID] for row in rows["interactions"] if row[c.SPLIT] == c.VALID}
    hidden = sorted(late)[0]  # seen in the valid split alone
    for row in rows["interactions"]:
        if row[c.ITEM_ID] == hidden and row[c.SPLIT] != c.VALID:
            row[c.SPLIT] = c.TEST
    write_prepared(world / "tables", rows)
    found, _ = trained(world)
    whole, train = found.collaborative(), found.collaborative(of_train=True)
    assert whole is not None and train is not None
    assert hidden not in train.item_ids.to_pylist() and hidden in whole.item_ids.to_pylist()
    of_hidden = train.of_items(train.places(pa.array([hidden])))
    assert not of_hidden.vectors.any()
    np.testing.assert_array_equal(of_hidden.offsets[0], of_hidden.unknown)


def test_tastes_are_made_of_what_lies_strictly_before_the_moment(world: Path) -> None:
    config = with_factors(world)
    prepared = read_tables(config.tables.root)
    data = load_data(config, prepared)
    fitted = factor_stage.fitted(config, prepared, data, torch.device("cpu"))
    assert fitted is not None
    train = fitted[0].train
    got = tastes(train, data.profiles, prepared, data.catalog, data.user_ids, data.train, [c.TRAIN])
    rows = prepared.tables["interactions"].to_pylist()
    for row in range(len(data.train)):
        user, moment = data.user_ids[data.train.users[row]], data.train.moments[row]
        before = [one for one in rows if one[c.USER_ID] == user and one[c.MOMENT] < moment and one[c.SPLIT] == c.TRAIN]
        newest = sorted(before, key=lambda one: (-one[c.MOMENT], one[c.ITEM_ID]))
        places = train.places(pa.array([one[c.ITEM_ID] for one in newest], pa.string()))
        expected = train.taste(places, np.array([one[c.IS_LIKED] for one in newest], dtype=bool))
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-6)
    first = data.train.moments == 1
    unmet = train.taste(np.zeros(0, dtype=np.intp), np.zeros(0))
    assert first.any() and (got[first] == unmet).all() and unmet.sum() == 1  # nothing lies before it


def test_a_user_without_history_has_the_order_of_popularity(world: Path) -> None:
    config = with_factors(world)
    prepared = read_tables(config.tables.root)
    fitted = factor_stage.fitted(config, prepared, load_data(config, prepared), torch.device("cpu"))
    assert fitted is not None
    rows = prepared.tables["interactions"].to_pylist()
    for factors, splits in ((fitted[0].train, [c.TRAIN]), (fitted[0].whole, [c.TRAIN, c.VALID])):
        one = factors.factors[LISTING]
        liked = [row[c.ITEM_ID] for row in rows if row[c.SPLIT] in splits and row[c.IS_LIKED]]
        logs = np.log1p([liked.count(item) for item in factors.item_ids.to_pylist()])
        items = np.arange(one.n_items)
        nobody = one.scores(one.taste(items[:0], np.zeros(0)), items)
        np.testing.assert_allclose(nobody - logs, (nobody - logs).mean(), atol=1e-4)
        assert abs((nobody - one.offset[:-1]) @ np.expm1(logs)) < 1e-3 * np.expm1(logs).sum()  # of the same mean
        taste = one.taste(np.array([0]), np.array([1.0]))
        assert taste[-1] == 0.0  # who has a history has the offsets that were learned beside histories


def test_without_bias_terms_the_factors_keep_what_items_are_worth(world: Path) -> None:
    found = {}
    for has_terms in (True, False):
        own = with_factors(world, neighbours=0, bias_terms=has_terms)
        prepared = read_tables(own.tables.root)
        fitted = factor_stage.fitted(own, prepared, load_data(own, prepared), torch.device("cpu"))
        assert fitted is not None
        found[has_terms] = fitted[0].train.factors
        start = Known.of(prepared, load_data(own, prepared), [c.TRAIN], is_graded=False).sequences.offsets.item
    relative, whole = (found[each][RATING].offset[:-1] for each in (True, False))
    np.testing.assert_allclose(whole, relative + start, atol=1e-5)
    assert start.std() > 100 * 1e-5
    np.testing.assert_array_equal(*(found[each][LISTING].offset for each in (True, False)))


def test_rows_of_one_label_teach_no_rating_factors(world: Path) -> None:
    rows = prepared_rows()
    for row in rows["interactions"]:
        row[c.IS_LIKED] = True
    for row in rows["examples"]:
        for entry in (*row[c.HISTORY], *row[c.TARGETS]):
            entry[c.IS_LIKED] = True
    write_prepared(world / "tables", rows)
    found, done = trained(world, early_stopping={"metric": "ndcg"})
    assert set(done["factors"]) == {LISTING}
    whole = found.collaborative()
    assert whole is not None and list(whole.factors) == [LISTING]


def test_without_tokens_the_factors_are_terms_alone(world: Path) -> None:
    found, _ = trained(world, tokens=False)
    assert found.settings.n_factors == 0 and found.collaborative() is not None
    segment = found.segmenter().items([{"item_id": "x", "title": "ab"}])[0]
    assert segment is not None and FACTORS not in segment


def test_a_stopped_training_goes_on_to_the_same_checkpoint(world: Path) -> None:
    config = with_factors(world, save_every=1)
    whole = finetune(config)
    (world / "checkpoint").rename(world / "first")
    assert finetune(config, stop_after=2)["status"] == "stopped"
    assert finetune(config)["digest"] == whole["digest"]


def test_hidden_factors_are_those_of_the_unknown_where_no_text_speaks_for_an_item(world: Path) -> None:
    config = with_factors(world, factors={**LEARNED, "hidden_share": 1.0})
    prepared = read_tables(config.tables.root)
    own = Trainer(config, prepared, load_data(config, prepared))
    step = next(step for step in own.steps() if step.prefixes.factors is not None and step.prefixes.factors.any())
    assert step.prefixes.factors is not None
    shown = own.terms.train().shown(torch.from_numpy(step.prefixes.factors), torch.from_numpy(step.distinct))
    assert shown.users is not None and shown.items is not None and shown.offsets is not None
    nobody = own.factors.train.taste(np.zeros(0, dtype=np.intp), np.zeros(0))  # type: ignore[union-attr]
    assert (shown.users.numpy() == nobody).all() and not shown.items.any()
    assert own.shown is not None and own.shown.texts is None  # so few items teach nothing of texts
    assert torch.equal(shown.offsets, torch.from_numpy(own.shown.items.unknown).expand_as(shown.offsets))
    bare = own.terms.eval().shown(torch.from_numpy(step.prefixes.factors), torch.from_numpy(step.distinct))
    assert bare.users is not None and bare.users.any()
