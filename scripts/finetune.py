"""Fine-tunes a pretrained language model on the prepared tables and writes a checkpoint.

    python scripts/finetune.py --config conf/demo.yaml [section.key=value ...]

    torchrun --nproc-per-node 2 scripts/finetune.py --config conf/demo.yaml [section.key=value ...]

Runs on one node, with its first GPU when there is one, or under torchrun with a process for each; it needs no Spark.
Killed at any moment and called again with as many processes it goes on where it last saved and ends with the same
weights; finished, it does nothing. One process at a time makes a checkpoint: another one ends with exit code 7.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from flmrec_spark import cli
from flmrec_spark.config import load_config
from flmrec_spark.lm import before_torch


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="finetune.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see conf/demo.yaml")
    parser.add_argument("--force", action="store_true", help="train again even when nothing has changed")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="stop this call after so many steps, to resume")
    parser.add_argument("--print-config", action="store_true", help="print the effective config and stop")
    parser.add_argument("--traceback", action="store_true", help="show the stack trace of an error")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over those of the file")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(config.to_yaml(), end="")
            return 0
        before_torch.set_defaults()
        from flmrec_spark.lm.finetuning import finetune  # torch loads in seconds: not for a wrong flag

        summary = finetune(config, force=arguments.force, stop_after=arguments.stop_after)
    except Exception as fault:  # noqa: BLE001  a scheduler's log gets a line, not a trace
        return cli.failed("finetune", fault, with_traceback=arguments.traceback)
    if summary.pop("rank") == 0:
        told = {"job": "finetune", **{key: value for key, value in summary.items() if key != "history"}}
        print(json.dumps(json.loads(json.dumps(told), parse_constant=lambda _: None)))  # JSON has no NaN
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
