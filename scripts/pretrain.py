"""Trains a pretrained language model on the texts of the prepared tables, before fine-tuning.

    python scripts/pretrain.py --config conf/demo.yaml [section.key=value ...]
    python scripts/finetune.py --config conf/demo.yaml model.path=build/demo/pretrained

Reads items, users and train examples, and writes a stock model folder to pretrain.output, whole or not at all. Runs on
one node, with its first GPU when there is one, and needs no Spark. Called again on the same inputs it does nothing.
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
    parser = argparse.ArgumentParser(prog="pretrain.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see conf/demo.yaml")
    parser.add_argument("--force", action="store_true", help="train again even when nothing has changed")
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
        from flmrec_spark.lm.pretraining import pretrain  # torch loads in seconds: not for a wrong flag

        summary = pretrain(config, force=arguments.force)
    except Exception as fault:  # noqa: BLE001  a scheduler's log gets a line, not a trace
        return cli.failed("pretrain", fault, with_traceback=arguments.traceback)
    print(json.dumps({"job": "pretrain", **summary}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
