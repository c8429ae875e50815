"""The catalogue of the synthetic city: rows of `raw_pois` as of a day."""

from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.settings import CitySettings
from etl.city.geography import (
    ATTRIBUTES,
    LEAVES,
    PATHS,
    STABLE_LEAVES,
    look_up,
    place_of_poi,
    poi_id,
    with_poi,
)


def build_pois(pois: DataFrame, *, city: CitySettings, day: date) -> DataFrame:
    """Builds the catalogue as of a day.

    Args:
        pois: `poi_no`.
        city: settings.
        day: the day as of which places and closings hold.

    Returns:
        Rows of `raw_pois` without `day`, and `closed_date`, `moved_date`.
    """
    known = with_poi(pois, city=city)
    lon, lat = place_of_poi(F.lit(day), city=city)
    leaf, attribute = look_up(LEAVES, F.col("leaf_no")), look_up(ATTRIBUTES, F.col("attribute_no"))
    return known.select(
        poi_id(F.col("poi_no")).alias("poi_id"),
        F.concat_ws(" ", leaf, (F.col("poi_no") + 1).cast("string")).alias("name"),
        F.concat_ws(
            " ", (F.col("poi_no") % 200 + 1).cast("string"), F.lit("Street"), F.col("hood_no").cast("string")
        ).alias("address"),
        leaf.alias("category"),
        look_up(PATHS, F.col("leaf_no")).alias("category_path"),
        lon.alias("poi_lon"),
        lat.alias("poi_lat"),
        # Homes and offices have no attribute; for other POIs it appears only in the text.
        F.when(F.col("leaf_no") < STABLE_LEAVES, F.lit(""))
        .otherwise(F.concat(F.lit("A "), attribute, F.lit(" place: "), F.lower(leaf), F.lit(".")))
        .alias("description"),
        F.col("opened_date").alias("first_seen_date"),
        F.coalesce(F.col("closed_date") <= F.lit(day), F.lit(False)).alias("is_closed"),
        F.lit(True).alias("is_simulated"),
        "closed_date",
        "moved_date",
    )
