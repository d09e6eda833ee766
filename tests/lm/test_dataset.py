"""The prepared tables as arrays: order, widths, what is left out, and clear errors for tables that do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flmrec_spark import columns as c
from flmrec_spark.errors import ConfigError, InputError
from flmrec_spark.lm import dataset
from flmrec_spark.lm.prepared import TABLES, Prepared, drawn_users, expect_histories, read_tables
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import load_template
from tests.prepared import N_RATED, N_TRAIN, prepared_rows, rated, write_prepared
from tests.tiny import tiny_tokenizer
from tests.world import ITEMS, USERS

USER_IDS = sorted(USERS)


def segmenter(*, user_tokens: int = 64, item_tokens: int = 40) -> Segmenter:
    template = load_template("en")
    return Segmenter(tiny_tokenizer(), template, user_tokens=user_tokens, item_tokens=item_tokens, history_length=6)


@pytest.fixture(scope="module")
def prepared(prepared_world: Path) -> Prepared:
    return read_tables(str(prepared_world / "tables"))


def test_tables_come_with_versions_and_attributes(prepared):
    assert dict(prepared.versions) == dict.fromkeys(TABLES, 0)
    assert len(set(prepared.table_ids.values())) == 4
    assert (prepared.fields("items"), prepared.fields("users")) == (["genre"], ["group"])


def test_the_catalog_is_in_the_order_of_the_ids(prepared):
    items = dataset.catalog(prepared.tables["items"], segmenter())
    assert items.item_ids == sorted(ITEMS)
    assert items.is_known.all()
    assert items.fields[0] == {"item_id": "0042", "title": "bb", "genre": "drama"}
    assert items.places(pa.array(["i03", "3", "0042", None])).tolist() == [sorted(ITEMS).index("i03"), -1, 0, -1]


def test_an_item_that_exceeds_its_budget_stands_in_the_catalog_as_refused():
    rows = [{"item_id": "b", "title": "x" * 99}, {"item_id": "a", "title": "x"}]
    items = dataset.catalog(pa.Table.from_pylist(rows), segmenter(item_tokens=4))
    assert items.is_known.tolist() == [True, False]
    assert items.tokens.lengths.tolist() == [3, 1]


def test_valid_examples_hold_all_targets_of_a_user_in_one_row(prepared):
    own = segmenter()
    items = dataset.catalog(prepared.tables["items"], own)
    found = dataset.examples(prepared, c.VALID, items, own, width=None, user_ids=USER_IDS)
    assert (len(found), found.targets.shape) == (len(USERS), (len(USERS), N_RATED - 1 - N_TRAIN))
    for row, user in enumerate(found.users.tolist()):
        place = USERS.index(USER_IDS[user])
        asked = rated(place)[N_TRAIN : N_RATED - 1]
        assert [items.item_ids[target] for target in found.targets[row]] == [ITEMS[item] for item in asked]
        assert found.labels[row].tolist() == [float(item % 2 == place % 2) for item in asked]
    assert found.n_cut > 0


def test_users_are_drawn_by_seed_and_come_with_all_that_they_were_asked(prepared):
    own = segmenter()
    items = dataset.catalog(prepared.tables["items"], own)
    assert sorted(drawn_users(prepared, c.TRAIN, n=99, seed=[1])) == USER_IDS
    few = drawn_users(prepared, c.TRAIN, n=3, seed=[1])
    assert len(few) == 3 and few == drawn_users(prepared, c.TRAIN, n=9, seed=[1])[:3]
    assert few != drawn_users(prepared, c.TRAIN, n=3, seed=[2])
    every, found = (
        dataset.examples(prepared, c.TRAIN, items, own, width=2, user_ids=USER_IDS, only=only) for only in (None, few)
    )
    rows = [row for row, user in enumerate(every.users) if USER_IDS[user] in few]
    assert len(rows) > 3
    assert (found.users == every.users[rows]).all() and (found.targets == every.targets[rows]).all()
    assert found.prefixes == [every.prefixes[row] for row in rows]


def test_more_targets_than_the_width_become_rows_with_the_same_prefix(prepared):
    own = segmenter()
    items = dataset.catalog(prepared.tables["items"], own)
    whole = dataset.examples(prepared, c.TRAIN, items, own, width=4, user_ids=USER_IDS)
    parts = dataset.examples(prepared, c.TRAIN, items, own, width=3, user_ids=USER_IDS)
    assert len(parts) == 2 * len(whole)
    assert parts.prefixes[0] == parts.prefixes[1] == whole.prefixes[0]
    assert np.concatenate(parts.targets[:2]).tolist() == [*whole.targets[0], -1, -1]
    assert parts.n_cut == whole.n_cut


def test_graded_labels_of_sequences_on_demand(tmp_path: Path):
    rows = prepared_rows()
    for row in rows["interactions"]:
        row[c.VALUE] -= row[c.ITEM_ID] == "i03"  # one item that is liked, or disliked, less than the others
    prepared = read_tables(str(write_prepared(tmp_path / "tables", rows)))
    items = dataset.catalog(prepared.tables["items"], segmenter())
    trained = {(row[c.USER_ID], row[c.ITEM_ID]): row for row in rows["interactions"] if row[c.SPLIT] == c.TRAIN}
    liked, disliked = ([row[c.VALUE] for row in trained.values() if row[c.IS_LIKED] == side] for side in (True, False))
    assert (set(liked), set(disliked)) == ({4.0, 5.0}, {1.0, 2.0})
    expected = {
        5.0: 1.0,
        4.0: 1 - liked.count(5.0) / len(liked) / 2,
        2.0: disliked.count(1.0) / len(disliked) / 2,
        1.0: 0.0,
    }
    for is_graded in (True, False):
        grades = dataset.grades(prepared, splits=[c.TRAIN]) if is_graded else None
        found = dataset.sequences(prepared, items, USER_IDS, splits=[c.TRAIN], grades=grades)
        own = [
            trained[USER_IDS[user], items.item_ids[item]] for user, item in zip(found.users, found.items, strict=True)
        ]
        said = [expected[row[c.VALUE]] if is_graded else float(row[c.IS_LIKED]) for row in own]
        assert found.labels.tolist() == pytest.approx(said)
        assert found.liked.tolist() == [row[c.IS_LIKED] for row in own]


def test_refused_targets_and_prompts_are_left_out(prepared):
    own = segmenter()
    items = dataset.catalog(prepared.tables["items"], own)
    items.is_known[:] = False
    assert len(dataset.examples(prepared, c.TRAIN, items, own, width=4, user_ids=USER_IDS)) == 0
    tight = segmenter(user_tokens=6)
    known = dataset.catalog(prepared.tables["items"], tight)
    refused = dataset.examples(prepared, c.TRAIN, known, tight, width=4, user_ids=USER_IDS)
    assert (len(refused), refused.n_refused) == (0, 2 * len(USER_IDS))
    assert dataset.examples(prepared, c.TRAIN, known, own, width=4, user_ids=USER_IDS).n_refused == 0


def test_seen_pairs_are_those_of_the_splits_asked_for(prepared):
    items = dataset.catalog(prepared.tables["items"], segmenter())
    found = dataset.seen(prepared, items, USER_IDS, splits=[c.TRAIN])
    expected = sorted(
        USER_IDS.index(user) * len(ITEMS) + items.item_ids.index(ITEMS[item])
        for place, user in enumerate(USERS)
        for item in rated(place)[:N_TRAIN]
    )
    assert found.tolist() == expected


def test_counts_are_of_the_splits_asked_for(prepared):
    counts, likes = dataset.counts(prepared, c.USER_ID, USER_IDS, splits=[c.TRAIN])
    assert counts.tolist() == [N_TRAIN] * len(USERS)
    place = USERS.index(USER_IDS[0])
    assert likes[0] == sum(item % 2 == place % 2 for item in rated(place)[:N_TRAIN])


def test_prompts_of_longer_histories_than_were_prepared_are_refused(prepared):
    kept = max(map(len, prepared.tables["examples"][c.HISTORY].to_pylist()))
    expect_histories(prepared, kept)
    expect_histories(prepared, kept + 1)  # nobody has more: nothing was cut
    train = pc.equal(prepared.tables["examples"][c.SPLIT], c.TRAIN)
    cut = prepared.tables["examples"].filter(train).to_pylist()
    valid = prepared.tables["examples"].filter(pc.equal(prepared.tables["examples"][c.SPLIT], c.VALID)).to_pylist()
    few = [{**row, c.HISTORY: row[c.HISTORY][:2]} for row in [*cut, *valid]]
    table = pa.Table.from_pylist(few, schema=prepared.tables["examples"].schema)
    shorter = replace(prepared, tables={**prepared.tables, "examples": table})
    expect_histories(shorter, 2)
    with pytest.raises(ConfigError, match=r"prompts.history_length: got 3, expected at most 2, which the examples"):
        expect_histories(shorter, 3)


def test_without_a_root_there_is_nothing_to_read():
    with pytest.raises(ConfigError, match=r"tables.root: got null, expected a path"):
        read_tables(None)


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_table_is_named(prepared_world, tmp_path, name):
    tables = shutil.copytree(prepared_world / "tables", tmp_path / "tables")
    shutil.rmtree(tables / name)
    with pytest.raises(InputError, match=f"table {name}: not found at .*; run jobs/prepare.py first"):
        read_tables(str(tables))


def test_an_empty_table_is_named(tmp_path):
    rows = prepared_rows()
    write_prepared(tmp_path, {**rows, "examples": []})
    with pytest.raises(InputError, match="table examples: got no rows"):
        read_tables(str(tmp_path))


@pytest.mark.parametrize("name", ["items", "users"])
def test_tables_of_different_runs_are_refused_without_an_id_in_the_message(tmp_path, name):
    rows = prepared_rows()
    write_prepared(tmp_path, {**rows, name: rows[name][1:]})
    with pytest.raises(InputError, match=f"table {name}: lacks ids that interactions or examples name") as caught:
        read_tables(str(tmp_path))
    assert not any(identity in str(caught.value) for identity in (*ITEMS, *USERS))


def test_a_damaged_table_is_named(prepared_world, tmp_path):
    tables = shutil.copytree(prepared_world / "tables", tmp_path / "tables")
    for file in (tables / "items").glob("*.parquet"):
        file.unlink()
    with pytest.raises(InputError, match="table items: not readable"):
        read_tables(str(tables))
