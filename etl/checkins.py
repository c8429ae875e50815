"""Check-in folders (`checkins.parquet`, `pois.parquet`) -> the raw tables.

Run: python -m etl checkins --day D --set source.path=FOLDER. Columns are listed in `REQUIRED` and `OPTIONAL`;
optional ones may be absent or null. A check-in says where a user was, not where the user came from, so
actions have no user place; impressions are simulated (`etl/impressions.py`) and marked so.

What a catalogue file tells about the whole period (numbers of check-ins, of users) is not read: it would
leak.
"""

from collections.abc import Mapping
from datetime import date

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError
from conf.settings import Settings
from etl import sources
from etl.impressions import keep_visits, pick_requests, simulate_impressions
from etl.session import compute_once
from etl.spacetime import event_date

REQUIRED = {
    "user_id": "string",
    "poi_id": "string",
    "latitude": "double",
    "longitude": "double",
    "utc_time": "timestamp",
}
OPTIONAL = {"category": "string", "tz_offset_min": "int"}
POI_REQUIRED = {"poi_id": "string", "latitude": "double", "longitude": "double"}
POI_OPTIONAL = {
    "name": "string",
    "address": "string",
    "locality": "string",
    "category": "string",
    "category_path": "string",
    "description": "string",
}
UNREAD = (
    "category_id", "category_l1", "chain_id", "tz_from_source", "time_precision",
    "source_split", "lim_traj_id", "lim_block", "yk_split", "getnext_split",
)  # fmt: skip
"""Columns that the public check-in folders have beyond these; other additions are warned of."""
POI_UNREAD = (
    "category_id", "category_l1", "category_path_2014", "chain_id", "gowalla_poi_id", "region",
    "n_checkins", "n_users",
)  # fmt: skip
REMEDY = (
    "A row needs user_id, poi_id, latitude, longitude and utc_time, for example ('u1', 'p1', 40.71, -74.0, "
    "TIMESTAMP '2012-04-03 18:00:09'); rename the columns of the file accordingly."
)
ACTION_TYPE = "checkin"


class CheckinFolder:
    """A folder with `checkins.parquet` and `pois.parquet` (or the catalogue at `source.pois_path`)."""

    name = "checkins"

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def read(self, spark: SparkSession, settings: Settings, *, day: date) -> Mapping[str, DataFrame]:
        folder = _folder(settings)
        rows = sources.read_parquet(
            spark,
            f"{folder}/checkins.parquet",
            needed_by="The job checkins",
            remedy="Point source.path at a folder that holds checkins.parquet and pois.parquet.",
        )
        listed = sources.read_parquet(
            spark,
            settings.source.pois_path or f"{folder}/pois.parquet",
            needed_by="The job checkins",
            remedy="Put the POI catalogue there, or name it with --set source.pois_path=FILE.",
        )
        checkins = sources.pick_columns(
            rows,
            "checkins.parquet",
            required=REQUIRED,
            optional=OPTIONAL,
            remedy=REMEDY,
            warnings=self.warnings,
            unread=UNREAD,
        )
        catalogue = sources.pick_columns(
            listed,
            "pois.parquet",
            required=POI_REQUIRED,
            optional=POI_OPTIONAL,
            remedy="A POI needs poi_id, latitude and longitude, for example ('p1', 40.71, -74.0).",
            warnings=self.warnings,
            unread=POI_UNREAD,
        )
        actions = build_actions(checkins.withColumn("action_ts_ms", F.unix_millis("utc_time")))
        return build_delivery(actions, describe_pois(catalogue), settings, day=day)

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        return sources.collect_requests(impressions, day=day, action_type=ACTION_TYPE)


def deliver(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the check-ins of `context.day`."""
    return sources.deliver(CheckinFolder(), context, spark)


def build_actions(checkins: DataFrame) -> DataFrame:
    """Turns check-ins into raw actions.

    Args:
        checkins: user_id, poi_id, category, longitude, latitude, action_ts_ms, tz_offset_min.

    Returns:
        Rows of `raw_actions` without `day`. The id is a hash of user, time and POI alone, so that a check-
        in delivered twice is recognised as an exact duplicate.
    """
    parts = [
        F.coalesce(F.col(name).cast("string"), F.lit("")) for name in ("user_id", "action_ts_ms", "poi_id")
    ]
    return checkins.select(
        F.sha2(F.concat_ws("|", *parts), 256).alias("action_id"),
        "user_id",
        "poi_id",
        F.lit(ACTION_TYPE).alias("action_type"),
        "action_ts_ms",
        "tz_offset_min",
        F.lit(None).cast("double").alias("user_lon"),
        F.lit(None).cast("double").alias("user_lat"),
        F.col("longitude").alias("poi_lon"),
        F.col("latitude").alias("poi_lat"),
        "category",
        F.lit(False).alias("is_simulated"),
    )


def describe_pois(catalogue: DataFrame) -> DataFrame:
    """Brings a catalogue file (`POI_REQUIRED` and `POI_OPTIONAL`) into the columns of `raw_pois`."""
    return catalogue.select(
        "poi_id",
        "name",
        F.nullif(F.concat_ws(", ", "address", "locality"), F.lit("")).alias("address"),
        "category",
        "category_path",
        F.col("longitude").alias("poi_lon"),
        F.col("latitude").alias("poi_lat"),
        "description",
    )


def derive_pois(actions: DataFrame) -> DataFrame:
    """Makes a catalogue from actions, where no file gives one.

    Median place, most frequent category (ties: first in the alphabet). Only what the given actions say
    enters, so a catalogue of day D knows nothing of later days.
    """
    usable = actions.where("poi_id IS NOT NULL")
    places = usable.groupBy("poi_id").agg(
        F.median("poi_lon").alias("poi_lon"), F.median("poi_lat").alias("poi_lat")
    )
    by_count = Window.partitionBy("poi_id").orderBy(F.desc("count"), F.asc("category"))
    categories = (
        usable.where("category IS NOT NULL")
        .groupBy("poi_id", "category")
        .count()
        .withColumn("rank", F.row_number().over(by_count))
        .where("rank = 1")
        .select("poi_id", "category")
    )
    return places.join(categories, "poi_id", "left")


def build_delivery(
    actions: DataFrame, pois: DataFrame | None, settings: Settings, *, day: date
) -> Mapping[str, DataFrame]:
    """Cuts the delivery of a day out of everything a source holds.

    Args:
        actions: all rows of `raw_actions` that the source holds, without `day`.
        pois: its catalogue in the columns of `raw_pois`, `first_seen_date` left out; None to derive it from
            the actions.
        settings: `source.since` and the settings of simulated impressions.
        day: the day of the delivery.
    """
    since = settings.source.since
    up_to_day = sources.keep_window(actions, "action_ts_ms", day=day, since=None)
    catalogue = derive_pois(up_to_day) if pois is None else pois
    # Of later days only this is used: what comes later is not delivered yet.
    dated = with_first_seen(catalogue, actions)
    visits = keep_visits(up_to_day, dated)
    # Cut the plan: every recall list starts from the requests, and would compute them anew.
    requests = compute_once(pick_requests(visits, settings.impressions, day=day, since=since))
    first_seen = F.coalesce("first_seen_date", F.lit(day))
    # A listed POI that nobody has visited comes with the first delivery, which is the one without `since`.
    is_new = sources.keep_dates(first_seen, day=day, since=since) & (
        F.col("first_seen_date").isNotNull() | F.lit(since is None)
    )
    return {
        "raw_actions": sources.keep_window(actions, "action_ts_ms", day=day, since=since),
        "raw_pois": dated.where(is_new)
        .withColumn("is_closed", F.lit(False))
        .withColumn("is_simulated", F.lit(False)),
        "raw_impressions": simulate_impressions(requests, visits, dated, settings.impressions, day=day),
    }


def with_first_seen(pois: DataFrame, actions: DataFrame) -> DataFrame:
    """Adds `first_seen_date`, the UTC day of the POI's first action; null for a POI without any."""
    dated = F.col("action_ts_ms").between(sources.FIRST_MS, sources.LAST_MS - 1)
    first = actions.where(dated).groupBy("poi_id").agg(F.min("action_ts_ms").alias("_first_ms"))
    return (
        pois.join(first, "poi_id", "left")
        .withColumn("first_seen_date", event_date(F.col("_first_ms")))
        .drop("_first_ms")
    )


def _folder(settings: Settings) -> str:
    if not settings.source.path:
        raise MissingInputError(
            what="the folder of check-ins",
            where="source.path (empty)",
            needed_by="The job checkins",
            remedy="Name it with --set source.path=FOLDER; it holds checkins.parquet and pois.parquet.",
        )
    return settings.source.path.rstrip("/")
