"""The GPU's form of the joined layers against the model's own; without a GPU by Triton's interpreter (see conftest)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import FACTORS
from flmrec_spark.lm.token_block import TokenBlock

device_join = pytest.importorskip("flmrec_spark.lm.device_join")  # needs Triton
device_kernels = pytest.importorskip("flmrec_spark.lm.device_kernels")
UserBatches: Any = pytest.importorskip("flmrec_spark.lm.user_batches").UserBatches
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 3}
KINDS: dict[str, dict[str, Any]] = {
    "bert": SIDES,
    "bert with relu": {**SIDES, "model_type": "bert", "hidden_act": "relu"},  # no layers of `device_layers`
    "distilbert": {"dim": 32, "n_heads": 2, "hidden_dim": 48, "n_layers": 3},
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 3},
    "qwen3": {**SIDES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
}
N_ITEMS, LONGEST = 7, 5


def model_of(kind: str = "bert", join: str = "layer", join_layer: int = 2, *, n_factors: int = 0) -> SegmentedModel:
    torch.manual_seed(1)
    values = dict(KINDS[kind])
    config = transformers.AutoConfig.for_model(values.pop("model_type", kind), vocab_size=64, **values)
    backbone = transformers.AutoModel.from_config(config)
    places: dict[str, Any] = {"item_position": 20, "item_tokens": 8, "has_listing": True, "n_factors": n_factors}
    model = SegmentedModel(backbone, join=join, join_layer=join_layer, **places).eval()
    for number, parameter in enumerate(model.parameters()):  # no bias is 0 and no norm 1
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model


def items_of(n: int = N_ITEMS) -> TokenBlock:
    random = np.random.default_rng(3)
    lengths = random.integers(1, LONGEST + 1, n).astype(np.int32)
    return TokenBlock(random.integers(5, 60, (n, LONGEST)).astype(np.int32), lengths)


def users_of(*lengths: int) -> list[tuple[list[int], None]]:
    random = np.random.default_rng(4)
    return [(random.integers(5, 60, n).tolist(), None) for n in lengths]


def batches_of(model: SegmentedModel, items: TokenBlock, *, n_users: int = 2) -> UserBatches:
    """Two users a step, unless told otherwise."""
    states = Scorer(model, items.take(np.arange(0))).encode(items)
    twin = model_like(model).to(DEVICE)
    device_join.use_device_layers(twin)
    assert device_join.fits(twin, LONGEST)
    join = device_join.DeviceJoin(twin, type(states)(*[part.to(DEVICE) for part in states.parts()]))
    return UserBatches(join, DEVICE, step_tokens=n_users * len(items) * join.n_rows)


def model_like(model: SegmentedModel) -> SegmentedModel:
    """A copy: `use_device_layers` would be for the model that it is compared with too."""
    import copy

    return copy.deepcopy(model)


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * np.ptp(expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("join", "join_layer"), [("layer", 0), ("layer", 1), ("layer", 2), ("layer", 3), ("attention", 2)]
)
def test_users_scored_together_get_what_each_gets_alone(kind: str, join: str, join_layer: int) -> None:
    model, items, users = model_of(kind, join, join_layer), items_of(), users_of(3, 19, 17)
    plain = Scorer(model, items)
    expected = np.stack([plain.head_logits(ids) for ids, _ in users])
    batches = batches_of(model, items)
    assert_close(np.stack(list(batches.logits(users))), expected)
    assert_close(batches.of_one(users[1]), expected[1])
    assert np.ptp(expected[:, 0]) > 0.01  # items differ, so a wrong one would show


def test_collaborative_tokens_reach_their_users() -> None:
    model = model_of(n_factors=3)
    random = np.random.default_rng(5)
    items, (first, second) = items_of(), users_of(4, 9)
    factors = random.normal(size=(2, 3)).astype(np.float32)
    users = [([FACTORS, *ids], own) for (ids, _), own in zip((first, second), factors, strict=True)]
    plain = Scorer(model, items)
    expected = np.stack([plain.head_logits(ids, factors=own) for ids, own in users])
    assert_close(np.stack(list(batches_of(model, items).logits(users))), expected)
    assert np.abs(expected[0] - plain.head_logits(users[0][0], factors=factors[1])).max() > 1e-3


def test_some_items_are_scored_in_the_order_of_their_index() -> None:
    model, items, (user,) = model_of(), items_of(), users_of(6)
    index = np.array([4, 0, 5])
    found = batches_of(model, items).take(torch.from_numpy(index).to(DEVICE)).of_one(user)
    assert_close(found, Scorer(model, items).head_logits(user[0])[:, index])


def test_many_users_come_back_in_their_order_and_are_asked_for_as_they_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, items = model_of("bert with relu", "layer", 3), items_of()
    users = users_of(*[1 + number % 18 for number in range(40)])
    plain, batches = Scorer(model, items), batches_of(model, items)
    taken: list[int] = []

    def told() -> Iterator[Any]:
        for number, user in enumerate(users):
            taken.append(number)
            yield user

    found = batches.logits(told())
    first = next(found)
    assert len(taken) == 32  # one chunk to look at and one under way, eight steps of two users each
    every = np.stack([first, *found])
    assert_close(every, np.stack([plain.head_logits(ids) for ids, _ in users]))


@pytest.mark.parametrize("join_layer", [0, 2])
def test_steps_become_smaller_when_the_memory_runs_out(monkeypatch: pytest.MonkeyPatch, join_layer: int) -> None:
    model, items, users = model_of("bert with relu", "layer", join_layer), items_of(64), users_of(3, 5, 8, 11)
    batches = batches_of(model, items, n_users=4)
    join, before = batches.join, batches.step_tokens
    whole = join.logits

    def refused(states: Any, start: int, stop: int) -> torch.Tensor:
        if len(states.pooled) * (stop - start) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(states, start, stop)

    monkeypatch.setattr(join, "logits", refused)
    plain = Scorer(model, items)
    assert_close(np.stack(list(batches.logits(users))), np.stack([plain.head_logits(ids) for ids, _ in users]))
    assert batches.step_tokens == before // 4
    monkeypatch.setattr(join, "logits", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(EnvironmentFault, match="expected room for 32 items of a user"):
        batches.of_one(users[0])


def test_a_fault_that_is_not_of_the_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches_of(model_of(), items_of())
    monkeypatch.setattr(batches.join, "logits", lambda *_: (_ for _ in ()).throw(RuntimeError("no such kernel")))
    with pytest.raises(RuntimeError, match="no such kernel"):
        batches.of_one(users_of(3)[0])


@settings(max_examples=8, deadline=None)
@given(
    n_users=st.integers(1, 3),
    n_items=st.integers(1, 40),
    n_asking=st.integers(1, 3),
    n_keys=st.integers(1, 130),
    n_shared=st.sampled_from([1, 2]),
    shares=st.booleans(),
)
def test_attention_to_users_is_a_softmax_over_their_keys_and_the_items_own(
    n_users: int, n_items: int, n_asking: int, n_keys: int, n_shared: int, shares: bool
) -> None:
    made = torch.Generator().manual_seed(n_keys)

    def random(*sides: int) -> torch.Tensor:
        return torch.randn(*sides, generator=made).to(DEVICE)

    n_heads, size = 2, 16
    sides = (1 if shares else n_users, n_items, n_heads, n_asking)
    query, own, own_lse = random(*sides, size), random(*sides, size), random(*sides)
    keys, values = random(n_users, n_shared, n_keys, size), random(n_users, n_shared, n_keys, size)
    lengths = torch.randint(1, n_keys + 1, (n_users,), generator=made).to(DEVICE)
    found = device_kernels.attend_known(query, own, own_lse, keys, values, lengths)
    for user in range(n_users):
        known = slice(0, int(lengths[user]))
        each = 0 if shares else user
        of_head = [head * n_shared // n_heads for head in range(n_heads)]
        logits = torch.einsum("thqe,hpe->thqp", query[each], keys[user, of_head, known])
        weights = torch.cat([logits, own_lse[each][..., None]], -1).softmax(-1)
        expected = torch.einsum("thqp,hpe->thqe", weights[..., :-1], values[user, of_head, known])
        expected = expected + weights[..., -1:] * own[each]
        torch.testing.assert_close(found[user], expected.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-5)


def test_heads_that_triton_has_no_tile_for_are_left_to_torch() -> None:
    assert device_kernels.attends(32, 12)
    assert not device_kernels.attends(48, 12)  # no power of two
    assert not device_kernels.attends(8, 12)  # less than a tile's side
    assert not device_kernels.attends(32, 65)  # an item would lie in two tiles
    of_a10, of_h100 = 101_376, 232_448  # bytes
    assert device_kernels.attends(64, 12, shared_bytes=of_a10) and device_kernels.attends(128, 12, shared_bytes=of_h100)
    assert not device_kernels.attends(128, 12, shared_bytes=of_a10)
    assert device_kernels.attends(128, 12, itemsize=2, shared_bytes=of_a10)
    assert device_kernels.shared_bytes_of(torch.device("cpu")) == float("inf")
    assert not device_join.fits(model_of("bert", "full", 0), LONGEST)


def test_a_scorer_on_a_cpu_gives_each_user_in_turn() -> None:
    scorer, users = Scorer(model_of(), items_of()), users_of(3, 4)
    assert scorer.batches is None
    for found, (ids, _) in zip(scorer.head_logits_each(iter(users)), users, strict=True):
        np.testing.assert_array_equal(found, scorer.head_logits(ids))
