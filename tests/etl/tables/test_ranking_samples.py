"""Requests with the history strictly before them: the leak test of the sample tables."""

import random
from datetime import timedelta

import pytest
from pyspark.sql import SparkSession

from conf.settings import SampleSettings, SequenceSettings
from etl.spark.session import local_frame
from etl.tables.ranking_samples import build_ranking_samples, with_live_slot
from tests.rows import DAY, HOUR_MS, NOON_MS, cleaned, frame_of

DAY_MS = 24 * HOUR_MS
SETTINGS = SampleSettings(ranking_history=3, val_days=1, test_days=1)


def acted(user: str, number: int, time: int) -> dict[str, object]:
    return cleaned(
        action_id=f"{user}-{number}",
        user_id=user,
        poi_id=f"p{number}",
        action_ts_ms=time,
        poi_lon=4.0 + number,
    )


def shown(request: str, poi: str, position: int, label: int, **fields: object) -> dict[str, object]:
    good = {
        "day": DAY,
        "request_id": request,
        "user_id": "ann",
        "request_ts_ms": NOON_MS,
        "tz_offset_min": 60,
        "user_lon": None,
        "user_lat": None,
        "poi_id": poi,
        "position": position,
        "label": label,
        "is_simulated": False,
    }
    return {**good, **fields}


def slot(poi: str, **fields: object) -> dict[str, object]:
    good = {
        "index_version": 1,
        "poi_id": poi,
        "block_id": 0,
        "inner_id": int(poi[1:]),
        "poi_lon": 4.9,
        "poi_lat": 52.3,
        "category_id": 1,
        "valid_from": DAY - timedelta(days=99),
        "valid_to": None,
        "indexed_day": DAY,
        "name": "",
        "text": "",
        "changed_day": DAY,
        "is_simulated": False,
    }
    return {**good, **fields}


SLOTS = [
    slot("p1"),
    slot("p2"),
    slot("p3", valid_to=DAY),  # closed on the day of the request
    slot("p4", valid_from=DAY + timedelta(days=1)),  # opens the day after
]


def build(
    spark: SparkSession, impressions: list[dict[str, object]], actions: list[dict[str, object]]
) -> dict:
    slots = frame_of(spark, "poi_index", SLOTS)
    samples = build_ranking_samples(
        with_live_slot(frame_of(spark, "raw_impressions", impressions), slots),
        frame_of(spark, "cleaned_actions", actions),
        local_frame(spark, [], "user_id string, day date, home_lon double, home_lat double"),
        local_frame(spark, [], "user_id string, day date, profile_ids array<int>"),
        day=DAY,
        first_day=DAY,
        index_version=1,
        request_type_id=0,
        samples=SETTINGS,
        sequences=SequenceSettings(),
    )
    return {row["request_id"]: row.asDict() for row in samples.collect()}


@pytest.fixture(scope="module")
def built(spark: SparkSession) -> dict:
    actions = [
        acted("ann", n, NOON_MS - (4 - n) * HOUR_MS) for n in range(7)
    ]  # number 4 at noon, 5 and 6 after it
    impressions = [
        shown("r1", "p2", 1, 0),
        shown("r1", "p1", 2, 1),
        shown("r1", "p3", 3, 0),
        shown("r1", "p4", 4, 0),
        shown("r1", "p9", 5, 0),  # never indexed
        shown("r2", "p1", 1, 0, request_ts_ms=NOON_MS - DAY_MS, user_lon=4.5, user_lat=52.0),
        shown("r3", "p1", 1, 1, user_id="new", request_ts_ms=NOON_MS - 9 * DAY_MS),
        shown("r4", "p9", 1, 1),
    ]
    return build(spark, impressions, actions)


def test_an_action_at_the_time_of_the_request_is_not_in_its_history(built):
    assert built["r1"]["poi_ids"] == ["p1", "p2", "p3"]  # the last three before noon; p4 acts at noon itself


def test_candidates_keep_the_order_of_positions_and_need_a_slot_live_on_the_day(built):
    row = built["r1"]

    assert (row["candidate_poi_ids"], row["candidate_positions"], row["labels"]) == (
        ["p2", "p1"],
        [1, 2],
        [0, 1],
    )
    assert row["candidate_inner_ids"] == [2, 1]
    assert "r4" not in built  # nothing that it showed is known


def test_the_user_is_where_delivered_else_at_the_last_action(built):
    assert (built["r1"]["user_lon"], built["r2"]["user_lon"], built["r3"]["user_lon"]) == (7.0, 4.5, None)


def test_splits_follow_the_day_of_the_request(built):
    assert {key: row["split"] for key, row in built.items()} == {"r1": "test", "r2": "val", "r3": "train"}


def test_a_request_without_a_past_is_kept_with_empty_arrays(built):
    assert (built["r3"]["seq_len"], built["r3"]["poi_ids"], built["r3"]["user_lons"]) == (0, [], [])


def test_histories_equal_a_brute_force_search_ties_and_day_edges_included(spark):
    chance = random.Random(5)
    midnight = NOON_MS - 12 * HOUR_MS
    # Few different times, so that actions and requests often share one, at midnight as well.
    times = [midnight + HOUR_MS * n for n in range(-12, 12)] + [midnight - 1, midnight + 1]
    users = ("ann", "bob", "eve")
    actions = [acted(chance.choice(users), n, chance.choice(times)) for n in range(150)]
    requests = [
        shown(f"r{n}", "p1", 1, 1, user_id=chance.choice(users), request_ts_ms=chance.choice(times))
        for n in range(60)
    ]

    samples = build(spark, requests, actions)

    for request in requests:
        past = [
            action
            for action in actions
            if action["user_id"] == request["user_id"] and action["action_ts_ms"] < request["request_ts_ms"]
        ]
        past.sort(key=lambda action: (action["action_ts_ms"], action["action_id"]))
        expected = [action["poi_id"] for action in past[-SETTINGS.ranking_history :]]
        assert samples[request["request_id"]]["poi_ids"] == expected
