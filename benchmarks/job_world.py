"""A made world of MovieLens-1M's shape for benchmarks/job.py: tables, checkpoint and config, from a seed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from deltalake import write_deltalake
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.blending import Blend, Calibration
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import load_template

MODEL = Path(__file__).parent.parent / "build/demo/model"
USER_TOKENS, ITEM_TOKENS, HISTORY_LENGTH = 100, 24, 30

User = tuple[dict[str, Any], list[dict[str, Any]]]  # profile, items of the history, newest first


@dataclass(frozen=True)
class Made:
    items: list[dict[str, Any]]
    users: list[User]


def make(folder: Path, *, users: int, items: int, join: str, is_tiny: bool, trained: Path | None) -> Made:
    """Writes tables, checkpoint and config of a made world."""
    random = np.random.default_rng(1)
    backbone, tokenizer = pretrained(is_tiny)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) >= 4)
    titles = [" ".join(random.choice(words, random.integers(3, 8))) for _ in range(items)]
    genres = [" ".join(random.choice(words[:18], random.integers(1, 4))) for _ in range(items)]
    texts = enumerate(zip(titles, genres, strict=True))
    item_rows = [{"item_id": str(at), "title": title, "genres": kind} for at, (title, kind) in texts]
    user_rows = [{"user_id": str(at), "age": str(random.integers(18, 60))} for at in range(users)]
    history = made_history(random, users, items)
    for name, table in (("items", item_rows), ("users", user_rows)):
        write_deltalake(str(folder / "tables" / name), pa.Table.from_pylist(table))
    write_deltalake(str(folder / "tables/interactions"), interactions(history, random))
    if trained is not None:
        shutil.copytree(trained, folder / "checkpoint")
    else:
        write_checkpoint(folder / "checkpoint", backbone, tokenizer, join)
    tables = {"root": str(folder / "tables"), "database": "benchmark", "metastore": str(folder / "metastore")}
    unused = {"prepare": {"interactions": {"path": "none", "format": "csv"}}, "model": {"path": "none"}}
    config = {**unused, "tables": tables, "checkpoint": str(folder / "checkpoint")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    newest = [[item_rows[at] for at in row[::-1][:HISTORY_LENGTH]] for row in history]
    return Made(item_rows, [({"age": row["age"]}, own) for row, own in zip(user_rows, newest, strict=True)])


def write_checkpoint(folder: Path, backbone: Any, tokenizer: Any, join: str) -> None:
    places: dict[str, Any] = {"item_position": USER_TOKENS, "item_tokens": ITEM_TOKENS}
    model = SegmentedModel(backbone, join=join, join_layer=backbone.config.num_hidden_layers - 1, **places).eval()
    model.rating.item_weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    places_of: dict[str, Any] = {"user_tokens": USER_TOKENS, "item_tokens": ITEM_TOKENS}
    own = Segmenter(tokenizer, load_template("en"), history_length=HISTORY_LENGTH, **places_of)
    rest: dict[str, Any] = {"blend": Blend(Calibration()), "metrics": {}, "config": {}}
    checkpoint.save(folder, model=model, segmenter=own, biases=Biases({}, {}), **rest)


def made_history(random: np.random.Generator, users: int, items: int) -> list[Any]:
    """Items of each user, oldest first: MovieLens-1M's lengths (at least 20, mean 166), popular items more often."""
    popularity, found = -np.log(np.arange(items) + 10.0), []
    for length in np.minimum(20 + random.lognormal(4.2, 1.1, users), 0.6 * items).astype(int):
        drawn = popularity + random.gumbel(size=items)  # the largest are a draw without replacement
        found.append(random.permutation(np.argpartition(-drawn, length - 1)[:length]))
    return found


def interactions(history: Sequence[Any], random: np.random.Generator) -> pa.Table:
    lengths = [len(row) for row in history]
    ratings = random.integers(1, 6, sum(lengths)).astype(float)
    return pa.table(
        {
            "user_id": pa.array(np.repeat(np.arange(len(lengths)), lengths)).cast(pa.string()),
            "item_id": pa.array(np.concatenate(history)).cast(pa.string()),
            "moment": pa.array(np.concatenate([np.arange(1, length + 1) for length in lengths]), pa.int32()),
            "value": pa.array(ratings),
            "is_liked": pa.array(ratings >= 4),
            "split": pa.array(["train"] * sum(lengths)),
        }
    )


def pretrained(is_tiny: bool) -> tuple[Any, Any]:
    """The demo's model and tokenizer; else random weights of MiniLM-L6's shape and a vocabulary of made words."""
    if MODEL.is_dir() and not is_tiny:
        return load_backbone(MODEL), checkpoint.load_tokenizer(MODEL)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    parts = [first + last for first in "bdfgklmnprst" for last in "aeiou"]
    vocabulary = [*special, "user", "age", "liked", "disliked", "genres", ":", ";", *"0123456789"]
    vocabulary += [a + b + c for a in parts[:20] for b in parts for c in parts[:20]]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    hidden, n_layers, inner = (24, 3, 48) if is_tiny else (384, 6, 1536)
    shape: dict[str, Any] = {"hidden_size": hidden, "num_hidden_layers": n_layers, "intermediate_size": inner}
    torch.manual_seed(1)
    backbone: Any = BertModel(BertConfig(**shape, num_attention_heads=12), add_pooling_layer=False)
    tokenizer: Any = PreTrainedTokenizerFast
    return backbone.train(False), tokenizer(tokenizer_object=made, **names)
