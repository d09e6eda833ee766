"""Searches for better settings: fine-tunes again and again, judged on the valid split, and writes the best config.

    python scripts/tune.py --config conf/demo.yaml --output best.yaml [section.key=value ...]

What is searched stands under `tune` in the config. Killed and called again it goes on with the trials it has.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flmrec_spark import cli, files
from flmrec_spark.lm import before_torch

if TYPE_CHECKING:
    from flmrec_spark.lm.tuning import Search


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tune.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see conf/demo.yaml")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the best trial's config is written")
    parser.add_argument("--traceback", action="store_true", help="show the stack trace of an error")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over those of the file")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        output = Path(arguments.output)
        files.expect_room(output, flag="--output")
        before_torch.set_defaults()
        from flmrec_spark.lm import tuning  # torch loads in seconds: not for a wrong flag

        config, search = tuning.open_search(arguments.config, arguments.overrides)
        tuning.run(config, search, told=lambda: show(search))
        files.write(output, tuning.best_config(search), flag="--output")
    except Exception as fault:  # noqa: BLE001  a scheduler's log gets a line, not a trace
        return cli.failed("tune", fault, with_traceback=arguments.traceback)
    best = search.best
    assert best is not None
    told = {"trials": len(search.trials), "best": best.number, config.tune.metric: best.value, "set": best.params}
    print(json.dumps({"job": "tune", **told, "output": str(output)}))
    return 0


def show(search: Search) -> None:
    """Prints the trials so far, the best one marked."""
    trials, best = search.trials, search.best
    keys = sorted({key for trial in trials for key in trial.params})
    table = Table("trial", *keys, "validation", "seconds", title="trials")
    for trial in trials:
        result = f"{trial.value:.4f}" if trial.value is not None else trial.user_attrs.get("failed", "interrupted")
        values = [trial.params.get(key, "") for key in keys]  # a kill may have come before all of them
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        seconds = str(trial.user_attrs.get("seconds", ""))
        is_best = best is not None and trial.number == best.number
        table.add_row(str(trial.number), *cells, result, seconds, style="bold" if is_best else None)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
