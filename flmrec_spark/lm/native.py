"""The kernel in C, `kernel.c` and `layer.c`: built where the machine has a compiler, loaded where the CPU can run it.

The driver builds it once and ships the library with the model, so an executor needs no compiler. Where there is
none, or the CPU is another, `attention.TorchAttention` does the same with torch, several times slower.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from flmrec_spark.lm.cpu_flags import TILES, cpu_flags

log = logging.getLogger("flmrec")

_SOURCES = [str(Path(__file__).parent / name) for name in ("kernel.c", "layer.c")]
_V2 = frozenset({"ssse3", "sse4_1", "sse4_2", "popcnt"})
_V3 = _V2 | {"avx", "avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_HALVES = frozenset({"avx512_bf16", "avx512_vnni"})
_OF_HALVES = ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512")
# level: flags of /proc/cpuinfo that it needs, options of the compiler; the first that fits is taken
LEVELS = {
    "x86-64-v4-amx": (_V4 | _HALVES | TILES, (*_OF_HALVES, "-mamx-tile", "-mamx-bf16", "-mamx-int8")),
    "x86-64-v4-bf16": (_V4 | _HALVES, _OF_HALVES),
    "x86-64-v4": (_V4, ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    "x86-64-v3": (_V3, ("-march=x86-64-v3",)),
    "x86-64-v2": (_V2, ("-march=x86-64-v2",)),
}
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_COMMON = ("-O2", "-ffp-contract=fast", "-shared", "-fPIC")
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
_BUILDING = Lock()
_WIDTH = 16  # numbers of a head: a multiple of it
_SYMBOLS = {torch.float32: "attend_fp32", torch.bfloat16: "attend_bf16"}
_SEGMENT_SYMBOLS = {torch.float32: "attend_segments_fp32", torch.bfloat16: "attend_segments_bf16"}


@dataclass(frozen=True)
class Built:
    """A library and the CPUs that run it."""

    level: str
    file: Path


def build() -> Built | None:
    """The library for this CPU, built once a process; None without a C compiler or for a CPU that is not known."""
    with _BUILDING:  # a thread that comes second waits for what the first one builds
        return _build()


@functools.cache
def _build() -> Built | None:
    compiler = _compiler()
    if compiler is None:
        return None
    folder = tempfile.TemporaryDirectory(prefix="flmrec-native-")
    _FOLDERS.append(folder)  # removed when the process ends
    file = Path(folder.name) / "kernel.so"
    for level in cpu_levels():
        command = [*compiler, *_COMMON, *LEVELS[level][1], "-o", str(file), *_SOURCES]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as fault:  # a compiler too old for the level
            told = str(getattr(fault, "stderr", None) or fault).splitlines()
            told = [line for line in told if "error" in line] or told
            log.info("the kernel in C: %s does not compile it for %s: %s", compiler[0], level, told[0])
            continue
        return Built(level, file)
    log.warning("the kernel in C is not there, which makes scoring slower: %s compiles it for no such CPU", compiler[0])
    return None


def _compiler() -> list[str] | None:
    if named := shlex.split(os.environ.get("CC", "")):
        return named
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    return [found] if found else None


def cpu_levels() -> list[str]:
    """Those of LEVELS that this CPU runs, the best first; none on another architecture or system."""
    if platform.machine() != "x86_64":
        return []
    return [level for level, (needed, _) in LEVELS.items() if needed <= cpu_flags()]


def bundled(folder: Path) -> Built | None:
    """The library that lies in a folder under its level's name, as `bundled_name` gives it."""
    return next((Built(one, file) for one in LEVELS if (file := folder / bundled_name(one)).is_file()), None)


def bundled_name(level: str) -> str:
    return f"kernel-{level}.so"


def load(built: Built | None) -> Kernel | None:
    """The kernel, or None when there is no library, it may not run where it lies, or this CPU lacks what it needs."""
    if built is None or platform.machine() != "x86_64" or not LEVELS[built.level][0] <= cpu_flags():
        return None
    try:
        return Kernel(ctypes.CDLL(str(built.file)))
    except OSError as fault:  # such as a folder that is mounted noexec
        log.warning("the kernel in C is not used, which makes scoring slower: %s", fault)
        return None


class Kernel:
    """The library, loaded. Shapes: N items, T of them asked, P keys, H heads, E numbers a head."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._functions = {dtype: getattr(library, name, None) for dtype, name in _SYMBOLS.items()}
        self._segment_functions = {dtype: getattr(library, name, None) for dtype, name in _SEGMENT_SYMBOLS.items()}
        self.tile, self.key_step = int(library.tile()), int(library.key_step())
        self.zero = int(library.zero())  # the byte that stands for 0: the middle of those that a state may have

    @property
    def multiplies_bytes(self) -> bool:
        """Whether sums of products of these bytes are exact: without VNNI those of 8 bits overflow, in oneDNN too."""
        return self.zero < 128 or bool(_VNNI & cpu_flags())

    def function(self, name: str) -> Any:
        """A function of the library by name; None where it was built for a CPU without its instructions."""
        return getattr(self._library, name, None)

    def sides_of(self, precision: str) -> tuple[int, int]:
        """Outputs of a panel of weights, and words of a step along the depth of a product."""
        kind = ctypes.c_int(("fp32", "bf16", "int8").index(precision))
        return int(self._library.panel(kind)), int(self._library.step(kind))

    def fits(self, dtype: torch.dtype, width: int) -> bool:
        """Whether the kernel multiplies this dtype here, with heads of this width."""
        return self._functions.get(dtype) is not None and width % _WIDTH == 0

    def fits_self(self, dtype: torch.dtype, width: int) -> bool:
        """As `fits`, for `attend_segments`: it reads whole vectors of a row."""
        return self._segment_functions.get(dtype) is not None and width % (_WIDTH * 4 // dtype.itemsize) == 0

    def pack_query(self, query: Tensor) -> Tensor:
        """(H, N, E), scaled -> (H, E / 2, N', 2) in bf16, (H, E, N', 1) in fp32; N' leaves a tile."""
        n_heads, n_items, width = query.shape
        each = 2 if query.dtype == torch.bfloat16 else 1
        padded = query.new_zeros(n_heads, self._padded(n_items), width)
        padded[:, :n_items] = query
        return padded.view(n_heads, -1, width // each, each).transpose(1, 2).contiguous()

    def pack_lse(self, own_lse: Tensor) -> Tensor:
        """(H, N) -> (H, N'), float32."""
        return torch.nn.functional.pad(own_lse.float(), (0, self._padded(own_lse.shape[1]) - own_lse.shape[1]))

    def pack_user(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
        """(H, P, E) twice -> keys (H, P', E), values (H, E, P'), P; P' is the next multiple of `key_step`."""
        n_keys = keys.shape[1]
        more = -n_keys % self.key_step
        pad = torch.nn.functional.pad
        rows = pad(keys, (0, 0, 0, more)).contiguous()
        return rows, pad(values, (0, 0, 0, more)).transpose(1, 2).contiguous(), n_keys

    def attend(
        self, query: Tensor, own: Tensor, own_lse: Tensor, user: tuple[Tensor, Tensor, int], block: slice
    ) -> Tensor:
        """Attention (T, H * E) of the items block.start .. block.stop - 1.

        Args:
          query, own_lse: as packed above.
          own: (H, N, E), contiguous.
          user: as `pack_user` gives it.
        """
        keys, values, n_keys = user
        n_heads, n_all, width = own.shape
        n_items = block.stop - block.start
        out = own.new_empty(n_items, n_heads * width)
        scratch = torch.empty((width + n_keys + self.key_step) * self.tile)
        tensors = (query, own, own_lse, keys, values, out)
        sizes = (block.start, n_items, n_all, query.shape[2], n_heads, n_keys, keys.shape[1], width)
        function = self._functions[own.dtype]
        assert function is not None
        function(*map(address, tensors), *map(ctypes.c_long, sizes), address(scratch))
        return out

    def attend_segments(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: Tensor,
        *,
        user: tuple[Tensor, Tensor, int] | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attention of every token of N segments to its own segment and to the user: (N, S, H * E).

        Args:
          query: scaled, (N, S, H, E), contiguous.
          key, value: (N, S, K, E), contiguous; H / K heads of the query share one of theirs.
          lengths: (N,), real tokens of each segment, >= 1; the rest are no keys.
          user: as `pack_user` gives it, of K heads.
          is_causal: a token sees those before it, and all of the user's.
        """
        n_segments, n_tokens, n_heads, width = query.shape
        n_kept = key.shape[2]
        keys, values, n_user = user or (query, query, 0)
        n_own = n_tokens * max(1, self.tile // n_tokens)
        n_rows = n_user + n_own + self.key_step
        n_bytes = 2 * n_kept * n_rows * width * query.itemsize + 4 * self.tile * (n_own + 2 * width + n_rows)
        scratch = torch.empty(n_bytes, dtype=torch.uint8)
        out = query.new_empty(n_segments, n_tokens, n_heads * width)
        tensors = (query, key, value, lengths.to(torch.int32), keys, values, out)
        sizes = (n_segments, n_tokens, n_user, keys.shape[1], n_heads, n_heads // n_kept, width, int(is_causal))
        function = self._segment_functions[query.dtype]
        assert function is not None
        function(*map(address, tensors), *map(ctypes.c_long, sizes), address(scratch))
        return out

    def quantize(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (R, n) -> uint8 (R, n), float32 (R,): states = scale * (byte - zero) to within half a scale."""
        rows = states.contiguous()
        n_rows, n = rows.shape
        quantized, scales = torch.empty(n_rows, n, dtype=torch.uint8), torch.empty(n_rows)
        self._library.quantize(*map(address, (rows, quantized, scales)), ctypes.c_long(n_rows), ctypes.c_long(n))
        return quantized, scales

    def rescale(self, product: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
        """product (R, n) * scales (R,) + bias (n,), float32, in place."""
        n_rows, n = product.shape
        self._library.rescale(*map(address, (product, scales, bias)), ctypes.c_long(n_rows), ctypes.c_long(n))
        return product

    def _padded(self, n_items: int) -> int:
        return n_items + -n_items % self.tile + self.tile  # a tile may begin anywhere and end behind the last item


def address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
