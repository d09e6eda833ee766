"""Chinese prompts with a tokenizer of pieces, as XLM-R, mT5 and Llama have: template, answers 是 and 否, a training."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from flmrec_spark.config import Config, load_config
from flmrec_spark.errors import ConfigError
from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_segmenter
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import Interaction
from flmrec_spark.lm.starting import build_model
from flmrec_spark.prompts import load_template
from tests.prepared import prepared_rows, tiny_config, write_prepared
from tests.stock import stock_pair
from tests.tiny import DECODERS, ENCODER_DECODERS, save_family, tiny_tokenizer

TITLES = ["红楼梦", "三体", "活着", "西游记", "流浪地球", "Alien 异形"]
TEXTS = [
    *TITLES,
    *("用户：年龄: 23；喜欢《三体》；不喜欢《活着》；暂无历史", "；genre: 科幻 小说", "会喜欢吗？", "是", "否"),
]
HISTORY = [Interaction({"title": title}, is_liked=liked) for title, liked in (("三体", True), ("活着", False))]
ITEMS = [{"item_id": str(place), "title": title, "genre": "科幻"} for place, title in enumerate(TITLES)]


BYTE_LEVEL = ("gpt2", "qwen2", "qwen3")
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Bytes as GPT-2 and Qwen read them; else pieces with marked beginnings, so 是 alone is a mark and 是."""
    size = len(tiny_tokenizer())  # of the tiny models' vocabulary
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": SPECIAL, "show_progress": False}
    if family in BYTE_LEVEL:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(**options))
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(unk_token="<unk>", **options))
    marks = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **marks)
    assert len(made) <= size
    return made


def config(folder: Path, family: str, *, finetune: dict[str, object] | None = None, **model: object) -> Config:
    save_family(folder / "model", family, n_layers=2)
    for file in (folder / "model").glob("*token*"):
        file.unlink()
    tokenizer_of(family).save_pretrained(folder / "model")
    prompts = {"template": "zh", "user_tokens": 64, "item_tokens": 32, "history_length": 6}
    own = {"path": str(folder / "model"), **model}
    return tiny_config(folder, prompts=prompts, model=own, finetune=finetune or {})


@torch.inference_mode()
def logits(model: Any, segmenter: Any) -> np.ndarray:
    scorer = Scorer(model.eval(), segmenter.block(segmenter.items(ITEMS)))
    return scorer.logits(segmenter.user({"年龄": 23}, HISTORY).ids)


def test_a_chinese_prompt_reads_as_its_text(tmp_path: Path) -> None:
    segmenter = load_segmenter(config(tmp_path, "xlm-roberta"))
    user, (item, *_) = segmenter.user({"年龄": 23}, HISTORY), segmenter.items(ITEMS)
    unknown = segmenter.tokenizer.unk_token_id
    assert user is not None and item is not None
    assert unknown not in [*user.ids, *item]
    text = segmenter.tokenizer.decode(user.ids).replace(" ", "")
    assert text == "<s>用户：年龄:23；喜欢《三体》；不喜欢《活着》；</s>"
    assert segmenter.tokenizer.decode(item).replace(" ", "") == "<s>《红楼梦》；genre:科幻</s>"


@pytest.mark.parametrize("join_layer", [0, 1, 2])
@torch.inference_mode()
def test_xlm_r_on_chinese_equals_the_stock_layers_on_each_pair(tmp_path: Path, join_layer: int) -> None:
    settings = config(tmp_path, "xlm-roberta", join_layer=join_layer)
    segmenter = load_segmenter(settings)
    model = build_model(settings, segmenter).eval()
    torch.manual_seed(3)
    for weight in (model.rating.item_weight, model.rating.user_weight):
        weight.data.normal_()
    user = segmenter.user({"年龄": 23}, HISTORY).ids
    expected = []
    for item in segmenter.items(ITEMS):
        own, other = stock_pair(model.backbone, user, item, join_layer=join_layer, item_position=64)
        expected.append(float(model.rating(other[0], own.mean(0))))
    np.testing.assert_allclose(logits(model, segmenter), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
@torch.inference_mode()
def test_an_untrained_answer_is_the_stock_model_s_是_minus_否(tmp_path: Path, family: str) -> None:
    settings = config(tmp_path, family, head="answer", join_layer=0)
    segmenter = load_segmenter(settings)
    yes, no = segmenter.answers()
    read = segmenter.tokenizer(["是", "否"], add_special_tokens=False)["input_ids"]
    assert [ids.index(answer) for ids, answer in zip(read, (yes, no), strict=True)] == [
        int(family not in BYTE_LEVEL)
    ] * 2
    user = segmenter.user({"年龄": 23}, HISTORY * 20).ids  # fills its budget, or GPT-2's positions are not the text's
    user = (user * 4)[: settings.prompts.user_tokens] if family == "gpt2" else user
    auto: Any = AutoModelForCausalLM if family in DECODERS else AutoModelForSeq2SeqLM
    stock = auto.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    expected = []
    for item in segmenter.items(ITEMS):
        ids = torch.tensor([user + item if family in DECODERS else user])
        more = {} if family in DECODERS else {"decoder_input_ids": torch.tensor([item])}
        last = stock(input_ids=ids, **more).logits[0, -1]
        expected.append(float(last[yes] - last[no]))
    own = build_model(settings, segmenter).eval()
    found = Scorer(own, segmenter.block(segmenter.items(ITEMS))).logits(user)
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_answers_with_the_same_first_word_are_still_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(load_template("zh").to_yaml().replace("disliked: 否", "disliked: 是吗"), encoding="utf-8")
    config(tmp_path, "llama")
    segmenter = load_segmenter(load_config(tmp_path / "config.yaml", [f"prompts.template={own}"]))
    with pytest.raises(ConfigError, match=r"expected different first tokens"):
        segmenter.answers()


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("xlm-roberta", {}),
        ("qwen3", {"head": "answer", "join_layer": 0}),
        ("mt5", {"head": "answer", "join_layer": 1}),
        ("mt5", {"head": "answer", "join": "full"}),
    ],
)
def test_a_chinese_training_writes_a_checkpoint_that_scores_as_it_did(tmp_path: Path, family: str, model: Any) -> None:
    rows = prepared_rows()
    for place, row in enumerate(rows["items"]):
        row |= {"title": TITLES[place % len(TITLES)], "genre": ["科幻", "小说"][place % 2]}
    write_prepared(tmp_path / "tables", rows)
    settings = config(tmp_path, family, finetune={"max_steps": 2}, **model)
    assert finetune(settings)["steps"] == 2
    saved = checkpoint.load(settings.checkpoint)
    segmenter = load_segmenter(settings)
    assert saved.segmenter().items(ITEMS) == segmenter.items(ITEMS)
    before = logits(build_model(settings, segmenter), segmenter)
    after = logits(saved.model(), saved.segmenter())
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-4
