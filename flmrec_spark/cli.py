"""How every command says that it failed: one line on standard error, and the exit code that README.md lists."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from flmrec_spark.errors import FlmrecError


def failed(command: str, fault: Exception, *, with_traceback: bool) -> int:
    """Tells of a fault; returns the exit code. What nobody foresaw is told by its place, as its text may hold ids."""
    if with_traceback:
        traceback.print_exception(fault)
    if isinstance(fault, FlmrecError):
        told, code = f"{type(fault).__name__}: {' '.join(str(fault).split())}", fault.exit_code
    else:
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        told, code = f"unexpected {type(fault).__name__} at {place}; --traceback shows it whole", FlmrecError.exit_code
    print(f"flmrec {command}: {told}", file=sys.stderr, flush=True)
    return code
