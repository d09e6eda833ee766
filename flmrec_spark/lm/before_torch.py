"""What torch's libraries read from the environment as they load; a user's own values stay."""

from __future__ import annotations

import os

# Threads that wait by spinning would take a busy core from those that they wait for.
# A training's steps are of many lengths, and oneDNN would keep 1,024 programs for shapes that never come again.
_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


def set_defaults() -> None:
    """To be called before the process imports torch."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
