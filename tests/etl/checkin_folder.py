"""A folder of check-ins, and its delivery."""

import argparse
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext
from conf.settings import Settings, SourceSettings
from etl.delta import storage
from etl.jobs import index_pois
from etl.sources import checkins

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


TYPES = (
    pa.string(),
    pa.string(),
    pa.string(),
    pa.float64(),
    pa.float64(),
    pa.timestamp("us", "UTC"),
    pa.int32(),
)


def write_folder(
    folder: Path, *, without: str = "", rows: Sequence[tuple] = CHECKINS, pois: Sequence[tuple] = POIS
) -> None:
    names = ("user_id", "poi_id", "category", "latitude", "longitude", "utc_time", "tz_offset_min")
    schema = pa.schema(list(zip(names, TYPES, strict=True)))
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=schema)
    pq.write_table(table.drop_columns([without]) if without else table, folder / "checkins.parquet")
    places = dict(zip(("poi_id", "latitude", "longitude"), map(list, zip(*pois, strict=True)), strict=True))
    pq.write_table(pa.table(places), folder / "pois.parquet")


def with_source(settings: Settings, **source: object) -> Settings:
    return settings.model_copy(update={"source": SourceSettings.model_validate(source)})


def deliver(
    spark: SparkSession, settings: Settings, folder: Path, day: date, **more: object
) -> dict[str, object]:
    """Delivers a day and indexes its POIs; returns the notes of the delivery."""
    source = with_source(settings, path=str(folder), **more)
    notes = {}
    for job, run in (("checkins", checkins.deliver), ("poi_index", index_pois.index_pois)):
        notes[job] = run(JobContext(job, day, source, "run", False, argparse.Namespace()), spark).notes
    return notes["checkins"]


def of_day(spark: SparkSession, settings: Settings, table: str, day: date) -> list[Row]:
    return storage.read_table(spark, settings.storage.root, table).where(F.col("day") == day).collect()
