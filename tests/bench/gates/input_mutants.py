"""Faults of what is delivered for a night: every row keeps its contract, and the day as a whole is wrong."""

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.units import MS_PER_DAY
from etl.city import source
from etl.delta.storage import read_table
from tests.bench.gates.mutant_list import Mutant
from tests.bench.gates.world import Change, World, day_of, tell_story

HOUR_MS = 3_600_000
EAST = 4.95
"""The deliveries of what lies east of this longitude are missing."""
ONE_USER = "u0000001"
FUNCTIONAL, ONE_CATEGORY = "Bank", "Bakery"
Severity = Mapping[str, Any]
Tables = dict[str, DataFrame]


def change_of(mutant: Mutant, world: World, spark: SparkSession) -> Change:
    """Returns what a fault does to the delivery of the last night."""

    def change(tables: Mapping[str, DataFrame], day: date) -> Mapping[str, DataFrame]:
        return KINDS[mutant.kind](dict(tables), mutant.severity, world, spark, mutant.seed)

    return change


def share_wrong(world: World, clean: World) -> float:
    """Share of the night's right actions that are missing, or say another user, place, time or category."""

    def actions(of: World) -> set[tuple[object, ...]]:
        rows = DeltaTable(f"{of.settings.storage.root}/cleaned_actions").to_pandas()
        rows = rows[(rows["day"] == day_of(30)) & (rows["event_date"] == day_of(30))]
        return set(
            rows[["user_id", "poi_id", "action_ts_ms", "category_id"]].itertuples(index=False, name=None)
        )

    right = actions(clean)
    return len(right - actions(world)) / max(len(right), 1)


def _chance(seed: int, column: str) -> F.Column:
    return F.pmod(F.xxhash64(F.lit(seed), F.col(column)), F.lit(1000)) / 1000


def _on_actions(
    change: Callable[[DataFrame, Severity, int], DataFrame],
) -> Callable[[Tables, Severity, World, SparkSession, int], Tables]:
    def plant(tables: Tables, severity: Severity, world: World, spark: SparkSession, seed: int) -> Tables:
        return {**tables, "raw_actions": change(tables["raw_actions"], severity, seed)}

    return plant


def _duplicated_day(
    tables: Tables, severity: Severity, world: World, spark: SparkSession, seed: int
) -> Tables:
    eve = day_of(30) - timedelta(days=1)
    raw = read_table(spark, world.settings.storage.root, "raw_actions").where(F.col("day") == F.lit(eve))
    moved = raw.withColumns(
        {
            "action_id": F.concat(F.lit("again-"), F.col("action_id")),
            "action_ts_ms": F.col("action_ts_ms") + MS_PER_DAY,
        }
    )
    return {**tables, "raw_actions": moved.select(*tables["raw_actions"].columns)}


def _refiled(category: str) -> Callable[[Tables, Severity, World, SparkSession, int], Tables]:
    """The catalogue comes whole, with most POIs under one category."""

    def plant(tables: Tables, severity: Severity, world: World, spark: SparkSession, seed: int) -> Tables:
        settings = world.settings
        pois = source.changed_pois(spark, settings, day_of(30), since=None)
        pois = tell_story({**tables, "raw_pois": pois}, settings.city, day_of(30))["raw_pois"]
        is_hit = _chance(seed, "poi_id") < severity["share"]
        told = pois.withColumn("category", F.when(is_hit, F.lit(category)).otherwise(F.col("category")))
        return {**tables, "raw_pois": told}

    return plant


KINDS: Mapping[str, Callable[[Tables, Severity, World, SparkSession, int], Tables]] = {
    "duplicated_day": _duplicated_day,
    "missing_city": _on_actions(
        lambda rows, s, seed: rows.where(F.coalesce(F.col("poi_lon") <= EAST, F.lit(True)))
    ),
    "hours_shifted": _on_actions(
        lambda rows, s, seed: rows.withColumn("action_ts_ms", F.col("action_ts_ms") + s["hours"] * HOUR_MS)
    ),
    "one_category": _refiled(ONE_CATEGORY),
    "all_functional": _refiled(FUNCTIONAL),
    "half_the_rows": _on_actions(lambda rows, s, seed: rows.where(_chance(seed, "action_id") >= s["share"])),
    "one_user": _on_actions(
        lambda rows, s, seed: rows.withColumn(
            "user_id",
            F.when(_chance(seed, "action_id") < s["share"], F.lit(ONE_USER)).otherwise(F.col("user_id")),
        )
    ),
}
