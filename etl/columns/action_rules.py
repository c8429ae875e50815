"""Faults of actions: one condition per rule of `conf/rules.py` that reads a single row.

In: rows of `raw_actions`. Out: columns. The order is: `with_clean_ids`, a join that adds the POI's `slot`, then
`refusals` and `repairs`. The rules that compare rows are in `etl/tables/clean_actions.py`.
"""

from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.settings import CleanSettings
from conf.tables import RAW_ACTIONS
from conf.tokens import ACTION_TYPES, action_type_id
from etl.columns import spacetime
from etl.columns.judging import (
    clean_id,
    clean_place,
    is_swapped_range,
    is_time_zone,
    is_zone_far,
    place_faults,
    time_faults,
)
from etl.columns.refusal import (
    is_broken_text,
    is_empty,
    is_not_finite,
    is_placeholder,
    is_too_long,
    trimmed,
)

PAYLOAD_COLUMNS = tuple(name for name in RAW_ACTIONS.column_names if name != "day")
CONTENT_COLUMNS = tuple(name for name in PAYLOAD_COLUMNS if name != "record")
"""What an action says, however its file spelled it."""
SWAPPED_USER_FAR_KM = 1000.0
"""A user's place is taken for swapped only if it is farther than this from the POI as given ..."""
SWAPPED_USER_NEAR_KM = 100.0
"""... and nearer than this the other way round. People search POIs of far cities, hardly of mirrored ones."""
IDS = ("action_id", "user_id", "poi_id")


def with_clean_ids(raw: DataFrame) -> DataFrame:
    """Adds ids and action type without the blanks around them (`clean_*`), and `event_day`.

    `clean_action_id` is null where none was delivered; `event_day` is null where the time has no valid day.
    """
    action_id = clean_id(F.col("action_id"))
    is_id = ~is_empty(action_id) & ~is_placeholder(action_id)
    return raw.withColumns(
        {
            "clean_action_id": F.when(is_id, action_id),
            "clean_user_id": clean_id(F.col("user_id")),
            "clean_poi_id": clean_id(F.col("poi_id")),
            "clean_action_type": F.lower(trimmed("action_type")),
            "event_day": spacetime.event_date(F.col("action_ts_ms")),
        }
    )


def refusals(*, day: date, settings: CleanSettings) -> dict[str, Column]:
    """Returns the refusing conditions by code; they read `slot` and the columns of `with_clean_ids`.

    Args:
        day: the job's day.
        settings: bounds of accepted values.
    """
    user_lon, user_lat, poi_lon, poi_lat = _places()
    user, poi, kind = (F.col(f"clean_{name}") for name in ("user_id", "poi_id", "action_type"))
    at = (F.col("slot.poi_lon"), F.col("slot.poi_lat"))
    shift = settings.max_poi_shift_km
    poi_seems_swapped = (_km(poi_lon, poi_lat, *at) > shift) & (_km(poi_lat, poi_lon, *at) <= shift)
    user_seems_swapped = (_km(user_lon, user_lat, *at) > SWAPPED_USER_FAR_KM) & (
        _km(user_lat, user_lon, *at) <= SWAPPED_USER_NEAR_KM
    )
    has_poi_place = poi_lon.isNotNull() & poi_lat.isNotNull()
    return {
        "corrupt_record": F.col("corrupt_record").isNotNull(),
        "missing_user": is_empty(user),
        "missing_poi": is_empty(poi),
        "missing_time": F.col("action_ts_ms").isNull(),
        "missing_action_type": is_empty(kind),
        "text_too_long": is_too_long((*IDS, "action_type"), settings.max_text_length),
        "placeholder_user": is_placeholder(user),
        "placeholder_poi": is_placeholder(poi),
        "broken_text": is_broken_text(F.col("clean_action_id"), user, poi),
        "unknown_action_type": ~kind.isin(*ACTION_TYPES),
        **time_faults(F.col("action_ts_ms"), day=day, settings=settings),
        "poi_place_not_finite": is_not_finite(poi_lon, poi_lat),
        "poi_place_swapped": has_poi_place & (is_swapped_range(poi_lon, poi_lat) | poi_seems_swapped),
        "poi_place_out_of_range": has_poi_place & ~spacetime.is_on_earth(poi_lon, poi_lat),
        "poi_place_zero": (poi_lon == 0) & (poi_lat == 0),
        "unknown_poi": F.col("slot").isNull(),
        "user_place_swapped": is_swapped_range(user_lon, user_lat) | user_seems_swapped,
    }


def settled_id() -> Column:
    """Returns the id of an action: the delivered one, else a hash of its content."""
    content = F.to_json(F.struct(*(name for name in CONTENT_COLUMNS if name != "action_id")))
    return F.coalesce("clean_action_id", F.sha2(content, 256))


def with_clean_values(checked: DataFrame) -> DataFrame:
    """Adds the repaired values: `clean_user_lon`, `clean_user_lat`, `clean_tz_offset_min`, ids, type id."""
    lon, lat, _, _ = _places()
    tz = F.col("tz_offset_min")
    clean_lon, clean_lat = clean_place(lon, lat)
    nautical = spacetime.tz_offset_from_longitude(F.coalesce(clean_lon, F.col("slot.poi_lon")))
    types = F.array(*map(F.lit, ACTION_TYPES))
    # One projection: `has_action_id` has to read the delivered id, not the settled one of the same projection.
    return checked.withColumns(
        {
            "clean_user_lon": clean_lon,
            "clean_user_lat": clean_lat,
            "clean_tz_offset_min": F.when(is_time_zone(tz), tz).otherwise(nautical),
            "action_type_id": (F.array_position(types, F.col("clean_action_type")) - 1).cast("int"),
            "clean_action_id": settled_id(),
            "has_action_id": F.col("clean_action_id").isNotNull(),
        }
    )


def repairs(*, settings: CleanSettings) -> dict[str, Column]:
    """Returns the repairing conditions by code; they read the columns of `with_clean_values`."""
    lon, lat, poi_lon, poi_lat = _places()
    tz = F.col("tz_offset_min")
    far = _km(poi_lon, poi_lat, F.col("slot.poi_lon"), F.col("slot.poi_lat"))
    is_trimmed = F.col("has_action_id") & (F.col("action_id") != F.col("clean_action_id"))
    for name in ("user_id", "poi_id"):
        is_trimmed |= F.col(name) != F.col(f"clean_{name}")
    return {
        "action_id_missing": ~F.col("has_action_id"),
        "id_trimmed": is_trimmed,
        "action_type_spelling": F.col("action_type") != F.col("clean_action_type"),
        **{f"user_{code}": fault for code, fault in place_faults(lon, lat).items()},
        "poi_place_far": far > settings.max_poi_shift_km,
        "poi_place_incomplete": poi_lon.isNull() != poi_lat.isNull(),
        "tz_missing": tz.isNull(),
        "tz_out_of_range": ~is_time_zone(tz),
    }


def flags() -> dict[str, Column]:
    """Returns the flagging conditions that read a single row, by code.

    Days of the catalogue are local days, the day of the event is UTC: they may differ by one day.

    The time zone is compared with the user's place: the POI for a check-in, or if no other place is known.
    """
    event_day, poi_lon = F.col("event_day"), F.col("slot.poi_lon")
    acting = F.col("action_type_id") == action_type_id("checkin")
    lon = F.when(acting, poi_lon).otherwise(F.coalesce("clean_user_lon", poi_lon))
    return {
        "tz_far_from_place": is_zone_far(F.col("tz_offset_min"), lon),
        "before_poi_opened": event_day < F.date_sub(F.col("slot.valid_from"), 1),
        "after_poi_closed": event_day > F.col("slot.valid_to"),
    }


def _places() -> tuple[Column, Column, Column, Column]:
    return F.col("user_lon"), F.col("user_lat"), F.col("poi_lon"), F.col("poi_lat")


def _km(lon_a: Column, lat_a: Column, lon_b: Column, lat_b: Column) -> Column:
    """Returns the distance, null where a place is out of range (a swapped one need not be on earth)."""
    is_sane = spacetime.is_on_earth(lon_a, lat_a)
    return F.when(is_sane, spacetime.distance_km(lon_a, lat_a, lon_b, lat_b))
