"""Check-in folders: what is delivered when, what a check-in becomes, and errors that say what to do."""

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from conf.cli import JobContext
from conf.errors import (
    CorruptInputError,
    EmptyDeliveryError,
    IndexOrderError,
    MissingInputError,
    SchemaError,
)
from conf.settings import Settings
from etl.delta import storage
from etl.sources import checkins
from tests.etl.checkin_folder import (
    CHECKINS,
    FIRST,
    POIS,
    SECOND,
    at,
    deliver,
    of_day,
    with_source,
    write_folder,
)


def read(spark: SparkSession, settings: Settings, folder: Path, *, day: date) -> dict[str, DataFrame]:
    return dict(checkins.CheckinFolder().read(spark, with_source(settings, path=str(folder)), day=day))


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
        "corrupt_record": None,
        "record": (
            '{"user_id":"bob","poi_id":"p2","category":null,"latitude":40.71,"longitude":-74.01,'
            '"utc_time":"2012-04-03T19:00:00.000Z","tz_offset_min":null}'
        ),
        "is_simulated": False,
    }


def test_equal_checkins_get_equal_ids_so_that_cleaning_can_drop_one(spark, settings, tmp_path):
    write_folder(tmp_path)

    ids = [row["action_id"] for row in read(spark, settings, tmp_path, day=SECOND)["raw_actions"].collect()]

    assert (len(ids), len(set(ids))) == (5, 4)


def test_the_first_night_brings_all_history_and_the_next_what_is_new_and_every_record_is_counted(
    spark, made, tmp_path
):
    write_folder(tmp_path)

    first = deliver(spark, made, tmp_path, FIRST)
    second = deliver(spark, made, tmp_path, SECOND)
    again = deliver(spark, made, tmp_path, SECOND)

    assert first["records"] == {
        "in_source": 5, "delivered": 3, "delivered_on_other_days": 0, "after_the_day": 2,
        "of_erased_users": 0,
    }  # fmt: skip
    assert second["catalogue"] == {"in_source": 4, "delivered": 1, "held_by_the_index_or_not_due": 3}
    assert second["records"] == again["records"] == {
        "in_source": 5, "delivered": 2, "delivered_on_other_days": 3, "after_the_day": 0,
        "of_erased_users": 0,
    }  # fmt: skip


def test_late_rows_come_with_the_next_delivery_and_a_missed_night_is_made_up_for(spark, made, tmp_path):
    third = date(2012, 4, 6)
    write_folder(tmp_path)
    deliver(spark, made, tmp_path, FIRST)
    late = ("bob", "p1", "Bar", 40.70, -74.00, at(FIRST, 20), -240)  # of the first day, not in its file

    write_folder(tmp_path, rows=[*CHECKINS, late])
    notes = deliver(spark, made, tmp_path, third)  # the night of the second day has not run

    times = sorted(row["action_ts_ms"] for row in of_day(spark, made, "raw_actions", third))
    assert times == [1333483200000, 1333530000000, 1333540800000]
    assert notes["records"]["delivered_on_other_days"] == 3
    assert {row["poi_id"] for row in of_day(spark, made, "raw_pois", third)} == {"p3"}


def test_a_day_out_of_order_delivers_nothing_twice_and_names_the_command_if_it_would_bring_a_poi(
    spark, made, tmp_path
):
    write_folder(tmp_path, rows=CHECKINS[:3], pois=POIS[:2])
    deliver(spark, made, tmp_path, FIRST)
    write_folder(tmp_path, rows=CHECKINS[:3], pois=[*POIS[:2], POIS[3]])
    deliver(spark, made, tmp_path, date(2012, 4, 6))
    write_folder(tmp_path)
    listed = of_day(spark, made, "raw_actions", SECOND)

    with pytest.raises(IndexOrderError, match=r"python -m etl night --source checkins --day 2012-04-06"):
        deliver(spark, made, tmp_path, SECOND)  # p3 was not listed before; p4 was

    assert listed == of_day(spark, made, "raw_actions", SECOND) == []  # else it would count as delivered
    notes = deliver(spark, made, tmp_path, date(2012, 4, 6))
    assert notes["rows_raw_actions"] == 2


def test_a_poi_comes_when_somebody_has_been_there_and_when_the_catalogue_says_something_else(
    spark, made, tmp_path
):
    write_folder(tmp_path)
    deliver(spark, made, tmp_path, FIRST)
    write_folder(tmp_path, pois=[("p1", 40.70, -74.00), ("p2", 40.76, -74.01), *POIS[2:], ("p0", 95.0, 0.0)])

    deliver(spark, made, tmp_path, SECOND)
    write_folder(tmp_path, rows=[*CHECKINS, ("bob", "p3", "Park", 40.72, -74.02, at(date(2012, 4, 5), 9), 0)])
    deliver(spark, made, tmp_path, date(2012, 4, 5))

    seen = {row["poi_id"]: row["first_seen_date"] for row in of_day(spark, made, "raw_pois", FIRST)}
    assert seen == {"p1": FIRST, "p2": FIRST, "p4": None}  # p4 is listed, nobody has been there
    # p2 has moved by 5 km, p3 is new, p0 is listed for the first time and refused.
    assert {row["poi_id"] for row in of_day(spark, made, "raw_pois", SECOND)} == {"p0", "p2", "p3"}
    # p2 has moved back; p0, were it still listed, would not be delivered again.
    assert {row["poi_id"] for row in of_day(spark, made, "raw_pois", date(2012, 4, 5))} == {"p2"}


def test_a_refused_poi_is_not_delivered_every_night(spark, made, tmp_path):
    write_folder(tmp_path, pois=[*POIS, ("p0", 95.0, 0.0)])
    deliver(spark, made, tmp_path, FIRST)
    deliver(spark, made, tmp_path, SECOND)

    refused = storage.read_table(spark, made.storage.root, "quarantined_rows").collect()
    assert [(row["day"], row["reason"]) for row in refused] == [(FIRST, "poi_swapped")]


def test_of_two_rows_of_one_poi_the_same_stands_every_night(spark, made, tmp_path):
    twice = [*POIS, ("p3", 40.95, -74.02)]  # p3 is listed twice; nobody has been there on the first day
    write_folder(tmp_path, pois=twice)
    days = (FIRST, SECOND, date(2012, 4, 5))
    for day in days:
        write_folder(tmp_path, pois=twice, rows=CHECKINS[:3] if day == FIRST else CHECKINS)
        deliver(spark, made, tmp_path, day)

    slots = storage.read_table(spark, made.storage.root, "poi_index").where("poi_id = 'p3'").collect()

    assert [(row["poi_lat"], row["indexed_day"], row["valid_to"]) for row in slots] == [(40.72, FIRST, None)]


def test_unreadable_rows_that_look_alike_are_delivered_each(spark, made, tmp_path):
    nobody = [(None, "p1", "Bar", 40.70, -74.00, None, offset) for offset in (-240, -240)]
    write_folder(tmp_path, rows=[*CHECKINS[:3], nobody[0]])
    deliver(spark, made, tmp_path, FIRST)
    changed = (None, "p1", "Bar", 40.70, -74.00, None, -300)
    write_folder(tmp_path, rows=[*CHECKINS[:3], nobody[0], changed])

    notes = deliver(spark, made, tmp_path, SECOND)

    assert notes["rows_raw_actions"] == 1


def test_an_empty_file_is_no_delivery(spark, made, tmp_path):
    write_folder(tmp_path, rows=[])

    with pytest.raises(EmptyDeliveryError, match="holds no record"):
        deliver(spark, made, tmp_path, FIRST)


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
