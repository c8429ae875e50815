"""Check-in folders: what is delivered when, what a check-in becomes, and errors that say what to do."""

from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from conf.cli import JobContext
from conf.errors import CorruptInputError, MissingInputError, SchemaError
from conf.settings import Settings, SourceSettings
from etl import checkins, storage

FIRST, SECOND = date(2012, 4, 3), date(2012, 4, 4)


def at(day: date, hour: int) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


CHECKINS = [
    ("ann", "p1", "Bar", 40.70, -74.00, at(FIRST, 18), -240),
    ("ann", "p1", "Bar", 40.70, -74.00, at(FIRST, 18), -240),  # the same check-in twice
    ("bob", "p2", None, 40.71, -74.01, at(FIRST, 19), None),
    ("ann", "p2", "Cafe", 40.71, -74.01, at(SECOND, 9), -240),
    ("ann", "p3", "Park", 40.72, -74.02, at(SECOND, 12), -240),
]
POIS = [("p1", 40.70, -74.00), ("p2", 40.71, -74.01), ("p3", 40.72, -74.02), ("p4", 40.73, -74.03)]


def write_folder(folder: Path, *, without: str = "") -> None:
    names = ("user_id", "poi_id", "category", "latitude", "longitude", "utc_time", "tz_offset_min")
    columns = dict(zip(names, map(list, zip(*CHECKINS, strict=True)), strict=True))
    columns.pop(without, None)
    pq.write_table(pa.table(columns), folder / "checkins.parquet")
    places = dict(zip(("poi_id", "latitude", "longitude"), map(list, zip(*POIS, strict=True)), strict=True))
    pq.write_table(pa.table(places), folder / "pois.parquet")


def with_source(settings: Settings, **source: object) -> Settings:
    return settings.model_copy(update={"source": SourceSettings.model_validate(source)})


def read(spark: SparkSession, settings: Settings, folder: Path, **night: object) -> dict[str, DataFrame]:
    since, day = night.get("since"), night["day"]
    assert isinstance(day, date)
    source = with_source(settings, path=str(folder), since=since)
    return dict(checkins.CheckinFolder().read(spark, source, day=day))


def test_a_checkin_keeps_its_own_place_and_has_no_user_place(spark, settings, tmp_path):
    write_folder(tmp_path)

    actions = read(spark, settings, tmp_path, day=FIRST)["raw_actions"]

    bob = actions.where("user_id = 'bob'").first().asDict()
    del bob["action_id"]
    assert bob == {
        "user_id": "bob",
        "poi_id": "p2",
        "action_type": "checkin",
        "action_ts_ms": 1333479600000,  # 2012-04-03 19:00 UTC
        "tz_offset_min": None,
        "user_lon": None,
        "user_lat": None,
        "poi_lon": -74.01,
        "poi_lat": 40.71,
        "category": None,
        "is_simulated": False,
    }


def test_equal_checkins_get_equal_ids_so_that_cleaning_can_drop_one(spark, settings, tmp_path):
    write_folder(tmp_path)

    ids = [row["action_id"] for row in read(spark, settings, tmp_path, day=SECOND)["raw_actions"].collect()]

    assert (len(ids), len(set(ids))) == (5, 4)


def test_the_first_night_brings_all_history_and_the_next_only_its_own_day(spark, settings, tmp_path):
    write_folder(tmp_path)

    first = read(spark, settings, tmp_path, day=FIRST)
    second = read(spark, settings, tmp_path, day=SECOND, since=FIRST)
    both = read(spark, settings, tmp_path, day=SECOND)

    counts = [night["raw_actions"].count() for night in (first, second, both)]
    assert counts == [3, 2, 5]


def test_a_poi_comes_with_its_first_checkin_and_an_unvisited_one_at_once(spark, settings, tmp_path):
    write_folder(tmp_path)

    first = read(spark, settings, tmp_path, day=FIRST)["raw_pois"]
    second = read(spark, settings, tmp_path, day=SECOND, since=FIRST)["raw_pois"]

    seen = {row["poi_id"]: row["first_seen_date"] for row in first.collect()}
    assert seen == {"p1": FIRST, "p2": FIRST, "p4": None}  # p4 is listed, nobody has been there
    assert [row["poi_id"] for row in second.collect()] == ["p3"]


def test_absent_optional_columns_are_null(spark, settings, tmp_path):
    write_folder(tmp_path, without="category")

    actions = read(spark, settings, tmp_path, day=SECOND)["raw_actions"]

    assert actions.where("category IS NOT NULL").count() == 0


def test_a_delivery_writes_every_raw_table_and_what_is_to_be_ranked_tonight(spark, settings, tmp_path):
    write_folder(tmp_path)
    source = with_source(settings, path=str(tmp_path))
    context = JobContext("checkins", SECOND, source, "run", False, None)  # type: ignore[arg-type]

    summary = checkins.deliver(context, spark)

    assert set(summary.tables) == {
        "raw_actions",
        "raw_pois",
        "raw_profiles",
        "raw_impressions",
        "ranking_requests",
    }
    assert (summary.notes["rows_raw_actions"], summary.notes["rows_raw_profiles"]) == (5, 0)
    requests = storage.read_table(spark, settings.storage.root, "ranking_requests")
    # Only Ann was seen before: her check-ins of 9 and of 12 o'clock ask for a ranking tonight.
    assert sorted(row["request_ts_ms"] for row in requests.collect()) == [1333530000000, 1333540800000]


def test_a_missing_folder_is_named_with_the_remedy(spark, settings, tmp_path):
    with pytest.raises(MissingInputError) as error:
        read(spark, settings, tmp_path / "nowhere", day=FIRST)

    assert f"{tmp_path}/nowhere/checkins.parquet" in str(error.value)
    assert "Point source.path at a folder that holds checkins.parquet and pois.parquet." in str(error.value)


def test_a_corrupt_file_is_refused_before_anything_is_written(spark, settings, tmp_path):
    write_folder(tmp_path)
    (tmp_path / "checkins.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")

    with pytest.raises(CorruptInputError, match="cannot be read as Parquet"):
        read(spark, settings, tmp_path, day=FIRST)


def test_a_missing_column_is_named_with_an_example(spark, settings, tmp_path):
    write_folder(tmp_path, without="longitude")

    with pytest.raises(SchemaError) as error:
        read(spark, settings, tmp_path, day=FIRST)

    assert error.value.column == "longitude"
    assert "for example ('u1', 'p1', 40.71, -74.0, TIMESTAMP '2012-04-03 18:00:09')" in str(error.value)
