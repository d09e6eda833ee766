"""Reading sources: every format, names of any kind, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from flmrec_spark import columns as c
from flmrec_spark.config import Source
from flmrec_spark.errors import ConfigError, InputError
from flmrec_spark.stages.interactions import check_timestamp_format
from flmrec_spark.tables.sources import read_source, reading
from flmrec_spark.tables.text_files import MALFORMED

IDS = (c.USER_ID, c.ITEM_ID)


def rows(spark: SparkSession, source: Source, **settings: Any) -> list[tuple[Any, ...]]:
    settings = {"required": IDS, "optional": c.INTERACTION_COLUMNS} | settings
    frame = read_source(spark, source, name="prepare.interactions", **settings)
    return [tuple(row) for row in frame.collect()]


def items(spark: SparkSession, source: Source) -> Any:
    return read_source(
        spark, source, name="prepare.items", required=(c.ITEM_ID,), optional=(c.TITLE,), with_attributes=True
    )


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_csv_keeps_ids_as_given_and_bad_lines_as_malformed(spark: SparkSession, tmp_path: Path) -> None:
    text = '\ufeffuser_id,item_id,rating\n007, i 1,3\n"a ""q"", b",é雪,\n\nshort,i\nlong,i,4,5\n"open,i,1\n'
    source = Source(path=write(tmp_path / "a.csv", text), format="csv")
    got = rows(spark, source)
    assert got[:2] == [("007", " i 1", "3", None), ('a "q", b', "é雪", None, None)]
    assert [row[-1] for row in got[2:]] == ["short,i", "long,i,4,5", '"open,i,1']


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_folder_in_the_folder_is_not_passed_over(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    for folder in ("log/2017-11-25", "log/_work", "log/day=1"):
        (tmp_path / folder).mkdir(parents=True)
        if kind == "parquet":
            pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"]}), tmp_path / folder / "a.parquet")
        else:
            sign = "," if kind == "csv" else "\t"
            write(tmp_path / folder / "a", f"user_id{sign}item_id\nu{sign}i\n")
    source = Source(path=str(tmp_path / "log"), format=kind)
    with pytest.raises(
        InputError, match=r"got the folder '2017-11-25' in .*/log, whose files would not be read"
    ) as got:
        rows(spark, source)
    assert "prepare.interactions.options.recursiveFileLookup: true" in str(got.value)
    whole = source.model_copy(update={"options": {"recursiveFileLookup": True}})
    assert [row[:2] for row in rows(spark, whole)] == [("u", "i")] * 2  # Spark takes no folder that begins with _
    (tmp_path / "log/2017-11-25/a").unlink(missing_ok=True)
    (tmp_path / "log/2017-11-25/a.parquet").unlink(missing_ok=True)
    (tmp_path / "log/2017-11-25").rmdir()
    assert [row[:2] for row in rows(spark, source)] == [("u", "i")]
    assert [row[:2] for row in rows(spark, source.model_copy(update={"path": str(tmp_path / "l*g/day=1")}))] == [
        ("u", "i")
    ]


def test_columns_in_another_order_are_told_where_the_header_lacks_a_name(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path / "1.csv", ",user_id,item_id\n0,u,i\n")
    source = Source(path=str(tmp_path), format="csv")
    assert rows(spark, source)[0][:2] == ("u", "i")
    write(tmp_path / "2.csv", ",item_id,user_id\n0,i,u\n")
    with pytest.raises(InputError, match="got files with other headers, expected the same in all of them"):
        rows(spark, source)


def test_a_column_of_items_with_a_name_of_ours_is_left_alone_where_the_config_says_so(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", "sku,name,brand,rating\n1,Tea,Ito,4.5\n")
    source = Source(path=path, format="csv", columns={"item_id": "sku", "title": "name"})
    with pytest.raises(ConfigError, match=r"leave it alone by prepare\.items\.columns: \{rating: null\}"):
        items(spark, source)
    alone = source.model_copy(update={"columns": {**source.columns, "rating": None}})
    assert items(spark, alone).columns == ["item_id", "title", "brand", MALFORMED]
    with pytest.raises(ConfigError, match=r"prepare.items.columns.ratign: got null, expected a column to leave alone"):
        items(spark, source.model_copy(update={"columns": {**source.columns, "ratign": None}}))
    unmapped = Source(path=path, format="csv", columns={"item_id": "sku", "title": None, "rating": None})
    assert items(spark, unmapped).columns == ["item_id", "name", "brand", MALFORMED]


def test_a_bad_line_is_found_also_when_few_of_the_columns_are_wanted(spark: SparkSession, tmp_path: Path) -> None:
    text = "year,user_id,genre,item_id,more\n1,u,g,i,m\n1,u,g\n1,u,g,i,m,m\n"
    source = Source(path=write(tmp_path / "a.csv", text), format="csv")
    assert [row[-1] for row in rows(spark, source)] == [None, "1,u,g", "1,u,g,i,m,m"]


def test_a_tsv_has_no_quoting(spark: SparkSession, tmp_path: Path) -> None:
    source = Source(path=write(tmp_path / "a.tsv", 'user_id\titem_id\n"u\ti"\nback\\\ti\n'), format="tsv")
    assert rows(spark, source) == [('"u', 'i"', None), ("back\\", "i", None)]


def test_columns_map_names_with_colons_dots_and_backticks(spark: SparkSession, tmp_path: Path) -> None:
    columns = {"user_id": "user_id:token", "item_id": "it.em`x"}
    source = Source(path=write(tmp_path / "a.csv", "user_id:token,it.em`x\nu,i\n"), format="csv", columns=columns)
    assert rows(spark, source) == [("u", "i", None)]


def test_a_file_without_header_and_with_another_separator_is_read_by_position(
    spark: SparkSession, tmp_path: Path
) -> None:
    source = Source(
        path=write(tmp_path / "ratings.dat", "1::20::5\n2::30::4\n"),
        format="csv",
        columns={"user_id": "_c0", "item_id": "_c1", "rating": "_c2"},
        options={"header": False, "sep": "::"},
    )
    assert rows(spark, source) == [("1", "20", "5", None), ("2", "30", "4", None)]


def test_an_unnamed_index_column_does_no_harm(spark: SparkSession, tmp_path: Path) -> None:
    source = Source(path=write(tmp_path / "a.csv", ",user_id,item_id\n0,u,i\n"), format="csv")
    assert rows(spark, source) == [("u", "i", None)]


def test_parquet_delta_and_catalog_tables_give_ids_as_strings(
    spark: SparkSession, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    frame = spark.createDataFrame([(7, 8, 2.5)], "user_id long, item_id int, rating double")
    frame.write.parquet(str(tmp_path / "p"))
    frame.write.format("delta").save(str(tmp_path / "d"))
    spark.sql(f"CREATE TABLE source_rows USING DELTA LOCATION '{tmp_path}/d'")
    request.addfinalizer(lambda: spark.sql("DROP TABLE source_rows"))
    sources = [Source(path=str(tmp_path / "p"), format="parquet"), Source(path=str(tmp_path / "d"), format="delta")]
    for source in [*sources, Source(table="source_rows")]:
        assert rows(spark, source) == [("7", "8", 2.5, None)]
    with pytest.raises(InputError, match=r"got a Delta table, expected Parquet files; set .*format: delta"):
        rows(spark, Source(path=str(tmp_path / "d"), format="parquet"))


def test_every_further_column_with_a_plain_name_is_an_attribute(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(
        path=write(tmp_path / "a.csv", "item_id,title,year,two words,_hidden\ni,t,1999,x,y\n"), format="csv"
    )
    assert items(spark, source).columns == ["item_id", "title", "year", MALFORMED]
    assert "two words, _hidden" in caplog.text
    chosen = source.model_copy(update={"attributes": {"words": "two words"}})
    assert items(spark, chosen).columns == ["item_id", "title", "words", MALFORMED]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attributes": {"profile": "a"}}, r"prepare.items.attributes: got 'profile', expected a plain name"),
        ({"attributes": {"two words": "a"}}, r"got 'two words', expected a plain name"),
        ({"attributes": {"a": "a", "A": "a"}}, r"got A, a, expected names that differ by more than case"),
        ({"attributes": {"a": "a"}, "types": {"b": "int"}}, r"prepare.items.types.b: no such attribute, known: a"),
        ({"columns": {"genre": "a"}}, r"prepare.items.columns.genre: .* expected one of item_id, title; name it in"),
        ({"options": {"mode": "DROPMALFORMED"}}, r"prepare.items.options.mode: not yours to set"),
        ({}, r"got 'Title', expected a plain name that is none of .*map it in prepare.items.columns"),
    ],
)
def test_a_wrong_mapping_is_a_config_error(
    spark: SparkSession, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    source = Source(path=write(tmp_path / "a.csv", "item_id,a,Title\ni,x,t\n"), format="csv", **settings)
    with pytest.raises(ConfigError, match=message):
        items(spark, source)


def test_one_column_for_two_of_ours_is_a_config_error(spark: SparkSession, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user_id,item_id\nu,i\n")
    told = r"prepare.interactions.columns: got column 'item_id' for user_id and item_id, expected one of its own"
    with pytest.raises(ConfigError, match=told):
        rows(spark, Source(path=path, format="csv", columns={"user_id": "item_id"}))  # a swap that is half written
    whole = Source(path=path, format="csv", columns={"user_id": "item_id", "item_id": "user_id"})
    assert rows(spark, whole) == [("i", "u", None)]


def test_a_column_that_stands_twice_is_named_and_numbered_ones_are_others(spark: SparkSession, tmp_path: Path) -> None:
    twice = write(tmp_path / "a.csv", "user_id,item_id,note,note\nu,i,a,b\n")
    with pytest.raises(
        InputError, match=r"got the column 'note' more than once, expected each name once in the header"
    ):
        rows(spark, Source(path=twice, format="csv"))
    cased = write(tmp_path / "c.csv", "user_id,item_id,Note,note\nu,i,a,b\n")
    with pytest.raises(InputError, match=r"got the column 'note' more than once"):
        rows(spark, Source(path=cased, format="csv"))
    numbered = write(tmp_path / "b.csv", "x0,x1,user_id,item_id\na,b,u,i\n")
    assert rows(spark, Source(path=numbered, format="csv")) == [("u", "i", None)]


def test_a_header_with_blanks_and_a_missing_one_are_seen_in_the_message(spark: SparkSession, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user_id, item_id\nu,i\n")
    with pytest.raises(InputError, match=r"a.csv has user_id, ' item_id'; of a file without a header, set .*_c0, _c1"):
        rows(spark, Source(path=path, format="csv"))


def test_attributes_of_interactions_are_a_config_error(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"prepare.interactions: got attributes or types, expected none"):
        rows(spark, Source(path="x", format="csv", attributes={"a": "a"}))


def test_a_missing_column_names_those_that_are_there(spark: SparkSession, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item_id\nu,i\n")
    with pytest.raises(InputError, match=r"no column 'user_id', .*columns.user_id\); .*a.csv has user, item_id"):
        rows(spark, Source(path=path, format="csv"))
    with pytest.raises(InputError, match=r"got no column 'stars', expected one for rating"):
        rows(spark, Source(path=path, format="csv", columns={"user_id": "user", "rating": "stars"}))
    attributes = Source(path=path, format="csv", attributes={"genre": "Genre"})
    with pytest.raises(InputError, match=r"got no column 'Genre', expected one for the attribute genre; .* has user"):
        items(spark, attributes)


def test_a_column_of_a_wrong_type_is_an_input_error(spark: SparkSession, tmp_path: Path) -> None:
    columns = "user_id double, item_id string, rating array<string>, name string"
    frame = spark.createDataFrame([(1.0, "i", ["x"], "u")], columns)
    frame.write.parquet(str(tmp_path / "p"))
    source = Source(path=str(tmp_path / "p"), format="parquet")
    with pytest.raises(InputError, match=r"'user_id': got type double, expected a string or a whole number"):
        rows(spark, source)
    with pytest.raises(InputError, match=r"'rating': got type array<string>, expected a string, a number"):
        rows(spark, source.model_copy(update={"columns": {"user_id": "name"}}))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "delta"])
def test_a_missing_file_is_one_line(spark: SparkSession, tmp_path: Path, kind: Any) -> None:
    with pytest.raises(InputError, match=rf"got {tmp_path}/nope, expected a {kind} file or folder; there is none$"):
        rows(spark, Source(path=f"{tmp_path}/nope", format=kind))


def test_a_missing_table_is_one_line(spark: SparkSession) -> None:
    with pytest.raises(InputError, match=r"got no_base.none, expected a catalog table; there is none$"):
        rows(spark, Source(table="no_base.none"))


def test_a_source_of_another_format_is_an_input_error(spark: SparkSession, tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", "user_id,item_id\nu,i\n")
    with pytest.raises(InputError, match=r"a.csv is not a parquet file or folder: .*not a Parquet file"):
        rows(spark, Source(path=csv, format="parquet"))
    with pytest.raises(InputError, match=r"is not a delta file or folder|there is none"):
        rows(spark, Source(path=str(tmp_path), format="delta"))
    spark.range(3).write.parquet(str(tmp_path / "p"))
    with pytest.raises(InputError, match=r"got bytes that are no UTF-8 text, expected a csv"):
        rows(spark, Source(path=str(tmp_path / "p"), format="csv"))


def test_an_empty_file_or_folder_is_an_input_error(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got an empty file, expected a csv with rows"):
        rows(spark, Source(path=write(tmp_path / "a.csv", ""), format="csv"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"got an empty folder, expected a csv file or folder with rows"):
        rows(spark, Source(path=str(tmp_path / "folder"), format="csv"))


def test_files_of_one_folder_with_other_headers_are_an_input_error(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "user_id,item_id\nu,i\n")
    write(tmp_path / "2.csv", "item_id,user_id\ni,u\n")
    source = Source(path=str(tmp_path), format="csv")
    with (
        pytest.raises(InputError, match=r"is not readable to its end: CSV header does not conform"),
        reading(source, "prepare.interactions"),
    ):
        rows(spark, source)


def test_a_timestamp_format_is_checked_before_any_row_is_read(spark: SparkSession) -> None:
    check_timestamp_format(spark, "auto")
    check_timestamp_format(spark, "dd/MM/yyyy HH:mm")
    with pytest.raises(ConfigError, match=r"prepare.timestamp_format: got 'YYYY-ww', expected auto"):
        check_timestamp_format(spark, "YYYY-ww")


def test_a_folder_with_columns_in_its_names_is_read_as_one_table(spark: SparkSession, tmp_path: Path) -> None:
    for split, user in (("train", "007"), ("test", "u")):
        (tmp_path / f"log/split={split}/event=01").mkdir(parents=True)
        write(tmp_path / f"log/split={split}/event=01/a.csv", f"user_id,item_id\n{user},i\nshort\n")
    found = sorted(rows(spark, Source(path=str(tmp_path / "log"), format="csv")), key=str)
    assert found == [
        ("007", "i", "01", "train", None),
        ("short", None, "01", "test", "short"),
        ("short", None, "01", "train", "short"),
        ("u", "i", "01", "test", None),
    ]
    frame = spark.createDataFrame([("u", "i", "007")], "user_id string, item_id string, event string")
    frame.write.partitionBy("event").parquet(str(tmp_path / "parquet"))
    assert rows(spark, Source(path=str(tmp_path / "parquet"), format="parquet")) == [("u", "i", "007", None)]


def test_bytes_of_another_encoding_are_told_and_read_by_its_name(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "item_id,title\n" + "".join(f"{place},红色运动鞋{place}\n" for place in range(9))
    (tmp_path / "a.csv").write_bytes(text.encode("gbk"))
    source = Source(path=str(tmp_path / "a.csv"), format="csv")
    with pytest.raises(InputError, match=r"no UTF-8 text in 9 of 9 rows, .* in prepare.items.options.encoding"):
        items(spark, source)
    (tmp_path / "c.csv").write_bytes(text.encode("utf-16"))
    wide = Source(path=str(tmp_path / "c.csv"), format="csv", options={"encoding": "UTF-16"})
    with pytest.raises(InputError, match=r"with prepare.items.options.multiLine: true where that is UTF-16"):
        items(spark, wide)
    assert items(spark, wide.model_copy(update={"options": {"encoding": "UTF-16", "multiLine": True}})).count() == 9
    found = items(spark, source.model_copy(update={"options": {"encoding": "GBK"}})).collect()
    assert found[3]["title"] == "红色运动鞋3"
    few = "item_id,title\n" + "".join(f"{place},t\n" for place in range(20)) + "x,torn \ufffd\n"
    assert not caplog.messages
    assert items(spark, Source(path=write(tmp_path / "b.csv", few), format="csv")).count() == 21
    assert "prepare.items: got bytes that are no UTF-8 text in 1 of the first 21 rows" in caplog.text


def test_a_column_that_is_named_null_is_not_taken(spark: SparkSession, tmp_path: Path) -> None:
    place = write(tmp_path / "a.csv", "user_id,item_id,event,timestamp\nu,i,view,5\n")
    source = Source(path=place, format="csv", columns={"event": None})
    assert rows(spark, source) == [("u", "i", "5", None)]
    with pytest.raises(InputError, match=r"got no column None, expected one for user_id"):
        rows(spark, source.model_copy(update={"columns": {"user_id": None}}))


def test_times_as_pandas_writes_them_are_read(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": pa.array([964982703123456789], pa.timestamp("ns"))}),
        tmp_path / "a.parquet",
    )
    assert rows(spark, Source(path=str(tmp_path / "a.parquet"), format="parquet")) == [
        ("u", "i", 964982703123456789, None)
    ]
