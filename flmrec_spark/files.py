"""A file that a command writes where it was told to: its place is checked before the work, and it appears whole.

And where tables lie, for those who read them with Spark and those who do so without.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from flmrec_spark.errors import EnvironmentFault

_SCHEME = re.compile("[a-zA-Z][a-zA-Z0-9+.-]*:")


def table_place(root: str, name: str) -> str:
    """A table's folder below a root: absolute and without links, behind file: where the root is, or as it is given.

    The scheme is kept: where another file system is Spark's default, a path without one is a place on that.
    """
    scheme = "file:" if root.startswith("file:") else ""
    root = local(root)
    place = root if _SCHEME.match(root) else scheme + str(Path(root).resolve())
    return f"{place.rstrip('/')}/{name}"


def local(place: str) -> str:
    """The path of a place behind file:, for those who read without Spark; any other place as it is."""
    return re.sub("^file:/*(?=/)", "", place)


def expect_room(path: Path, *, flag: str) -> None:
    """Sees that a file may be written or replaced there, before hours are spent on its content.

    Args:
      flag: what named it, for the error.

    Raises:
      EnvironmentFault: its folder is missing or not to be written, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise EnvironmentFault(f"{flag}: got {path}, expected a file in a folder that is there; make {path.parent}")
    if path.is_dir():
        raise EnvironmentFault(f"{flag}: got {path}, which is a folder, expected a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"{flag}: got no right to write in {path.parent}, expected one")


def write(path: Path, text: str, *, flag: str) -> None:
    """Puts the text in the file's place; at every moment the old one or the new one can be read.

    Raises:
      EnvironmentFault: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as fault:
        draft.unlink(missing_ok=True)
        raise EnvironmentFault(f"{flag}: {path} cannot be written: {fault.strerror}") from None
