"""Item states made by all processes of an executor together: each takes slices that nobody has, one joins them.

A slice is claimed by its lock, which the system frees when its process dies, so a killed process costs its slice
and no more. Slices are whole blocks of the encoder: the states do not depend on who made which.

The folder of the slices and its locks stay, empty: a process that comes late may be about to open them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from flmrec_spark.lm.model import ItemStates, concatenated
from flmrec_spark.lm.token_block import TokenBlock

SLICE = 512  # items of a slice: under a second's work, and a multiple of the encoder's block

Encode = Callable[[TokenBlock], ItemStates]
Write = Callable[[ItemStates, Path], None]
_PARTS = ("hidden", "query", "own", "own_lse", "hidden_mask")


def make(tokens: TokenBlock, target: Path, *, encode: Encode, write: Write) -> None:
    """Returns when `target` holds the states of all tokens, whoever made them.

    Args:
      encode: gives the states of some of the items, all padded to the width of `tokens`.
      write: writes all of them to a file, as the scorer maps them.
    """
    folder = target.with_name(f"{target.name}.slices")
    starts = list(range(0, len(tokens), SLICE))
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        first = os.getpid() % max(1, len(starts))  # processes that come together begin apart
        for start in starts[first:] + starts[:first]:
            _encode_slice(tokens, start, folder, encode, target, wait=False)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        for start in starts:
            _encode_slice(tokens, start, folder, encode, target, wait=True)
        states = concatenated([load(folder / str(start), "cpu") for start in starts])
        draft = target.with_name(f"{target.name}.draft")
        write(states, draft)
        draft.rename(target)
        for start in starts:
            (folder / str(start)).unlink()


def _encode_slice(tokens: TokenBlock, start: int, folder: Path, encode: Encode, target: Path, *, wait: bool) -> None:
    file = folder / str(start)
    try:
        with FileLock(f"{file}.lock", blocking=wait):
            if file.exists() or target.exists():
                return
            stop = min(start + SLICE, len(tokens))
            states = encode(tokens.part(start, stop))
            draft = file.with_name(f"{file.name}.draft")
            save(states, draft)
            draft.rename(file)
    except Timeout:
        return


def save(states: ItemStates, file: Path) -> None:
    save_file({name: getattr(states, name).contiguous().cpu() for name in _PARTS}, file)


def load(file: Path, device: str) -> ItemStates:
    """On a CPU the file is mapped into memory."""
    tensors = load_file(file, device=device)
    return ItemStates(*[tensors[name] for name in _PARTS])
