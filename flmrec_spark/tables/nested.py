"""Folders within a source's folder that Spark's readers would pass over without a word."""

from __future__ import annotations

from itertools import islice

from pyspark.sql import SparkSession

from flmrec_spark.config import Source
from flmrec_spark.errors import InputError
from flmrec_spark.tables import hadoop

_LOOKED_AT = 1000  # entries of a folder


def expect_none(spark: SparkSession, source: Source, *, name: str) -> None:
    """Of a source with a path: folders named like `day=1` are read, and all with the option recursiveFileLookup.

    Raises:
      InputError: another folder is there, whose files would not be read.
    """
    if str(source.options.get("recursiveFileLookup", False)).lower() == "true":
        return
    system, place = hadoop.opened(spark, source.place)
    for given in system.globStatus(place) or ():
        within = system.listStatus(given.getPath()) if given.isDirectory() else ()
        for one in islice(within, _LOOKED_AT):
            own = str(one.getPath().getName())
            if one.isDirectory() and "=" not in own and not own.startswith((".", "_")):
                raise InputError(
                    f"{name}: got the folder {own!r} in {source.place}, whose files would not be read, expected files "
                    f"or folders named like day=1; {name}.options.recursiveFileLookup: true reads folders of any name"
                )
