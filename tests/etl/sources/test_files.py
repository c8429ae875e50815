"""Which files a path means, and Parquet files that differ, through Spark."""

from datetime import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import CorruptInputError, HiddenInputError, MissingInputError, SchemaError
from etl.sources import files, frames

KINDS = {"user_id": "id", "value": "degrees"}


def find(spark, path):
    return files.find_files(spark, str(path), what="text", needed_by="A test", remedy="Look again.")


def pick(spark, path, kinds=KINDS):
    warnings = []
    opened = frames.open_parquet(spark, str(path), needed_by="A test", remedy="Look again.")
    frame = frames.pick_columns(
        opened, "a file", required={}, optional=kinds, remedy="Look again.", warnings=warnings
    )
    return sorted((tuple(row[name] for name in kinds) for row in frame.collect()), key=str), warnings


@pytest.mark.parametrize(
    "name", ["a b", "export [2026] {a,b}", "what?", "x*", "50%", "%20", "a#b", "d\u00f6rf", "a=b", "it's"]
)
def test_a_path_means_the_file_of_that_name(spark, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    (tmp_path / "xy").mkdir()
    (tmp_path / "xy" / "a.txt").write_text("another\n")  # what `x*` would match as a pattern

    found = find(spark, folder)

    assert [row[0] for row in spark.read.options(**found.options()).text(list(found.files)).collect()] == [
        "one"
    ]


def test_a_pattern_is_one_if_no_file_has_that_name(spark, tmp_path):
    for name in ("a1.txt", "a2.txt", "b.txt"):
        (tmp_path / name).write_text("x\n")

    assert [file[-6:] for file in find(spark, tmp_path / "a*.txt").files] == ["a1.txt", "a2.txt"]


def test_a_hidden_file_is_refused_by_hand_and_named_in_a_folder(spark, tmp_path):
    for name in ("_b.json", ".c.json", "a.json", "_SUCCESS", ".a.json.crc"):
        (tmp_path / name).write_text("x\n")
    nested = tmp_path / "more"
    nested.mkdir()
    (nested / "d.json").write_text("x\n")

    found = find(spark, tmp_path)

    assert [file.rpartition("/")[2] for file in found.files] == ["a.json", "d.json"]
    (warning,) = found.warnings
    assert "2 files" in warning
    assert "_b.json" in warning
    assert ".c.json" in warning
    with pytest.raises(HiddenInputError, match=r"_b\.json is there, but Spark leaves out"):
        find(spark, tmp_path / "_b.json")


def test_a_folder_without_files_is_missing_input(spark, tmp_path):
    with pytest.raises(MissingInputError, match="any text file"):
        find(spark, tmp_path)


def test_files_of_a_folder_may_differ_in_columns_and_in_types_of_ids(spark, tmp_path):
    pq.write_table(pa.table({"user_id": ["7"], "value": [1.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user_id": [7.0, None], "value": [2.0, 3.0]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"USER_ID": [7]}), tmp_path / "c.parquet")

    rows, warnings = pick(spark, tmp_path)

    assert rows == [("7", 1.0), ("7", 2.0), ("7", None), (None, 3.0)]
    assert warnings[0].startswith(f"only some files of {tmp_path} have the columns USER_ID, user_id, value")


def test_names_of_folders_are_columns_as_text(spark, tmp_path):
    for user in ("007", "a b"):
        (tmp_path / f"user_id={user}").mkdir()
        pq.write_table(pa.table({"value": [1.0]}), tmp_path / f"user_id={user}" / "part.parquet")

    assert pick(spark, tmp_path)[0] == [("007", 1.0), ("a b", 1.0)]


def test_files_next_to_named_folders_are_read_too(spark, tmp_path):
    (tmp_path / "user_id=7").mkdir()
    pq.write_table(pa.table({"value": [1.0]}), tmp_path / "user_id=7" / "part.parquet")
    pq.write_table(pa.table({"value": [2.0], "user_id": ["8"]}), tmp_path / "top.parquet")

    assert pick(spark, tmp_path)[0] == [("7", 1.0), ("8", 2.0)]


def test_a_type_that_spark_cannot_read_spoils_its_own_column_only(spark, tmp_path):
    half = pa.array([np.float16(1.5)], pa.float16())
    pq.write_table(pa.table({"user_id": ["u"], "value": [1.0], "odd": half}), tmp_path / "a.parquet")

    rows, warnings = pick(spark, tmp_path / "a.parquet")

    assert rows == [("u", 1.0)]
    assert warnings == ["a file has columns that are not read: odd"]


def test_a_clock_of_parquet_is_no_time(spark, tmp_path):
    pq.write_table(pa.table({"time": pa.array([time(2, 53)], pa.time64("us"))}), tmp_path / "a.parquet")

    with pytest.raises(SchemaError, match="TIME"):
        pick(spark, tmp_path / "a.parquet", {"time": "clock"})


def test_a_column_twice_is_named(spark, tmp_path):
    pq.write_table(pa.table({"user_id": ["u"], "USER_ID": ["v"]}), tmp_path / "a.parquet")

    with pytest.raises(SchemaError, match="two, 'user_id' and 'USER_ID'"):
        pick(spark, tmp_path / "a.parquet")


def test_a_broken_file_of_a_folder_is_named(spark, tmp_path):
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 torn")

    with pytest.raises(CorruptInputError, match=r"b\.parquet cannot be read as Parquet"):
        pick(spark, tmp_path)


def test_the_folder_of_a_delta_table_is_no_export(spark, tmp_path):
    spark.range(3).write.format("delta").save(str(tmp_path / "table"))

    with pytest.raises(CorruptInputError, match="deleted and replaced rows"):
        find(spark, tmp_path / "table")


def test_a_csv_may_begin_with_a_blank_line_and_not_name_a_column_twice(spark, tmp_path):
    (tmp_path / "a.csv").write_text("\nuser_id,value\n7,1\n")
    opened = sources_of_csv(spark, tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("user_id,user_id\n7,1\n")

    frame = frames.pick_columns(
        opened, "a file", required=KINDS, optional={}, remedy="Look again.", warnings=[]
    )

    assert [(row["user_id"], row["value"]) for row in frame.collect()] == [("7", 1.0)]
    with pytest.raises(SchemaError, match="two, 'user_id' and 'user_id'"):
        sources_of_csv(spark, tmp_path / "b.csv")


def sources_of_csv(spark, path):
    return frames.open_csv(spark, str(path), needed_by="A test", remedy="Look again.")


CSV = 'user_id,value\n7,1\n"8\n9",2\n10,3,4\n"11,5\n12,6\n13,"7"\n14\n'


def test_quoted_line_ends_are_part_of_a_value_and_a_stray_quote_spoils_one_line(spark, tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    opened = frames.open_csv(spark, str(tmp_path / "a.csv"), needed_by="A test", remedy="Look again.")

    frame = frames.pick_columns(
        opened, "a file", required=KINDS, optional={}, remedy="Look again.", warnings=[]
    )

    good = {row["user_id"]: row["value"] for row in frame.where("NOT is_torn").collect()}
    assert good == {"7": 1.0, "8\n9": 2.0, "12": 6.0, "13": 7.0}
    assert {row["record"] for row in frame.where("is_torn").collect()} == {"10,3,4", '"11,5', "14"}


def test_csv_files_of_a_folder_are_read_by_their_own_headers(spark, tmp_path):
    (tmp_path / "a.csv").write_text("user_id,value\n7,1\n")
    (tmp_path / "b.csv").write_text("\ufeffvalue,extra,user_id\n2,x,8\n", encoding="utf-8")
    warnings = []
    opened = frames.open_csv(spark, str(tmp_path), needed_by="A test", remedy="Look again.")

    frame = frames.pick_columns(
        opened, "a file", required=KINDS, optional={}, remedy="Look again.", warnings=warnings
    )

    assert {(row["user_id"], row["value"]) for row in frame.collect()} == {("7", 1.0), ("8", 2.0)}
    assert warnings[-1] == "a file has columns that are not read: extra"
