"""Reading and committing Delta tables: the only module that does either.

A table lives at <tables.root>/<name> and is registered in the catalog as <tables.database>.<name>; without a
root the catalog decides where. Every write is one Delta commit that carries its constraints and a JSON of
what made it, so a reader sees the old complete table or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import ConflictError, FlmrecError, InputError
from flmrec_spark.tables.schemas import TableSchema

_SAME_ROWS = ("SET TBLPROPERTIES", "CHANGE COLUMN", "OPTIMIZE", "VACUUM START", "VACUUM END")
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
        root = self.config.root.rstrip("/")
        return f"{root if '://' in root else Path(root).absolute()}/{name}"

    def exists(self, name: str) -> bool:
        if self.config.root is None:
            return self.spark.catalog.tableExists(self._catalog_name(name))
        return DeltaTable.isDeltaTable(self.spark, self.place(name))

    def read(self, name: str) -> DataFrame:
        """The table as of now. Raises InputError when it is not there."""
        if not self.exists(name):
            raise InputError(f"table {name}: not found at {self.place(name)}; run the job that writes it first")
        return self._delta(name).toDF()

    def version(self, name: str) -> int:
        """The version that `read` sees now. Raises InputError when the table is not there."""
        self.read(name)
        return int(self._delta(name).history(1).collect()[0]["version"])

    def commits(self, name: str) -> list[dict[str, Any]]:
        """What made each version that changed rows, newest first: the metadata given to `replace`, {} if foreign."""
        if not self.exists(name):
            return []
        history = self._delta(name).history().select("operation", "userMetadata").collect()
        return [_parsed(row["userMetadata"]) for row in history if row["operation"] not in _SAME_ROWS]

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
            self._register(schema.name)
            return False
        self.replace(schema, frame, {**metadata, "content": content})
        return True

    def replace_rows(self, schema: TableSchema, frame: DataFrame, predicate: str, metadata: Metadata) -> None:
        """Replaces the rows for which the predicate holds, in one commit; every new row must satisfy it.

        Raises:
          InputError, ConflictError: as `replace`.
        """
        self._write(schema, frame, metadata, options={"replaceWhere": predicate} if self.exists(schema.name) else {})

    def create_view(self, name: str, query: str) -> None:
        """A catalog view, replaced when it is there."""
        self._create_database()
        self.spark.sql(f"CREATE OR REPLACE VIEW {self._catalog_name(name)} AS {query}")

    def reference(self, name: str) -> str:
        """How SQL of any session names the table."""
        return self._catalog_name(name)

    def _write(self, schema: TableSchema, frame: DataFrame, metadata: Metadata, options: Mapping[str, str]) -> None:
        selected = schema.select(frame)
        new = not self.exists(schema.name)
        if not new:
            self._expect_ours(schema)
        writer = selected.write.format("delta").mode("overwrite").option("userMetadata", json.dumps(metadata))
        for key, value in options.items():
            writer = writer.option(key, value)
        if new:
            writer = writer.partitionBy(*schema.partition_by)
            for key, predicate in _constraint_properties(schema).items():
                writer = writer.option(key, predicate)
        with _conflicts_named(schema.name, self.place(schema.name)):
            if self.config.root is None:
                self._create_database()
                writer.saveAsTable(self._catalog_name(schema.name))
            else:
                writer.save(self.place(schema.name))
        if new:
            self._register(schema.name)
            comment = schema.comment.replace("'", "\\'")
            self.spark.sql(f"COMMENT ON TABLE {self._catalog_name(schema.name)} IS '{comment}'")

    def _expect_ours(self, schema: TableSchema) -> None:
        properties = self._delta(schema.name).detail().collect()[0]["properties"]
        place = self.place(schema.name)
        if not _constraint_properties(schema).items() <= properties.items():
            raise ConflictError(
                f"table {schema.name}: the table at {place} lacks this project's constraints; it is left alone"
            )
        got = {field.name: field.dataType.simpleString() for field in self._delta(schema.name).toDF().schema.fields}
        expected = {col.name: col.type.simpleString() for col in schema.columns}
        if got != expected and not schema.may_change:
            differ = sorted(set(got.items()) ^ set(expected.items()))
            raise ConflictError(f"table {schema.name}: columns at {place} differ from this version's: {differ}")

    def _register(self, name: str) -> None:
        if self.config.root is None:
            return
        self._create_database()
        full, place = self._catalog_name(name), self.place(name)
        self.spark.sql(f"CREATE TABLE IF NOT EXISTS {full} USING DELTA LOCATION '{place}'")
        registered = self.spark.sql(f"DESCRIBE DETAIL {full}").collect()[0]["location"]
        if "://" not in place and registered.removeprefix("file:").replace("//", "/") != place:
            raise ConflictError(
                f"catalog: {full} is {registered}, expected {place}; "
                "set tables.database to a name of this configuration's own"
            )

    def _create_database(self) -> None:
        self.spark.sql(f"CREATE DATABASE IF NOT EXISTS {self.config.database}")

    def _catalog_name(self, name: str) -> str:
        return f"{self.config.database}.{name}"

    def _delta(self, name: str) -> DeltaTable:
        if self.config.root is None:
            return DeltaTable.forName(self.spark, self._catalog_name(name))
        return DeltaTable.forPath(self.spark, self.place(name))


def content_digest(frame: DataFrame) -> str:
    """Count and sum of row hashes: equal for equal rows in any order."""
    hashed = frame.select(F.xxhash64(*frame.columns).cast("decimal(38,0)").alias("hash"))
    row = hashed.agg(F.count("*").alias("rows"), F.coalesce(F.sum("hash"), F.lit(0)).alias("sum")).collect()[0]
    return f"{row['rows']}:{row['sum']}"


def _constraint_properties(schema: TableSchema) -> dict[str, str]:
    return {f"delta.constraints.{name}": predicate for name, predicate in schema.constraints().items()}


def run_predicate(run_id: str) -> str:
    """SQL predicate of a run's rows."""
    escaped = run_id.replace("\\", "\\\\").replace("'", "\\'")
    return f"{c.RUN_ID} = '{escaped}'"


@contextmanager
def _conflicts_named(name: str, place: str) -> Iterator[None]:
    try:
        yield
    except (PySparkException, Py4JJavaError) as fault:
        kind = _java_class(fault)
        if any(word in kind for word in _CONFLICTS):
            raise ConflictError(f"table {name}: another writer committed to {place} first; run again") from fault
        raise FlmrecError(f"table {name}: not written to {place}: {_first_line(fault)}") from fault


def _java_class(fault: Exception) -> str:
    java = getattr(fault, "java_exception", None) or getattr(fault, "_origin", None)
    return str(java.getClass().getSimpleName()) if java is not None else str(fault)[:200]


def _first_line(fault: Exception) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by")]
    return (causes[-1] if causes else lines[0] if lines else type(fault).__name__)[:500]


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
