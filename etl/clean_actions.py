"""Table `cleaned_actions`: accepted actions with their slot of the index; others are quarantined.

In: `raw_actions` of the day, the slots of `poi_index`, actions accepted on the days before. Out: the day's
rows judged (accepted, refused, dropped), from which the accepted and the quarantined rows and one count of
all are made: rows in = accepted + quarantined + exact duplicates dropped. Run: python -m etl clean_actions
--day D.
"""

from datetime import UTC, date, datetime, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.rules import rules_of
from conf.settings import CleanSettings
from conf.tables import RAW_ACTIONS
from conf.tokens import ACTION_TYPES
from etl import spacetime
from etl.refusal import describe_values, is_blank, is_too_long, with_reason

PAYLOAD_COLUMNS = tuple(name for name in RAW_ACTIONS.column_names if name != "day")
SWAPPED_USER_FAR_KM = 1000.0
"""A user's place is taken for swapped only if it is farther than this from the POI as given ..."""
SWAPPED_USER_NEAR_KM = 100.0
"""... and nearer than this the other way round. People search POIs of far cities, hardly of mirrored ones."""
MAX_TZ_OFFSET_MIN = 840
SLOT_FIELDS = ("index_version", "block_id", "inner_id", "poi_lon", "poi_lat", "category_id")
SAME_ACTION = ("user_id", "action_ts_ms", "poi_id", "action_type_id", "user_lon", "user_lat", "tz_offset_min")
"""A redelivered action is an exact duplicate if these agree with the row accepted before."""


def judge_actions(
    raw: DataFrame, slots: DataFrame, known: DataFrame, *, day: date, settings: CleanSettings
) -> DataFrame:
    """Judges every delivered row; no row is lost or doubled.

    Args:
        raw: `raw_actions` of the day.
        slots: `poi_index` with all slots, live and ended.
        known: `cleaned_actions` of the days before, as far back as redeliveries are looked for.
        day: the job's day.
        settings: bounds of what is accepted.

    Returns:
        The raw columns plus `status` (accepted, refused, dropped), `reason`, `detail`, and for accepted rows
        the columns of the contract but `is_interest`; raw values that were mended are under `clean_*` names.
    """
    placed = _with_slot(raw, slots)
    checked = with_reason(placed, _row_rules(), _refusals(day=day, settings=settings))
    mended = _with_repairs(checked, settings=settings)
    return _with_duplicates(mended, known)


def keep_accepted(judged: DataFrame) -> DataFrame:
    """Keeps the accepted rows, in the shape of `cleaned_actions` without `day` and `is_interest`."""
    return judged.where("status = 'accepted'").select(
        F.col("clean_action_id").alias("action_id"),
        "user_id",
        "action_ts_ms",
        spacetime.event_date(F.col("action_ts_ms")).alias("event_date"),
        F.col("clean_tz_offset_min").alias("tz_offset_min"),
        F.col("clean_user_lon").alias("user_lon"),
        F.col("clean_user_lat").alias("user_lat"),
        "poi_id",
        *(F.col(f"slot.{name}").alias(name) for name in SLOT_FIELDS),
        "action_type_id",
        "repairs",
        "is_simulated",
    )


def with_interest(
    accepted: DataFrame, categories: DataFrame, places: DataFrame, *, at_place_km: float
) -> DataFrame:
    """Adds `is_interest`: taste by the category, and not at the user's own home or work (paper 3.1, t_i).

    Args:
        accepted: result of `keep_accepted`.
        categories: `categories` with `category_id` and `is_interest`; an unknown category is of interest.
        places: `user_places` of the day.
        at_place_km: a POI nearer than this to home or work is home or work.
    """
    by_category = categories.select("category_id", F.col("is_interest").alias("by_category"))
    own = places.select("user_id", "home_lon", "home_lat", "work_lon", "work_lat")
    poi = (F.col("poi_lon"), F.col("poi_lat"))
    is_own = [
        F.coalesce(
            spacetime.distance_km(*poi, F.col(f"{name}_lon"), F.col(f"{name}_lat")) <= at_place_km,
            F.lit(False),
        )
        for name in ("home", "work")
    ]
    is_interest = F.coalesce("by_category", F.lit(True)) & ~is_own[0] & ~is_own[1]
    joined = accepted.join(F.broadcast(by_category), "category_id", "left").join(own, "user_id", "left")
    return joined.select(*accepted.columns, is_interest.alias("is_interest"))


def count_rows(judged: DataFrame) -> DataFrame:
    """Counts the judged rows by `status` and `reason`: one pass, a handful of rows."""
    return judged.groupBy("status", "reason").count()


def _row_rules():
    """Rules that look at one row; duplicates are found among the rows that break none of them."""
    return tuple(rule for rule in rules_of("raw_actions", "refuse") if rule.code != "duplicate_id")


def _with_slot(raw: DataFrame, slots: DataFrame) -> DataFrame:
    """Adds `slot`: the POI's slot live on the day of the action, else the nearest in time, else null."""
    fields = F.struct("valid_from", "valid_to", *SLOT_FIELDS)
    by_poi = slots.groupBy("poi_id").agg(F.collect_list(fields).alias("slots"))
    when = spacetime.event_date(F.col("action_ts_ms"))

    def with_gap(slot: Column) -> Column:
        before = F.date_diff(slot["valid_from"], when)
        after = F.coalesce(F.date_diff(when, slot["valid_to"]) + 1, F.lit(0))
        return F.struct(F.greatest(before, after, F.lit(0)).alias("gap"), slot.alias("slot"))

    nearest = F.array_min(F.transform("slots", with_gap))["slot"]
    # Nearly every POI has one slot: no need to compare.
    slot = F.when(F.size("slots") == 1, F.get("slots", F.lit(0))).otherwise(nearest)
    return raw.join(by_poi, "poi_id", "left").withColumn("slot", slot).drop("slots")


def _refusals(*, day: date, settings: CleanSettings) -> dict[str, Column]:
    user_lon, user_lat, poi_lon, poi_lat = (
        F.col(name) for name in ("user_lon", "user_lat", "poi_lon", "poi_lat")
    )
    at = (F.col("slot.poi_lon"), F.col("slot.poi_lat"))
    shift = settings.max_poi_shift_km
    poi_seems_swapped = (_km(poi_lon, poi_lat, *at) > shift) & (_km(poi_lat, poi_lon, *at) <= shift)
    user_seems_swapped = (_km(user_lon, user_lat, *at) > SWAPPED_USER_FAR_KM) & (
        _km(user_lat, user_lon, *at) <= SWAPPED_USER_NEAR_KM
    )
    has_poi_place = poi_lon.isNotNull() & poi_lat.isNotNull()
    return {
        "corrupt_record": F.col("corrupt_record").isNotNull(),
        "missing_user": is_blank(F.col("user_id")),
        "missing_poi": is_blank(F.col("poi_id")),
        "missing_time": F.col("action_ts_ms").isNull(),
        "text_too_long": is_too_long(
            ("action_id", "user_id", "poi_id", "action_type"), settings.max_text_length
        ),
        "unknown_action_type": ~F.coalesce(F.col("action_type").isin(*ACTION_TYPES), F.lit(False)),
        **_time_refusals(day=day, settings=settings),
        "poi_place_swapped": has_poi_place & (_is_swapped_range(poi_lon, poi_lat) | poi_seems_swapped),
        "poi_place_out_of_range": has_poi_place & ~spacetime.is_on_earth(poi_lon, poi_lat),
        "poi_place_zero": (poi_lon == 0) & (poi_lat == 0),
        "unknown_poi": F.col("slot").isNull(),
        "user_place_swapped": _is_swapped_range(user_lon, user_lat) | user_seems_swapped,
    }


def _time_refusals(*, day: date, settings: CleanSettings) -> dict[str, Column]:
    time = F.col("action_ts_ms")
    earliest = _epoch_ms(settings.earliest_day)
    latest = _epoch_ms(day + timedelta(days=1)) + settings.max_future_min * 60_000
    return {
        "time_in_seconds": time.between(earliest // 1000, latest // 1000),
        "time_in_microseconds": time.between(earliest * 1000, latest * 1000),
        "time_in_future": time > latest,
        "time_too_early": time < earliest,
    }


def _with_repairs(checked: DataFrame, *, settings: CleanSettings) -> DataFrame:
    """Adds the mended values (`clean_*`) and the codes of what was mended."""
    lon, lat, tz = F.col("user_lon"), F.col("user_lat"), F.col("tz_offset_min")
    is_usable = spacetime.is_on_earth(lon, lat) & ~((lon == 0) & (lat == 0))
    clean_lon, clean_lat = F.when(is_usable, lon), F.when(is_usable, lat)
    tz_in_range = tz.between(-MAX_TZ_OFFSET_MIN, MAX_TZ_OFFSET_MIN)
    derived_tz = spacetime.tz_offset_from_longitude(F.coalesce(clean_lon, F.col("slot.poi_lon")))
    far = _km(F.col("poi_lon"), F.col("poi_lat"), F.col("slot.poi_lon"), F.col("slot.poi_lat"))
    is_given = lon.isNotNull() | lat.isNotNull()
    repairs = {
        "poi_place_far": far > settings.max_poi_shift_km,
        "tz_missing": tz.isNull(),
        "tz_out_of_range": ~tz_in_range,
        "user_place_out_of_range": is_given & ~spacetime.is_on_earth(lon, lat),
        "user_place_zero": (lon == 0) & (lat == 0),
    }
    codes = F.array_compact(F.array(*(F.when(found, F.lit(code)) for code, found in sorted(repairs.items()))))
    content = F.to_json(F.struct(*(name for name in PAYLOAD_COLUMNS if name != "action_id")))
    types = F.array(*map(F.lit, ACTION_TYPES))
    return checked.withColumns(
        {
            "clean_user_lon": clean_lon,
            "clean_user_lat": clean_lat,
            "clean_tz_offset_min": F.when(tz_in_range, tz).otherwise(derived_tz),
            "action_type_id": (F.array_position(types, F.col("action_type")) - 1).cast("int"),
            "repairs": codes,
            "clean_action_id": F.when(is_blank(F.col("action_id")), F.sha2(content, 256)).otherwise(
                F.col("action_id")
            ),
        }
    )


def _with_duplicates(mended: DataFrame, known: DataFrame) -> DataFrame:
    """Adds `status`, and the reason of rows whose id belongs to another action.

    The first row of an id by time, then content, stands for it, unless an earlier day has accepted one. Rows
    that equal it are dropped, others refused.
    """
    is_good = F.col("reason").isNull()
    content = F.xxhash64(*PAYLOAD_COLUMNS)
    same_id = Window.partitionBy("clean_action_id", is_good).orderBy("action_ts_ms", "content_hash")
    kept = known.select(
        F.col("action_id").alias("clean_action_id"),
        F.struct(*(F.col(name).alias(name) for name in SAME_ACTION)).alias("kept"),
    )
    ranked = (
        mended.withColumn("content_hash", content)
        .withColumns(
            {"first_hash": F.first("content_hash").over(same_id), "nth": F.row_number().over(same_id)}
        )
        .join(kept, "clean_action_id", "left")
    )
    mine = {
        "user_lon": "clean_user_lon",
        "user_lat": "clean_user_lat",
        "tz_offset_min": "clean_tz_offset_min",
    }
    equals_kept = F.lit(True)
    for name in SAME_ACTION:
        equals_kept &= F.col(mine.get(name, name)).eqNullSafe(F.col(f"kept.{name}"))
    was_kept = F.col("kept").isNotNull()
    is_repeat = F.when(was_kept, equals_kept).otherwise(
        (F.col("nth") > 1) & (F.col("content_hash") == F.col("first_hash"))
    )
    is_conflict = F.when(was_kept, ~equals_kept).otherwise(F.col("content_hash") != F.col("first_hash"))
    rule = next(rule for rule in rules_of("raw_actions", "refuse") if rule.code == "duplicate_id")
    status = F.when(~is_good | is_conflict, "refused").when(is_repeat, "dropped").otherwise("accepted")
    return ranked.withColumns(
        {
            "status": status,
            "reason": F.when(is_good & is_conflict, F.lit(rule.code)).otherwise(F.col("reason")),
            "detail": F.when(is_good & is_conflict, describe_values(rule)).otherwise(F.col("detail")),
        }
    ).drop("content_hash", "first_hash", "nth", "kept")


def _km(lon_a: Column, lat_a: Column, lon_b: Column, lat_b: Column) -> Column:
    """Returns the distance, null where a place is out of range (a swapped one need not be on earth)."""
    is_sane = spacetime.is_on_earth(lon_a, lat_a)
    return F.when(is_sane, spacetime.distance_km(lon_a, lat_a, lon_b, lat_b))


def _is_swapped_range(lon: Column, lat: Column) -> Column:
    return ~spacetime.is_on_earth(lon, lat) & spacetime.is_on_earth(lat, lon)


def _epoch_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
