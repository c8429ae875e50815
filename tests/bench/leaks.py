"""Plants future values around requests and compares every ranking sample with a brute-force oracle.

    python -m tests.bench.leaks

Users act in bursts on a few instants, so that many actions happen at the very millisecond of a request, one before it,
or at the edges of a day; profiles and homes change on the days around. The oracle scans in plain Python what was known:
actions strictly before the request, profiles and homes of nights before its day. Records how many samples differ.
"""

import argparse
import random
import sys
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.results import record
from conf.settings import SampleSettings, SequenceSettings, Settings, SparkSettings
from conf.tables import TABLES
from etl.delta.contracts import spark_schema
from etl.spark.session import open_session
from etl.tables.profiles import profile_states
from etl.tables.ranking_samples import build_ranking_samples

NUM_ROWS, NUM_USERS, NUM_DAYS = 100_000, 1_000, 12
HISTORY = 20
FIRST_DAY = date(2026, 1, 1)
DAY_MS = 86_400_000
INSTANTS_MS = (0, 1, 999, 43_200_000, 43_200_001, DAY_MS - 1)
"""Times of the day at which everything happens: both edges, and noon."""
HOMES = ((4.9, 52.4), (6.9, 52.4), None)
"""Homes a user may be thought to have: near the POIs, 135 km away, unknown."""
TRAVEL_KM = 50.0
Action = tuple[int, str, str]
"""Time, action id, POI."""


class PlantedPast:
    """What happened and what was told, as plain Python rows.

    Attributes:
        actions: per user.
        profiles: per user, (day, value) of its one attribute.
        homes: per user, (day, home) as nights inferred it.
        requests: (request id, user, time).
    """

    def __init__(self, seed: int, num_rows: int) -> None:
        rng = random.Random(seed)
        users = [f"u{number}" for number in range(NUM_USERS)]
        self.actions: dict[str, list[Action]] = defaultdict(list)
        for number in range(num_rows):
            self.actions[rng.choice(users)].append((_instant(rng), f"a{number:06d}", f"p{rng.randrange(50)}"))
        nights = [FIRST_DAY + timedelta(days=number) for number in range(NUM_DAYS)]
        self.profiles = {u: [(d, str(rng.random())) for d in nights if rng.random() < 0.3] for u in users}
        self.homes = {u: [(d, rng.choice(HOMES)) for d in nights if rng.random() < 0.5] for u in users}
        self.requests = [(f"r{number}", rng.choice(users), _instant(rng)) for number in range(num_rows // 5)]


def expect(city: PlantedPast, user: str, time_ms: int) -> tuple[list[str], list[bool], str | None]:
    """Scans for what was known at a time: the history's action POIs, which of them were travel, the profile."""
    before = sorted(action for action in city.actions[user] if action[0] < time_ms)[-HISTORY:]
    travels = [_is_travel(_known(city.homes[user], _day(at))) for at, _, _ in before]
    return [poi for _, _, poi in before], travels, _known(city.profiles[user], _day(time_ms))


def build(spark: SparkSession, city: PlantedPast) -> DataFrame:
    """Builds the samples as the job does."""
    plain = {"action_type_id": 0, "is_interest": True, "tz_offset_min": 0, "index_version": 1, "block_id": 0}
    plain |= {
        "inner_id": 0,
        "category_id": 1,
        "poi_lon": 4.9,
        "poi_lat": 52.4,
        "repairs": [],
        "is_simulated": True,
    }
    schema = spark_schema(TABLES["cleaned_actions"])
    actions = [
        {**plain, "day": _day(at), "event_date": _day(at), "action_id": action_id, "user_id": user,
         "action_ts_ms": at, "poi_id": poi}
        for user, of_user in city.actions.items() for at, action_id, poi in of_user
    ]  # fmt: skip
    cleaned = spark.createDataFrame(
        [tuple(row.get(name) for name in schema.names) for row in actions], schema
    )
    shown = spark.createDataFrame(
        city.requests, "request_id string, user_id string, request_ts_ms bigint"
    ).selectExpr(
        "*", "0 AS tz_offset_min", "4.9D AS user_lon", "52.4D AS user_lat", "'p0' AS poi_id", "1 AS position",
        "1 AS label", "true AS is_simulated", "0 AS block_id", "0 AS inner_id", "1 AS category_id",
        "4.9D AS slot_lon", "52.4D AS slot_lat",
    )  # fmt: skip
    homes = [(u, d, *(home or (None, None))) for u, told in city.homes.items() for d, home in told]
    profiles = [(d, u, "age", value) for u, told in city.profiles.items() for d, value in told]
    return build_ranking_samples(
        shown,
        cleaned,
        spark.createDataFrame(homes, "user_id string, day date, home_lon double, home_lat double"),
        profile_states(
            spark.createDataFrame(profiles, "day date, user_id string, attribute string, value string")
        ),
        day=FIRST_DAY + timedelta(days=NUM_DAYS - 1),
        first_day=FIRST_DAY,
        index_version=1,
        request_type_id=0,
        samples=SampleSettings(ranking_history=HISTORY),
        sequences=SequenceSettings(travel_km=TRAVEL_KM),
    )


def count_leaks(spark: SparkSession, city: PlantedPast) -> tuple[int, int, str]:
    """Returns the samples that differ from the oracle, the samples, and the first difference."""
    buckets = {
        value: bucket
        for value, bucket in spark.createDataFrame(
            [(value,) for told in city.profiles.values() for _, value in told], "value string"
        )
        .transform(lambda frame: profile_states(frame.selectExpr("DATE'2026-01-01' AS day", "value AS user_id",
                                                                 "'age' AS attribute", "value")))
        .select("user_id", F.col("profile_ids")[0])
        .collect()
    }  # fmt: skip
    rows = build(spark, city).select("request_id", "poi_ids", "is_travels", "profile_ids").collect()
    found = {row["request_id"]: row for row in rows}
    leaks, example = 0, "none"
    for request, user, time_ms in city.requests:
        pois, travels, profile = expect(city, user, time_ms)
        row = found.get(request)
        wanted = (pois, travels, [buckets[profile]] if profile else [])
        if row is None or (row["poi_ids"], row["is_travels"], row["profile_ids"]) != wanted:
            example = f"{request}: {row} instead of {wanted}" if not leaks else example
            leaks += 1
    return leaks, len(city.requests), example


def main() -> int:
    """Measures, records, and returns 0 if no sample differs."""
    parser = argparse.ArgumentParser(description="Records how many samples know the future in results/.")
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    city = PlantedPast(1, options.rows)
    spark = open_session(Settings(spark=SparkSettings(quick_start=True, shuffle_partitions=2)), "leaks")
    leaks, samples, example = count_leaks(spark, city)
    spark.stop()
    edges = sum(at % DAY_MS in (0, DAY_MS - 1) for _, _, at in city.requests)
    notes = (
        f"{samples} requests beside a brute-force scan of {options.rows} planted actions, all at {len(INSTANTS_MS)} "
        f"times of {NUM_DAYS} days, so that most requests have actions at their very time; {edges} requests at the "
        f"first or last millisecond of a day; compared: history, travel by the home then known, "
        f"profile; first difference: {example[:200]}"
    )
    record("leaks-found", leaks, "samples", "== 0", "make bench-leaks", notes, options.results)
    print(f"{leaks} leaks; {notes}")
    return 1 if leaks else 0


def _known(told: list[tuple[date, object]], day: date) -> object:
    """Returns the last value told on a night before the day; the first night's counts ever."""
    values = [
        value for night, value in sorted(told, key=lambda row: row[0]) if night < day or night == FIRST_DAY
    ]
    return values[-1] if values else None


def _is_travel(home: object) -> bool:
    return home == HOMES[1]


def _day(time_ms: int) -> date:
    return datetime.fromtimestamp(time_ms / 1000, UTC).date()


def _instant(rng: random.Random) -> int:
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    return start + rng.randrange(NUM_DAYS) * DAY_MS + rng.choice(INSTANTS_MS)


if __name__ == "__main__":
    sys.exit(main())
