"""Examples per second of grouped training beside the transformers Trainer, one row per pair, in one run.

    python benchmarks/training.py [--model build/demo/model] [--tiny] [--json FILE]

Both train all weights of the same backbone on the same pairs, with the same lengths, rate, weight decay, clipping,
number format and attention, for the same number of pairs; AUC is that of the same held-out pairs. Users like an item
when both have the same hidden taste, which stands in the words of the item and of the user's history.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, TrainingArguments
from transformers import Trainer as StockTrainer

from flmrec_spark.config import FinetuneConfig
from flmrec_spark.lm import training
from flmrec_spark.lm.batches import Step, step_of
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.machine import describe, show, write
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.lm.training import BiasTerms

_START, _END, _FIRST_WORD = 101, 102, 1000
_TASTES = 4


@dataclass(frozen=True)
class Data:
    """Prompts of random words, some of which tell the taste, and whether a user likes an item."""

    users: TokenBlock
    items: TokenBlock
    asked: np.ndarray[Any, Any]  # (U, G) items
    labels: np.ndarray[Any, Any]  # (U, G) float32
    n_train: int  # users; the others are held out


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="training.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="build/demo/model", metavar="FOLDER", help="pretrained BERT or MiniLM")
    parser.add_argument("--tiny", action="store_true", help="a seeded tiny model instead, for a trial")
    parser.add_argument("--users", type=int, default=96, help="train users; a third as many more are held out")
    parser.add_argument("--targets", type=int, default=16, metavar="G", help="pairs of a user")
    parser.add_argument("--user-tokens", type=int, default=64, metavar="P")
    parser.add_argument("--item-tokens", type=int, default=16, metavar="S")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(argv)
    machine = describe("cuda" if torch.cuda.is_available() else "cpu")
    data = made(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tiny:
            arguments.model = folder
            tiny().save_pretrained(folder)
        rows = [stock_row(arguments, data), own_row(arguments, data)]
    for row in rows:
        row["ratio"] = row["examples_per_s"] / rows[0]["examples_per_s"]
    show(f"P = {arguments.user_tokens}, S = {arguments.item_tokens}, {machine['cpu']}, {machine['device']}", rows)
    write(arguments.json, machine, rows)
    return 0


def tiny() -> BertModel:
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return BertModel(BertConfig(vocab_size=2000, **shape), add_pooling_layer=False)


def made(arguments: argparse.Namespace) -> Data:
    """Users and items of a taste each; a sixth of their words tells it, and one label in ten is wrong."""
    random = np.random.default_rng(1)
    n_users, n_items = arguments.users + arguments.users // 3, 400
    tastes = random.integers(0, _TASTES, n_users), random.integers(0, _TASTES, n_items)
    users = prompts(tastes[0], arguments.user_tokens, random)
    items = prompts(tastes[1], arguments.item_tokens, random)
    asked = np.stack([random.choice(n_items, arguments.targets, replace=False) for _ in range(n_users)])
    likes = (tastes[0][:, None] == tastes[1][asked]) | (tastes[1][asked] == 0)  # taste 0 is liked by all
    likes ^= random.random(likes.shape) < 0.1
    return Data(users, items, asked, likes.astype(np.float32), arguments.users)


def prompts(tastes: np.ndarray[Any, Any], longest: int, random: np.random.Generator) -> TokenBlock:
    lengths = random.integers(max(4, longest // 2), longest + 1, len(tastes)).astype(np.int32)
    ids = np.zeros((len(tastes), longest), dtype=np.int32)
    for row, (taste, length) in enumerate(zip(tastes, lengths, strict=True)):
        words = random.integers(_FIRST_WORD + 100, _FIRST_WORD + 900, length)
        telling = random.random(length) < 1 / 6
        words[telling] = _FIRST_WORD + 10 * taste + random.integers(0, 10, int(telling.sum()))
        words[1] = _FIRST_WORD + 10 * taste
        words[0], words[-1] = _START, _END
        ids[row, :length] = words
    return TokenBlock(ids, lengths)


def own_row(arguments: argparse.Namespace, data: Data) -> dict[str, Any]:
    """This project's forward, loss and optimizer on grouped rows, at the last-layer join."""
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone: Any = load_backbone(arguments.model, dropout=0.0)
    model = SegmentedModel(
        backbone,
        join="layer",
        join_layer=int(backbone.config.num_hidden_layers) - 1,
        item_position=arguments.user_tokens,
        item_tokens=arguments.item_tokens,
    ).to(device)
    bias, flat = BiasTerms(None, None), np.zeros(len(data.items), dtype=np.float32)
    rate = arguments.learning_rate
    config = FinetuneConfig(learning_rate=rate, head_learning_rate=rate, negatives=0, ranking_weight=0.0)
    optimizer = training.optimizer(model, bias, config)
    rates = [group["lr"] for group in optimizer.param_groups]
    orders = [np.random.default_rng(epoch).permutation(data.n_train) for epoch in range(arguments.epochs)]
    batches = [order[at : at + 16] for order in orders for at in range(0, len(order), 16)]
    factor = training.rate_factor(config, len(batches))
    started = time.perf_counter()
    for number, rows in enumerate(batches):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(number)
        step = rows_of(data, rows)
        with torch.autocast(device, torch.bfloat16, enabled=arguments.precision == "bf16"), training.attention(device):
            logits, _ = training.step_logits(model.train(), bias, step, data.items, bias_dropout=0.0)
        value = training.loss(logits.float(), None, step, whole=step, log_share=flat, config=config)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    spent = time.perf_counter() - started
    held = rows_of(data, np.arange(data.n_train, len(data.asked)))
    with torch.inference_mode():
        logits, _ = training.step_logits(model.eval(), bias, held, data.items, bias_dropout=0.0)
    return row_of("flmrec, grouped", arguments, data, spent, logits.cpu().numpy())


def rows_of(data: Data, rows: np.ndarray[Any, Any]) -> Step:
    return step_of(data.users.take(rows), rows, data.asked[rows], data.labels[rows], rows)


class Pairs(Dataset[dict[str, Any]]):
    """One row per pair, as one text of two segments."""

    def __init__(self, data: Data, users: Sequence[int]) -> None:
        self.rows = [(user, place) for user in users for place in range(data.asked.shape[1])]
        self.data = data

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        user, place = self.rows[at]
        item = int(self.data.asked[user, place])
        first = self.data.users.ids[user, : self.data.users.lengths[user]]
        second = self.data.items.ids[item, 1 : self.data.items.lengths[item]]
        ids = np.concatenate([first, second]).astype(np.int64)
        kinds = np.repeat([0, 1], [len(first), len(second)])
        return {"ids": ids, "kinds": kinds, "label": self.data.labels[user, place]}


def collated(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    longest = max(len(row["ids"]) for row in rows)
    ids, kinds, mask = (np.zeros((len(rows), longest), dtype=np.int64) for _ in range(3))
    for at, row in enumerate(rows):
        length = len(row["ids"])
        ids[at, :length], kinds[at, :length], mask[at, :length] = row["ids"], row["kinds"], 1
    named = {"input_ids": ids, "token_type_ids": kinds, "attention_mask": mask}
    labels = torch.tensor([[float(row["label"])] for row in rows])
    return {**{name: torch.from_numpy(value) for name, value in named.items()}, "labels": labels}


def stock_row(arguments: argparse.Namespace, data: Data) -> dict[str, Any]:
    """The transformers Trainer on AutoModelForSequenceClassification, one row per pair, by batches of 32."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.model,
        num_labels=1,
        problem_type="multi_label_classification",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        local_files_only=True,
        dtype=torch.float32,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            weight_decay=0.01,
            warmup_steps=0.1,
            use_cpu=not torch.cuda.is_available(),
            bf16=arguments.precision == "bf16",
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=1,
        )
        trainer = StockTrainer(model, settings, train_dataset=Pairs(data, range(data.n_train)), data_collator=collated)
        started = time.perf_counter()
        with training.attention("cpu" if settings.use_cpu else "cuda"):  # on a CPU the faster one for the backward pass
            trainer.train()
        spent = time.perf_counter() - started
        found = trainer.predict(Pairs(data, range(data.n_train, len(data.asked))))
    return row_of("transformers Trainer, one row per pair", arguments, data, spent, found.predictions)


def row_of(name: str, arguments: argparse.Namespace, data: Data, spent: float, logits: Any) -> dict[str, Any]:
    n_pairs = arguments.epochs * data.n_train * data.asked.shape[1]
    auc = roc_auc_score(data.labels[data.n_train :].ravel(), np.asarray(logits).ravel())
    return {
        "name": name,
        "precision": arguments.precision,
        "examples": n_pairs,
        "examples_per_s": n_pairs / spent,
        "ratio": None,
        "valid_auc": float(auc),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
