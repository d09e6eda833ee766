"""What a scoring run will cost, from its own plan and a few users scored on every core; nothing is written.

Start, shipping, planning and item states are done as the run does them, so their time is measured. The time to score
is the operations of all users, by `lm.flops`, over the rate at which the tried users were scored with every slot busy,
and what the first of these trials took beside its scoring; where nobody tried had an item to score, each user takes as
long as one of these. The time to write cannot be tried without writing: commits and audit are first uses of code, as
the start is, and took about as long wherever it was measured; rows come on top.
"""

from __future__ import annotations

import io
import logging
import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from flmrec_spark import columns as c
from flmrec_spark import scoring
from flmrec_spark.config import ScoreConfig
from flmrec_spark.errors import InputError
from flmrec_spark.job import Job
from flmrec_spark.lm.flops import item_flops
from flmrec_spark.report.console import WIDTH
from flmrec_spark.stages import partitions
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.stages.trial import sample

log = logging.getLogger("flmrec")

_TRIAL_S = 2.0  # of scoring, on every slot
_MOST = 200  # users tried on a slot
_WRITE_PER_START = 1.0  # commits and audit of a run without rows, in units of its start
_ROW_S = 8e-6  # to stage, audit and publish a row of a list
_TABLES = 2  # a list stands in top_n and in recommendations


@dataclass(frozen=True)
class Tried:
    """A few users that were scored."""

    flops_per_s: float  # of one slot; 0 where none of them had an item to score: of `join: full` and candidates
    rows_per_user: float
    bytes_per_row: float  # as Parquet
    stage_s: float  # of a score stage, beside the scoring
    user_s: float  # of one slot, for one of them

    def seconds(self, work: partitions.Work, slots: int) -> float:
        """To score all users on so many slots."""
        if self.flops_per_s > 0:
            return work.flops / (self.flops_per_s * slots)
        return self.user_s * work.users / slots


def estimate(job: Job, shipped: Shipped, prompts: DataFrame, work: partitions.Work) -> None:
    """Leaves the estimate in the job's `counts` and `seconds`, in the places of a real run, and prints it.

    Args:
      prompts: as `user_prompts.user_prompts`.
      work: of all of them.

    Raises:
      InputError: there is no user to try.
    """
    slots = scoring.slots(shipped)
    tried = _try(shipped, prompts, config=job.config.score, slots=slots)
    scoring.count(job, shipped)
    rows = round(tried.rows_per_user * work.users)
    once = item_flops(shipped.cost.shape, shipped.cost.item_tokens) * shipped.n_items
    job.counts |= {
        "users": work.users,
        "pairs": work.pairs,
        "tokens": work.user_tokens + round(shipped.cost.item_tokens * shipped.n_items),
        "gflop": round((work.flops + once) / 1e9),
        "rows": rows,
        "table_mb": round(_TABLES * rows * tried.bytes_per_row / 1e6),
    }
    if tried.flops_per_s == 0 and work.flops > 0:
        log.warning("score: none of the users that were tried has an item to score: expect more than is estimated")
    job.add_seconds("score", tried.stage_s + tried.seconds(work, slots))
    job.add_seconds("write", _WRITE_PER_START * job.seconds["start"] + _TABLES * rows * _ROW_S)
    job.add_seconds("wall", sum(job.seconds.values()))
    _show(job, slots)


def _try(shipped: Shipped, prompts: DataFrame, *, config: ScoreConfig, slots: int) -> Tried:
    started = time.perf_counter()
    first, _, _ = _score(shipped, sample(prompts, slots), config=config, slots=slots)
    stage_s = max(0.0, time.perf_counter() - started - first)
    n_users = min(_MOST, max(2, round(_TRIAL_S / first))) * slots
    users = sample(prompts, n_users)
    per_user, listed, users_tried = _score(shipped, users, config=config, slots=slots)
    flops = partitions.measure(users, shipped.cost).flops / users_tried
    sink = io.BytesIO()
    pq.write_table(listed, sink)
    rows = max(1, listed.num_rows)
    return Tried(flops / per_user, rows / users_tried, sink.tell() / rows, stage_s, per_user)


def _score(shipped: Shipped, users: DataFrame, *, config: ScoreConfig, slots: int) -> tuple[float, pa.Table, int]:
    """(seconds per user of one slot while all are busy, the lists, users)."""
    before = shipped.usage.sums()
    diversity = config.diversity if config.diversity.is_on else None
    lists = scores(users.repartition(slots), shipped, n=config.staged_n, diversity=diversity)
    listed = lists.where(F.col(c.RANK) > 0).toArrow()
    after = shipped.usage.sums()
    n_users = after.get("users", 0.0) - before.get("users", 0.0)
    if not n_users:
        raise InputError("users: got none, expected some of whom a few are scored for --dry-run")
    return (after["busy_s"] - before.get("busy_s", 0.0)) / n_users, listed, int(n_users)


def _show(job: Job, slots: int) -> None:
    counts, seconds = job.counts, job.seconds
    table = Table("what", "expected", title="flmrec score --dry-run: nothing was written", title_justify="left")
    for name in ("users", "items", "pairs", "tokens", "gflop", "rows"):
        table.add_row(name, f"{counts[name]:,}")
    table.add_row("precision", f"{job.versions['precision']} ({job.versions['precision_because']})")
    if "diversity" in job.versions:
        table.add_row("diversity", job.versions["diversity"])
    table.add_row("tables, both", f"{counts['table_mb']:,} MB")
    table.add_row("memory of all processes", f"{counts['peak_rss_mb'] / 1024:.1f} GiB")
    table.add_row("time", f"{seconds['wall']:,.0f} s on {slots} cores or GPUs")
    for name in ("start", "ship", "items", "score", "write"):
        table.add_row(f"  {name}", f"{seconds[name]:,.1f} s")
    Console(width=WIDTH).print(table)
