"""The memory of a command and all that it starts, sampled while it runs: for benchmarks on Linux."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.5
_KIB_PER_GB = 1e9 / 1024
_FIELD = re.compile(r"^(Rss|Pss):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    output: str
    errors: str
    wall_s: float
    peak_rss_gb: float  # resident memory of all processes, a shared page counted in each
    peak_pss_gb: float  # the same with a shared page counted once


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Finished:
    """Runs a command in a session of its own, by which its processes are known, also those that lost their parent."""
    started, peaks, done = time.perf_counter(), [0, 0], threading.Event()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=folder, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]

        def sample() -> None:
            while not done.wait(_EVERY_S):
                sums = [sum(parts) for parts in zip(*_memory_kib(process.pid), strict=True)] or [0, 0]
                peaks[:] = map(max, peaks, sums)

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        output, errors = process.communicate()
        wall = time.perf_counter() - started
        done.set()
        sampler.join()
    rss, pss = (peak / _KIB_PER_GB for peak in peaks)
    return Finished(process.returncode, output, errors, wall, rss, pss)


def _memory_kib(session: int) -> Iterator[tuple[int, int]]:
    """(RSS, PSS) of every process of a session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(state[3]) == session:  # state, parent, group, session
                found = dict(_FIELD.findall((folder / "smaps_rollup").read_text(encoding="utf-8")))
                yield int(found["Rss"]), int(found["Pss"])
        except (OSError, KeyError, IndexError, ValueError):  # it ended meanwhile
            continue
