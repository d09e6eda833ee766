"""Reading and committing Delta tables: in the jobs the only module that does either.

A table lives at <tables.root>/<name> and is registered in the catalog as <tables.database>.<name>; without a
root the catalog decides where. Every write is one Delta commit that carries a JSON of what made it, the
first one the constraints too, so a reader sees the old complete table or the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import ConflictError, EnvironmentFault, InputError
from flmrec_spark.files import table_place
from flmrec_spark.tables import hadoop, history
from flmrec_spark.tables.history import State
from flmrec_spark.tables.schemas import TableSchema
from flmrec_spark.tables.spark_errors import kinds, spark_message, worker_error

_CONFLICTS = ("Concurrent", "MetadataChanged", "ProtocolChanged")

Metadata = Mapping[str, object]


@dataclass(frozen=True)
class Tables:
    """The project's tables in one place of the lakehouse."""

    spark: SparkSession
    config: TablesConfig

    def place(self, name: str) -> str:
        """Path of the table when there is a root, else its catalog name."""
        if self.config.root is None:
            return self._catalog_name(name)
        return table_place(self.config.root, name)

    def exists(self, name: str) -> bool:
        if self.config.root is None:
            return self.spark.catalog.tableExists(self._catalog_name(name))
        return DeltaTable.isDeltaTable(self.spark, self.place(name))

    def read(self, name: str, *, version: int | None = None) -> DataFrame:
        """The table as of a version, or as of each time it is read. Raises InputError when it is not there."""
        if not self.exists(name):
            raise InputError(f"table {name}: not found at {self.place(name)}; run the job that writes it first")
        if version is None:
            return self._delta(name).toDF()
        reader = self.spark.read.format("delta").option("versionAsOf", version)
        return reader.table(self._catalog_name(name)) if self.config.root is None else reader.load(self.place(name))

    def version(self, name: str) -> int:
        """The version that `read` sees now. Raises InputError when the table is not there."""
        return self.state(name).version

    def state(self, name: str) -> State:
        """What `read` sees now. Raises InputError when the table is not there."""
        self.read(name)
        return history.state(self._delta(name))

    def commits(self, name: str) -> list[dict[str, Any]]:
        """What made each version that changed rows, newest first: the metadata given to `replace`, {} if foreign."""
        return [made for _, made in history.changes(self._delta(name))] if self.exists(name) else []

    def replace(self, schema: TableSchema, frame: DataFrame, metadata: Metadata) -> None:
        """Replaces the whole table, in one commit.

        Raises:
          InputError: the frame does not fit the schema.
          ConflictError: a table of somebody else stands there, or another writer committed first.
        """
        self._write(schema, frame, metadata, options={"overwriteSchema": "true"} if schema.may_change else {})

    def replace_if_changed(self, schema: TableSchema, frame: DataFrame, metadata: Metadata) -> bool:
        """`replace`, unless the last commit wrote the same rows, in any order; true when it wrote."""
        content = content_digest(schema.select(frame))
        last = self.commits(schema.name)[:1]
        if last and last[0].get("content") == content:
            self.register(schema.name)
            return False
        self.replace(schema, frame, {**metadata, "content": content})
        return True

    def replace_rows(self, schema: TableSchema, frame: DataFrame, predicate: str, metadata: Metadata) -> None:
        """Replaces the rows for which the predicate holds, in one commit; every new row must satisfy it.

        Raises:
          InputError, ConflictError: as `replace`.
        """
        self._write(schema, frame, metadata, options={"replaceWhere": predicate} if self.exists(schema.name) else {})

    def expect_room(self, schema: TableSchema) -> None:
        """Raises ConflictError where a table or a name of somebody else is in the way, before hours are spent."""
        if self.exists(schema.name):
            self._expect_ours(schema)
        self._expect_name(schema.name)

    def register(self, name: str) -> None:
        """Gives a table that is there its name in the catalog, if that lacks it."""
        if not self._expect_name(name):
            self._name(name)

    def create_view(self, name: str, query: str) -> None:
        """A catalog view, replaced when it is there."""
        self.spark.sql(f"CREATE OR REPLACE VIEW {self._made_database}.{name} AS {query}")

    def reference(self, name: str) -> str:
        """How SQL of any session names the table."""
        return self._catalog_name(name)

    def _write(self, schema: TableSchema, frame: DataFrame, metadata: Metadata, options: Mapping[str, str]) -> None:
        selected = schema.select(frame)
        new = not self.exists(schema.name)
        if not new:
            self._expect_ours(schema)
        is_named = self._expect_name(schema.name)
        writer = selected.write.format("delta").mode("overwrite").option("userMetadata", json.dumps(metadata))
        for key, value in options.items():
            writer = writer.option(key, value)
        if new:
            writer = writer.partitionBy(*schema.partition_by)
            for key, predicate in _constraint_properties(schema).items():
                writer = writer.option(key, predicate)
        with _faults_named(schema.name, self.place(schema.name)):
            if self.config.root is None:
                writer.saveAsTable(self._catalog_name(schema.name))
            else:
                writer.save(self.place(schema.name))
        if not is_named:
            self._name(schema.name)
        if new:
            comment = schema.comment.replace("'", "\\'")
            self.spark.sql(f"COMMENT ON TABLE {self._catalog_name(schema.name)} IS '{comment}'")

    def _expect_ours(self, schema: TableSchema) -> None:
        place = self.place(schema.name)
        try:
            properties = self._delta(schema.name).detail().collect()[0]["properties"]
        except AnalysisException:
            raise ConflictError(f"table {schema.name}: {place} is no Delta table; it is left alone") from None
        if not _constraint_properties(schema).items() <= properties.items():
            raise ConflictError(
                f"table {schema.name}: the table at {place} lacks this project's constraints; it is left alone"
            )
        got = {field.name: field.dataType.simpleString() for field in self._delta(schema.name).toDF().schema.fields}
        expected = {col.name: col.type.simpleString() for col in schema.columns}
        if got != expected and not schema.may_change:
            differ = sorted(set(got.items()) ^ set(expected.items()))
            raise ConflictError(f"table {schema.name}: columns at {place} differ from this version's: {differ}")

    def _expect_name(self, name: str) -> bool:
        """Whether the catalog has the name for our place. Raises ConflictError when it is something else's."""
        database = self._made_database
        if self.config.root is None:
            return True
        # Neither tableExists nor DESCRIBE answers for a table whose folder was removed.
        found = self.spark.sql(f"SHOW TABLE EXTENDED IN {database} LIKE '{name}'").collect()
        if not found:
            return False
        located = re.search(r"^Location: (.*)$", str(found[0]["information"]), re.MULTILINE)
        got, expected = located.group(1) if located else "a view", self.place(name)
        if located is None or hadoop.qualified(self.spark, got) != hadoop.qualified(self.spark, expected):
            raise ConflictError(
                f"catalog: {self._catalog_name(name)} is {got}, expected {expected}; "
                "set tables.database to a name of this configuration's own"
            )
        return True

    def _name(self, name: str) -> None:
        place = self.place(name).replace("\\", "\\\\").replace("'", "\\'")
        self.spark.sql(f"CREATE TABLE IF NOT EXISTS {self._catalog_name(name)} USING DELTA LOCATION '{place}'")

    @cached_property
    def _made_database(self) -> str:
        """The database, made where it is not there when it is first asked for."""
        self.spark.sql(f"CREATE DATABASE IF NOT EXISTS {self.config.database}")
        return self.config.database

    def _catalog_name(self, name: str) -> str:
        return f"{self.config.database}.{name}"

    def _delta(self, name: str) -> DeltaTable:
        if self.config.root is None:
            return DeltaTable.forName(self.spark, self._catalog_name(name))
        return DeltaTable.forPath(self.spark, self.place(name))


def content_digest(frame: DataFrame) -> str:
    """Columns, count and sum of row hashes: equal for equal rows in any order."""
    columns = hashlib.sha256(frame.schema.simpleString().encode()).hexdigest()[:12]
    # Spark's hash passes over nulls, so a value that moved to the column of a null needs the flags to be seen.
    hashed = F.xxhash64(*frame.columns, *[F.isnull(name) for name in frame.columns]).cast("decimal(38,0)")
    row = frame.agg(F.count("*").alias("rows"), F.coalesce(F.sum(hashed), F.lit(0)).alias("sum")).collect()[0]
    return f"{columns}:{row['rows']}:{row['sum']}"


def _constraint_properties(schema: TableSchema) -> dict[str, str]:
    return {f"delta.constraints.{name}": predicate for name, predicate in schema.constraints().items()}


def run_predicate(run_id: str, *, job: str | None = None) -> str:
    """SQL predicate of a run's rows, in a table where several jobs have rows those of one."""
    escaped = run_id.replace("\\", "\\\\").replace("'", "\\'")
    return f"{c.RUN_ID} = '{escaped}'" + ("" if job is None else f" AND job = '{job}'")


@contextmanager
def _faults_named(name: str, place: str) -> Iterator[None]:
    try:
        yield
    except (PySparkException, Py4JJavaError) as fault:
        ours = worker_error(fault)
        if ours is not None:
            raise ours from fault
        if any(word in kind for word in _CONFLICTS for kind in kinds(fault)):
            raise ConflictError(f"table {name}: another writer committed to {place} first; run again") from fault
        broken = any("InvariantViolation" in kind for kind in kinds(fault))
        error = InputError if broken else EnvironmentFault
        raise error(f"table {name}: not written to {place}: {spark_message(fault)}") from fault
