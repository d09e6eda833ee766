"""A folder that is replaced whole: at every moment the old one or the new one can be read, also after a kill."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flmrec_spark.errors import CheckpointError, EnvironmentFault


def expect_room(target: Path, *, mark: str) -> None:
    """Sees that a folder may be written or replaced there, before hours are spent on its content.

    Args:
      mark: a file that every folder of this kind has.

    Raises:
      CheckpointError: something of another kind is in its place, and would be lost.
      EnvironmentFault: the folder around it cannot be made or written.
    """
    if target.exists() and not (target / mark).is_file() and (target.is_file() or any(target.iterdir())):
        raise CheckpointError(f"{target}: got something that is no checkpoint, expected nothing or one to replace")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise EnvironmentFault(f"checkpoint: {target.parent} cannot be made: {fault.strerror}") from None
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"checkpoint: got no right to write in {target.parent}, expected one")


def replace(target: Path, draft: Path) -> None:
    """Puts the draft in the target's place."""
    previous = _previous(target)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    draft.rename(target)  # until here `present` gives the previous one
    shutil.rmtree(previous, ignore_errors=True)


def present(target: Path) -> Path:
    """The target, or what it was before where `replace` was killed between its two renames."""
    return target if target.exists() or not _previous(target).exists() else _previous(target)


def _previous(target: Path) -> Path:
    return target.with_name(target.name + ".previous")
