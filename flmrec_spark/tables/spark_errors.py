"""What an error of Spark says, in one line, and which error of ours a worker raised."""

from __future__ import annotations

import re
from collections.abc import Iterator

from py4j.protocol import Py4JJavaError
from pyspark.sql import Column
from pyspark.sql import functions as F

from flmrec_spark import errors
from flmrec_spark.errors import FlmrecError

_OURS = re.compile(
    r"^(?:.*\[USER_RAISED_EXCEPTION\] )?flmrec_spark\.errors\.(\w+): (.*?)(?: SQLSTATE: \w+)?$", re.MULTILINE
)
_PYTHON = re.compile(r"^[A-Za-z_][\w.]*: .*$", re.MULTILINE)
_LONGEST = 600


def spark_message(fault: Exception) -> str:
    """The line that says what went wrong: of the root cause, or of the Python worker's exception."""
    text = str(fault)
    worker = text.rpartition('\n  File "')[2] if "Traceback (most recent call last)" in text else ""
    raised = _PYTHON.findall(worker)
    if raised:
        return str(raised[0])[:_LONGEST]
    messages = [message for _, message in _causes(fault) if message] if isinstance(fault, Py4JJavaError) else [text]
    lines = [line.strip() for line in (messages[-1:] or [""])[0].splitlines() if line.strip()]
    return (lines[0] if lines else type(fault).__name__)[:_LONGEST]


def worker_error(fault: Exception) -> FlmrecError | None:
    """The error that a Python worker or `raised` raised, when it is one of ours: its exit code is kept."""
    found = _OURS.search(str(fault))
    kind = getattr(errors, found.group(1), None) if found else None
    if found is None or not (isinstance(kind, type) and issubclass(kind, FlmrecError)):
        return None
    return kind(found.group(2))


def raised(error: FlmrecError) -> Column:
    """An expression that fails with the error where it is evaluated."""
    return F.raise_error(F.lit(f"{type(error).__module__}.{type(error).__name__}: {error}"))


def kinds(fault: Exception) -> tuple[str, ...]:
    """Class names of the exception in Python and of its causes in Java: Delta's conflicts show in either."""
    return (type(fault).__name__, *[name for name, _ in _causes(fault)])


def _causes(fault: Exception) -> Iterator[tuple[str, str]]:
    java = getattr(fault, "java_exception", None) or getattr(fault, "_origin", None)
    while java is not None:
        yield str(java.getClass().getSimpleName()), str(java.getMessage() or "")
        java = java.getCause()
