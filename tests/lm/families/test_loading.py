"""Pretrained folders of every family: what loads, how segments are marked, and the head that starts from an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from flmrec_spark.errors import CheckpointError, ConfigError
from flmrec_spark.lm.families.loading import layout_of, load_backbone, weights_file
from flmrec_spark.lm.loading import load_segmenter
from flmrec_spark.lm.model import Segment
from flmrec_spark.lm.segments import Layout
from flmrec_spark.lm.starting import build_model
from flmrec_spark.prompts import load_template
from tests.prepared import tiny_config
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, FAMILIES, save_family, tiny_family

USER, ITEM = [5, 6, 7, 8], [20, 21, 22]


def of_language(folder: Path, family: str):
    auto = AutoModelForCausalLM if family in DECODERS else AutoModelForSeq2SeqLM
    return auto.from_pretrained(folder, local_files_only=True).eval()


@torch.inference_mode()
def logit_difference(folder: Path, family: str, user: list[int], item: list[int]) -> float:
    """logit of " yes" minus that of " no" after the pair, by the stock model with its own language head."""
    model = of_language(folder, family)
    if family in DECODERS:
        logits = model(torch.tensor([user + item])).logits
    else:
        logits = model(input_ids=torch.tensor([user]), decoder_input_ids=torch.tensor([item])).logits
    tokenizer = build(folder)[1].tokenizer
    yes, no = (tokenizer.convert_tokens_to_ids(letter) for letter in "yn")
    return float(logits[0, -1, yes] - logits[0, -1, no])


def build(folder: Path, **model: object):
    """The model that a training starts from, and its segmenter; user_tokens is the length of USER."""
    prompts = {"template": "en", "user_tokens": len(USER), "item_tokens": 12}
    config = tiny_config(
        folder, model={"path": str(folder), "head": "answer", "join_layer": 0, **model}, prompts=prompts
    )
    segmenter = load_segmenter(config)
    return build_model(config, segmenter).eval(), segmenter


@torch.inference_mode()
def own_logit(model, user: list[int], item: list[int]) -> float:
    states = (
        part(torch.tensor([ids]), torch.tensor([len(ids)]))
        for part, ids in ((model.encode_users, user), (model.encode_items, item))
    )
    return float(model.join_items(*states, torch.tensor([[0]])))


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
def test_an_untrained_answer_head_is_the_stock_models_yes_minus_no(family, tmp_path: Path):
    save_family(tmp_path, family)
    expected = logit_difference(tmp_path, family, USER, ITEM)
    assert abs(expected) > 1e-3
    assert own_logit(build(tmp_path)[0], USER, ITEM) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@torch.inference_mode()
def test_the_plain_form_answers_a_whole_prompt_with_one_token(family, tmp_path: Path):
    """Prompt in, answer out, as such models are asked outside of recommendation."""
    save_family(tmp_path, family)
    model, segmenter = build(tmp_path, join="full", join_layer="last")
    end = segmenter.tokenizer.eos_token_id
    text = segmenter.tokenizer("ab liked c;", add_special_tokens=False)["input_ids"]
    user, (asked,) = [*text, end], segmenter.item_texts(["abc"])
    prompt = torch.tensor([[*text, *asked[1:], end]])
    stock = of_language(tmp_path, family)(input_ids=prompt, decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
    yes, no = segmenter.answers()
    pair = [Segment(torch.tensor([ids]), torch.tensor([len(ids)])) for ids in (user, asked)]
    assert float(model.rating(*model.pair(*pair))) == pytest.approx(float(stock[yes] - stock[no]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5", "mt5"])
def test_an_untied_head_in_shards_is_read_from_them(family, tmp_path: Path):
    auto = AutoModelForCausalLM if family in DECODERS else AutoModelForSeq2SeqLM
    model = tiny_family(family, auto=auto)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    save_family(tmp_path / "other", family)
    for file in (tmp_path / "other").glob("*token*"):
        file.rename(tmp_path / file.name)
    assert weights_file(tmp_path).name == "model.safetensors.index.json"
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    expected = logit_difference(tmp_path, family, USER, ITEM)
    assert own_logit(build(tmp_path)[0], USER, ITEM) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_lost_shard_is_named(tmp_path: Path):
    tiny_family("llama", auto=AutoModelForCausalLM).save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: not loadable"):
        load_backbone(tmp_path)


def test_an_untied_model_without_a_head_has_no_answer(tmp_path: Path):
    save_family(tmp_path, "llama")
    tiny_family("llama").save_pretrained(tmp_path)  # the backbone alone
    with pytest.raises(CheckpointError, match=r"model.safetensors: got no lm_head.weight, expected a language head"):
        build(tmp_path)


def test_an_encoder_has_no_answer(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model.head: got answer, expected linear: an encoder has no next word"):
        build(save_family(tmp_path, "bert"))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_overridden_whatever_the_family_calls_it(family, tmp_path: Path):
    save_family(tmp_path, family)
    found = load_backbone(tmp_path, dropout=0.37)
    rates = {module.p for module in found.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates <= {0.37}
    assert rates or found.config.attention_dropout == 0.37


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *[(family, Layout("encoder")) for family in ENCODERS],
        *[(family, Layout("decoder")) for family in DECODERS],
        *[(family, Layout("encoder-decoder", 0)) for family in ENCODER_DECODERS],
    ],
)
def test_the_layout_is_read_from_the_models_own_config(family, layout, tmp_path: Path):
    FAMILIES[family](2).save_pretrained(tmp_path)
    assert layout_of(tmp_path) == layout


def test_an_unknown_type_is_refused_with_the_known_ones(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(
        CheckpointError, match=r"got model type vit, expected one of bert, camembert, deberta-v2, .*xlm-rob"
    ):
        layout_of(tmp_path)


def test_answers_that_begin_alike_are_refused(tmp_path: Path):
    save_family(tmp_path, "gpt2")
    text = load_template("en").to_yaml().replace("disliked: ' no'", "disliked: ' yet'")
    (tmp_path / "own.yaml").write_text(text)
    prompts = {"template": str(tmp_path / "own.yaml"), "user_tokens": 64, "item_tokens": 12}
    config = tiny_config(tmp_path, model={"path": str(tmp_path), "head": "answer"}, prompts=prompts)
    with pytest.raises(ConfigError, match=r"' yes' and ' yet' read as .* expected different first tokens"):
        build_model(config, load_segmenter(config))
