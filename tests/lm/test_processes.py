"""A command's memory with all that it starts, and its wall time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flmrec_spark.lm import processes

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(150 << 20); import time; time.sleep(1.2)"])
held = bytearray(100 << 20)
print("out"); print("err", file=sys.stderr)
child.wait()
sys.exit(3)
"""


def test_the_peak_is_that_of_the_command_and_its_children(tmp_path: Path) -> None:
    done = processes.run([sys.executable, "-c", PARENT], dict(os.environ), tmp_path)
    assert (done.code, done.output, done.errors) == (3, "out\n", "err\n")
    assert done.wall_s > 1.2
    assert 0.25 < done.peak_pss_gb <= done.peak_rss_gb < 0.6
