"""Delta storage: reruns, other days untouched, refusals, time travel, digests."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pyarrow as pa
import pytest
from delta.tables import DeltaTable
from deltalake import write_deltalake
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType

from conf.errors import (
    ConflictingWriteError,
    ContractViolatedError,
    DuplicateKeyError,
    MissingInputError,
    SchemaError,
)
from conf.tables import TABLES, USER_PLACES
from etl.delta import storage
from etl.delta.contracts import check_constraints, conform, digest_table, spark_schema
from etl.delta.storage import append_log, merge_rows, read_table, replace_day, replace_days, table_version
from etl.spark.session import local_frame

pytestmark = pytest.mark.spark

MONDAY, TUESDAY = date(2026, 1, 5), date(2026, 1, 6)
PLACES = (
    "user_id string, home_lon double, home_lat double, home_days int, "
    "work_lon double, work_lat double, work_days int"
)
BLOCK = "index_version int, block_id int, cell_x int, cell_y int, center_lon double, center_lat double, first_day date"


def make_gate(path):
    """Makes a gate between processes (a named pipe); it is held open, so that neither side waits for the other."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR)


def write_places(spark, root, rows, day):
    frame = local_frame(spark, rows, PLACES)
    return replace_day(frame, "user_places", root, day=day, run_id="r", job="test")


def merge_blocks(spark, root, rows, **options):
    frame = local_frame(spark, rows, BLOCK)
    return merge_rows(frame, "blocks", root, run_id="r", job="test", day=MONDAY, **options)


def test_a_rerun_of_a_day_replaces_its_rows_and_leaves_other_days_alone(spark, tmp_path):
    root = str(tmp_path)
    write_places(
        spark, root, [("ann", 4.9, 52.3, 9, None, None, 0), ("bob", 4.8, 52.2, 5, None, None, 0)], MONDAY
    )
    write_places(spark, root, [("cid", 4.7, 52.1, 3, None, None, 0)], TUESDAY)

    write_places(spark, root, [("ann", 5.0, 52.0, 10, None, None, 0)], MONDAY)

    rows = {
        (r["day"], r["user_id"], r["home_days"]) for r in read_table(spark, root, "user_places").collect()
    }
    assert rows == {(MONDAY, "ann", 10), (TUESDAY, "cid", 3)}  # bob is gone: the rerun no longer holds him


def test_an_older_version_stays_readable(spark, tmp_path):
    root = str(tmp_path)
    first = write_places(spark, root, [("ann", 4.9, 52.3, 9, None, None, 0)], MONDAY)
    write_places(spark, root, [("bob", 4.9, 52.3, 1, None, None, 0)], MONDAY)

    assert [r["user_id"] for r in read_table(spark, root, "user_places", version=first).collect()] == ["ann"]
    assert table_version(spark, root, "user_places") == first + 1


def test_a_relative_root_is_a_folder(spark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    write_places(spark, "warehouse", [("ann", 4.9, 52.3, 9, None, None, 0)], MONDAY)

    assert (tmp_path / "warehouse" / "user_places" / "_delta_log").is_dir()
    assert read_table(spark, "warehouse", "user_places").count() == 1


def test_a_merge_that_changes_nothing_returns_its_own_table_s_version(spark, tmp_path):
    root, block = str(tmp_path), (1, 0, 5, 5, 1.0, 2.0, MONDAY)
    first = merge_blocks(spark, root, [block])
    for _ in range(3):  # the session's last commit is another table's, at another version
        other = write_places(spark, root, [("ann", 4.9, 52.3, 9, None, None, 0)], MONDAY)

    version = merge_blocks(spark, root, [block])

    assert version == table_version(spark, root, "blocks")
    assert first <= version < other


def test_merge_updates_inserts_and_deletes_only_what_is_named(spark, tmp_path):
    root = str(tmp_path)
    merge_blocks(spark, root, [(1, 0, 5, 5, 1.0, 2.0, MONDAY), (1, 1, 6, 5, 1.1, 2.0, MONDAY)])

    merge_blocks(
        spark,
        root,
        [(1, 0, 5, 5, 9.0, 2.0, MONDAY), (1, 2, 7, 5, 1.2, 2.0, TUESDAY)],
        delete_where="target.block_id = 1",
    )

    rows = {(r["block_id"], r["center_lon"]) for r in read_table(spark, root, "blocks").collect()}
    assert rows == {(0, 9.0), (2, 1.2)}


def test_a_key_that_occurs_twice_is_refused_before_anything_is_written(spark, tmp_path):
    row = (1, 0, 5, 5, 1.0, 2.0, MONDAY)

    with pytest.raises(DuplicateKeyError, match=r"blocks would get 1 keys \(index_version, block_id\)"):
        merge_blocks(spark, str(tmp_path), [row, row])

    with pytest.raises(MissingInputError):
        read_table(spark, str(tmp_path), "blocks")


def test_a_retry_appends_nothing_and_the_same_key_with_other_content_is_refused(spark, tmp_path):
    row = [(1, MONDAY, 5, {"user_embeddings": 3}, "7", 1, None, "r", True)]
    frame = local_frame(spark, row, spark_schema(TABLES["releases"]))
    first = append_log(frame, "releases", str(tmp_path), run_id="r", job="test", day=MONDAY)

    assert append_log(frame, "releases", str(tmp_path), run_id="r", job="test", day=MONDAY) == first
    other = frame.withColumn("model_version", F.lit("8"))
    for changed, run_id in ((other, "r"), (frame, "another run")):
        with pytest.raises(DuplicateKeyError):
            append_log(changed, "releases", str(tmp_path), run_id=run_id, job="test", day=MONDAY)


def test_of_two_runs_that_replace_one_day_at_once_one_wins_and_the_other_says_so(spark, tmp_path):
    root = str(tmp_path / "tables")
    write_places(spark, root, [("ann", 4.9, 52.3, 1, None, None, 0)], MONDAY)
    begun, go_on = str(tmp_path / "begun"), str(tmp_path / "go on")
    gates = [make_gate(path) for path in (begun, go_on)]

    def wait(batches):  # in the middle of the slower run's write, in a worker
        with open(begun, "wb", buffering=0) as gate:
            gate.write(b".")
        with open(go_on, "rb", buffering=0) as gate:
            gate.read(1)
        yield from batches

    rows = local_frame(spark, [("slow", 4.9, 52.3, 2, None, None, 0)], PLACES).coalesce(1)
    slow = rows.mapInArrow(wait, rows.schema)
    with ThreadPoolExecutor(1) as pool:
        other_run = pool.submit(replace_day, slow, "user_places", root, day=MONDAY, run_id="slow", job="test")
        os.read(gates[0], 1)
        write_places(spark, root, [("fast", 4.9, 52.3, 3, None, None, 0)], MONDAY)
        os.write(gates[1], b".")

        with pytest.raises(
            ConflictingWriteError, match="user_places for 2026-01-05 was changed by another run"
        ):
            other_run.result()

    assert [row["user_id"] for row in read_table(spark, root, "user_places").collect()] == ["fast"]


def test_of_two_runs_that_append_the_same_key_one_wins_and_the_other_says_so(spark, tmp_path, monkeypatch):
    root, check = str(tmp_path), storage._has_only_new_keys
    row = [(1, MONDAY, 5, {"user_embeddings": 3}, "7", 1, None, "r", True)]
    frame = local_frame(spark, row, spark_schema(TABLES["releases"]))

    def check_and_be_overtaken(rows, stored, contract):
        found = check(rows, stored, contract)
        monkeypatch.setattr(storage, "_has_only_new_keys", check)
        append_log(frame, "releases", root, run_id="faster", job="test", day=MONDAY)
        return found

    monkeypatch.setattr(storage, "_has_only_new_keys", check_and_be_overtaken)
    with pytest.raises(ConflictingWriteError):
        append_log(frame, "releases", root, run_id="slower", job="test", day=MONDAY)

    assert [row["run_id"] for row in read_table(spark, root, "releases").collect()] == ["faster"]


def test_a_value_out_of_bounds_is_refused_with_the_constraint_named(spark, tmp_path):
    with pytest.raises(ContractViolatedError, match="home_lon_range"):
        write_places(spark, str(tmp_path), [("ann", 500.0, 52.3, 9, None, None, 0)], MONDAY)


def test_a_missing_column_is_named(spark):
    frame = local_frame(spark, [("ann",)], "user_id string")

    with pytest.raises(SchemaError, match="user_places should have column 'day' of type date"):
        conform(frame, USER_PLACES)


def test_the_digest_ignores_order_and_counts_repeated_rows(spark):
    rows = [(MONDAY, f"u{i}", 4.0 + i, 52.0, i, None, None, 0) for i in range(20)]
    schema = spark_schema(USER_PLACES)
    forward = digest_table(local_frame(spark, rows, schema).repartition(3), USER_PLACES)
    backward = digest_table(local_frame(spark, rows[::-1], schema).coalesce(1), USER_PLACES)
    twice = digest_table(local_frame(spark, [*rows, rows[0]], schema), USER_PLACES)
    other = digest_table(local_frame(spark, rows, schema).withColumn("home_days", F.lit(1)), USER_PLACES)

    assert forward == backward
    assert len({forward, twice, other}) == 3


def test_every_contract_makes_a_schema_with_comments_and_checks():
    for contract in TABLES.values():
        schema = spark_schema(contract)
        assert schema.names == list(contract.column_names)
        assert all(field.metadata["comment"] for field in schema.fields), contract.name
    checks = check_constraints(TABLES["ranking_scores"])
    assert checks == {"score_range": "score >= 0 AND score <= 1", "index_version_range": "index_version >= 1"}


def test_a_null_where_a_column_takes_none_is_refused_before_spark_reads_it_as_zero(spark):
    assert local_frame(spark, [("a", None)], "name string NOT NULL, n int").collect() == [("a", None)]
    with pytest.raises(ValueError, match="null in n, which take none"):
        local_frame(spark, [("a", None)], "name string, n int NOT NULL")


def make_older_requests(spark, root):
    """Makes `ranking_requests` as an earlier contract did: no action type, nothing null, bounds as checks."""
    builder = DeltaTable.createIfNotExists(spark).location(storage.table_location(root, "ranking_requests"))
    for name, kind in (
        ("day", "date"), ("request_id", "string"), ("user_id", "string"), ("request_ts_ms", "bigint"),
        ("tz_offset_min", "int"), ("user_lon", "double"), ("user_lat", "double"),
        ("candidate_poi_ids", ArrayType(StringType(), containsNull=False)), ("is_simulated", "boolean"),
    ):  # fmt: skip
        builder = builder.addColumn(name, kind, nullable=name.startswith("user_l"))
    checks = {"request_ts_ms_range": "request_ts_ms >= 0", "own_check": "length(request_id) < 9"}
    for name, condition in checks.items():
        builder = builder.property(f"delta.constraints.{name}", condition)
    builder.property("delta.enableDeletionVectors", "false").partitionedBy("day").execute()


def test_a_table_made_by_an_earlier_contract_is_read_and_written(spark, tmp_path):
    root = str(tmp_path)
    make_older_requests(spark, root)
    schema = spark_schema(TABLES["ranking_requests"])
    old = local_frame(spark, [(MONDAY, "r0", "ann", 1, 60, None, None, "click", ["p1"], False)], schema)
    old.drop("action_type").write.format("delta").mode("append").save(f"{root}/ranking_requests")
    assert [row["action_type"] for row in read_table(spark, root, "ranking_requests").collect()] == [None]

    bad = [(TUESDAY, "r1", None, -5, None, None, None, "click", ["p1", None], False)]
    for _ in range(2):
        replace_day(
            local_frame(spark, bad, schema), "ranking_requests", root, day=TUESDAY, run_id="r", job="test"
        )

    rows = {row["request_id"]: row for row in read_table(spark, root, "ranking_requests").collect()}
    assert rows["r1"]["candidate_poi_ids"] == ["p1", None]
    assert (rows["r0"]["action_type"], rows["r1"]["action_type"]) == (None, "click")
    assert (
        read_table(spark, root, "ranking_requests").where("exists(candidate_poi_ids, x -> x IS NULL)").count()
        == 1
    )
    # Version 4: made, appended, brought up to the contract once, written twice.
    assert table_version(spark, root, "ranking_requests") == 4
    detail = DeltaTable.forPath(spark, f"{root}/ranking_requests").detail().first()
    assert [name for name in detail["properties"] if "constraints" in name] == ["delta.constraints.own_check"]


def test_a_table_of_the_deltalake_library_is_brought_up_to_the_contract(spark, tmp_path):
    root = str(tmp_path)
    rows = {"day": [MONDAY], "user_id": ["ann"], "attribute": ["age_group"], "value": ["18-24"]}
    schema = pa.schema(
        [pa.field(name, pa.date32() if name == "day" else pa.string(), nullable=False) for name in rows]
    )
    write_deltalake(f"{root}/raw_profiles", pa.table(rows, schema=schema), partition_by=["day"])

    frame = local_frame(spark, [(TUESDAY, "bob", None, None)], spark_schema(TABLES["raw_profiles"]))
    replace_day(frame, "raw_profiles", root, day=TUESDAY, run_id="r", job="test")

    assert {tuple(row) for row in read_table(spark, root, "raw_profiles").collect()} == {
        (MONDAY, "ann", "age_group", "18-24"),
        (TUESDAY, "bob", None, None),
    }


def test_rows_of_several_days_are_replaced_at_once_and_others_left_alone(spark, tmp_path):
    root, kind = str(tmp_path), spark_schema(TABLES["quarantined_rows"])

    def refused(day, source, reason):
        return (day, source, reason, "", "{}", "h", 0)

    rows = [refused(MONDAY, "a", "old"), refused(TUESDAY, "a", "old"), refused(MONDAY, "b", "kept")]
    for day in (MONDAY, TUESDAY):
        frame = local_frame(spark, [row for row in rows if row[0] == day], kind)
        replace_day(frame, "quarantined_rows", root, day=day, run_id="r", job="test")

    new = local_frame(spark, [refused(TUESDAY, "a", "new")], kind)
    replace_days(
        new,
        "quarantined_rows",
        root,
        first_day=MONDAY,
        day=TUESDAY,
        run_id="r",
        job="test",
        where="source_table = 'a'",
    )

    found = {(row["day"], row["reason"]) for row in read_table(spark, root, "quarantined_rows").collect()}
    assert found == {(MONDAY, "kept"), (TUESDAY, "new")}
