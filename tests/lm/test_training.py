"""The parts of fine-tuning, worked out by hand on examples of two rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from flmrec_spark.config import FinetuneConfig
from flmrec_spark.lm import training
from flmrec_spark.lm.batches import Step
from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.lm.training import BiasTerms
from tests.tiny import tiny_bert

FLAT = np.zeros(4, dtype=np.float32)
FORMS = [("layer", 0), ("layer", 1), ("layer", 2), ("attention", 1), ("full", 1)]


def step(items: list[list[int]], labels: list[list[float]]) -> Step:
    """Two users with prefixes of their own; items 0 .. 3."""
    prefixes = TokenBlock(np.array([[2, 5, 6, 3], [2, 7, 3, 0]], dtype=np.int32), np.array([4, 3], dtype=np.int32))
    places = np.array(items)
    distinct, grid = np.unique(np.maximum(places, 0), return_inverse=True)
    return Step(
        prefixes, np.array([0, 1]), distinct, grid.reshape(places.shape), places, np.array(labels, dtype=np.float32)
    )


def loss(logits: list[list[float]], own: Step, share: np.ndarray = FLAT, **settings: float) -> float:
    config = FinetuneConfig(**settings)
    return float(
        training.loss(torch.tensor(logits), torch.tensor(logits), own, whole=own, log_share=share, config=config)
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_rating_part_is_the_mean_cross_entropy_of_the_observed():
    own = step([[0, 1, 2], [1, -1, 3]], [[1, 0], [0, 0]])  # the second row has one target
    got = loss([[2.0, -1.0, 0.5], [0.5, 99.0, 0.0]], own, rating_weight=2.0, ranking_weight=0.0)
    expected = -(math.log(sigmoid(2.0)) + math.log(1 - sigmoid(-1.0)) + math.log(1 - sigmoid(0.5))) / 3
    assert got == pytest.approx(2 * expected, rel=1e-6)


def test_the_ranking_part_is_a_softmax_of_each_liked_item_against_the_negatives_of_its_row():
    own = step([[0, 1, 2, 3], [1, 0, 2, -1]], [[1, 1], [0, 1]])
    logits = [[2.0, -1.0, 0.5, 1.0], [0.5, 1.5, 0.0, 99.0]]
    got = loss(logits, own, rating_weight=0.0, ranking_weight=3.0)
    against = math.exp(0.5) + math.exp(1.0)
    terms = [math.exp(2.0) / (math.exp(2.0) + against), math.exp(-1.0) / (math.exp(-1.0) + against)]
    terms.append(math.exp(1.5) / (math.exp(1.5) + math.exp(0.0)))
    assert got == pytest.approx(-3 * sum(map(math.log, terms)) / 3, rel=1e-6)


def test_the_ranking_part_is_corrected_for_how_often_an_item_is_drawn():
    own = step([[0, 2, 3], [1, 2, -1]], [[1], [0]])
    share = np.log(np.array([0.5, 1.0, 2.0, 0.25], dtype=np.float32))
    got = loss([[2.0, 0.5, 1.0], [0.5, 0.0, 99.0]], own, share, rating_weight=0.0, ranking_weight=1.0)
    liked, against = math.exp(2.0) / 0.5, math.exp(0.5) / 2.0 + math.exp(1.0) / 0.25
    assert got == pytest.approx(-math.log(liked / (liked + against)), rel=1e-6)


def test_rows_without_a_negative_or_without_a_liked_item_rank_nothing():
    own = step([[0, -1], [1, 2]], [[1], [0]])
    assert loss([[2.0, 0.0], [1.0, 1.0]], own, rating_weight=0.0, ranking_weight=1.0) == 0.0


def test_a_refused_item_leaves_every_gradient_finite():
    own = step([[1, -1], [1, 2]], [[1], [1]])
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0]], requires_grad=True)
    share = np.array([-np.inf, 0, 0, 0], dtype=np.float32)  # item 0, which stands in for no item
    training.loss(logits, logits, own, whole=own, log_share=share, config=FinetuneConfig()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def segmented(join: str, join_layer: int, *, dropout: float = 0.0) -> SegmentedModel:
    backbone = tiny_bert(n_layers=2)
    model = SegmentedModel(backbone, join=join, join_layer=join_layer, item_position=20, item_tokens=8)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    model.family.attention_dropout = dropout
    for weight in (model.rating.item_weight, model.rating.user_weight):
        weight.data.normal_(generator=torch.Generator().manual_seed(7))
    return model.train()


CATALOG = TokenBlock(
    np.array([[2, 9, 3, 0, 0], [2, 10, 11, 12, 3], [2, 13, 14, 3, 0], [2, 3, 0, 0, 0]], dtype=np.int32),
    np.array([3, 5, 4, 2], dtype=np.int32),
)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
def test_the_gradients_of_two_parts_add_up_to_those_of_one(join, join_layer):
    own = step([[0, 1, 2, 3], [1, 0, 2, -1]], [[1, 0], [0, 1]])
    config, found = FinetuneConfig(ranking_weight=0.5), []
    offsets = np.array([0.3, -0.2, 0.1, 0.0], dtype=np.float32)
    for n_parts in (1, 2):
        model, bias = segmented(join, join_layer), BiasTerms(offsets[:2], offsets)
        for part in own.split(n_parts):
            logits, _ = training.step_logits(model, bias, part, CATALOG, bias_dropout=0.0)
            training.loss(logits, logits, part, whole=own, log_share=FLAT, config=config).backward()
        everything = [*model.named_parameters(), *bias.named_parameters()]
        found.append({name: value.grad for name, value in everything if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
@torch.inference_mode()
def test_training_logits_are_those_of_the_model_on_each_pair(join, join_layer):
    own = step([[0, 1, 2, 3], [1, 0, 2, -1]], [[1, 0], [0, 1]])
    model = segmented(join, join_layer).eval()
    got, _ = training.step_logits(model, BiasTerms(None, None), own, CATALOG, bias_dropout=0.0)
    for row, column in np.argwhere(own.items >= 0):
        n_user, item = int(own.prefixes.lengths[row]), int(own.items[row, column])
        user = torch.from_numpy(own.prefixes.ids[row : row + 1, :n_user]).long()
        asked = torch.from_numpy(CATALOG.ids[item : item + 1, : CATALOG.lengths[item]]).long()
        lengths = torch.tensor([n_user]), torch.tensor([int(CATALOG.lengths[item])])
        if join == "full":
            expected = model.rating(*model.pair(Segment(user, lengths[0]), Segment(asked, lengths[1])))[0]
        else:
            states = model.encode_users(user, lengths[0]), model.encode_items(asked, lengths[1])
            expected = model.join_items(*states, torch.tensor([[0]]))[0, 0]
        torch.testing.assert_close(got[row, column], expected, rtol=1e-5, atol=1e-5)


def test_under_bf16_a_logit_keeps_its_32_bits():
    own = step([[0, 1, 2, 3], [1, 0, 2, -1]], [[1, 0], [0, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = training.step_logits(segmented("layer", 1), BiasTerms(None, None), own, CATALOG, bias_dropout=0.0)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_bias_terms_start_where_told_and_are_added() -> None:
    bias = BiasTerms(np.array([0.5, 0.0], dtype=np.float32), np.array([-1.25, 2.0], dtype=np.float32))
    users, items = torch.tensor([0, 1]), torch.tensor([[0, 1], [0, -1]])
    torch.testing.assert_close(bias.eval()(users, items, 0.9), torch.tensor([[-0.75, 2.5], [-1.25, -1.25]]))


def test_bias_terms_drop_out_in_training_only():
    start = np.repeat(np.float32([0.5, -0.5]), 25)
    bias, users, items = BiasTerms(start, start), torch.arange(50), torch.arange(50)[:, None]
    torch.manual_seed(1)
    whole = bias.eval()(users, items, 0.5)
    dropped = bias.train()(users, items, 0.5)
    assert 0 < int((dropped == 0).sum()) < 50
    assert not torch.equal(whole, dropped)
    assert torch.equal(whole, bias(users, items, 0.0))


def test_bias_terms_are_named_by_id_or_left_out():
    named = BiasTerms(np.float32([0.5, -1.0]), np.float32([0.25, 0.0])).named(["007", "用户"], ["a", "b"])
    assert (named.user, named.item) == ({"007": 0.5, "用户": -1.0}, {"a": 0.25, "b": 0.0})
    none = BiasTerms(None, None)
    assert none(torch.tensor([0]), torch.tensor([[1]]), 0.5) == 0.0
    assert dict(none.named(["a"], ["b"]).user) == {}


def test_the_schedule_rises_then_falls():
    factor = training.rate_factor(FinetuneConfig(warmup_share=0.2, schedule="linear"), 10)
    np.testing.assert_allclose([factor(at) for at in range(10)], [0.5, 1.0, *[1 - at / 8 for at in range(8)]])
    cosine = training.rate_factor(FinetuneConfig(warmup_share=0.0, schedule="cosine"), 4)
    np.testing.assert_allclose([cosine(at) for at in (0, 2, 4)], [1.0, 0.5, 0.0], atol=1e-12)
    constant = training.rate_factor(FinetuneConfig(warmup_share=0.0, schedule="constant"), 4)
    assert [constant(at) for at in range(4)] == [1.0] * 4


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_every_step_of_a_schedule_has_a_rate_above_0_and_at_most_whole(schedule, warmup_share, n_steps):
    factor = training.rate_factor(FinetuneConfig(warmup_share=warmup_share, schedule=schedule), n_steps)
    assert all(0 < factor(at) <= 1 for at in range(n_steps))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_every_parameter_has_one_group_with_its_own_rate(name, kind):
    model, config = segmented("layer", 1), FinetuneConfig(optimizer=name, weight_decay=0.5)
    bias = BiasTerms(np.ones(4, dtype=np.float32), np.ones(4, dtype=np.float32))
    made = training.optimizer(model, bias, config)
    assert isinstance(made, kind)
    grouped = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    everything = [id(parameter) for parameter in (*model.parameters(), *bias.parameters())]
    assert sorted(grouped) == sorted(everything)
    rates = [group["lr"] for group in made.param_groups]
    expected = [config.learning_rate, config.learning_rate, config.head_learning_rate, config.bias_learning_rate]
    assert rates == expected
    assert all(parameter.ndim == 2 for parameter in made.param_groups[0]["params"])
    assert [group["weight_decay"] for group in made.param_groups[1:3]] == [0.0, 0.0]


def test_smoothed_labels_lie_between_0_and_1():
    own = step([[0, 1], [1, -1]], [[1, 0], [0, 0]])
    got = loss([[2.0, -1.0], [0.5, 9.0]], own, ranking_weight=0.0, label_smoothing=0.2)
    terms = [(2.0, 0.9), (-1.0, 0.1), (0.5, 0.1)]
    expected = [-like * math.log(sigmoid(x)) - (1 - like) * math.log(1 - sigmoid(x)) for x, like in terms]
    assert got == pytest.approx(sum(expected) / 3, rel=1e-6)


def test_the_rate_of_a_layer_decays_below_the_last_and_every_parameter_has_one_group():
    model, config = segmented("layer", 1), FinetuneConfig(layer_decay=0.5, learning_rate=0.8)
    bias = BiasTerms(np.ones(4, dtype=np.float32), np.ones(4, dtype=np.float32))
    made = training.optimizer(model, bias, config)
    names = {id(value): name for name, value in model.named_parameters()}
    rates = {names.get(id(value), "bias"): group["lr"] for group in made.param_groups for value in group["params"]}
    assert rates["backbone.encoder.layer.1.attention.self.query.weight"] == 0.8
    assert rates["backbone.encoder.layer.0.output.LayerNorm.bias"] == 0.4
    assert rates["backbone.embeddings.word_embeddings.weight"] == 0.2
    assert rates["rating.item_weight"] == config.head_learning_rate
    grouped = [id(value) for group in made.param_groups for value in group["params"]]
    assert sorted(grouped) == sorted(id(value) for value in (*model.parameters(), *bias.parameters()))


def test_a_last_norm_outside_the_layers_learns_as_the_last_layer():
    gpt = GPT2Model(GPT2Config(n_layer=2, n_embd=12, n_head=2, vocab_size=40, bos_token_id=1, eos_token_id=1))
    names = {id(value): name for name, value in gpt.named_parameters()}
    found = {names[id(value)]: factor for factor, own in training._by_depth(gpt, 0.5) for value in own}
    assert (found["ln_f.weight"], found["h.1.ln_1.weight"], found["h.0.ln_1.weight"]) == (1.0, 1.0, 0.5)
    assert (found["wte.weight"], found["wpe.weight"]) == (0.25, 0.25)
    assert len(found) == len(names)
