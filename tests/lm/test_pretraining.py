"""Domain pre-training: the loss falls, the folder is a stock model, and fine-tuning takes it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5Model

from flmrec_spark.config import Config, PretrainConfig
from flmrec_spark.errors import CheckpointError, ConfigError, EnvironmentFault, InputError
from flmrec_spark.lm import pretraining
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_segmenter
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.pretraining import MARK, pretrain, read_texts
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.prompts import load_template
from tests.prepared import tiny_config
from tests.tiny import DECODERS, ENCODER_DECODERS, FAMILIES, FULL_ONLY, save_family, tiny_family, tiny_tokenizer

SCRIPT = Path(__file__).parent.parent.parent / "scripts/pretrain.py"
TEXTS = TokenBlock(np.array([[2, 9, 10, 11, 3], [2, 12, 3, 0, 0]], dtype=np.int32), np.array([5, 3], dtype=np.int32))


def config(world: Path, **settings: Any) -> Config:
    own = {"texts_per_step": 8, "epochs": 8, "learning_rate": 3e-3, **settings}
    return tiny_config(world, f"pretrain={json.dumps({'output': str(world / 'pretrained'), **own})}")


def decoder(folder: Path) -> None:
    torch.manual_seed(1)
    shape = {"n_layer": 2, "n_embd": 24, "n_head": 2, "n_positions": 128, "bos_token_id": 2, "eos_token_id": 3}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer()), **shape)).save_pretrained(folder)


def test_an_encoder_learns_the_texts_with_a_new_head_and_fine_tuning_takes_it(world, caplog):
    done: Any = pretrain(config(world, epochs=30))
    assert (done["objective"], done["head"], done["status"]) == ("masked", "new", "done")
    assert done["last_loss"] < 0.7 * done["first_loss"]
    assert "has no language head: a new one is trained" in caplog.text
    folder = world / "pretrained"
    before, after = load_backbone(world / "model"), load_backbone(folder)
    assert before.state_dict().keys() == after.state_dict().keys()
    again, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert report["missing_keys"] == set()
    own = again.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(own, after.encoder.layer[0].output.dense.weight)
    assert not torch.equal(own, before.encoder.layer[0].output.dense.weight)
    assert finetune(tiny_config(world, f"model.path={folder}", "finetune.max_steps=2"))["status"] == "done"


def test_a_decoder_learns_the_next_token_with_the_head_that_it_has(world):
    decoder(world / "model")
    done: Any = pretrain(config(world, epochs=30))
    assert (done["objective"], done["head"]) == ("causal", "pretrained")
    assert done["last_loss"] < 0.7 * done["first_loss"]
    _, report = AutoModelForCausalLM.from_pretrained(world / "pretrained", output_loading_info=True)
    assert report["missing_keys"] == set()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ENCODER_DECODERS])
def test_every_encoder_and_decoder_reads_the_prompts_that_fine_tuning_asks(world, family):
    for file in (world / "model").iterdir():
        file.unlink()
    save_family(world / "model", family, n_layers=2)
    done: Any = pretrain(config(world, epochs=6))
    assert done["objective"] == ("causal" if family in DECODERS else "masked")
    assert done["last_loss"] < done["first_loss"]
    own = ["prompts.item_tokens=32", *(["model.join=full"] if family in FULL_ONLY else [])]
    settings = tiny_config(world, f"model.path={world / 'pretrained'}", "finetune.max_steps=1", *own)
    assert finetune(settings)["status"] == "done"
    assert load_segmenter(settings).items([{"title": "ab"}]) == load_segmenter(config(world)).items([{"title": "ab"}])


def test_the_same_inputs_are_done_already_and_force_makes_the_same_again(world):
    first = pretrain(config(world, max_steps=2))
    weights = (world / "pretrained/model.safetensors").read_bytes()
    assert pretrain(config(world, max_steps=2)) == {**first, "status": "already done"}
    assert pretrain(config(world, max_steps=2), force=True)["status"] == "done"
    assert (world / "pretrained/model.safetensors").read_bytes() == weights
    assert pretrain(config(world, max_steps=2, seed=2))["status"] == "done"
    assert (world / "pretrained/model.safetensors").read_bytes() != weights


def test_a_kill_leaves_no_half_folder(world, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining.manifest, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config(world, max_steps=1))
    assert not (world / "pretrained").exists()


def test_the_texts_are_the_items_and_the_train_prompts_each_once(world):
    prepared = read_tables(str(world / "tables"))
    sizes = {"user_tokens": 64, "item_tokens": 40, "history_length": 6}
    found = read_texts(prepared, Segmenter(tiny_tokenizer(), load_template("en"), **sizes))
    rows = [tuple(ids[:length]) for ids, length in zip(found.ids.tolist(), found.lengths, strict=True)]
    assert len(set(rows)) == len(rows)
    n_train = sum(split == "train" for split in prepared.tables["examples"]["split"].to_pylist())
    assert 6 < len(rows) <= 17 + n_train


def test_a_model_with_collaborative_tokens_reads_texts_alone(world):
    own = {"collaborative": {"dimension": 4, "tokens": True}}
    done: Any = pretrain(
        tiny_config(world, f"pretrain.output={world / 'pretrained'}", "pretrain.max_steps=2", model=own)
    )
    assert done["status"] == "done" and done["steps"] > 0 and done["texts"] > 17


def test_masked_tokens_are_asked_and_nothing_else_is():
    settings = PretrainConfig(mask_share=0.5)
    rows = TokenBlock(np.tile(TEXTS.ids[:1], (400, 1)), np.full(400, 5, dtype=np.int32))
    shown, asked = pretraining._question(rows, tiny_tokenizer(), settings, objective="masked", number=1, n_words=30)
    ids, chosen = torch.from_numpy(rows.ids).long(), asked != -100
    assert not chosen[:, [0, 4]].any()
    assert torch.equal(asked[chosen], ids[chosen])
    assert torch.equal(shown[~chosen], ids[~chosen])
    share = float(chosen[:, 1:4].float().mean())
    masked = float((shown[chosen] == tiny_tokenizer().mask_token_id).float().mean())
    assert share == pytest.approx(0.5, abs=0.05)
    assert masked == pytest.approx(0.8, abs=0.05)


def test_a_decoder_is_asked_for_the_next_token_up_to_the_end():
    ways: Any = {"objective": "causal", "number": 0, "n_words": 30}
    shown, asked = pretraining._question(TEXTS, tiny_tokenizer(), PretrainConfig(), **ways)
    assert shown.tolist() == TEXTS.ids.tolist()
    assert asked.tolist() == [[9, 10, 11, 3, -100], [12, 3, -100, -100, -100]]


def test_what_cannot_be_pretrained_is_told(world):
    with pytest.raises(ConfigError, match=r"pretrain.output: got .*model, which is model.path"):
        pretrain(config(world, output=str(world / "model")))
    (world / "other").mkdir()
    (world / "other/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"something that is no checkpoint"):
        pretrain(config(world, output=str(world / "other")))
    T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(world / "model")
    with pytest.raises(ConfigError, match=r"model.path: got type t5, expected an encoder or a decoder"):
        pretrain(config(world))


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_too_little_memory_is_told_with_what_takes_less(world, monkeypatch, kind):
    def too_large(*_: object, **__: object) -> None:
        raise kind("tried to allocate 9 GiB: can't allocate memory")  # as a CPU says it

    monkeypatch.setattr(pretraining, "train", too_large)
    told = r"pretrain: out of memory with pretrain.texts_per_step = \d+, expected room; fewer take less: tried to"
    with pytest.raises(EnvironmentFault, match=told):
        pretrain(config(world))
    assert not (world / "pretrained").exists()


def test_a_training_that_diverges_says_so_and_writes_nothing(world):
    told = (
        r"pretrain: step \d of \d+ had a loss of .*, expected numbers: .* lower pretrain.learning_rate, which is 1e\+30"
    )
    with pytest.raises(ConfigError, match=told):
        pretrain(config(world, learning_rate=1e30))
    assert not (world / "pretrained").exists()


def test_the_script_prints_one_line_of_json_or_one_line_of_error(world, capsys):
    spec: Any = importlib.util.spec_from_file_location("pretrain_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config(world)
    own = ["--config", str(world / "config.yaml"), f"pretrain.output={world / 'pretrained'}", "pretrain.max_steps=1"]
    assert script.main(own) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["job"], told["status"], told["steps"]) == ("pretrain", "done", 1)
    assert (world / "pretrained" / MARK).is_file()
    assert script.main([*own, "model.path=nowhere"]) == 4
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("flmrec pretrain: CheckpointError: nowhere")


def test_the_head_answers_where_it_is_asked_alone_and_the_loss_is_that_of_all_logits(monkeypatch):
    shapes = []

    def entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        return original(logits, labels)

    original = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", entropy)
    for family in ("bert", "roberta", "distilbert", "deberta-v2", "gpt2", "qwen3"):
        is_causal = family in DECODERS
        auto = transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForMaskedLM
        model = tiny_family(family, auto=auto).eval()
        ids = torch.from_numpy(TEXTS.ids.astype(np.int64))
        asked = torch.zeros(ids.shape, dtype=torch.bool)
        asked[0, 1] = asked[1, 2] = True
        seen = torch.arange(5)[None] < torch.from_numpy(TEXTS.lengths)[:, None]
        with torch.inference_mode():
            every = model(ids, attention_mask=seen.long()).logits
            with pretraining._at(model.get_output_embeddings(), asked):
                some = model(ids, attention_mask=seen.long()).logits
            assert model(ids, attention_mask=seen.long()).logits.shape == every.shape  # the hook is gone
        torch.testing.assert_close(some, every[asked])
        tokenizer = tiny_tokenizer()
        settings = PretrainConfig(texts_per_step=2, epochs=1, output="x")
        objective = "causal" if is_causal else "masked"
        torch.manual_seed(1)
        assert np.isfinite(pretraining.train(model, TEXTS, tokenizer, settings, objective=objective)).all()
        assert shapes.pop()[0] < TEXTS.lengths.sum()


def test_steps_without_a_token_to_guess_are_none_and_texts_of_none_are_told_of():
    known = TokenBlock(np.array([[2, 1, 3], [2, 9, 3]], dtype=np.int32), np.array([3, 3], dtype=np.int32))  # 1: unknown
    model = tiny_family("bert", auto=AutoModelForMaskedLM)
    settings = PretrainConfig(texts_per_step=1, epochs=2, output="x")
    losses = pretraining.train(model, known, tiny_tokenizer(), settings, objective="masked")
    assert len(losses) == 2 and np.isfinite(losses).all()
    with pytest.raises(InputError, match="got no token to guess in 1 texts"):
        pretraining.train(model, known.take(np.array([0])), tiny_tokenizer(), settings, objective="masked")


def test_a_template_that_names_an_unknown_field_is_refused_before_anything_is_read(world):
    text = load_template("en").to_yaml().replace("{title}", "{titel}")
    (world / "wrong.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown field \{titel\}"):
        pretrain(tiny_config(world, f"pretrain.output={world / 'pretrained'}", f"prompts.template={world}/wrong.yaml"))
