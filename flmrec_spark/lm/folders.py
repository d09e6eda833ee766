"""A folder that is replaced whole: at every moment the old one or the new one can be read, also after a kill."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from flmrec_spark.errors import CheckpointError, ConflictError, EnvironmentFault

log = logging.getLogger("flmrec")


def expect_room(target: Path, *, mark: str) -> None:
    """Sees that a folder may be written or replaced there, before hours are spent on its content.

    Args:
      mark: a file that every folder of this kind has.

    Raises:
      CheckpointError: something of another kind is in its place, and would be lost.
      EnvironmentFault: it cannot be replaced by a rename, or the folder around it cannot be made or written.
    """
    target = behind_links(target)
    if target.exists() and not (target / mark).is_file() and (target.is_file() or any(target.iterdir())):
        raise CheckpointError(f"{target}: got something that is no checkpoint, expected nothing or one to replace")
    if os.path.ismount(target):
        raise EnvironmentFault(
            f"checkpoint: got {target}, which is a mount point, expected a folder in it: it is replaced by a rename"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise EnvironmentFault(f"checkpoint: {target.parent} cannot be made: {fault.strerror}") from None
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"checkpoint: got no right to write in {target.parent}, expected one")


def beside(target: Path, suffix: str) -> Path:
    """The neighbour of a folder that has its name and a suffix, on the same disk."""
    target = behind_links(target)
    return target.with_name(target.name + suffix)


def behind_links(target: Path) -> Path:
    """What a link points to, there or not: that is replaced, and the link stays."""
    return target.resolve() if target.is_symlink() else target


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Keeps other processes from making the same folder meanwhile, by a lock beside it that a kill opens.

    Raises:
      ConflictError: another one is making it.
    """
    lock = FileLock(beside(target, ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConflictError(
            f"{target}: another process is making it, expected none; run again when that is done"
        ) from None
    except NotImplementedError:  # some network disks
        log.warning("%s: this disk knows no locks: nothing keeps two processes from making it at once", target)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written(target: Path) -> Iterator[None]:
    """Around writes of files into a folder: a full disk is an EnvironmentFault that names it."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        raise EnvironmentFault(f"{target}: not written: {' '.join(str(fault).split())}") from fault


def replace(target: Path, draft: Path) -> None:
    """Puts the draft in the target's place."""
    target, previous = behind_links(target), _previous(target)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    draft.rename(target)  # until here `present` gives the previous one
    shutil.rmtree(previous, ignore_errors=True)


def present(target: Path) -> Path:
    """The target, or what it was before where `replace` was killed between its two renames."""
    return target if target.exists() or not _previous(target).exists() else _previous(target)


def clear_previous(target: Path) -> None:
    """Removes what the target was before, where `replace` was killed before it did."""
    if behind_links(target).exists():
        shutil.rmtree(_previous(target), ignore_errors=True)


def _previous(target: Path) -> Path:
    return beside(target, ".previous")
