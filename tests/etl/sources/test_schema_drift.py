"""Additions pass with a warning, breaks stop before anything is written; through the source jobs, on small files."""

import argparse
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.cli import JobContext
from conf.errors import SchemaError
from conf.settings import SourceSettings
from etl.delta import storage
from etl.sources import checkins, paper_actions, public_files
from etl.sources.files import FilePart
from etl.sources.schema_drift import require_kinds
from tests.etl.checkin_folder import CHECKINS, FIRST, POIS

JOBS = {
    "checkins": checkins.deliver,
    "actions": paper_actions.deliver,
    "getnext": public_files.deliver_getnext,
    "tsmc": public_files.deliver_tsmc,
}
RECORD = {
    "time": 1333476009000,
    "user_id": "u1",
    "user_geo": {"x": -74.0, "y": 40.7},
    "poi_id": "p1",
    "poi_geo": {"x": -74.0, "y": 40.7},
    "category": "food, bar",
    "action_type": "click",
}
GETNEXT = {
    "user_id": "1",
    "POI_id": "p1",
    "POI_catname": "Bar",
    "latitude": "40.78",
    "longitude": "-73.97",
    "timezone": "-240",
    "UTC_time": "2012-04-03 18:00:09+00:00",
}


@pytest.fixture
def run(spark, made):
    """Runs a source job; returns its notes and rows of raw_actions, or leaves the error."""

    def run_job(job, path):
        moved = made.model_copy(update={"source": SourceSettings(path=str(path))})
        context = JobContext(job, FIRST, moved, "r", dry_run=False, options=argparse.Namespace())
        notes = JOBS[job](context, spark).notes
        rows = storage.read_table(spark, moved.storage.root, "raw_actions").collect()
        return notes, [row.asDict() for row in rows]

    return run_job


@pytest.fixture
def refused(run, spark, made):
    """Runs a source job that must stop; returns the error, after a look at whether anything was written."""

    def run_job(job, path):
        with pytest.raises(SchemaError) as error:
            run(job, path)
        assert storage.table_version(spark, made.storage.root, "raw_actions") == 0  # nothing but made
        assert error.value.exit_code == 3
        return error.value

    return run_job


def write_checkins(folder, *, order=None, **changes):
    """Writes a folder of check-ins, with columns replaced or added (a function of the old values, or values)."""
    names = ("user_id", "poi_id", "category", "latitude", "longitude", "utc_time", "tz_offset_min")
    columns = dict(zip(names, map(list, zip(*CHECKINS, strict=True)), strict=True))
    for name, change in changes.items():
        columns[name] = [change(value) for value in columns[name]] if callable(change) else change
    pq.write_table(pa.table({name: columns[name] for name in order or columns}), folder / "checkins.parquet")
    places = dict(zip(("poi_id", "latitude", "longitude"), map(list, zip(*POIS, strict=True)), strict=True))
    pq.write_table(pa.table(places), folder / "pois.parquet")
    return folder


def write_lines(folder, *records):
    path = folder / "actions.json"
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def write_csv(folder, **changes):
    row = {**GETNEXT, **changes}
    path = folder / "NYC.csv"
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    return path


def test_parquet_with_more_columns_in_another_order_and_numbers_as_text_passes_with_a_warning(run, tmp_path):
    order = ("mood", "longitude", "tz_offset_min", "utc_time", "latitude", "category", "poi_id", "user_id")
    folder = write_checkins(tmp_path, order=order, mood=["good"] * len(CHECKINS), longitude=str)

    notes, rows = run("checkins", folder)

    assert notes["warnings"] == ["checkins.parquet has columns that are not read: mood"]
    assert len(rows) == 3
    assert {row["poi_lon"] for row in rows} == {-74.0, -74.01}


@pytest.mark.parametrize(
    ("changes", "column", "expected", "found", "example"),
    [
        ({"longitude": lambda v: "abc"}, "longitude", "double", "string, where 5 of the first 5", '"abc"'),
        ({"longitude": lambda v: {"deg": v}}, "longitude", "double", "struct<deg:double>", '{"deg":-74.0}'),
        ({"utc_time": lambda v: 1333476009}, "utc_time", "timestamp", "bigint", "1333476009"),
    ],
)
def test_parquet_whose_values_do_not_convert_is_refused(
    refused, tmp_path, changes, column, expected, found, example
):
    error = refused("checkins", write_checkins(tmp_path, **changes))

    assert (error.table, error.column, error.expected) == ("checkins.parquet", column, expected)
    assert error.found.startswith(found)
    assert error.example == example
    assert all(str(fact) in str(error) for fact in (column, expected, found, example))


def test_one_value_that_does_not_convert_is_a_dirty_row_and_no_drift(spark):
    frame = spark.createDataFrame([("-74.0",), ("abc",), ("-74.01",)], "longitude string")

    # The cleaning refuses it alone.
    require_kinds(FilePart(frame), "a file", {"longitude": "degrees"}, remedy="none")


def test_json_with_another_key_and_places_that_are_null_passes_with_a_warning(run, tmp_path):
    unknown = {**RECORD, "user_id": "u2", "user_geo": None, "poi_geo": {"x": None, "y": None}}

    notes, rows = run("actions", write_lines(tmp_path, {**RECORD, "mood": "good"}, unknown))

    assert notes["warnings"] == [f"{tmp_path}/actions.json has columns that are not read: mood"]
    assert {(row["user_id"], row["user_lon"]) for row in rows} == {("u1", -74.0), ("u2", None)}


@pytest.mark.parametrize(
    ("changes", "column", "expected", "example"),
    [
        ({"poi_geo": {"x": "abc", "y": 40.7}}, "poi_geo.x", "double", '"abc"'),
        ({"poi_geo": "40.7,-74.0"}, "poi_geo.x", "double", '"40.7,-74.0"'),
        (
            {"user_geo": {"lon": -74.0, "lat": 40.7}},
            "user_geo.x",
            "double",
            '"{\\"lon\\":-74.0,\\"lat\\":40.7}"',
        ),
        ({"poi_id": {"id": "p1"}}, "poi_id", "string", '"{\\"id\\":\\"p1\\"}"'),
        ({"time": "yesterday"}, "time", "bigint", '"yesterday"'),
    ],
)
def test_json_whose_values_do_not_convert_is_refused(refused, tmp_path, changes, column, expected, example):
    error = refused("actions", write_lines(tmp_path, {**RECORD, **changes}))

    assert (error.column, error.expected, error.example) == (column, expected, example)


def test_json_without_a_required_key_is_refused(refused, tmp_path):
    without = {name: value for name, value in RECORD.items() if name != "poi_id"}

    assert refused("actions", write_lines(tmp_path, without)).column == "poi_id"


def test_csv_with_another_column_passes_with_a_warning_and_text_for_a_number_is_refused(
    run, refused, tmp_path
):
    error = refused("getnext", write_csv(tmp_path, longitude="abc"))
    assert (error.column, error.expected, error.example) == ("longitude", "double", '"abc"')
    assert refused("getnext", write_csv(tmp_path, UTC_time="1333476009")).column == "UTC_time"

    notes, rows = run("getnext", write_csv(tmp_path, mood="good"))
    assert notes["warnings"] == ["the GETNext CSV has columns that are not read: mood"]
    assert rows[0]["poi_lon"] == -73.97


def test_a_ninth_column_of_the_tsv_passes_and_one_in_between_is_refused(run, refused, tmp_path):
    path = tmp_path / "tsmc.txt"
    fields = ["470", "p1", "4bf5", "Bar", "40.7", "-74.0", "-240", "Tue Apr 03 18:00:09 +0000 2012"]
    path.write_text("\t".join([*fields[:4], "good", *fields[4:]]) + "\n")

    error = refused("tsmc", path)
    assert (error.column, error.example) == ("latitude", '"good"')

    path.write_text("\t".join([*fields, "good"]) + "\n")
    notes, rows = run("tsmc", path)
    assert notes["warnings"] == [f"{path} has columns that are not read: those after the eighth"]
    assert rows[0]["poi_lat"] == 40.7


def test_paper_parquet_with_a_place_that_is_none_is_refused(refused, tmp_path):
    path = tmp_path / "actions.parquet"
    table = {name: [value] for name, value in RECORD.items()}
    pq.write_table(pa.table({**table, "poi_geo": ["40.7,-74.0"]}), path)

    error = refused("actions", path)

    assert (error.column, error.found, error.example) == ("poi_geo", "string", '"40.7,-74.0"')
    assert error.expected == "struct<x: double, y: double>"
