"""Where POIs lie according to their actions: where most good rows are, anywhere on earth."""

import pytest

from conf.settings import CleanSettings
from etl.spark.session import local_frame
from etl.tables.derived_pois import confirm_places, derive_pois, find_places, keep_good_actions
from tests.rows import DAY, NOON_MS, action, frame_of


def places(spark, rows):
    frame = local_frame(spark, rows, "poi_id string, poi_lon double, poi_lat double")
    return {row["poi_id"]: (row["poi_lon"], row["poi_lat"]) for row in find_places(frame).collect()}


def test_most_rows_decide_and_not_the_middle(spark):
    rows = [("cafe", 4.91, 52.36)] * 3 + [("cafe", 2.0, 26.0)] * 2

    assert places(spark, rows) == {"cafe": (4.91, 52.36)}


def test_between_two_places_with_one_row_each_the_other_pois_decide(spark):
    rows = [
        ("museum", 4.88, 52.36),
        ("museum", 52.36, 4.88),  # swapped
        ("cafe", 4.91, 52.36),
        ("park", 4.93, 52.35),
    ]

    assert places(spark, rows)["museum"] == (4.88, 52.36)


def test_a_place_on_the_date_line_stays_there(spark):
    rows = [("hut", 179.9995, -16.5), ("hut", -179.9995, -16.5), ("hut", 179.9999, -16.5)]

    lon, lat = places(spark, rows)["hut"]

    assert (lon, lat) == (pytest.approx(179.9999), -16.5)


def test_bad_rows_make_no_place_and_no_poi(spark):
    rows = [
        action(poi_id=" p1\n"),
        action(action_id="a2", poi_lon=0.0, poi_lat=0.0),
        action(action_id="a3", poi_lon=float("nan")),
        action(action_id="a4", poi_lon=52.36, poi_lat=104.89),
        action(action_id="a5", poi_id="p2", user_id=None),  # nobody's
        action(action_id="a6", poi_id="p3", action_ts_ms=NOON_MS // 1000),
        action(action_id="a7", poi_id="p4", poi_lon=None),  # half a place is no error, and no place
    ]

    good = keep_good_actions(frame_of(spark, "raw_actions", rows), day=DAY, settings=CleanSettings())
    found = derive_pois(good).collect()

    assert {row["action_id"] for row in good.collect()} == {"a1", "a7"}
    assert [(row["poi_id"], row["poi_lon"], row["poi_lat"], row["category"]) for row in found] == [
        ("p1", 4.89, 52.36, "Cafe")
    ]


def test_a_poi_moves_if_the_rows_of_all_days_say_so_and_not_for_one_row_of_tonight(spark):
    tonight = [
        action(action_id="a1", poi_id="stays", poi_lon=4.99),
        action(action_id="a2", poi_id="moves", poi_lon=4.99),
        action(action_id="a3", poi_id="moves", poi_lon=4.99),
    ]
    before = [
        action(action_id="b1", poi_id="stays"),
        action(action_id="b2", poi_id="stays"),
        action(action_id="b3", poi_id="moves"),
    ]
    slots = local_frame(
        spark,
        [("stays", 4.89, 52.36), ("moves", 4.89, 52.36)],
        "poi_id string, poi_lon double, poi_lat double",
    )
    good, delivered = (frame_of(spark, "raw_actions", rows) for rows in (tonight, before))

    found = confirm_places(derive_pois(good), slots, good, delivered, moved_km=0.2)

    assert {row["poi_id"]: row["poi_lon"] for row in found.collect()} == {"stays": 4.89, "moves": 4.99}
