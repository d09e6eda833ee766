"""Runs SQL statements in a session of the project's settings and prints what they give; started by scripts/sql."""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flmrec_spark import cli
from flmrec_spark.config import ScoreConfig, TablesConfig
from flmrec_spark.errors import EnvironmentFault, InputError
from flmrec_spark.session import catalog_settings, session
from flmrec_spark.tables.delta import Tables
from flmrec_spark.tables.spark_errors import spark_message, worker_error

_SCORE, _METASTORE = "flmrec_score", "build/metastore"
_WIDEST = 10_000  # a pipe has no width; a table there is as wide as its values


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    spark = None
    owns_session = SparkSession.getActiveSession() is None
    try:
        if arguments.metastore is not None and owns_session:  # over what scripts/sql has Spark read, conf/
            given = [f"--conf {shlex.quote(f'{k}={v}')}" for k, v in catalog_settings(arguments.metastore).items()]
            os.environ["PYSPARK_SUBMIT_ARGS"] = " ".join(
                [*given, os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell")]
            )
        place = str(arguments.metastore or _METASTORE)
        spark = session(TablesConfig(root=None, metastore=place), app_name="flmrec sql")
        if arguments.database is not None:
            spark.catalog.setCurrentDatabase(arguments.database)
        if any(_SCORE in statement.lower() for statement in arguments.statements):
            tables = Tables(spark, TablesConfig(root=None, database=arguments.database or "default"))
            register_functions(spark, tables, Path(arguments.checkpoint))
        for statement in arguments.statements:
            frame = spark.sql(statement.strip().rstrip(";"))
            if frame.columns:
                _print_csv(frame) if arguments.csv else _print_table(frame, arguments.rows)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PySparkException, Py4JJavaError) as fault:
        kind = InputError if isinstance(fault, AnalysisException) else EnvironmentFault
        named = worker_error(fault) or kind(spark_message(fault))
        named.__cause__ = fault
        return cli.failed("sql", named, with_traceback=arguments.traceback)
    except Exception as fault:  # noqa: BLE001  a line, not a trace
        return cli.failed("sql", fault, with_traceback=arguments.traceback)
    finally:
        if spark is not None and owns_session:
            spark.stop()
    return 0


def register_functions(spark: SparkSession, tables: Tables, checkpoint: Path) -> None:
    """Makes flmrec_score(user_text, item_text) known to SQL. Raises CheckpointError and InputError as scoring does."""
    from flmrec_spark.ship import ship  # torch takes seconds to import, and few statements score
    from flmrec_spark.stages.sql_function import register

    items, users = tables.read("items"), tables.read("users")
    register(spark, ship(spark, checkpoint=str(checkpoint), items=items, users=users, score=ScoreConfig()))


def _print_table(frame: DataFrame, rows: int) -> None:
    table = Table()
    for name in frame.columns:
        table.add_column(Text(name))
    found = frame.take(rows + 1)
    for row in islice(found, rows):
        table.add_row(*[Text("null" if value is None else str(value)) for value in row])
    is_terminal = sys.stdout.isatty()
    Console(width=None if is_terminal else _WIDEST, soft_wrap=not is_terminal).print(table)
    if len(found) > rows:
        print(f"the first {rows} rows; --rows shows more, --csv all", file=sys.stderr)


def _print_csv(frame: DataFrame) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(frame.columns)
    lines: Iterable[Sequence[object]] = frame.toLocalIterator()
    writer.writerows(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/sql", description="SQL over the project's tables, by name.")
    parser.add_argument("statements", nargs="+", metavar="SQL", help="one statement per argument")
    parser.add_argument("--csv", action="store_true", help="all rows as CSV instead of a table; null is empty")
    parser.add_argument("--rows", type=int, default=1000, metavar="N", help="rows of a table at most (1000)")
    parser.add_argument(
        "--checkpoint",
        default="build/demo/checkpoint",
        metavar="FOLDER",
        help="model behind flmrec_score(user_text, item_text) (build/demo/checkpoint)",
    )
    parser.add_argument(
        "--metastore", type=Path, metavar="FOLDER", help=f"tables.metastore of the config ({_METASTORE})"
    )
    parser.add_argument(
        "--database", metavar="NAME", help="tables.database of the config: of names without one (default)"
    )
    parser.add_argument("--traceback", action="store_true", help="show the stack trace of an error")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
