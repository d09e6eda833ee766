"""What a scoring run and its dry run do alike: settle on a precision, add up the work, get executors ready, count."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.job import Job
from flmrec_spark.ship import settled
from flmrec_spark.stages import partitions, scores
from flmrec_spark.stages.scores import Shipped


def make_ready(job: Job, shipped: Shipped, prompts: DataFrame) -> tuple[Shipped, partitions.Work]:
    """Plans the users of `user_prompts` under `seconds["score"]`, then loads the model everywhere under `items`."""
    with job.timed("score", "plan"):
        work = partitions.measure(prompts, shipped.cost)
        shipped, told = settled(shipped, prompts, job.config.score)
        job.versions |= told
    with job.timed("items"):
        scores.make_ready(job.spark, shipped, tasks=job.spark.sparkContext.defaultParallelism).collect()
    return shipped, work


def slots(shipped: Shipped) -> int:
    """Python processes that score at once, as `make_ready` found them."""
    return max(1, len(shipped.usage.loads()))


def spread(job: Job, shipped: Shipped, prompts: DataFrame, work: partitions.Work) -> DataFrame:
    """The users in the tasks of the score stage."""
    at_once = max(slots(shipped), job.spark.sparkContext.defaultParallelism)
    plan = partitions.rounds(at_once, users=work.users, tasks=job.config.score.partitions)
    return partitions.spread(prompts, shipped.cost, work, plan)


def count(job: Job, shipped: Shipped) -> None:
    """Adds what the tasks told to `counts`; nothing where this run found its lists staged."""
    sums, loads = shipped.usage.sums(), shipped.usage.loads()
    n_item_tokens = round(shipped.cost.item_tokens * shipped.n_items)
    if "pairs" in sums:
        job.counts |= {"pairs": int(sums["pairs"]), "tokens": int(sums["user_tokens"]) + n_item_tokens}
        job.counts["scorer_ms"] = round(1000 * sums["busy_s"])  # of all tasks together
    if loads:
        job.counts |= {"workers": len(loads), "model_loads": sum(loads.values())}
    job.counts["peak_rss_mb"] = sum((shipped.usage.peaks_mb() | _driver_peaks(job.spark)).values())


def _driver_peaks(spark: SparkSession) -> dict[str, int]:
    from flmrec_spark.lm import memory

    jvm = spark.sparkContext._jvm
    assert jvm is not None
    return memory.peak_mb() | memory.peak_mb(int(jvm.java.lang.ProcessHandle.current().pid()))
