"""Dirty rows for the synthetic city: every way in which a delivered row can be bad, with its reason.

A share of the clean rows is copied and the copy is spoilt, so the clean rows stay as they are and each
planted row is known by its own id. Reasons are the codes of `conf/rules.py`.
"""

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.settings import CitySettings, CleanSettings
from etl.synthetic_places import look_up, uniform, whole

EXACT_DUPLICATE = "exact_duplicate"
"""Reason of planted copies that are dropped and counted, not refused."""
MS_PER_DAY = 86_400_000


@dataclass(frozen=True)
class Dirt:
    """One way of spoiling a row.

    Attributes:
        reason: code of the rule that must catch it, or `EXACT_DUPLICATE`.
        changes: column -> what it becomes.
        keeps_id: the copy keeps the id of the row that it was made from.
    """

    reason: str
    changes: dict[str, Column]
    keeps_id: bool = False


def plant_dirty_actions(actions: DataFrame, *, city: CitySettings, clean: CleanSettings) -> DataFrame:
    """Adds spoilt copies of a share of the actions; `planted_reason` is null for the clean rows."""
    return _plant(actions, "action_id", _action_dirt(clean), city=city)


def plant_dirty_pois(pois: DataFrame, *, city: CitySettings, clean: CleanSettings) -> DataFrame:
    """Adds spoilt copies of a share of the POIs; `planted_reason` is null for the clean rows."""
    return _plant(pois, "poi_id", _poi_dirt(clean), city=city)


def _plant(rows: DataFrame, key: str, kinds: tuple[Dirt, ...], *, city: CitySettings) -> DataFrame:
    share = city.dirty_share / (1.0 - city.dirty_share)
    # Chosen by the id before it is changed, so that the same rows are spoilt however the night is cut.
    kind = whole(uniform(city.seed, f"dirt kind {key}", F.col(key)), len(kinds))
    is_picked = uniform(city.seed, f"dirt {key}", F.col(key)) < share
    # Copied by exploding, not by a union: the clean rows are computed once.
    copies = F.when(is_picked, F.array(F.lit(None).cast("int"), kind)).otherwise(
        F.array(F.lit(None).cast("int"))
    )
    number = F.col("_kind")
    columns = []
    for name in rows.columns:
        value = F.col(name)
        if name == key:
            keeps_id = F.coalesce(number, F.lit(-1)).isin(
                [n for n, dirt in enumerate(kinds) if dirt.keeps_id]
            )
            value = F.when(number.isNull() | keeps_id, value).otherwise(F.concat(value, F.lit("-bad")))
        for n, dirt in enumerate(kinds):
            if name in dirt.changes:
                value = F.when(number == n, dirt.changes[name]).otherwise(value)
        columns.append(value.alias(name))
    # Spark takes element_at for never null, even of a null index: IS NULL on it would be folded away.
    reason = F.when(number.isNotNull(), look_up([dirt.reason for dirt in kinds], number))
    return rows.withColumn("_kind", F.explode(copies)).select(*columns, reason.alias("planted_reason"))


def _action_dirt(clean: CleanSettings) -> tuple[Dirt, ...]:
    time, no_text = F.col("action_ts_ms"), F.lit(None).cast("string")
    endless = F.repeat(F.lit("x"), clean.max_text_length + 1)
    broken = F.concat(F.lit('{"action_id": "'), F.col("action_id"), F.lit('-bad", "time'))
    empty = ("user_id", "poi_id", "action_type", "category")
    return (
        Dirt(
            "corrupt_record",
            {
                **dict.fromkeys(empty, no_text),
                "action_id": no_text,
                "corrupt_record": broken,
                "action_ts_ms": F.lit(None).cast("bigint"),
                **dict.fromkeys(("user_lon", "user_lat", "poi_lon", "poi_lat"), F.lit(None).cast("double")),
                "tz_offset_min": F.lit(None).cast("int"),
            },
        ),
        Dirt("missing_user", {"user_id": no_text}),
        Dirt("missing_user", {"user_id": F.lit("  ")}),
        Dirt("missing_poi", {"poi_id": no_text}),
        Dirt("missing_poi", {"poi_id": F.lit("")}),
        Dirt("missing_time", {"action_ts_ms": F.lit(None).cast("bigint")}),
        Dirt("text_too_long", {"user_id": endless}),
        Dirt("text_too_long", {"poi_id": endless}),
        Dirt("unknown_action_type", {"action_type": F.lit("hover")}),
        Dirt("unknown_action_type", {"action_type": no_text}),
        Dirt("time_in_seconds", {"action_ts_ms": F.floor(time / 1000)}),
        Dirt("time_in_microseconds", {"action_ts_ms": time * 1000}),
        Dirt("time_in_future", {"action_ts_ms": time + F.lit(3650 * MS_PER_DAY)}),
        Dirt("time_too_early", {"action_ts_ms": time - F.lit(36 * 365 * MS_PER_DAY)}),
        Dirt("poi_place_swapped", {"poi_lon": F.col("poi_lat"), "poi_lat": F.col("poi_lon")}),
        Dirt("poi_place_out_of_range", {"poi_lon": F.lit(400.0), "poi_lat": F.lit(400.0)}),
        Dirt("poi_place_zero", {"poi_lon": F.lit(0.0), "poi_lat": F.lit(0.0)}),
        Dirt("unknown_poi", {"poi_id": F.concat(F.lit("test-"), F.col("poi_id"))}),
        Dirt("user_place_swapped", {"user_lon": F.col("poi_lat"), "user_lat": F.col("poi_lon")}),
        Dirt("duplicate_id", {"action_ts_ms": time + F.lit(1)}, keeps_id=True),
        Dirt(EXACT_DUPLICATE, {}, keeps_id=True),
    )


def _poi_dirt(clean: CleanSettings) -> tuple[Dirt, ...]:
    nowhere = F.lit(None).cast("double")
    return (
        Dirt("poi_missing_id", {"poi_id": F.lit(None).cast("string")}),
        Dirt("poi_text_too_long", {"name": F.repeat(F.lit("x"), clean.max_text_length + 1)}),
        Dirt("poi_missing_place", {"poi_lon": nowhere, "poi_lat": nowhere}),
        Dirt("poi_swapped", {"poi_lon": F.lit(52.4), "poi_lat": F.lit(104.9)}),
        Dirt("poi_out_of_range", {"poi_lon": F.lit(300.0), "poi_lat": F.lit(95.0)}),
        Dirt("poi_zero", {"poi_lon": F.lit(0.0), "poi_lat": F.lit(0.0)}),
    )
