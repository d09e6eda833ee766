"""The whole nightly job by spark-submit over MovieLens-1M's shape: wall time and its split, memory, scaling.

    python benchmarks/job.py [--only base ...] [--users 6040] [--items 3706] [--n 100] [--json FILE]

Users, items and ratings are made from a seed; the model is build/demo/model where it is, else MiniLM-L6's shape with
random weights. Its head is drawn, not trained, and such scores bear less rounding than trained ones, so --checkpoints
names a folder of trained ones, `layer` and `attention`, of which `auto` takes the precision that a user would see:
finetune.py with model.join, checkpoint=FOLDER/JOIN and conf/movielens.yaml prompts.template=en prompts.user_tokens=100
prompts.item_tokens=24 prompts.history_length=30 model.collaborative.dimension=0 makes them.

`scorer_s` is the time of the scorer alone: the same prompts in a plain loop, one process per core, extrapolated from a
sample of the users; `busy_s` is what a task of the job spent in it; `spark_share` is what of the wall time `scorer_s`
does not explain; `dry_run_s` is what --dry-run said. All is made in a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyspark
import torch

from flmrec_spark.lm import checkpoint, native, processes
from flmrec_spark.lm.machine import describe, show, write
from flmrec_spark.lm.precision import DTYPES, can_pack
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import Interaction
from flmrec_spark.ranking import best

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # a script finds what lies beside it alone

from benchmarks.job_world import Made, User, make  # noqa: E402

PARTS = ("start", "ship", "items", "score", "write")
CASES = ("base", "attention", "cores1", "executors1", "executors2", "users1", "users2", "users4")
SHOWN = ("precision", "users", "items", *[f"{part}_s" for part in PARTS], "peak_rss_gb", "peak_pss_gb")
ALONE_USERS = 100  # of each process
UNSHOWN = (*SHOWN, "precision_because")  # in the second table


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    rows: list[dict[str, Any]] = []
    for case in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run_case(arguments, case, Path(folder)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    show("by time and memory", [{name: row[name] for name in ("name", "wall_s", *SHOWN)} for row in rows])
    show("by pairs and cores", [{key: row[key] for key in row if key not in UNSHOWN} for row in rows])
    write(arguments.json, describe("cpu"), rows)
    return 0


def run_case(arguments: argparse.Namespace, case: str, folder: Path) -> dict[str, Any]:
    """Makes the case's data and runs the job over it, once dry where the case is `base` or `attention`."""
    cores = 1 if case in ("cores1", "executors1") else arguments.cores
    executors = int(case[-1]) if case.startswith("executors") else 1
    master = f"local-cluster[{executors},1,1024]" if "executors" in case else f"local[{cores}]"
    users, items, join = arguments.users, arguments.items, "attention" if case == "attention" else "layer"
    if case.startswith("users"):
        users, items = int(case[-1]) * users, arguments.scaling_items
    trained = None if arguments.checkpoints is None else Path(arguments.checkpoints) / join
    made = make(folder, users=users, items=items, join=join, is_tiny=arguments.tiny, trained=trained)
    settings = {"precision": arguments.precision, "n": arguments.n}
    dry_s = scorer_s = None
    if case in ("base", "attention"):
        dry_s = submit(folder, master, "--dry-run", **settings)[0]["seconds"]["wall"]
    told, done = submit(folder, master, **settings)
    if dry_s is not None:
        scorer_s = scorer_alone(folder, made, users=users, cores=cores, precision=told["precision"])
    return {
        "name": case,
        "join": join,
        **{name: told[name] for name in ("precision", "precision_because")},
        "master": master,
        "executors": executors,
        "users": users,
        "items": items,
        "pairs": told["pairs"],
        "pairs_per_s": told["pairs"] / done.wall_s,
        "wall_s": done.wall_s,
        **{f"{part}_s": told["seconds"][part] for part in PARTS},
        "busy_s": told["scorer_ms"] / 1000 / told["workers"],
        "peak_rss_gb": done.peak_rss_gb,
        "peak_pss_gb": done.peak_pss_gb,
        "dry_run_s": dry_s,
        "dry_run_error": None if dry_s is None else dry_s / done.wall_s - 1.0,
        "scorer_s": scorer_s,
        "spark_share": None if scorer_s is None else 1.0 - scorer_s / done.wall_s,
    }


def submit(folder: Path, master: str, *flags: str, precision: str, n: int) -> tuple[dict[str, Any], processes.Finished]:
    """(what the job's last line says, the process). Raises RuntimeError with the job's errors when it fails."""
    home = folder / "spark"  # a local cluster works below its Spark's home
    if not home.exists():
        home.mkdir()
        for part in Path(pyspark.__file__).parent.iterdir():
            (home / part.name).symlink_to(part)
    environment = {**os.environ, "SPARK_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job = [str(ROOT / "jobs/score.py"), "--config", str(folder / "config.yaml"), *flags]
    settings = [f"score.precision={precision}", f"score.n={n}"]
    done = processes.run(["spark-submit", "--master", master, *job, *settings], environment, folder)
    if done.code:
        raise RuntimeError(f"spark-submit: exit code {done.code}: {done.errors[-2000:]}{done.output[-2000:]}")
    return json.loads(done.output.strip().splitlines()[-1]), done


def scorer_alone(folder: Path, made: Made, *, users: int, cores: int, precision: str) -> float:
    """Seconds for all users, as a loop over a sample of them in a process per core has it."""
    sample = made.users[: cores * ALONE_USERS]
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        tasks = [(folder / "checkpoint", made.items, sample[at::cores], precision) for at in range(cores)]
        return sum(pool.starmap(seconds_per_user, tasks)) / cores * users / cores


def seconds_per_user(folder: Path, items: list[dict[str, Any]], users: Sequence[User], precision: str) -> float:
    """Of one process with one thread, when the model and the item states are there."""
    torch.set_num_threads(1)
    found = checkpoint.read(folder)
    segmenter = found.segmenter()
    segments = [segment for segment in segmenter.items(items) if segment]
    means: dict[str, Any] = {"packed": can_pack(), "kernel": native.load(native.build())}
    scorer = Scorer(found.model(), segmenter.block(segments), precision=precision, **means)

    def work(profile: dict[str, Any], history: list[dict[str, Any]]) -> None:
        user = segmenter.user(profile, [Interaction(item, True) for item in history])
        best(scorer.score(user.ids if user is not None else []), 100)

    work(*users[0])
    started = time.perf_counter()
    for user in users:
        work(*user)
    return (time.perf_counter() - started) / len(users)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    add = (parser := argparse.ArgumentParser(prog="job.py", description=__doc__.split("\n")[0])).add_argument
    add("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=f"some of {', '.join(CASES)}")
    for name, size in (("--users", 6040), ("--items", 3706), ("--cores", os.cpu_count() or 1)):
        add(name, type=int, default=size)
    add("--scaling-items", type=int, default=500, help="items of the cases users1, users2 and users4")
    add("--n", type=int, default=100, help="length of a list")
    add("--precision", default="auto", choices=("auto", *DTYPES))
    add("--tiny", action="store_true", help="a tiny model of random weights, to try the script")
    add("--checkpoints", metavar="FOLDER", help="trained ones, layer and attention, instead of random heads; see above")
    add("--json", metavar="FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
