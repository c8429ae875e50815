"""Dirty rows for the synthetic city: every way in which a delivered row can be bad, with its reason.

A share of the clean rows is copied and the copies are spoilt. So the clean rows stay as they are, and each
planted row has its own id. Reasons are the codes of `conf/rules.py`. There are three kinds of copies: rows
that must be refused or dropped (`city.dirty_share`), rows that are repaired or flagged and kept
(`city.kept_dirt_share`), and bots (`city.bot_share`), which exceed the daily cap. `NOT_PLANTED` lists the
reasons that cannot occur within a single delivery.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.settings import CitySettings, CleanSettings
from conf.units import MS_PER_DAY
from etl.city.geography import look_up, uniform, whole

EXACT_DUPLICATE, POI_EXACT_DUPLICATE = "exact_duplicate", "poi_exact_duplicate"
"""Reasons of planted copies that are dropped and counted, not refused."""
NOT_PLANTED = ("after_poi_closed", "poi_moved_too_far", "poi_shared_place")
"""Rules about what an earlier delivery said of the POI, and about hundreds of POIs together."""
BOT_SURPLUS = 20
"""Actions of a bot beyond the cap."""


@dataclass(frozen=True)
class Dirt:
    """One way of spoiling a row.

    Attributes:
        reason: code of the rule that must catch it.
        changes: column -> spoilt value; `planted_no` is the number of a bot's action.
        suffix: added to the id of the original row to form the id of the copy.
        times: number of copies.
    """

    reason: str
    changes: dict[str, Column]
    suffix: str = "-bad"
    times: int = 1


def plant_dirty_actions(actions: DataFrame, *, city: CitySettings, clean: CleanSettings) -> DataFrame:
    """Adds spoilt copies of a share of the actions; `planted_reason` is null for rows without a fault.

    These are the clean rows, and the first actions of every bot, up to the cap.
    """
    kinds = {
        "dirt": (_refused_actions(clean), city.dirty_share / (1.0 - city.dirty_share)),
        "kept dirt": (_kept_actions(), city.kept_dirt_share),
        "bot": (_bots(clean), city.bot_share),
    }
    planted = _plant(actions, "action_id", kinds, seed=city.seed)
    is_kept = (F.col("planted_reason") == "too_many_actions") & (
        F.col("planted_no") < clean.max_actions_per_day
    )
    reason = F.when(~F.coalesce(is_kept, F.lit(False)), F.col("planted_reason"))
    return planted.withColumn("planted_reason", reason).drop("planted_no")


def plant_dirty_pois(pois: DataFrame, *, city: CitySettings, clean: CleanSettings) -> DataFrame:
    """Adds spoilt copies of a share of the POIs; `planted_reason` is null for the clean rows."""
    kinds = {
        "dirt": (_refused_pois(clean), city.dirty_share / (1.0 - city.dirty_share)),
        "kept dirt": (_kept_pois(), city.kept_dirt_share),
    }
    return _plant(pois, "poi_id", kinds, seed=city.seed).drop("planted_no")


def _plant(
    rows: DataFrame, key: str, groups: dict[str, tuple[tuple[Dirt, ...], float]], *, seed: int
) -> DataFrame:
    """Copies every row once per group that it is picked for; adds `planted_reason` and `planted_no`."""
    kinds: list[Dirt] = []
    copies = [F.expr("array(struct(cast(null AS int) AS kind, 0 AS number))")]  # the row itself
    none = F.slice(copies[0], 2, 1)
    for group, (of_group, share) in groups.items():
        if not share:
            continue
        # Chosen by the original id, so that the same rows are spoilt however deliveries are split.
        kind = whole(uniform(seed, f"{group} kind {key}", F.col(key)), len(of_group)) + len(kinds)
        is_picked = uniform(seed, f"{group} {key}", F.col(key)) < share
        numbers = F.sequence(F.lit(0), F.lit(of_group[0].times - 1))
        copies.append(F.when(is_picked, F.transform(numbers, _as_copy(kind))).otherwise(none))
        kinds += of_group
    if not kinds:
        return rows.withColumns({"planted_no": F.lit(0), "planted_reason": _null("string")})
    # Copied by exploding, not by a union: the clean rows are computed once.
    copied = rows.withColumn("_copy", F.explode(F.concat(*copies))).select(
        *rows.columns, F.col("_copy.kind").alias("_kind"), F.col("_copy.number").alias("planted_no")
    )
    number = F.col("_kind")
    suffix = look_up([dirt.suffix for dirt in kinds], F.coalesce(number, F.lit(0)))
    own_key = F.when(number.isNull(), F.col(key)).otherwise(F.concat(F.col(key), suffix))
    columns = []
    for name in rows.columns:
        value = own_key if name == key else F.col(name)
        for n, dirt in enumerate(kinds):
            if name in dirt.changes:
                value = F.when(number == n, dirt.changes[name]).otherwise(value)
        columns.append(value.alias(name))
    # Spark assumes that element_at is never null, even for a null index: IS NULL on it would be folded away.
    reason = F.when(number.isNotNull(), look_up([dirt.reason for dirt in kinds], number))
    return copied.select(*columns, "planted_no", reason.alias("planted_reason"))


def _as_copy(kind: Column) -> Callable[[Column], Column]:
    return lambda number: F.struct(kind.alias("kind"), number.alias("number"))


def _null(kind: str) -> Column:
    return F.lit(None).cast(kind)


def _refused_actions(clean: CleanSettings) -> tuple[Dirt, ...]:
    time, no_text = F.col("action_ts_ms"), _null("string")
    endless = F.repeat(F.lit("x"), clean.max_text_length + 1)
    broken = F.concat(F.lit('{"action_id": "'), F.col("action_id"), F.lit('-bad", "time'))
    places = ("user_lon", "user_lat", "poi_lon", "poi_lat")
    unparsed = {
        **dict.fromkeys(("action_id", "user_id", "poi_id", "action_type", "category"), no_text),
        **dict.fromkeys(places, _null("double")),
        "corrupt_record": broken,
        "action_ts_ms": _null("bigint"),
        "tz_offset_min": _null("int"),
    }
    nan, infinite = F.lit(float("nan")), F.lit(float("inf"))
    return (
        Dirt("corrupt_record", unparsed),
        Dirt("missing_user", {"user_id": no_text}),
        Dirt("missing_user", {"user_id": F.lit("  ")}),
        Dirt("missing_poi", {"poi_id": no_text}),
        Dirt("missing_poi", {"poi_id": F.lit("")}),
        Dirt("missing_time", {"action_ts_ms": _null("bigint")}),
        Dirt("missing_action_type", {"action_type": no_text}),
        Dirt("missing_action_type", {"action_type": F.lit("\t")}),
        Dirt("text_too_long", {"user_id": endless}),
        Dirt("text_too_long", {"poi_id": endless}),
        Dirt("placeholder_user", {"user_id": F.lit("NULL")}),
        Dirt("placeholder_user", {"user_id": F.lit("NaN")}),
        Dirt("placeholder_poi", {"poi_id": F.lit("None")}),
        Dirt("placeholder_poi", {"poi_id": F.lit("\\N")}),
        Dirt("broken_text", {"user_id": F.concat(F.lit("u\ufffd"), F.col("user_id"))}),
        Dirt("broken_text", {"poi_id": F.concat(F.lit("p\x00"), F.col("poi_id"))}),
        # Latin-1 bytes of an o with diaeresis, passed on without decoding.
        Dirt("broken_text", {"user_id": F.concat(F.expr("cast(X'F6' AS string)"), F.col("user_id"))}),
        Dirt("unknown_action_type", {"action_type": F.lit("hover")}),
        Dirt("time_negative", {"action_ts_ms": -time}),
        Dirt("time_zero", {"action_ts_ms": F.lit(0).cast("bigint")}),
        Dirt("time_in_seconds", {"action_ts_ms": F.floor(time / 1000)}),
        Dirt("time_in_microseconds", {"action_ts_ms": time * 1000}),
        Dirt("time_in_nanoseconds", {"action_ts_ms": time * 1_000_000}),
        Dirt("time_in_future", {"action_ts_ms": time + F.lit(3650 * MS_PER_DAY)}),
        Dirt("time_too_early", {"action_ts_ms": time - F.lit(36 * 365 * MS_PER_DAY)}),
        Dirt("poi_place_not_finite", {"poi_lon": nan}),
        Dirt("poi_place_not_finite", {"poi_lat": infinite}),
        Dirt("poi_place_swapped", {"poi_lon": F.col("poi_lat"), "poi_lat": F.col("poi_lon")}),
        Dirt("poi_place_out_of_range", {"poi_lon": F.lit(400.0), "poi_lat": F.lit(400.0)}),
        Dirt("poi_place_zero", {"poi_lon": F.lit(0.0), "poi_lat": F.lit(0.0)}),
        Dirt("unknown_poi", {"poi_id": F.concat(F.lit("test-"), F.col("poi_id"))}),
        Dirt("user_place_swapped", {"user_lon": F.col("poi_lat"), "user_lat": F.col("poi_lon")}),
        Dirt("duplicate_id", {"action_ts_ms": time + F.lit(1)}, suffix=""),
        Dirt("repeated_action", {}),
        Dirt(EXACT_DUPLICATE, {}, suffix=""),
    )


def _kept_actions() -> tuple[Dirt, ...]:
    """Returns the kinds that are repaired or flagged; they are a millisecond late, so as not to repeat the original."""

    def kept(reason: str, later_ms: int = 1, **changes: Column) -> Dirt:
        time = F.col("action_ts_ms") + F.lit(later_ms)
        return Dirt(reason, {"action_ts_ms": time, **changes}, suffix=f"-{reason}")

    nowhere, zone = _null("double"), F.col("tz_offset_min")
    return (
        kept("action_id_missing", action_id=_null("string")),
        kept("action_id_missing", action_id=F.lit("None")),
        kept("id_trimmed", user_id=F.concat(F.lit(" "), F.col("user_id"))),
        kept("id_trimmed", poi_id=F.concat(F.col("poi_id"), F.lit("\r\n"))),
        kept("action_type_spelling", action_type=F.concat(F.upper("action_type"), F.lit(" "))),
        kept("user_place_not_finite", user_lon=F.lit(float("nan")), user_lat=F.lit(0.0)),
        kept("user_place_incomplete", user_lon=F.col("poi_lon"), user_lat=nowhere),
        kept("user_place_out_of_range", user_lon=F.lit(400.0), user_lat=F.lit(123.4)),
        kept("user_place_zero", user_lon=F.lit(0.0), user_lat=F.lit(0.0)),
        kept("poi_place_far", poi_lat=F.col("poi_lat") + F.lit(0.3)),
        kept("poi_place_incomplete", poi_lon=nowhere),
        kept("tz_missing", tz_offset_min=_null("int")),
        kept("tz_out_of_range", tz_offset_min=F.lit(2000)),
        kept(
            "tz_far_from_place",
            tz_offset_min=F.when(zone > 0, zone - 480).otherwise(zone + 480),
            user_lon=F.col("poi_lon"),
            user_lat=F.col("poi_lat"),
        ),
        # Older than any POI of the city, and later than the service.
        kept("before_poi_opened", later_ms=-15 * 365 * MS_PER_DAY),
        # 67 km farther north a millisecond later; without a user place the copy is not unusual.
        kept("impossible_speed", user_lat=F.col("user_lat") + F.lit(0.6)),
    )


def _bots(clean: CleanSettings) -> tuple[Dirt, ...]:
    """Returns the bots: a separate user acts at one place every second from midnight, beyond the daily cap."""
    number = F.col("planted_no")
    midnight = F.floor(F.col("action_ts_ms") / MS_PER_DAY) * F.lit(MS_PER_DAY)
    changes = {
        "action_id": F.concat(F.col("action_id"), F.format_string("-bot-%06d", number)),
        "user_id": F.concat(F.lit("bot-"), F.col("action_id")),
        "action_ts_ms": midnight + number * 1000,
    }
    return (Dirt("too_many_actions", changes, times=clean.max_actions_per_day + BOT_SURPLUS),)


def _refused_pois(clean: CleanSettings) -> tuple[Dirt, ...]:
    nowhere = _null("double")
    return (
        Dirt("poi_missing_id", {"poi_id": _null("string")}),
        Dirt("poi_text_too_long", {"name": F.repeat(F.lit("x"), clean.max_text_length + 1)}),
        Dirt("poi_placeholder_id", {"poi_id": F.lit("undefined")}),
        Dirt("poi_broken_id", {"poi_id": F.concat(F.col("poi_id"), F.lit("\ufffd-bad"))}),
        Dirt("poi_missing_place", {"poi_lon": nowhere, "poi_lat": nowhere}),
        Dirt("poi_not_finite", {"poi_lon": F.lit(float("nan"))}),
        Dirt("poi_swapped", {"poi_lon": F.lit(52.4), "poi_lat": F.lit(104.9)}),
        Dirt("poi_out_of_range", {"poi_lon": F.lit(300.0), "poi_lat": F.lit(95.0)}),
        Dirt("poi_zero", {"poi_lon": F.lit(0.0), "poi_lat": F.lit(0.0)}),
        # Comes after its original in every order of names.
        Dirt("poi_duplicate_id", {"name": F.concat(F.col("name"), F.lit(" bis"))}, suffix=""),
        Dirt(POI_EXACT_DUPLICATE, {}, suffix=""),
    )


def _kept_pois() -> tuple[Dirt, ...]:
    none = _null("string")
    later = F.make_date(F.lit(2999), F.lit(1), F.lit(1))
    return (
        Dirt("poi_id_trimmed", {"poi_id": F.concat(F.lit(" "), F.col("poi_id"), F.lit("-kept"))}),
        Dirt("poi_first_seen_ahead", {"first_seen_date": later}, suffix="-kept"),
        Dirt("poi_name_missing", {"name": none}, suffix="-kept"),
        Dirt("poi_category_missing", {"category": none, "category_path": none}, suffix="-kept"),
    )
