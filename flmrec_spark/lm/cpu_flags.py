"""What this CPU and its Linux let a process use."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

TILES = frozenset({"amx_tile", "amx_bf16", "amx_int8"})  # registers that Linux gives to those who ask


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The flags of /proc/cpuinfo, AMX's only where Linux lets this process use it; none on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return frozenset()
    flags = frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
    return flags if flags >= TILES and _may_use_tiles() else flags - TILES


def _may_use_tiles() -> bool:
    """Asks Linux for AMX's registers, as every process must: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)."""
    return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)
