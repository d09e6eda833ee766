"""Mean pooling against the stock model on each text alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm.embeddings import embed_texts
from tests.tiny import save_tiny, tiny_bert, tiny_family, tiny_tokenizer


@torch.inference_mode()
def test_a_text_is_the_mean_of_its_last_hidden_states(tmp_path: Path) -> None:
    texts = ["alien", "a", "red fish; drama" * 3, "", "x" * 300]
    found = embed_texts(save_tiny(tmp_path / "model"), texts)
    tokenizer, model = tiny_tokenizer(), tiny_bert()
    for text, vector in zip(texts, found, strict=True):
        if not text:
            assert not vector.any()  # this tokenizer makes no token of it
            continue
        ids = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")["input_ids"]
        assert vector == pytest.approx(model(ids).last_hidden_state[0].mean(0).numpy(), abs=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_every_family_reads_texts_and_padding_changes_nothing(family: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_family(family), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["alien", "red fish; drama", "a"]
    reader = model.get_encoder() if family == "t5" else model
    for text, vector in zip(texts, embed_texts(tmp_path, texts), strict=True):
        hidden = reader(tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        assert vector == pytest.approx(hidden.mean(0).numpy(), abs=1e-5)


@torch.inference_mode()
def test_a_text_longer_than_the_models_positions_is_cut_to_them(tmp_path: Path) -> None:
    """RoBERTa counts positions from behind its padding: 128 of them hold 126 tokens."""
    model, tokenizer = tiny_family("roberta"), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("x " * 300, return_tensors="pt")["input_ids"][:, :126]
    (found,) = embed_texts(tmp_path, ["x " * 300])
    assert found == pytest.approx(model(ids).last_hidden_state[0].mean(0).numpy(), abs=1e-5)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        embed_texts(tmp_path / "none", ["a"])
