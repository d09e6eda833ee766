"""Texts -> vectors by a pretrained model as it came: the mean of its (encoder's) last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flmrec_spark.lm.checkpoint import load_tokenizer
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.families.registry import family_of

_BATCH, _MAX_TOKENS = 64, 128


@torch.inference_mode()
def embed_texts(model_path: str | Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Mean of the last hidden states over the tokens of each text, (N, D); of long texts the first 128 tokens count,
    or as many as the model has positions, and a text without a token is 0. Of an encoder-decoder the encoder reads
    them, as in sentence-T5 (Ni et al. 2022).

    Raises:
      CheckpointError: the model or its tokenizer does not load.
    """
    backbone: Any = load_backbone(model_path).eval()
    tokenizer, most = load_tokenizer(model_path), min(_MAX_TOKENS, family_of(backbone).max_positions)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "right"
    reader: Any = backbone.get_encoder() if backbone.config.is_encoder_decoder else backbone
    shortest_first = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
    vectors = np.zeros((len(texts), int(backbone.config.hidden_size)), dtype=np.float32)
    for start in range(0, len(texts), _BATCH):
        places = shortest_first[start : start + _BATCH]
        tokens = tokenizer(
            [texts[place] for place in places],
            padding=True,
            truncation=True,
            max_length=most,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"]
        hidden = reader(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        kept = mask[..., None].to(hidden.dtype)
        vectors[places] = ((hidden * kept).sum(1) / kept.sum(1).clamp(min=1)).float().numpy()
    return vectors
