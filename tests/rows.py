"""Row builders: a test names only the fields it cares about, the rest is a plain good row."""

from collections.abc import Sequence
from datetime import UTC, date, datetime

from pyspark.sql import DataFrame, SparkSession

from conf.tables import TABLES

DAY = date(2026, 1, 31)
NOON_MS = int(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000


def action(**fields: object) -> dict[str, object]:
    """A good row of raw_actions: Ann clicks on p1, a cafe in Amsterdam, at noon."""
    good = {
        "day": DAY,
        "action_id": "a1",
        "user_id": "ann",
        "poi_id": "p1",
        "action_type": "click",
        "action_ts_ms": NOON_MS,
        "tz_offset_min": 60,
        "user_lon": 4.90,
        "user_lat": 52.37,
        "poi_lon": 4.89,
        "poi_lat": 52.36,
        "category": "Cafe",
        "corrupt_record": None,
        "record": None,
        "is_simulated": False,
    }
    return _with(good, fields)


def poi(**fields: object) -> dict[str, object]:
    """A good row of raw_pois: p1, a cafe in Amsterdam."""
    good = {
        "day": DAY,
        "poi_id": "p1",
        "name": "One",
        "address": None,
        "category": "Cafe",
        "category_path": "Food > Cafe",
        "poi_lon": 4.89,
        "poi_lat": 52.36,
        "description": None,
        "first_seen_date": None,
        "is_closed": None,
        "is_derived": None,
        "record": None,
        "is_simulated": False,
    }
    return _with(good, fields)


def cleaned(**fields: object) -> dict[str, object]:
    """A row of cleaned_actions: the good action after cleaning."""
    good = {
        "day": DAY,
        "action_id": "a1",
        "user_id": "ann",
        "action_ts_ms": NOON_MS,
        "event_date": DAY,
        "tz_offset_min": 60,
        "user_lon": 4.90,
        "user_lat": 52.37,
        "poi_id": "p1",
        "index_version": 1,
        "block_id": 0,
        "inner_id": 0,
        "poi_lon": 4.89,
        "poi_lat": 52.36,
        "category_id": 1,
        "action_type_id": 0,
        "is_interest": True,
        "repairs": [],
        "is_simulated": False,
    }
    return _with(good, fields)


def frame_of(spark: SparkSession, table: str, rows: Sequence[dict[str, object]]) -> DataFrame:
    """Makes a frame in the schema of a table; missing fields are null."""
    from etl.delta.contracts import spark_schema  # tests without Spark import this file for its constants
    from etl.spark.session import local_frame

    schema = spark_schema(TABLES[table])
    return local_frame(spark, [tuple(row.get(name) for name in schema.names) for row in rows], schema)


def _with(good: dict[str, object], fields: dict[str, object]) -> dict[str, object]:
    unknown = set(fields) - set(good)
    assert not unknown, f"no such field: {', '.join(sorted(unknown))}"
    return {**good, **fields}
