"""Table `user_places`: home and work of the users active on the day, inferred from their actions.

In: actions of those users, no older than the look-back, all accepted by the day. Out: one row per user; null
where there is not enough evidence. A user was at the POI for a check-in, and at the logged user place for any
other action (one can search from anywhere). Home is the place with evidence from most distinct nights, work the
place away from home with evidence from most workdays. Check-ins count if their category allows it. Part of job
`clean_actions`.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.settings import PlacesSettings
from conf.taxonomy import Taxonomy
from conf.tokens import UNKNOWN_CATEGORY, action_type_id
from etl.columns import spacetime

FRIDAY = 4
HALF_DAY_MIN = 720


def build_user_places(
    actions: DataFrame,
    users: DataFrame,
    categories: DataFrame,
    *,
    settings: PlacesSettings,
    taxonomy: Taxonomy,
) -> DataFrame:
    """Builds the row of every user in `users`.

    Args:
        actions: accepted actions of these users, as in `cleaned_actions` (`is_interest` is not read).
        users: `user_id`, distinct.
        categories: `categories` of the index.
        settings: hours and minimum days of evidence.
        taxonomy: defines the categories of homes and work places.

    Returns:
        Rows of the contract without `day`.
    """
    cells = _evidence_by_cell(_with_evidence(actions, categories, settings, taxonomy), settings)
    by_home = Window.partitionBy("user_id").orderBy(
        F.desc("home_days"), F.desc("num_home"), F.asc("cell_y"), F.asc("cell_x")
    )
    is_home = (F.row_number().over(by_home) == 1) & (F.col("home_days") >= settings.min_days)
    # False sorts first: the home cell goes to the end, so that rank 1 is the best cell away from home.
    by_work = Window.partitionBy("user_id").orderBy(
        F.asc("is_home"), F.desc("work_days"), F.desc("num_work"), F.asc("cell_y"), F.asc("cell_x")
    )
    is_work = (
        ~F.col("is_home") & (F.row_number().over(by_work) == 1) & (F.col("work_days") >= settings.min_days)
    )
    chosen = cells.withColumn("is_home", is_home).withColumn("is_work", is_work)
    columns = [
        F.max(F.when(F.col(f"is_{kind}"), F.col(source))).alias(name)
        for kind in ("home", "work")
        for source, name in (
            (f"{kind}_lon", f"{kind}_lon"),
            (f"{kind}_lat", f"{kind}_lat"),
            (f"{kind}_days", f"{kind}_days"),
        )
    ]
    inferred = chosen.groupBy("user_id").agg(*columns)
    return users.join(inferred, "user_id", "left").fillna(0, ["home_days", "work_days"])


def _with_evidence(
    actions: DataFrame, categories: DataFrame, settings: PlacesSettings, taxonomy: Taxonomy
) -> DataFrame:
    """Keeps actions that are evidence of a home or a work place, with place, kind and day of the evidence."""
    kinds = categories.select(
        "category_id",
        F.lower("category").isin(*taxonomy.home_names).alias("is_home_category"),
        F.lower("category").isin(*taxonomy.work_names).alias("is_work_category"),
    )
    is_checkin = F.col("action_type_id") == action_type_id("checkin")
    known_category = F.col("category_id") != UNKNOWN_CATEGORY
    lon = F.when(is_checkin, F.col("poi_lon")).otherwise(F.col("user_lon"))
    lat = F.when(is_checkin, F.col("poi_lat")).otherwise(F.col("user_lat"))
    time, zone = F.col("action_ts_ms"), F.col("tz_offset_min")
    hour = spacetime.local_hour(time, zone)
    is_night = (hour >= settings.night_from_h) | (hour < settings.night_to_h)
    is_workday = (
        (spacetime.local_weekday(time, zone) <= FRIDAY)
        & (hour >= settings.work_from_h)
        & (hour < settings.work_to_h)
    )
    home_category, work_category = (
        F.coalesce(name, F.lit(False)) for name in ("is_home_category", "is_work_category")
    )
    # The hours before and after midnight are one night, named by the day on which it began.
    night = spacetime.local_date(time, zone - HALF_DAY_MIN)
    for_home = F.when(is_checkin & known_category, home_category).otherwise(is_night)
    for_work = F.when(is_checkin & known_category, work_category & is_workday).otherwise(is_workday)
    return (
        actions.join(F.broadcast(kinds), "category_id", "left")
        .select(
            "user_id",
            lon.alias("lon"),
            lat.alias("lat"),
            F.when(for_home, night).alias("home_day"),
            F.when(for_work, spacetime.local_date(time, zone)).alias("work_day"),
        )
        .where("lon IS NOT NULL AND (home_day IS NOT NULL OR work_day IS NOT NULL)")
    )


def _evidence_by_cell(evidence: DataFrame, settings: PlacesSettings) -> DataFrame:
    """Sums the evidence of each user by cell; the place is the exact median, independent of the order."""
    cell = spacetime.grid_cell(F.col("lon"), F.col("lat"), cell_km=settings.cell_m / 1000)

    def median(column: str, day: str) -> Column:
        middle = F.percentile(F.when(F.col(day).isNotNull(), F.col(column)), 0.5)
        return spacetime.wrap_lon(middle) if column == "near_lon" else middle

    sums = [
        (
            F.size(F.collect_set(f"{kind}_day")).alias(f"{kind}_days"),
            F.count(f"{kind}_day").alias(f"num_{kind}"),
            median("near_lon", f"{kind}_day").alias(f"{kind}_lon"),
            median("lat", f"{kind}_day").alias(f"{kind}_lat"),
        )
        for kind in ("home", "work")
    ]
    near = spacetime.lon_in_cell(F.col("lon"), cell.cell_x)
    placed = evidence.withColumns({"cell_x": cell.cell_x, "cell_y": cell.cell_y, "near_lon": near})
    return placed.groupBy("user_id", "cell_x", "cell_y").agg(*(column for group in sums for column in group))
