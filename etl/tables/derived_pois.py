"""A catalogue of POIs derived from actions, for sources that come without one.

In: delivered actions. Only rows count that cleaning would accept apart from their POI, so a place that is (0, 0), out
of range or not finite moves no POI. The place of a POI is where most of its remaining rows lie, not the middle of all:
the middle of a right and a wrong place is a third one. Rows on both sides of the date line are near each other.

A POI of the index gets another place only if the rows of all days, not just of the present delivery, put it there.
"""

from datetime import date

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from conf.rules import rules_of
from conf.settings import CleanSettings
from etl.columns import action_rules, spacetime
from etl.columns.refusal import first_reason
from etl.spark.session import compute_once

NEAR_KM = 1.0
"""Side of the cells in which the rows of a POI are counted; places that are right differ by less."""
REGION_KM = 50.0
"""Side of the cells whose rows of all POIs decide between places with equally many rows of the POI."""
OF_CATALOGUE = ("unknown_poi",)
"""Rules that only a catalogue can answer."""


def keep_good_actions(actions: DataFrame, *, day: date, settings: CleanSettings) -> DataFrame:
    """Keeps the actions that break no rule on a single row, known POI or not.

    Args:
        actions: columns of `raw_actions`.
        day: the job's day.
        settings: bounds of accepted values.

    Returns:
        The same columns, `poi_id` and `user_id` without the blanks around them.
    """
    slot = F.struct(*(F.lit(None).cast("double").alias(name) for name in ("poi_lon", "poi_lat")))
    conditions = action_rules.refusals(day=day, settings=settings)
    rules = [
        rule
        for rule in rules_of("raw_actions", "refuse")
        if rule.code in conditions and rule.code not in OF_CATALOGUE
    ]
    # No catalogue yet: comparisons with a null slot are null, and a rule that is null counts as not broken.
    judged = action_rules.with_clean_ids(actions).withColumn("slot", F.when(F.lit(False), slot))
    is_good = first_reason(rules, conditions).isNull()
    clean = {name: F.col(f"clean_{name}").alias(name) for name in ("user_id", "poi_id")}
    return judged.where(is_good).select(*(clean.get(name, F.col(name)) for name in actions.columns))


def derive_pois(actions: DataFrame) -> DataFrame:
    """Derives a catalogue from good actions.

    It depends on the given actions alone, so a catalogue of day D knows nothing of later days. A POI whose rows have
    no place at all is left out: it lies in no block.

    Args:
        actions: result of `keep_good_actions`.

    Returns:
        poi_id, poi_lon, poi_lat, category (most frequent; ties: first in the alphabet), `is_derived` (true).
    """
    by_count = Window.partitionBy("poi_id").orderBy(F.desc("count"), F.asc("category"))
    categories = (
        actions.where("category IS NOT NULL")
        .groupBy("poi_id", "category")
        .count()
        .withColumn("rank", F.row_number().over(by_count))
        .where("rank = 1")
        .select("poi_id", "category")
    )
    places = find_places(actions)
    return places.join(categories, "poi_id", "left").withColumn("is_derived", F.lit(True))


def find_places(actions: DataFrame) -> DataFrame:
    """Finds the place of every POI: the median of the rows in and around the cell that holds most of them.

    Args:
        actions: poi_id, poi_lon, poi_lat.

    Returns:
        poi_id, poi_lon, poi_lat; POIs without a row on earth are left out.
    """
    on_earth = spacetime.is_on_earth(F.col("poi_lon"), F.col("poi_lat"))
    rows = actions.where(on_earth).select("poi_id", "poi_lon", "poi_lat")
    near = spacetime.grid_cell(F.col("poi_lon"), F.col("poi_lat"), cell_km=NEAR_KM)
    cells = (
        rows.withColumns({"cell_x": near.cell_x, "cell_y": near.cell_y})
        .groupBy("poi_id", "cell_x", "cell_y")
        .agg(F.count("*").alias("num_rows"))
    )
    center = spacetime.cell_center(F.col("cell_x"), F.col("cell_y"), cell_km=NEAR_KM)
    around = spacetime.grid_cell(F.col("center_lon"), F.col("center_lat"), cell_km=REGION_KM)
    placed = cells.withColumns({"center_lon": center[0], "center_lat": center[1]}).withColumns(
        {"region_x": around.cell_x, "region_y": around.cell_y}
    )
    in_region = placed.groupBy("region_x", "region_y").agg(F.sum("num_rows").alias("num_around"))
    # A total order that ends with the cell: with random ties a rerun could put the POI elsewhere.
    order = F.struct("num_rows", "num_around", -F.col("cell_y"), -F.col("cell_x"))
    fullest = (
        placed.join(in_region, ["region_x", "region_y"])
        .groupBy("poi_id")
        .agg(F.max_by(F.struct("center_lon", "center_lat"), order).alias("center"))
    )
    distance = spacetime.distance_km(
        F.col("poi_lon"), F.col("poi_lat"), F.col("center.center_lon"), F.col("center.center_lat")
    )
    return (
        rows.join(fullest, "poi_id")
        .where(distance <= NEAR_KM)
        .groupBy("poi_id")
        .agg(
            spacetime.median_lon(F.col("poi_lon")).alias("poi_lon"),
            F.percentile("poi_lat", 0.5).alias("poi_lat"),
        )
    )


def confirm_places(
    pois: DataFrame, slots: DataFrame, actions: DataFrame, delivered: DataFrame, *, moved_km: float
) -> DataFrame:
    """Checks POIs that new actions place elsewhere than the index does, using the rows of all days.

    Args:
        pois: result of `derive_pois` for the new actions.
        slots: live slots of the index, one per POI: poi_id, poi_lon, poi_lat.
        actions: good actions of the present delivery.
        delivered: good actions of other days.
        moved_km: distance from which a place counts as another one.

    Returns:
        `pois`; the POIs in question get the place that the rows of all days give.
    """
    at = slots.select("poi_id", F.col("poi_lon").alias("slot_lon"), F.col("poi_lat").alias("slot_lat"))
    far = spacetime.distance_km(F.col("poi_lon"), F.col("poi_lat"), F.col("slot_lon"), F.col("slot_lat"))
    in_question = compute_once(pois.join(at, "poi_id").where(far > moved_km).select("poi_id"))
    if in_question.isEmpty():
        return pois
    # A cumulative export repeats what other days delivered. With the id in the row, `distinct` counts an
    # action once, and still counts every action of a busy place.
    names = ("poi_id", "poi_lon", "poi_lat", "action_id")
    rows = actions.select(*names).unionByName(delivered.select(*names)).distinct()
    all_places = find_places(rows.join(F.broadcast(in_question), "poi_id", "left_semi"))
    moved = all_places.select("poi_id", F.struct("poi_lon", "poi_lat").alias("confirmed"))
    place = {name: F.coalesce(F.col(f"confirmed.{name}"), F.col(name)) for name in ("poi_lon", "poi_lat")}
    return pois.join(F.broadcast(moved), "poi_id", "left").withColumns(place).drop("confirmed")
