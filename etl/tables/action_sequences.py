"""Table `action_sequences`: histories of the users active on the day, as parallel arrays (docs/design.md 2).

In: `cleaned_actions` up to the day, `user_places` and `raw_profiles` as of the day. Out: one row per user
active on the day with the last actions, oldest first, the richness of their POIs and the pattern local,
travel or mixed. Cost: it reads the histories of the users of the day only. Run: python -m etl
action_sequences --day D.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.settings import SequenceSettings
from conf.tables import HISTORY_NAMES
from etl.columns import spacetime
from etl.tables.histories import VISIT_FIELDS, densest_of_list, number_of_cell, pattern_of, richness_of_list
from etl.tables.profiles import build_profile_ids


def build_action_sequences(
    actions: DataFrame,
    places: DataFrame,
    profiles: DataFrame,
    *,
    index_version: int,
    settings: SequenceSettings,
) -> DataFrame:
    """Builds the sequences.

    Args:
        actions: every accepted action, up to the day, of the users active on the day, in one index version.
        places: `user_places` of the day.
        profiles: `raw_profiles` up to the day; may be empty.
        index_version: version of the index that the ids belong to.
        settings: length of a history, radius and share of travel.

    Returns:
        Rows of the contract without `day`.
    """
    cell = number_of_cell(F.col("poi_lon"), F.col("poi_lat"), cell_km=settings.travel_km / 2)
    last = _keep_last(actions, max_actions=settings.max_actions)
    histories = _collect(last.withColumn("cell", cell))
    known = histories.join(places.select("user_id", "home_lon", "home_lat"), "user_id", "left").join(
        build_profile_ids(profiles), "user_id", "left"
    )
    # Without a known home the place with most visits stands for it, as in the samples.
    densest = densest_of_list(F.col("visits"))
    home = F.when(
        F.col("home_lon").isNotNull(),
        F.struct(F.col("home_lon").alias("lon"), F.col("home_lat").alias("lat")),
    ).otherwise(densest)
    arrays = {name: F.col(f"visits.{field}") for name, field in VISIT_FIELDS.items()}
    return known.withColumn(
        "is_travels", _is_travels(F.col("visits"), home, travel_km=settings.travel_km)
    ).select(
        "user_id",
        F.lit(index_version).alias("index_version"),
        "num_actions",
        F.size("visits").alias("seq_len"),
        "richness",
        pattern_of(F.col("is_travels"), mixed_share=settings.mixed_share).alias("pattern"),
        F.coalesce("profile_ids", F.array().cast("array<int>")).alias("profile_ids"),
        *((arrays[name] if name in arrays else F.col(name)).alias(name) for name in HISTORY_NAMES),
        "is_simulated",
    )


def _keep_last(actions: DataFrame, *, max_actions: int) -> DataFrame:
    """Keeps the last actions of each user and adds `num_actions` (all of them) and `from_lon`, `from_lat`.

    The user's place is the delivered one, else the place of the previous action's POI, never that of the action's
    POI; NaN for a first action without place. One window, newest first, serves all three, so only kept actions are
    collected.
    """
    newest_first = Window.partitionBy("user_id").orderBy(F.desc("action_ts_ms"), F.desc("action_id"))
    columns = {"newness": F.row_number().over(newest_first)}
    for axis in ("lon", "lat"):
        previous = F.lead(f"poi_{axis}").over(newest_first)
        columns[f"from_{axis}"] = F.coalesce(f"user_{axis}", previous, F.lit(float("nan")))
    columns["num_actions"] = F.count("*").over(Window.partitionBy("user_id"))
    return actions.withColumns(columns).where(F.col("newness") <= max_actions)


def _collect(last: DataFrame) -> DataFrame:
    """Builds one row per user with `visits` in order of time, `num_actions`, `richness` and `is_simulated`.

    One aggregation: a second one, by user and POI, would sort all rows and write all visits once more.
    """
    fields = (
        "action_ts_ms",
        "action_id",
        *(field for field in VISIT_FIELDS.values() if field != "action_ts_ms"),
        "cell",
    )
    return (
        last.groupBy("user_id")
        .agg(
            F.sort_array(F.collect_list(F.struct(*fields))).alias("visits"),
            F.collect_list(F.when(F.col("is_interest"), F.col("poi_id"))).alias("interest_pois"),
            F.first("num_actions").alias("num_actions"),
            F.bool_or("is_simulated").alias("is_simulated"),
        )
        .withColumn("richness", richness_of_list(F.col("interest_pois")))
        .drop("interest_pois")
    )


def _is_travels(visits: Column, home: Column, *, travel_km: float) -> Column:
    """Tells for each visit whether its POI is farther than `travel_km` from `home` (struct of lon, lat).

    Home is bound by a loop over one element. A separate column would not help: the optimizer inlines a column that is
    used once, and would move the median over all visits into the loop over the visits.
    """

    def of(near: Column) -> Column:
        return F.transform(
            visits,
            lambda visit: (
                spacetime.distance_km(visit["poi_lon"], visit["poi_lat"], near["lon"], near["lat"])
                > travel_km
            ),
        )

    return F.get(F.transform(F.array(home), of), F.lit(0))
