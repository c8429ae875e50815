"""The synthetic city: raw tables with known answers, of any size, seeded (design section 1).

Run: python -m etl synthetic --day D, sizes in the settings `city.*`. Everything follows from the seed by
hashing the numbers of users and POIs: rows depend neither on partitioning nor on which days are
delivered together, users need no join to find their POIs, and the cost is linear. `plant_truth` returns
the planted answers. Every row has `is_simulated` set.

Parts: geography and POIs (`geography`, `pois`), users and their interests (`users`), their days (`actions`),
requests and clicks (`shown`), pictures (`pictures`), dirty rows (`dirt`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.settings import CitySettings, Settings
from etl.city.actions import build_visits
from etl.city.dirt import plant_dirty_actions, plant_dirty_pois
from etl.city.geography import ATTRIBUTES, KIND_NAMES, LEAVES, LOOKS, look_up, uniform, with_poi
from etl.city.pictures import build_pictures
from etl.city.pois import build_pois
from etl.city.shown import build_impressions
from etl.city.users import build_profiles, build_users, favourite_leaf
from etl.jobs.deliveries import Warehouse
from etl.sources import base
from etl.spark.session import compute_once

REQUESTED_TYPE = "click"
GENERATE_ONLY_SHARE = 0.1
"""Share of tonight's requests without candidates: POIs are generated, none is scored."""


class SyntheticCity:
    """The planted city."""

    name = "synthetic"

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.counts: dict[str, int] = {}

    def read(
        self, spark: SparkSession, settings: Settings, *, day: date, warehouse: Warehouse | None = None
    ) -> Mapping[str, DataFrame]:
        """Generates the events after `source.since`, or if that is not set, after the last delivered day."""
        city, clean, since = settings.city, settings.clean, settings.source.since
        if since is None and warehouse is not None:
            since = warehouse.last_day()
        # This cuts the plan: three tables start from the users, and each would analyse and compute them again.
        users = compute_once(build_users(spark, city))
        actions = build_visits(users, city=city, after=since, until=day)
        pois = changed_pois(spark, settings, day, since=since)
        impressions = build_impressions(users, city=city, after=since, until=day)
        known = F.col("known_date")
        profiles = build_profiles(users, city=city).where(base.keep_dates(known, day=day, since=since))
        pictures = {}
        if city.pictures:
            new = changed_pois(spark, settings, day, since=since).select("poi_id")
            pictures["raw_poi_images"] = _build_pictures(spark, city).join(new, "poi_id", "left_semi")
        return {
            **pictures,
            "raw_actions": plant_dirty_actions(actions, city=city, clean=clean),
            "raw_pois": plant_dirty_pois(pois, city=city, clean=clean),
            "raw_profiles": profiles.groupBy("user_id", "attribute").agg(
                F.max_by("value", F.struct("known_date", "value")).alias("value")
            ),
            "raw_impressions": impressions,
        }

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        requests = base.requests_of_day(impressions, day=day, action_type=REQUESTED_TYPE)
        return _hide_candidates(requests, seed=settings.city.seed)


@dataclass(frozen=True)
class PlantedTruth:
    """The known answers that the city hides in its tables.

    Attributes:
        users: user_id, home and work (`home_lon`, `home_lat`, `work_lon`, `work_lat`), `likes` (attribute that
            appears only in texts), with `city.pictures` `likes_look` (what appears only in pictures), and the favourite
            leaf of every kind (`taste_food` ...).
        actions: action_id and reason of every planted action, refused, dropped or kept; the id of an
            unparsable record is taken from its text.
        pois: poi_id and reason of every planted POI.
    """

    users: DataFrame
    actions: DataFrame
    pois: DataFrame


def deliver(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the city's rows of `context.day`."""
    return base.deliver(SyntheticCity(), context, spark)


def plant_truth(spark: SparkSession, settings: Settings, *, day: date) -> PlantedTruth:
    """Returns the planted answers of the delivery of a day."""
    city, clean = settings.city, settings.clean
    users = build_users(spark, city)
    tastes = {
        f"taste_{kind}": look_up(LEAVES, favourite_leaf(F.lit(number), 0, city=city))
        for number, kind in enumerate(KIND_NAMES)
    }
    places = ("home_lon", "home_lat", "work_lon", "work_lat")
    likes = [look_up(ATTRIBUTES, F.col("likes_no")).alias("likes")]
    if city.pictures:
        likes.append(look_up(LOOKS, F.col("likes_look_no")).alias("likes_look"))
    actions = build_visits(users, city=city, after=settings.source.since, until=day)
    dirty = plant_dirty_actions(actions, city=city, clean=clean).where("planted_reason IS NOT NULL")
    dirty_id = delivered_id(F.col("action_id"), F.col("corrupt_record"))
    changed = changed_pois(spark, settings, day, since=settings.source.since)
    pois = plant_dirty_pois(changed, city=city, clean=clean)
    return PlantedTruth(
        users=users.withColumns(tastes).select("user_id", *places, *likes, *tastes),
        actions=dirty.select(dirty_id.alias("action_id"), F.col("planted_reason").alias("reason")),
        pois=pois.where("planted_reason IS NOT NULL").select(
            "poi_id", F.col("planted_reason").alias("reason")
        ),
    )


def delivered_id(action_id: Column, corrupt_record: Column) -> Column:
    """Returns the id of an action, taken from its text where the record could not be parsed."""
    return F.coalesce(action_id, F.regexp_extract(corrupt_record, '"action_id": "([^"]*)"', 1))


def changed_pois(spark: SparkSession, settings: Settings, day: date, *, since: date | None) -> DataFrame:
    """Returns the POIs that opened, closed or moved after `since` (null: ever), as they are on the day."""
    numbers = spark.range(settings.city.num_pois).select(F.col("id").cast("int").alias("poi_no"))
    pois = build_pois(numbers, city=settings.city, day=day)
    is_known = F.col("first_seen_date") <= F.lit(day)
    changes = [
        F.coalesce(base.keep_dates(F.col(column), day=day, since=since), F.lit(False))
        for column in ("first_seen_date", "closed_date", "moved_date")
    ]
    return pois.where(is_known & (changes[0] | changes[1] | changes[2])).drop("closed_date", "moved_date")


def _build_pictures(spark: SparkSession, city: CitySettings) -> DataFrame:
    numbers = spark.range(city.num_pois).select(F.col("id").cast("int").alias("poi_no"))
    return build_pictures(with_poi(numbers, city=city), city=city)


def _hide_candidates(requests: DataFrame, *, seed: int) -> DataFrame:
    nothing = F.array().cast("array<string>")
    hidden = uniform(seed, "generate only", F.col("request_id")) < GENERATE_ONLY_SHARE
    return requests.withColumn(
        "candidate_poi_ids", F.when(hidden, nothing).otherwise(F.col("candidate_poi_ids"))
    )
