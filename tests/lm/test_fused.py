"""A whole last layer by the kernel in C against the family's own layer in torch, for every instruction set here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from flmrec_spark.lm import native
from flmrec_spark.lm.fused import FusedLast, fused_layers
from flmrec_spark.lm.model import ItemStates, SegmentedModel
from flmrec_spark.lm.native import Kernel
from flmrec_spark.lm.precision import can_pack
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from tests.lm.test_native import kernel  # noqa: F401  # a fixture: one for each instruction set

pytestmark = pytest.mark.skipif(native.build() is None, reason="no C compiler, or a CPU that the kernel does not know")
USER = [5, 6, 7, 8, 9, 10, 11]
CLOSE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 8e-2}  # of the spread of the exact logits


def close(kernel: Kernel, precision: str) -> float:  # noqa: F811
    """As CLOSE; a state of seven bits is rounded twice as coarsely as one of eight."""
    return CLOSE[precision] * (127 / (kernel.zero - 1) if precision == "int8" else 1)


def model_of(
    join: str = "layer", *, hidden: int = 32, heads: int = 1, inner: int = 64, kind: str = "gelu"
) -> SegmentedModel:
    torch.manual_seed(1)
    shape = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": kind}
    config = BertConfig(vocab_size=64, num_hidden_layers=3, **shape, initializer_range=0.2)
    return joined(BertModel(config, add_pooling_layer=False), join)


def joined(backbone: nn.Module, join: str) -> SegmentedModel:
    model = SegmentedModel(backbone, join=join, join_layer=2, item_position=20, item_tokens=8)
    for number, parameter in enumerate(model.parameters()):  # no bias is 0 and no norm 1
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model.eval()


def items_of(n: int) -> TokenBlock:
    random = np.random.default_rng(3)
    return TokenBlock(random.integers(5, 60, (n, 6)).astype(np.int32), random.integers(2, 7, n).astype(np.int32))


def fused_last(model: SegmentedModel, means: Kernel | None, precision: str) -> FusedLast | None:
    layers = fused_layers(model.family, means, precision)
    return None if layers is None else FusedLast(layers[-1], feed_forward=model.join == "layer")


@torch.inference_mode()
def last_states(model: SegmentedModel, items: TokenBlock) -> tuple[ItemStates, torch.Tensor, torch.Tensor]:
    """Item states, and keys and values of the user in the last layer."""
    ids, lengths = torch.from_numpy(items.ids).long(), torch.from_numpy(items.lengths)
    user = model.encode_users(torch.tensor([USER]), torch.tensor([len(USER)]))
    return model.encode_items(ids, lengths), user.keys[0][0], user.values[0][0]


@torch.inference_mode()
def hidden_of(model: SegmentedModel, items: TokenBlock) -> torch.Tensor:
    """The definition: last hidden states (N, D)."""
    ids, lengths = torch.from_numpy(items.ids).long(), torch.from_numpy(items.lengths)
    users = model.encode_users(torch.tensor([USER]), torch.tensor([len(USER)]))
    return model._joined(users, model.encode_items(ids, lengths), torch.arange(len(ids))[None])[0, :, 0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("join", ["layer", "attention"])
@pytest.mark.parametrize("sides", [(32, 1, 64), (48, 3, 16), (64, 2, 528), (96, 3, 1040)])
def test_dot_products_of_the_last_hidden_states_equal_those_in_torch(kernel, precision, join, sides):  # noqa: F811
    model = model_of(join, hidden=sides[0], heads=sides[1], inner=sides[2])
    fused = fused_last(model, kernel, precision)
    if fused is None:
        pytest.skip("no such instructions at this level")
    items, vectors = items_of(77), torch.randn(3, sides[0], generator=torch.Generator().manual_seed(2))
    states, keys, values = last_states(model, items)
    found = fused.dots(fused.items(states), keys, values, vectors)
    expected = vectors @ hidden_of(model, items).T
    assert found.shape == (3, 77)
    assert (found - expected).abs().max() < close(kernel, precision) * expected.std() + 1e-5


@pytest.mark.parametrize("join", ["layer", "attention"])
def test_a_scorer_with_it_scores_as_torch_does(kernel, join):  # noqa: F811
    model, items = model_of(join), items_of(77)
    plain, found = Scorer(model, items), Scorer(model, items, kernel=kernel)
    assert isinstance(found.fused, FusedLast)
    np.testing.assert_allclose(found.logits(USER), plain.logits(USER), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_item_has_the_same_bits_whatever_it_is_scored_with(kernel, precision):  # noqa: F811
    model = model_of()
    fused = fused_last(model, kernel, precision)
    if fused is None:
        pytest.skip("no such instructions at this level")
    states, keys, values = last_states(model, items_of(77))
    every = fused.items(states)
    vectors = model.rating.item_weight[None]
    chosen = torch.tensor([76, 3, 3, 40, 0])
    some = fused.dots(fused.take(every, chosen), keys, values, vectors)
    assert torch.equal(some, fused.dots(every, keys, values, vectors)[:, chosen])
    alone = fused.dots(fused.items(states.take(chosen[:1])), keys, values, vectors)
    assert torch.equal(alone, some[:, :1])


def test_large_states_keep_their_gelu(kernel):  # noqa: F811
    """Inner states from -40 to 40: beyond the polynomial's range GELU is 0 or the state itself."""
    model = model_of()
    model.backbone.encoder.layer[2].intermediate.dense.weight.data *= 40
    items, vectors = items_of(40), torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    states, keys, values = last_states(model, items)
    expected = vectors @ hidden_of(model, items).T
    for precision in ("fp32", "bf16"):
        fused = fused_last(model, kernel, precision)
        if fused is not None:
            found = fused.dots(fused.items(states), keys, values, vectors)
            assert (found - expected).abs().max() < 2 * close(kernel, precision) * expected.std() + 1e-5


def test_distilbert_has_such_layers_too(kernel):  # noqa: F811
    torch.manual_seed(1)
    config = DistilBertConfig(vocab_size=64, dim=32, n_layers=3, n_heads=1, hidden_dim=64)
    model, items = joined(DistilBertModel(config), "layer"), items_of(40)
    found = Scorer(model, items, kernel=kernel)
    assert isinstance(found.fused, FusedLast)
    np.testing.assert_allclose(found.logits(USER), Scorer(model, items).logits(USER), rtol=1e-5, atol=2e-5)


def test_other_activations_and_sides_are_left_to_torch(kernel):  # noqa: F811
    assert fused_last(model_of(kind="relu"), kernel, "fp32") is None
    assert fused_last(model_of(hidden=24), kernel, "fp32") is None
    assert fused_last(model_of(inner=72), kernel, "fp32") is None
    assert fused_last(model_of(), None, "fp32") is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("n_rows", [1, 16, 17, 33, 77])
@torch.inference_mode()
def test_rows_through_a_layer_equal_the_familys_own(kernel, precision, n_rows):  # noqa: F811
    model = model_of(hidden=64, heads=2, inner=528)
    layers = fused_layers(model.family, kernel, precision)
    if layers is None:
        pytest.skip("no such instructions at this level")
    random = torch.Generator().manual_seed(5)
    hidden, attended = (torch.randn(1, n_rows, 64, generator=random) for _ in range(2))
    found = [part.unflatten(-1, (2, 32)).transpose(1, 2).float() for part in layers[1].project(hidden)]
    finished = [layers[1].finish(hidden, attended, feed_forward=whole) for whole in (True, False)]
    expected = [*model.family.project(1, hidden, torch.arange(n_rows))]
    expected += [model.family.finish(1, hidden, attended, feed_forward=whole) for whole in (True, False)]
    for one, other in zip([*found, *finished], expected, strict=True):
        assert (one - other).abs().max() < close(kernel, precision) * other.std() + 1e-5
    alone = layers[1].finish(hidden[:, -1:], attended[:, -1:], feed_forward=True)
    assert torch.equal(alone, finished[0][:, -1:])


@pytest.mark.parametrize("join_layer", [0, 1, 2, 3])
def test_every_join_scores_as_torch_does(kernel, join_layer):  # noqa: F811
    backbone = model_of().backbone
    model = SegmentedModel(backbone, join="layer", join_layer=join_layer, item_position=20, item_tokens=8).eval()
    model.rating.item_weight.data.normal_(generator=torch.Generator().manual_seed(1))
    items = items_of(50)
    plain, found = Scorer(model, items), Scorer(model, items, kernel=kernel)
    assert found.model.family.fused is not None
    np.testing.assert_allclose(found.logits(USER), plain.logits(USER), rtol=1e-4, atol=5e-5)
    np.testing.assert_allclose(found.pair_logits(USER, items), plain.logits(USER), rtol=1e-4, atol=5e-5)
    for precision in ("bf16", "int8"):
        rounded = Scorer(model, items, kernel=kernel, precision=precision).logits(USER)
        assert np.corrcoef(rounded, plain.logits(USER))[0, 1] > 0.98, precision


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN has no bf16 here")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_onednn_and_the_kernel_share_a_thread(kernel, precision):  # noqa: F811
    """Where both compute with tiles, each may have set how they are laid out when the other begins."""
    model = model_of(hidden=64, heads=2, inner=128)
    fused = fused_last(model, kernel, precision)
    if fused is None:
        pytest.skip("no such instructions at this level")
    states, keys, values = last_states(model, items_of(77))
    items, vectors = fused.items(states), torch.randn(2, 64)
    left, right = (torch.randn(rows, 160).bfloat16() for rows in (70, 90))
    first = fused.dots(items, keys, values, vectors), torch.nn.functional.linear(left, right)
    for _ in range(3):
        assert torch.equal(torch.nn.functional.linear(left, right), first[1])
        assert torch.equal(fused.dots(items, keys, values, vectors), first[0])
    torch.testing.assert_close(first[1].float(), left.float() @ right.float().T, rtol=2e-2, atol=0.2)
