"""Lists of a checkpoint with collaborative factors, their tokens and two heads, against each pair worked out alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark import ship
from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.blending import Blend, Calibration, ListBlend
from flmrec_spark.lm.checkpoint import Checkpoint
from flmrec_spark.lm.collaborative import Collaborative, Factors, FactorsOfSplits
from flmrec_spark.lm.grades import Grades
from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.neighbours import Neighbours
from flmrec_spark.lm.profiles import Profile
from flmrec_spark.lm.segments import FACTORS, Interaction, Segmenter
from flmrec_spark.prompts import load_template
from flmrec_spark.stages.scores import scores
from flmrec_spark.stages.sql_function import register
from tests.scored import HISTORY_LENGTH, ITEM_TOKENS, USER_TOKENS
from tests.stages.test_scores import HISTORY, LONG_HISTORY, PROMPTS, ROWS, shipped_from
from tests.tiny import tiny_bert, tiny_tokenizer
from tests.world import ITEMS

KNOWN = ITEMS[:10]  # the others are new to the factors
DIMENSION, NEAR, PROFILE, TASTE_LENGTH = 3, 2, 2, 4
USERS: dict[str, tuple[Any, ...]] = {
    "ann": ("30", HISTORY, ["i01", "i00"], None),
    "bob": ("30", LONG_HISTORY, [], ["i12", "i01", "i05", "i11"]),
    "new": (None, [], [], None),
    "old": ("30", [("left the catalogue", True, 5.0)], [], None),
}
BIASES = Biases({"ann": 0.5}, {item: 0.05 * place for place, item in enumerate(ITEMS)})
TRAIN_BIASES = Biases({"ann": -0.75, "bob": 0.25}, {item: -0.5 * place for place, item in enumerate(ITEMS)})
GRADES = Grades.of([5.0, 8.0, 1.0, 0.5], [True, True, False, False])
LABELS = {(True, 5.0): 0.75, (False, 1.0): 0.25}
RATING, LISTING = Calibration(0.7, -0.2, 0.9, 0.25, -2.0), ListBlend(0.4, 0.8, 1.1, -0.3, 0.6)
NEW_USERS = Blend(Calibration(1.3, 0.4, 0.2, 0.15, -1.5), ListBlend(0.7, 0.1, 1.9, 0.2, -0.5))


def factors(seed: int, n_items: int) -> Factors:
    random = np.random.default_rng(seed)

    def drawn(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    target, offset = drawn(n_items + 1, DIMENSION), drawn(n_items + 1)
    target[-1] = 0
    return Factors(drawn(2 * n_items, DIMENSION), target, offset, np.array([0.7, 0.4], dtype=np.float32), 3.0)


def neighbours(seed: int, n_items: int) -> Neighbours:
    random = np.random.default_rng(seed)
    history, target = random.normal(size=(n_items, NEAR)), random.normal(size=(n_items + 1, NEAR))
    target[-1] = 0
    return Neighbours(*(part.astype(np.float32) for part in (history, target, random.uniform(0.3, 0.7, size=n_items))))


def profile(seed: int, n_items: int) -> Profile:
    random = np.random.default_rng(seed)
    tokens, target = random.normal(size=(len(tiny_tokenizer()), PROFILE)), random.normal(size=(n_items + 1, PROFILE))
    target[-1] = 0
    return Profile(tokens.astype(np.float32), target.astype(np.float32))


def collaborative(seed: int) -> Collaborative:
    rating = replace(factors(seed + 1, len(KNOWN)), near=neighbours(seed + 2, len(KNOWN)))
    popular = np.random.default_rng(seed + 4).normal(size=len(KNOWN) + 1).astype(np.float32)
    popular[-1] = 0
    listing = replace(factors(seed, len(KNOWN)), profile=profile(seed + 3, len(KNOWN)), popular=popular)
    both = {"listing": listing, "rating": rating}
    return Collaborative(pa.array(sorted(KNOWN)), both, TASTE_LENGTH, grades=GRADES)


@pytest.fixture(scope="module", params=["last layer", "early", "two towers", "full"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    form: dict[str, Any] = {
        "last layer": {"join": "layer", "join_layer": 2},
        "early": {"join": "layer", "join_layer": 1},
        "two towers": {"join": "layer", "join_layer": 3},
        "full": {"join": "full", "join_layer": 2},
    }[request.param]
    model = SegmentedModel(
        tiny_bert(),
        item_position=USER_TOKENS,
        item_tokens=ITEM_TOKENS,
        has_listing=True,
        n_factors=2 * DIMENSION + NEAR + PROFILE + 1,
        **form,
    ).eval()
    generator = torch.Generator().manual_seed(5)
    for tensor in checkpoint.head_tensors(model).values():
        tensor.normal_(std=0.3, generator=generator)
    segmenter = Segmenter(
        tiny_tokenizer(),
        load_template("en"),
        user_tokens=USER_TOKENS,
        item_tokens=ITEM_TOKENS,
        history_length=HISTORY_LENGTH,
        has_factors=True,
    )
    folder = tmp_path_factory.mktemp("factors") / "checkpoint"
    checkpoint.save(
        folder,
        model=model,
        segmenter=segmenter,
        biases=BIASES,
        train_biases=TRAIN_BIASES,
        blend=Blend(RATING, LISTING),
        new_users=NEW_USERS,
        factors=FactorsOfSplits(collaborative(20), collaborative(10)),
        metrics={},
        config={},
    )
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def frames(spark: SparkSession) -> tuple[DataFrame, DataFrame]:
    items = spark.createDataFrame(ROWS, "item_id string, title string, stock int")
    return items, spark.createDataFrame([(user, *rest) for user, rest in USERS.items()], PROMPTS).coalesce(2)


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def taste_by_hand(one: Factors, history: Sequence[tuple[str, bool, float]], words: Sequence[int]) -> Any:
    ids = sorted(KNOWN)
    kept = [(ids.index(item), liked, value) for item, liked, value in history if item in KNOWN][:TASTE_LENGTH]
    taste = np.zeros(DIMENSION)
    for age, (place, liked, _) in enumerate(kept):
        weight = one.mix[0] / math.sqrt(len(kept)) + one.mix[1] * math.exp(-age / 3.0) / math.sqrt(3.0)
        taste += weight * one.history[place if liked else len(ids) + place]
    if one.profile is not None:
        said = sum((one.profile.tokens[word] for word in words), np.zeros(PROFILE))
        return np.concatenate([taste, said / max(1, len(words)), [not kept]])
    assert one.near is not None
    over = [LABELS[liked, value] - float(one.near.expected[place]) for place, liked, value in kept]
    mean = sum(over) / (len(over) + 4)
    near = sum(
        ((x - mean) * one.near.history[place] for x, (place, *_) in zip(over, kept, strict=True)), np.zeros(NEAR)
    )
    return np.concatenate([taste, near])


def vector_by_hand(one: Factors, place: int) -> Any:
    (more,) = (part for part in (one.near, one.profile) if part is not None)
    return np.concatenate([one.target[place], more.target[place], [] if one.popular is None else [one.popular[place]]])


@torch.inference_mode()
def by_hand(found: Checkpoint, user_id: str, whole: Collaborative, biases: Biases) -> dict[str, tuple[float, float]]:
    """(score, probability) of each item for one user, each pair alone."""
    torch.set_num_threads(1)
    age, history, _, _ = USERS[user_id]
    model, segmenter, ids = found.model(), found.segmenter(), sorted(KNOWN)
    rows = {row["item_id"]: row for row in ROWS}
    entries = [Interaction(rows[item], liked, value) for item, liked, value in history if item in rows]
    segment = segmenter.user({"age": age}, entries)
    assert segment is not None and segment.ids.count(FACTORS) == 1
    words = segmenter.tokenizer(segmenter.template.render_user({"age": age}), add_special_tokens=False)["input_ids"]
    tastes = {kind: taste_by_hand(one, history, words) for kind, one in whole.factors.items()}
    listing = whole.factors["listing"]
    every = [vector_by_hand(listing, place) @ tastes["listing"] + listing.offset[place] for place in range(len(ids))]
    total = math.log(sum(map(math.exp, every)))
    user = Segment(*_padded(segment.ids), torch.tensor(np.concatenate(list(tastes.values()))[None]).float())
    result = {}
    for item, row in rows.items():
        tokens = segmenter.items([row])[0]
        if tokens is None:
            continue
        place = ids.index(item) if item in KNOWN else -1
        own = np.concatenate([vector_by_hand(one, place) for one in whole.factors.values()])
        asked = Segment(*_padded(tokens), torch.from_numpy(own[None]))
        if model.join == "full":
            hidden, pooled = model.pair(user, asked)
        else:
            states = model.encode_users(user.ids, user.lengths, user.factors)
            items = model.encode_items(asked.ids, asked.lengths, asked.factors)
            hidden, pooled = model.joined(states, items, torch.tensor([[0]]))[0], states.pooled
        assert model.listing is not None
        terms = {
            k: float(vector_by_hand(one, place) @ tastes[k] + one.offset[place]) for k, one in whole.factors.items()
        }
        terms["listing"] -= total
        text = float(model.rating(hidden, pooled)) + biases.user.get(user_id, 0.0) + biases.item.get(item, 0.0)
        a, b, d, e, f = (0.7, 0.9, -0.2, 0.25, -2.0) if entries else (1.3, 0.2, 0.4, 0.15, -1.5)
        rating = a * text + b * terms["rating"] + d + e * (terms["listing"] - f)
        a, b, d, e, f = (0.4, 0.8, 1.1, -0.3, 0.6) if entries else (0.7, 0.1, 1.9, 0.2, -0.5)
        listing = a * rating + b * float(model.listing(hidden, pooled)) + d * terms["listing"] + e
        listing += f * (item not in KNOWN)
        result[item] = sigmoid(listing), sigmoid(rating)
    return result


def _padded(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([ids]), torch.tensor([len(ids)])


def lists(frame: DataFrame) -> dict[str, list[Any]]:
    by_user: dict[str, list[Any]] = {}
    for row in frame.collect():
        by_user.setdefault(row.user_id, []).append(row)
    return by_user


@pytest.mark.parametrize("of_train", [False, True])
def test_score_and_probability_are_those_of_all_parts(
    spark: SparkSession, found: Checkpoint, frames: tuple[DataFrame, DataFrame], of_train: bool
) -> None:
    items, users = frames
    shipped = shipped_from(spark, found.folder, items)
    assert shipped.history_length == max(HISTORY_LENGTH, TASTE_LENGTH)
    shipped = shipped.of_train() if of_train else shipped
    got = lists(scores(users, shipped, n=5))
    listed = {row["item_id"] for row in ROWS if row["stock"]}
    for user_id, (_, _, excluded, candidates) in USERS.items():
        known = (collaborative(20), TRAIN_BIASES) if of_train else (collaborative(10), BIASES)
        every = by_hand(found, user_id, *known)
        asked = [item for item in every if item in listed and item not in excluded and item in (candidates or every)]
        best = sorted(asked, key=lambda item: (-every[item][0], item))[:5]
        own = got[user_id]
        assert [row.item_id for row in own] == best
        assert [row.score for row in own] == pytest.approx([every[item][0] for item in best], abs=1e-6)
        assert [row.probability for row in own] == pytest.approx([every[item][1] for item in best], abs=1e-6)


def test_a_prompts_tokens_are_estimated_by_what_it_shows_of_a_longer_taste(found: Checkpoint) -> None:
    longer = replace(found, settings=replace(found.settings, taste_length=300))
    assert longer.settings.longest_history == 300
    assert ship._cost_model(longer, found.segmenter(), ROWS, [3]).history_length == HISTORY_LENGTH


def test_sql_knows_texts_alone(spark: SparkSession, found: Checkpoint, frames: tuple[DataFrame, DataFrame]) -> None:
    """A text has no id: its probability is that of a new user and a new item, factors and bias terms left out."""
    register(spark, shipped_from(spark, found.folder, frames[0]), name="score_of_texts")
    (row,) = spark.sql("SELECT score_of_texts('film a', 'film b') AS p").collect()
    assert 0 < row.p < 1
