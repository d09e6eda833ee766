"""Work in blocks that halve when the memory runs out, and the memory that a process has used."""

from __future__ import annotations

import gc
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flmrec_spark.errors import EnvironmentFault, FlmrecError

SMALLEST = 32  # rows of a block; from it on a CPU's product gives a row the same bits in any block


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an allocator said no: CUDA's, torch's on the CPU, or Python's."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(
        text in str(fault) for text in ("not enough memory", "can't allocate memory", "CUDA out of memory")
    )


@contextmanager
def refusals_told(message: str) -> Iterator[None]:
    """Makes what an allocator refuses an EnvironmentFault: the message, and the allocator's own words."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if isinstance(fault, FlmrecError) or not is_out_of_memory(fault):
            raise
        raise EnvironmentFault(f"{message}: {' '.join(str(fault).split())[:200]}") from fault


class Blocks:
    """Runs work on consecutive blocks of a range.

    A block that does not fit the memory is halved, and so are all that follow in this process: what ran out once
    would run out again. Blocks start at multiples of `SMALLEST` rows and no end is shorter, so on a CPU a row's result
    keeps its bits; a GPU may choose another product for another block, and its last bits with it.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, n: int, work: Callable[[int, int], None]) -> None:
        """Calls work(start, stop) for blocks that cover 0 .. n; a block that failed is worked on again from its start.

        Raises:
          EnvironmentFault: the memory does not hold the smallest block.
        """
        start = 0
        while start < n:
            stop = self._stop(start, n)
            if self._fits(work, start, stop):
                start = stop

    def _stop(self, start: int, n: int) -> int:
        stop = min(start + self.size, n)
        if 0 < n - stop < SMALLEST <= self.size:  # a block of a few rows would be multiplied another way
            return stop - SMALLEST if self.size > SMALLEST else n
        return stop

    def _fits(self, work: Callable[[int, int], None], start: int, stop: int) -> bool:
        try:
            work(start, stop)
        except (MemoryError, RuntimeError) as fault:
            if not is_out_of_memory(fault):
                raise
            smaller = min(self.size, stop - start) // 2 // SMALLEST * SMALLEST
            if smaller < SMALLEST:
                raise EnvironmentFault(
                    f"memory: got an allocation refused for a block of {stop - start} items, expected room for "
                    f"{SMALLEST}; give an executor fewer cores, or more memory"
                ) from fault
            self.size = smaller
        else:
            return True
        gc.collect()  # behind the handler: the fault held the frames, and they the tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False


def peak_mb(pid: int | str = "self") -> dict[str, int]:
    """Largest resident memory in MiB of a process, by host:pid; {} where it cannot be read."""
    number = os.getpid() if pid == "self" else int(pid)
    found = _status(number, "VmHWM")
    if found is None and pid == "self":
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {} if found is None else {f"{socket.gethostname()}:{number}": found // 1024}


def peaks_up_to(command: str) -> dict[str, int]:
    """`peak_mb` of this process and of its parents up to the first that runs the command; of itself without one."""
    peaks, pid = peak_mb(), os.getpid()
    above: dict[str, int] = {}
    while pid > 1:
        pid = _status(pid, "PPid") or 0
        if pid > 1:
            above |= peak_mb(pid)
            if _command(pid) == command:
                return peaks | above
    return peaks


def _status(pid: int, name: str) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    values = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(values[0]) if values else None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
