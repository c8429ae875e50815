"""Simulated nights of a small city for the benchmarks of the ETL: what is delivered when, and how nights are run.

`deliveries` spreads the synthetic city's rows over nights and adds what a real feed does: rows that arrive days late,
rows that arrive again, POIs that get another name or category in place. New users, new, moved and closed POIs and dirty
rows are the city's own. A correction is a second delivery of a day.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.settings import CitySettings, Settings, SparkSettings, StorageSettings
from conf.tables import TABLES
from etl.city import source
from etl.city.dirt import plant_dirty_pois
from etl.city.geography import uniform
from etl.columns.spacetime import event_date
from etl.delta import contracts, storage
from etl.jobs import index_pois, recompute
from etl.spark.session import compute_once

JOBS = {
    "poi_index": index_pois.index_pois,
    "clean_actions": recompute.clean_days,
    "action_sequences": recompute.sequence_days,
}
RAW_TABLES = ("raw_actions", "raw_pois", "raw_profiles")
INDEX_TABLES = ("blocks", "categories", "poi_index")
DAY_TABLES = ("quarantined_rows", "cleaned_actions", "user_places", "action_sequences")
LATE_SHARE, MAX_LATE_DAYS = 0.06, 6
AGAIN_SHARE = 0.02
RENAMED_SHARE = 0.01
WRONG_SHARE = 0.1
"""Rows of a wrong delivery that its correction takes back, changes or adds."""


@dataclass(frozen=True)
class Deliveries:
    """What arrives on which day: raw tables with their `day`; `wrong` is what arrives first where it is corrected."""

    right: Mapping[str, DataFrame]
    wrong: Mapping[str, DataFrame]


def settings_for(root: str, *, num_users: int, num_days: int, num_actions: int) -> Settings:
    """Returns the settings of a small city."""
    city = CitySettings(
        num_users=num_users,
        num_pois=max(900, num_actions // 10),
        num_actions=num_actions,
        num_requests=0,
        num_days=num_days,
        dirty_share=0.02,
        kept_dirt_share=0.01,
    )
    spark = SparkSettings(driver_memory="3g", shuffle_partitions=1, quick_start=True)
    return Settings(city=city, spark=spark, storage=StorageSettings(root=root))


def days_of(city: CitySettings) -> list[date]:
    """Returns the days of the city's life."""
    return [city.first_day + timedelta(days=number) for number in range(city.num_days)]


def deliveries(spark: SparkSession, settings: Settings) -> Deliveries:
    """Spreads the city's rows over its days; every frame is computed once."""
    days = days_of(settings.city)
    raw = source.SyntheticCity().read(spark, settings, day=days[-1])
    right = {
        "raw_actions": compute_once(_spread_actions(shape(raw["raw_actions"], "raw_actions"), days)),
        "raw_pois": compute_once(_spread_pois(spark, settings, days)),
        "raw_profiles": compute_once(
            shape(raw["raw_profiles"], "raw_profiles").withColumn("day", F.lit(days[0]))
        ),
    }
    chance = uniform(2, "wrong", F.col("action_id"))
    actions = (
        right["raw_actions"]
        .where(chance > WRONG_SHARE / 3)
        .withColumns(
            {  # a third missing, a third moved to another user, a third an hour off
                "user_id": F.when(chance < 2 * WRONG_SHARE / 3, F.lit("u0000001")).otherwise(
                    F.col("user_id")
                ),
                "action_ts_ms": F.when(
                    chance.between(2 * WRONG_SHARE / 3, WRONG_SHARE), F.col("action_ts_ms") - 3_600_000
                ).otherwise(F.col("action_ts_ms")),
            }
        )
    )
    draw = uniform(2, "wrong poi", F.col("poi_id"))
    pois = (
        right["raw_pois"]
        .where(draw > 0.2)
        .withColumns(
            {
                "category": F.when(draw < 0.5, F.lit("Bank")).otherwise(F.col("category")),
                "name": F.when(draw > 0.8, F.lit("Wrong")).otherwise(F.col("name")),
                "is_closed": F.when(draw > 0.95, ~F.col("is_closed")).otherwise(F.col("is_closed")),
            }
        )
    )
    return Deliveries(right, {"raw_actions": actions, "raw_pois": pois})


def deliver(tables: Mapping[str, DataFrame], settings: Settings, day: date) -> None:
    """Writes what arrives on a day, in place of what may have arrived before for it."""
    for name, frame in tables.items():
        rows = frame.where(F.col("day") == day).coalesce(1)
        storage.replace_day(rows, name, settings.storage.root, day=day, run_id="nights", job="nights")


def run_job(name: str, spark: SparkSession, settings: Settings, day: date) -> JobSummary:
    """Runs a job of the night as the command line does."""
    return JOBS[name](JobContext(name, day, settings, "nights", False, argparse.Namespace()), spark)


def digest_days(spark: SparkSession, root: str, days: Sequence[date]) -> dict[str, str]:
    """Digests the index tables as a whole, and of the others every day apart."""
    digests = {}
    for name in (*INDEX_TABLES, *DAY_TABLES):
        frame = storage.read_table(spark, root, name)
        if TABLES[name].write == "merge":
            digests[name] = contracts.digest_table(frame, TABLES[name])
            continue
        for day in days:
            rows = frame.where(F.col("day") == day)
            digests[f"{name} {day}"] = contracts.digest_table(rows, TABLES[name])
    return digests


def _spread_actions(actions: DataFrame, days: Sequence[date]) -> DataFrame:
    """Delivers each action on its UTC day, some up to days later, some once more on another day."""
    happened = F.greatest(F.least(_day_of(F.col("action_ts_ms")), F.lit(days[-1])), F.lit(days[0]))
    delay = F.ceil(uniform(2, "delay", F.col("action_id")) * MAX_LATE_DAYS).cast("int")
    is_late = uniform(2, "late", F.col("action_id")) < LATE_SHARE
    arrives = F.date_add(happened, F.when(is_late, delay).otherwise(0))
    first = actions.withColumn("day", F.least(arrives, F.lit(days[-1])))
    again = first.where(uniform(2, "again", F.col("action_id")) < AGAIN_SHARE)
    return first.unionByName(again.withColumn("day", F.least(F.date_add("day", 1 + delay), F.lit(days[-1]))))


def _spread_pois(spark: SparkSession, settings: Settings, days: Sequence[date]) -> DataFrame:
    """Delivers the catalogue on the first day and its changes on theirs; some POIs are renamed or filed again."""
    frames = []
    for before, day in zip([None, *days], days, strict=False):
        told = source.changed_pois(spark, settings, day, since=before)
        dirty = plant_dirty_pois(told, city=settings.city, clean=settings.clean)
        # Each is computed by itself: the plans of all nights at once would take longer than their rows.
        frames.append(compute_once(shape(dirty, "raw_pois").withColumn("day", F.lit(day)).coalesce(1)))
    first = frames[0]
    number = (uniform(2, "renamed on", F.col("poi_id")) * (len(days) - 1)).cast("int") + 1
    is_renamed = (uniform(2, "renamed", F.col("poi_id")) < RENAMED_SHARE * len(days)) & ~F.col("is_closed")
    renamed = first.where(is_renamed).withColumns(
        {
            "day": F.date_add(F.lit(days[0]), number),
            "name": F.concat("name", F.lit(" & Sons")),
            "category": F.when(uniform(2, "filed again", F.col("poi_id")) < 0.5, F.lit("Bakery")).otherwise(
                F.col("category")
            ),
        }
    )
    told = renamed
    for frame in frames:
        told = told.unionByName(frame)
    return told


def shape(frame: DataFrame, name: str) -> DataFrame:
    columns = [column for column in TABLES[name].columns if column.name != "day"]
    return frame.select(
        *(
            F.col(column.name)
            if column.name in frame.columns
            else F.lit(None).cast(column.type).alias(column.name)
            for column in columns
        )
    )


def _day_of(ts_ms: Column) -> Column:
    dated = ts_ms.between(0, 4_102_444_800_000)
    return F.coalesce(F.when(dated, event_date(F.when(dated, ts_ms))), F.lit(date(2026, 1, 1)))
