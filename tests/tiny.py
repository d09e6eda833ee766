"""Real tiny language models of every family and their tokenizers, made from a seed: few layers, letters as tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LETTERS = (
    "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?()'\"-+/&|%$#@_=<>[]{}"
    + "用户喜欢不暂无历史《》；：，红楼梦活着三体科幻小说"
)
_ENCODER = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_ENCODER_DECODER = {"pad_token": "[PAD]", "eos_token": "[SEP]"}


def tiny_tokenizer(marks: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """WordPiece over letters: every word becomes its letters, so nothing is unknown and lengths are easy to count.

    Its special tokens are an encoder's, or those of `marks`.
    """
    vocabulary = [*SPECIAL, *_LETTERS, *[f"##{letter}" for letter in _LETTERS]]
    tokenizer = Tokenizer(models.WordPiece({token: place for place, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **(marks or _ENCODER))


def tiny_bert(*, seed: int = 1, n_layers: int = 3) -> BertModel:
    """Random weights, larger than BERT's own start, so that every input moves the output.

    Of sides that the kernel in C takes, as those of MiniLM and BERT: a job scores it the way that it scores them.
    """
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def save_tiny(folder: Path, *, seed: int = 1, n_layers: int = 3, max_shard_size: str = "50GB") -> Path:
    """A pretrained folder, as `model.path` names one."""
    tiny_bert(seed=seed, n_layers=n_layers).save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(folder)
    return folder


_WIDTHS = {"hidden_size": 24, "intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}
_TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}


def _bert_like(name: str, **values: object) -> Callable[..., Any]:
    def config(n_layers: int) -> Any:
        own = {"num_hidden_layers": n_layers, "num_attention_heads": 3, **_WIDTHS, **values}
        return getattr(transformers, f"{name}Config")(vocab_size=len(tiny_tokenizer()), **own)

    return config


def _llama_like(name: str, **values: object) -> Callable[..., Any]:
    """Four heads of size 8 share two keys, so that heads together are wider than the model."""
    return _bert_like(name, **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, **_TOKENS, **values})


def _t5_like(name: str, feed_forward: str) -> Callable[..., Any]:
    """Two encoder layers and three of the decoder; heads together are narrower than the model."""

    def config(n_layers: int) -> Any:
        return getattr(transformers, f"{name}Config")(
            vocab_size=len(tiny_tokenizer()),
            d_model=24,
            d_kv=6,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=n_layers,
            num_heads=3,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            feed_forward_proj=feed_forward,
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
        )

    return config


def _gpt2(n_layers: int) -> Any:
    widths = {"n_embd": 24, "n_head": 3, "n_layer": n_layers, "n_positions": 128, "initializer_range": 0.2}
    return transformers.GPT2Config(vocab_size=len(tiny_tokenizer()), **widths, **_TOKENS)


def _distilbert(n_layers: int) -> Any:
    widths = {"dim": 24, "n_heads": 3, "n_layers": n_layers, "hidden_dim": 48, "max_position_embeddings": 128}
    return transformers.DistilBertConfig(vocab_size=len(tiny_tokenizer()), initializer_range=0.2, **widths)


ENCODERS: dict[str, Callable[..., Any]] = {
    "bert": _bert_like("Bert"),
    "roberta": _bert_like("Roberta", pad_token_id=1, type_vocab_size=1),
    "xlm-roberta": _bert_like("XLMRoberta", pad_token_id=1, type_vocab_size=1),
    "camembert": _bert_like("Camembert", pad_token_id=1, type_vocab_size=1),
    "electra": _bert_like("Electra", embedding_size=12),
    "distilbert": _distilbert,
}
FULL_ONLY: dict[str, Callable[..., Any]] = {
    "modernbert": _bert_like(
        "ModernBert", pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=8
    ),
    "deberta-v2": _bert_like(
        "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, type_vocab_size=0
    ),
}
DECODERS: dict[str, Callable[..., Any]] = {
    "gpt2": _gpt2,
    "llama": _llama_like("Llama", tie_word_embeddings=False),
    "mistral": _llama_like("Mistral", sliding_window=100),
    "qwen2": _llama_like("Qwen2"),
    "qwen3": _llama_like("Qwen3", tie_word_embeddings=True),
}
ENCODER_DECODERS: dict[str, Callable[..., Any]] = {
    "t5": _t5_like("T5", "relu"),
    "mt5": _t5_like("MT5", "gated-gelu"),
}
SEGMENTED = {**ENCODERS, **DECODERS, **ENCODER_DECODERS}
FAMILIES = {**SEGMENTED, **FULL_ONLY}


def tiny_family(family: str, *, auto: Any = transformers.AutoModel, n_layers: int = 3, seed: int = 1) -> Any:
    """A model of random weights, none of which is 0 or 1, such as biases and norms are at first."""
    torch.manual_seed(seed)
    model = auto.from_config(FAMILIES[family](n_layers)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the special tokens of such a family: Qwen has no start, decoders have no padding."""
    if family in ENCODER_DECODERS:
        return tiny_tokenizer(_ENCODER_DECODER)
    if family not in DECODERS:
        return tiny_tokenizer()
    return tiny_tokenizer(
        {"eos_token": "[SEP]"} if family.startswith("qwen") else {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    )


def save_family(folder: Path, family: str, *, n_layers: int = 3) -> Path:
    """A pretrained folder as such models are published: decoders and encoder-decoders with their language head."""
    auto: Any = transformers.AutoModel
    if family in DECODERS:
        auto = transformers.AutoModelForCausalLM
    elif family in ENCODER_DECODERS:
        auto = transformers.AutoModelForSeq2SeqLM
    tiny_family(family, auto=auto, n_layers=n_layers).save_pretrained(folder)
    family_tokenizer(family).save_pretrained(folder)
    return folder
