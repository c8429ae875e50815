"""What only the simulation knows: who asks when, and what comes of showing a POI: its value, a click, a visit."""

from collections.abc import Mapping
from datetime import date, timedelta

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import CitySettings
from conf.units import MS_PER_MINUTE
from etl.city.geography import LEAVES, look_up, poi_id, uniform
from etl.city.shown import build_requests, click_logit, expose
from etl.city.users import build_users, favourite_leaf
from etl.spark.session import compute_once

VISIT_AFTER_MIN = 30
"""A click that is followed by a visit is so after this time."""
Weights = Mapping[str, float]


def requests_of(spark: SparkSession, city: CitySettings, day: date) -> DataFrame:
    """Returns the requests of a UTC day, computed once, with all that the simulation knows of them."""
    users = compute_once(build_users(spark, city))
    return compute_once(build_requests(users, city=city, after=day - timedelta(days=1), until=day))


def outcomes(requests: DataFrame, lists: pa.Table, *, city: CitySettings, conversions: Weights) -> DataFrame:
    """Plans what comes of shown lists.

    Args:
        requests: of `requests_of`.
        lists: request_id, poi_id, position (1 = first).
        city: settings, with the click model.
        conversions: the planted model of visits after clicks: bias, first_taste, second_taste, attribute, log_distance.

    Returns:
        One row per request and POI: columns of `raw_impressions`, and `value` (probability of a click without position
        and noise, which nobody could know), `is_visit` (the click is followed by a visit), `poi_lon`, `poi_lat`,
        `category`.
    """
    spark = requests.sparkSession
    numbered = spark.createDataFrame(lists.select(["request_id", "poi_id", "position"])).select(
        "request_id", F.substring("poi_id", 2, 20).cast("int").alias("poi_no"), "position"
    )
    shown = expose(requests, numbered, city=city)
    ids = (F.col("request_id"), F.col("poi_no"))
    is_click = uniform(city.seed, "click", *ids) < _probability(click_logit(city=city))
    visits = _probability(conversion_logit(conversions, city=city))
    return shown.select(
        "request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon", "user_lat",
        poi_id(F.col("poi_no")).alias("poi_id"), "position", is_click.cast("int").alias("label"),
        F.lit(True).alias("is_simulated"), _probability(click_logit(city=city, observable=True)).alias("value"),
        (is_click & (uniform(city.seed, "visit", *ids) < visits)).alias("is_visit"),
        "poi_lon", "poi_lat", look_up(LEAVES, F.col("leaf_no")).alias("category"),
    )  # fmt: skip


def conversion_logit(weights: Weights, *, city: CitySettings) -> Column:
    """Returns the log-odds that a click is followed by a visit, for a row of exposures."""
    kind_no = F.col("shown_kind_no")
    first, second = (F.col("leaf_no") == favourite_leaf(kind_no, place, city=city) for place in (0, 1))
    taste = F.when(first, weights["first_taste"]).when(second, weights["second_taste"]).otherwise(0.0)
    likes = F.when(F.col("attribute_no") == F.col("likes_no"), weights["attribute"]).otherwise(0.0)
    return F.lit(weights["bias"]) + taste + likes + F.lit(weights["log_distance"]) * F.log1p("distance_km")


def visits_after_clicks(shown: pa.Table) -> pa.Table:
    """Returns the visits that followed clicks as delivered actions, from rows of `outcomes`."""
    followed = shown.filter(shown["is_visit"])
    ids = [
        f"v-{request}-{poi}"
        for request, poi in zip(
            followed["request_id"].to_pylist(), followed["poi_id"].to_pylist(), strict=True
        )
    ]
    times = followed["request_ts_ms"].to_numpy() + VISIT_AFTER_MIN * MS_PER_MINUTE
    kept = followed.select(
        ["user_id", "poi_id", "tz_offset_min", "user_lon", "user_lat", "poi_lon", "poi_lat", "category"]
    )
    return (
        kept.append_column("action_id", pa.array(ids, pa.string()))
        .append_column("action_type", pa.array(["navigate"] * len(ids), pa.string()))
        .append_column("action_ts_ms", pa.array(times, pa.int64()))
    )


def _probability(logit: Column) -> Column:
    return F.lit(1.0) / (F.lit(1.0) + F.exp(-logit))
