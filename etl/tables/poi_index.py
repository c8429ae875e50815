"""Tables `poi_index` and `blocks`: every POI gets a block and an inner id, for ever (design section 3).

In: `raw_pois` of the day and the index as it stood before the day. Out: the rows that the day adds or
changes. New POIs are appended in order of first sight, then along Hilbert's curve, then by `poi_id`; so ids
depend on the history of the catalogue alone. A moved POI gets a new slot, and a slot is never reused.
Run: python -m etl poi_index --day D.
"""

from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.rules import rules_of
from conf.settings import CleanSettings
from conf.tables import POI_INDEX, RAW_POIS
from etl.columns import spacetime
from etl.columns.poi_slots import PAST, change_slots, last_slots, restore_slots, state_before
from etl.columns.refusal import (
    first_reason,
    found_codes,
    is_broken_text,
    is_empty,
    is_not_finite,
    is_placeholder,
    is_too_long,
    trimmed,
    with_detail,
)

PAYLOAD_COLUMNS = tuple(name for name in RAW_POIS.column_names if name != "day")
CONTENT_COLUMNS = tuple(name for name in PAYLOAD_COLUMNS if name != "record")
"""What a row says of a POI, however its file spelled it."""
TEXT_SEPARATOR = ". "
DUPLICATE = "poi_duplicate_id"
SHARED_PLACE = "poi_shared_place"
SWAPPED_NEAR_KM = 100.0
"""A POI that seems to have moved too far is swapped if it lies nearer than this the other way round."""


def judge_pois(raw: DataFrame, before: DataFrame, *, day: date, settings: CleanSettings) -> DataFrame:
    """Judges every delivered row of the catalogue; no row is lost or doubled.

    If a POI has several good rows, the first in a total order is accepted; a closing comes before all others. Rows
    equal to it are dropped, other rows are refused.

    Args:
        raw: `raw_pois` of the day.
        before: the index before the day.
        day: the job's day.
        settings: bounds of accepted values.

    Returns:
        The raw columns plus `status` (accepted, refused, dropped), `reason`, `detail`, `repairs` (codes of
        repairs and flags), `clean_poi_id`, and `slot`, the POI's last slot before the day or null.
    """
    known = _with_last_slot(raw.withColumn("clean_poi_id", trimmed("poi_id")), before)
    refusing = rules_of("raw_pois", "refuse")
    row_rules = tuple(rule for rule in refusing if rule.code != DUPLICATE)
    checked = known.withColumns(
        {
            "reason": first_reason(row_rules, _refusals(settings)),
            "repairs": found_codes(_repairs(day)),
            "content_hash": F.xxhash64(*CONTENT_COLUMNS),
        }
    )
    order = [F.desc_nulls_last("is_closed"), *(F.asc_nulls_last(name) for name in PAYLOAD_COLUMNS)]
    is_good = F.col("reason").isNull()
    same_poi = Window.partitionBy("clean_poi_id", is_good).orderBy(*order)
    ranked = checked.withColumns(
        {"first_hash": F.first("content_hash").over(same_poi), "nth": F.row_number().over(same_poi)}
    )
    is_conflict = is_good & (F.col("content_hash") != F.col("first_hash"))
    status = F.when(~is_good | is_conflict, "refused").when(F.col("nth") > 1, "dropped").otherwise("accepted")
    judged = ranked.withColumns(
        {"status": status, "reason": F.when(is_conflict, F.lit(DUPLICATE)).otherwise(F.col("reason"))}
    )
    return with_detail(judged.drop("content_hash", "first_hash", "nth"), refusing)


def keep_unknown_pois(raw: DataFrame, index: DataFrame) -> DataFrame:
    """Returns `poi_id` of the delivered POIs for which an index has no slot, live or ended."""
    ids = raw.select(trimmed("poi_id").alias("poi_id")).where(~is_empty(F.col("poi_id")))
    return ids.join(index.select("poi_id"), "poi_id", "left_anti")


def with_shared_places(judged: DataFrame, before: DataFrame, *, max_pois: int) -> DataFrame:
    """Flags accepted POIs at a place that more than `max_pois` share, to the last digit of both coordinates.

    Args:
        judged: result of `judge_pois`.
        before: the index before the day.
        max_pois: number of POIs that may share a place, such as the shops of one mall.

    Returns:
        The same rows, `poi_shared_place` among their `repairs`, plus `num_at_place` (null where it is not counted).
    """
    place = ["poi_lon", "poi_lat"]
    delivered = judged.where("status = 'accepted'").select(F.col("clean_poi_id").alias("poi_id"), *place)
    live = before.where("valid_to IS NULL").select("poi_id", *place)
    at_place = (
        delivered.unionByName(live.join(delivered.select(*place).distinct(), place, "left_semi"))
        .groupBy(*place)
        .agg(F.count_distinct("poi_id").alias("num_at_place"))
        .where(F.col("num_at_place") > max_pois)
    )
    flagged = F.array_sort(F.array_append("repairs", F.lit(SHARED_PLACE)))
    is_shared = F.col("num_at_place").isNotNull() & (F.col("status") == "accepted")
    joined = judged.join(F.broadcast(at_place), place, "left")
    return joined.withColumn("repairs", F.when(is_shared, flagged).otherwise(F.col("repairs")))


def compare_with_index(pois: DataFrame, *, day: date, moved_km: float, cell_km: float) -> DataFrame:
    """Compares every accepted POI with its last slot and says how the day changes it.

    Args:
        pois: accepted POIs with their last `slot` (null if there is none), `category_id` and `text`.
        day: the job's day.
        moved_km: a POI farther than this from its slot has moved; a smaller shift leaves the slot as it is.
        cell_km: side of a grid cell.

    Returns:
        The POIs plus `is_new_slot`, `is_ended`, `is_updated`,
        `slot_from` (first day of the new slot), `cell_x`, `cell_y` and `hilbert`.
    """
    cell = spacetime.grid_cell(F.col("poi_lon"), F.col("poi_lat"), cell_km=cell_km)
    far = spacetime.distance_km(
        F.col("poi_lon"), F.col("poi_lat"), F.col("slot.poi_lon"), F.col("slot.poi_lat")
    )
    is_closed = F.coalesce("is_closed", F.lit(False))
    is_live = F.col("slot").isNotNull() & F.col("slot.valid_to").isNull()
    is_moved = is_live & ~is_closed & F.coalesce(far > moved_km, F.lit(False))
    is_reopened = F.col("slot.valid_to").isNotNull() & ~is_closed
    is_ended = is_moved | (is_live & is_closed)
    has_changed = (
        ~F.col("name").eqNullSafe(F.col("slot.name"))
        | ~F.col("text").eqNullSafe(F.col("slot.text"))
        | ~F.col("category_id").eqNullSafe(F.col("slot.category_id"))
    )
    first_seen = F.least(F.coalesce("first_seen_date", F.lit(day)), F.lit(day))
    return pois.withColumns(
        {
            "is_new_slot": F.col("slot").isNull() | is_moved | is_reopened,
            "is_ended": is_ended,
            "is_updated": is_live & ~is_moved & has_changed,
            "slot_from": F.when(F.col("slot").isNull(), first_seen).otherwise(F.lit(day)),
            "cell_x": cell.cell_x,
            "cell_y": cell.cell_y,
            "hilbert": spacetime.hilbert_number(cell.east, cell.north),
        }
    )


def build_blocks(
    compared: DataFrame, known: DataFrame, *, day: date, index_version: int, first_id: int, cell_km: float
) -> DataFrame:
    """Builds the rows of blocks that get their first POI on the day.

    Ids follow the day of the first POI, then the curve over the whole earth, so that near blocks get near ids.

    Args:
        compared: result of `compare_with_index`.
        known: blocks added before the day.
        day: the job's day.
        index_version: version of the index.
        first_id: smallest free block id.
        cell_km: side of a grid cell.
    """
    new = (
        compared.where("is_new_slot")
        .join(known.select("cell_x", "cell_y"), ["cell_x", "cell_y"], "left_anti")
        .groupBy("cell_x", "cell_y")
        .agg(F.min("slot_from").alias("first_seen"))
    )
    lon, lat = spacetime.cell_center(F.col("cell_x"), F.col("cell_y"), cell_km=cell_km)
    around = spacetime.hilbert_number(
        (lon + 180) / 360, (lat + 90) / 180, order=spacetime.WORLD_HILBERT_ORDER
    )
    placed = new.withColumns({"center_lon": lon, "center_lat": lat, "around": around})
    # One task, but over the new blocks alone: 400 thousand at most, in the first run of a whole country.
    number = F.row_number().over(Window.orderBy("first_seen", "around", "cell_y", "cell_x"))
    return placed.select(
        F.lit(index_version).alias("index_version"),
        (number + F.lit(first_id - 1)).alias("block_id"),
        "cell_x",
        "cell_y",
        "center_lon",
        "center_lat",
        F.lit(day).alias("first_day"),
    )


def build_poi_index(
    compared: DataFrame, index: DataFrame, blocks: DataFrame, *, day: date, index_version: int
) -> DataFrame:
    """Builds the rows of `poi_index` that the day adds or changes.

    Args:
        compared: result of `compare_with_index`.
        index: the stored index, which may hold an earlier run of this day.
        blocks: all blocks, including those of the day.
        day: the job's day.
        index_version: version of the index.

    Returns:
        Rows of the contract: new slots, ended and updated ones, and slots that an earlier run of this day changed
        and this one does not. Inner ids may lie beyond the limit: the job checks that.
    """
    before = state_before(index, day=day)
    new = _new_slots(compared, before, blocks, day=day, index_version=index_version)
    touched = change_slots(compared, day=day)
    return new.unionByName(touched).unionByName(restore_slots(index, touched, day=day))


def poi_text() -> Column:
    """Returns the text for a text encoder: name, category path, address and description, where present."""
    parts = ("name", "category_path", "address", "description")
    return F.concat_ws(TEXT_SEPARATOR, *(F.nullif(F.trim(name), F.lit("")) for name in parts))


def _with_last_slot(rows: DataFrame, before: DataFrame) -> DataFrame:
    delivered = rows.select(F.col("clean_poi_id").alias("poi_id")).distinct()
    slots = last_slots(before.join(delivered, "poi_id", "left_semi"))
    return rows.join(slots.withColumnRenamed("poi_id", "clean_poi_id"), "clean_poi_id", "left")


def _refusals(settings: CleanSettings) -> dict[str, Column]:
    lon, lat, poi = F.col("poi_lon"), F.col("poi_lat"), F.col("clean_poi_id")
    at = (F.col("slot.poi_lon"), F.col("slot.poi_lat"))
    # A place derived from logged actions rests on many rows; only the single place of a catalogue may be a slip.
    is_derived = F.coalesce("is_derived", F.lit(False))
    is_far = ~is_derived & (spacetime.distance_km(lon, lat, *at) > settings.max_poi_move_km)
    is_near_swapped = spacetime.distance_km(lat, lon, *at) <= SWAPPED_NEAR_KM
    is_on_earth = spacetime.is_on_earth(lon, lat)
    return {
        "poi_missing_id": is_empty(poi),
        "poi_text_too_long": is_too_long(
            ("poi_id", "name", "category", "category_path"), settings.max_text_length
        ),
        "poi_placeholder_id": is_placeholder(poi),
        "poi_broken_id": is_broken_text(poi),
        "poi_missing_place": lon.isNull() | lat.isNull(),
        "poi_not_finite": is_not_finite(lon, lat),
        "poi_swapped": (~is_on_earth & spacetime.is_on_earth(lat, lon))
        | (is_on_earth & is_far & is_near_swapped),
        "poi_out_of_range": ~is_on_earth,
        "poi_zero": (lon == 0) & (lat == 0),
        "poi_moved_too_far": is_far,
    }


def _repairs(day: date) -> dict[str, Column]:
    """Returns the conditions that repair or flag; later columns hold the repaired values."""
    return {
        "poi_id_trimmed": F.col("poi_id") != F.col("clean_poi_id"),
        "poi_first_seen_ahead": F.col("first_seen_date") > F.lit(day),
        "poi_name_missing": is_empty(F.trim("name")),
        "poi_category_missing": is_empty(F.trim("category")) & is_empty(F.trim("category_path")),
    }


def _new_slots(
    compared: DataFrame, before: DataFrame, blocks: DataFrame, *, day: date, index_version: int
) -> DataFrame:
    fresh = compared.where("is_new_slot").join(
        blocks.select("cell_x", "cell_y", "block_id"), ["cell_x", "cell_y"]
    )
    # From the index before the day, so that a rerun gives the same ids again. The maximum, not the number of
    # live slots: the id of an ended slot is never reused.
    used = before.groupBy("block_id").agg((F.max("inner_id") + 1).alias("num_used"))
    number = F.row_number().over(Window.partitionBy("block_id").orderBy("slot_from", "hilbert", "poi_id")) - 1
    is_closed = F.coalesce("is_closed", F.lit(False))
    return fresh.join(used, "block_id", "left").select(
        F.lit(index_version).alias("index_version"),
        "poi_id",
        "block_id",
        (F.coalesce("num_used", F.lit(0)) + number).cast("int").alias("inner_id"),
        "poi_lon",
        "poi_lat",
        "category_id",
        F.col("slot_from").alias("valid_from"),
        F.when(is_closed, F.lit(day)).alias("valid_to"),
        F.lit(day).alias("indexed_day"),
        F.when(is_closed, F.lit(day)).alias("closed_day"),
        "name",
        "text",
        F.lit(day).alias("changed_day"),
        F.lit(None).cast(POI_INDEX.column(PAST).type).alias(PAST),
        "is_simulated",
    )
