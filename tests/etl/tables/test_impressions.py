"""Simulated exposures: what may be shown, and that nothing of the future is."""

from datetime import date

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import ImpressionSettings
from etl.spark.session import local_frame
from etl.tables.impressions import keep_visits, pick_requests, simulate_impressions

DAY = date(2026, 3, 10)
DAY_MS, NOON_MS = 86_400_000, 1773144000000  # 2026-03-10 12:00 UTC
# A row of POIs, 300 m apart; p0 to p8 are old, p9 opens on the day of the requests.
POIS = [(f"p{n}", 4.90 + 0.004 * n, 52.37, date(2026, 1, 1) if n < 9 else DAY) for n in range(10)]
# Ann walks along the row day by day; Bob was seen once, long ago.
ACTIONS = [("ann", f"p{n}", NOON_MS - (7 - n) * DAY_MS) for n in range(8)] + [
    ("bob", "p3", NOON_MS - 40 * DAY_MS)
]


def simulate(
    spark: SparkSession, actions: list[tuple[str, str, int]], settings: ImpressionSettings
) -> DataFrame:
    rows = [(f"{user}-{poi}-{time}", user, poi, time, 60) for user, poi, time in actions]
    frame = local_frame(
        spark, rows, "action_id string, user_id string, poi_id string, action_ts_ms bigint, tz_offset_min int"
    )
    pois = local_frame(spark, POIS, "poi_id string, poi_lon double, poi_lat double, first_seen_date date")
    visits = keep_visits(frame, pois)
    new = frame.where(F.col("action_ts_ms") >= NOON_MS - NOON_MS % DAY_MS)
    requests = pick_requests(visits, settings, day=DAY, new=new).localCheckpoint()
    return simulate_impressions(requests, visits, pois, settings, day=DAY)


@pytest.fixture(scope="module")
def shown(spark: SparkSession) -> list[dict[str, object]]:
    """What Ann is shown on the day, when she visits p7."""
    rows = simulate(spark, ACTIONS, ImpressionSettings(num_candidates=6)).collect()
    return sorted((row.asDict() for row in rows), key=lambda row: row["position"])


def test_the_visited_poi_alone_is_clicked(shown):
    assert [row["poi_id"] for row in shown if row["label"] == 1] == ["p7"]


def test_a_request_shows_the_wanted_number_of_pois_each_once(shown):
    assert [row["position"] for row in shown] == [1, 2, 3, 4, 5, 6]
    assert len({row["poi_id"] for row in shown}) == 6


def test_the_user_is_where_the_previous_action_was(shown):
    assert {(row["user_lon"], row["user_lat"]) for row in shown} == {(4.924, 52.37)}  # p6, not the target p7


def test_a_poi_first_seen_on_the_day_is_not_shown(shown):
    assert "p9" not in {row["poi_id"] for row in shown}


def test_every_row_says_that_it_is_simulated(shown):
    assert all(row["is_simulated"] for row in shown)


def test_a_user_without_earlier_action_makes_no_request(spark):
    rows = simulate(spark, [("new", "p1", NOON_MS)], ImpressionSettings())

    assert rows.count() == 0


def test_actions_at_or_after_the_request_change_nothing(spark, shown):
    later = [
        ("ann", "p8", NOON_MS + 1),
        ("bob", "p2", NOON_MS + 5),
        *[("eve", "p8", NOON_MS + n) for n in range(5)],
    ]

    rows = simulate(spark, ACTIONS + later, ImpressionSettings(num_candidates=6)).collect()

    request = shown[0]["request_id"]
    again = sorted(
        (row.asDict() for row in rows if row["request_id"] == request), key=lambda row: row["position"]
    )
    assert again == shown
