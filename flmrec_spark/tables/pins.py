"""Sources that somebody may append to while a job reads them: a Delta table is read at one version."""

from __future__ import annotations

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from flmrec_spark.config import Source
from flmrec_spark.tables import history

VERSION = "versionAsOf"
_OWN = {VERSION.lower(), "timestampasof"}


def pinned(spark: SparkSession, source: Source) -> tuple[Source, str]:
    """The source as of now, and its place, with its version where it is a Delta table.

    One that is none, is not there, or asks for a version of its own comes back as it is.
    """
    if source.format not in ("delta", None) or _OWN & {key.lower() for key in source.options}:
        return source, source.place
    try:
        if source.path is not None:
            table = DeltaTable.forPath(spark, source.path)
        else:
            table = DeltaTable.forName(spark, source.place)
        version = history.state(table).version
    except (PySparkException, Py4JJavaError):  # whoever reads it says why
        return source, source.place
    options = {**source.options, VERSION: version}
    return source.model_copy(update={"options": options}), f"{source.place}@{version}"
