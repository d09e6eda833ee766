"""A real tiny language model and its tokenizer, made from a seed: BERT with three layers, a vocabulary of letters."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LETTERS = (
    "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?()'\"-+/&|%$#@_=<>[]{}"
    + "用户喜欢不暂无历史《》；：，红楼梦活着三体科幻小说"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over letters: every word becomes its letters, so nothing is unknown and lengths are easy to count."""
    vocabulary = [*SPECIAL, *_LETTERS, *[f"##{letter}" for letter in _LETTERS]]
    tokenizer = Tokenizer(models.WordPiece({token: place for place, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tiny_bert(*, seed: int = 1, n_layers: int = 3) -> BertModel:
    """Random weights, larger than BERT's own start, so that every input moves the output."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=24,
        num_hidden_layers=n_layers,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def save_tiny(folder: Path, *, seed: int = 1, n_layers: int = 3) -> Path:
    """A pretrained folder, as `model.path` names one."""
    tiny_bert(seed=seed, n_layers=n_layers).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
