"""Check-in folders (`checkins.parquet`, `pois.parquet`) -> the raw tables, and the base of all file sources.

Run: python -m etl checkins --day D --set source.path=FOLDER. Columns are listed in `REQUIRED` and `OPTIONAL`;
optional ones may be absent or null. A check-in says where a user was, not where the user came from, so
actions have no user place; impressions are simulated (`etl/tables/impressions.py`) and marked so.

Totals of the whole period in a catalogue file (numbers of check-ins, of users) are not read: they would leak the
future.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError
from conf.settings import Settings
from conf.tables import RAW_ACTIONS
from etl.columns.judging import zone_warning
from etl.columns.refusal import trimmed
from etl.columns.spacetime import event_date
from etl.delta.erased_users import IS_ERASED, mark_erased
from etl.jobs.deliveries import Warehouse, is_later, keep_changed_pois, keep_new_actions, shape
from etl.sources import base, frames
from etl.sources.poi_images import split_images
from etl.spark.session import compute_once
from etl.tables.derived_pois import confirm_places, derive_pois, keep_good_actions
from etl.tables.impressions import keep_visits, pick_requests, simulate_impressions
from etl.tables.poi_images import keep_changed

LAST_DAY = date(2200, 1, 1)
"""After all others, and early enough for its end in nanoseconds to be a bigint: no action is later."""
REQUIRED = {
    "user_id": "id",
    "poi_id": "id",
    "latitude": "degrees",
    "longitude": "degrees",
    "utc_time": "clock",
}
OPTIONAL = {"category": "string", "tz_offset_min": "minutes"}
POI_REQUIRED = {"poi_id": "id", "latitude": "degrees", "longitude": "degrees"}
POI_OPTIONAL = {
    "name": "string",
    "address": "string",
    "locality": "string",
    "category": "string",
    "category_path": "string",
    "description": "string",
}
"""Columns and their kinds (`etl/sources/values.py`)."""
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


class Catalogue(NamedTuple):
    """A catalogue file: POIs in columns of `raw_pois`, and pictures, if any, in those of `raw_poi_images`."""

    pois: DataFrame
    images: DataFrame | None


class FileSource(ABC):
    """A source of files: it reads all actions that they hold, and a catalogue, if there is one.

    This class finds the new rows of a day, the same way for every format.
    """

    name = ""
    requested_type = ACTION_TYPE
    """Action type that the simulated requests ask for."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.counts: dict[str, int] = {}

    @abstractmethod
    def read_actions(self, spark: SparkSession, settings: Settings) -> DataFrame:
        """Returns every record of the files, in the columns of `raw_actions` without `day`."""

    def read_catalogue(self, spark: SparkSession, settings: Settings) -> Catalogue | None:
        """Returns the catalogue at `source.pois_path`; None if it is not set."""
        path = settings.source.pois_path
        return read_catalogue(spark, path, self.name, self.warnings) if path else None

    def read(
        self, spark: SparkSession, settings: Settings, *, day: date, warehouse: Warehouse | None = None
    ) -> Mapping[str, DataFrame]:
        actions = shape(self.read_actions(spark, settings), RAW_ACTIONS)
        catalogue = self.read_catalogue(spark, settings)
        erased = None if warehouse is None else warehouse.erased
        actions = mark_erased(actions, erased)
        if warehouse is not None and warehouse.actions is not None:
            actions = compute_once(actions)  # read once for its days and once for its rows
        # Offsets are judged at the place of the POI, or at the user's place if the source lacks the POI's.
        lon = F.coalesce("poi_lon", "user_lon")
        row = actions.agg(
            F.count("*").alias("records"),
            F.count_if(is_later(F.col("action_ts_ms"), day=day) & ~F.col(IS_ERASED)).alias("later"),
            F.count_if(IS_ERASED).alias("erased"),
            zone_warning(F.col("tz_offset_min"), lon).alias("zones"),
        ).first()
        assert row is not None
        self.counts = {name: row[name] for name in ("records", "later", "erased")}
        actions = actions.where(~F.col(IS_ERASED)).drop(IS_ERASED)
        pois = None if catalogue is None else catalogue.pois
        if pois is not None:
            self.counts["pois"] = pois.count()
        self.warnings += [row["zones"]] if row["zones"] else []
        delivery = build_delivery(actions, pois, settings, day=day, warehouse=warehouse)
        if catalogue is None or catalogue.images is None:
            return delivery
        known = None if warehouse is None else warehouse.images
        return {**delivery, "raw_poi_images": keep_changed(catalogue.images, known, day=day)}

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        return base.requests_of_day(impressions, day=day, action_type=self.requested_type)

    def path(self, settings: Settings, what: str) -> str:
        """Returns where the files are; MissingInputError if the settings do not say."""
        if not settings.source.path:
            raise MissingInputError(
                what=what,
                where="source.path (empty)",
                needed_by=f"The job {self.name}",
                remedy="Name it with --set source.path=PATH.",
            )
        return settings.source.path


class CheckinFolder(FileSource):
    """A folder with `checkins.parquet` and `pois.parquet` (or the catalogue at `source.pois_path`)."""

    name = "checkins"

    def read_actions(self, spark: SparkSession, settings: Settings) -> DataFrame:
        opened = frames.open_parquet(
            spark,
            f"{self._folder(settings)}/checkins.parquet",
            needed_by="The job checkins",
            remedy="Point source.path at a folder that holds checkins.parquet and pois.parquet.",
        )
        checkins = frames.pick_columns(
            opened,
            "checkins.parquet",
            required=REQUIRED,
            optional=OPTIONAL,
            remedy=REMEDY,
            warnings=self.warnings,
            unread=UNREAD,
        )
        return build_actions(checkins.withColumnRenamed("utc_time", "action_ts_ms"))

    def read_catalogue(self, spark: SparkSession, settings: Settings) -> Catalogue | None:
        path = settings.source.pois_path or f"{self._folder(settings)}/pois.parquet"
        return read_catalogue(spark, path, self.name, self.warnings)

    def _folder(self, settings: Settings) -> str:
        return self.path(settings, "the folder of check-ins").rstrip("/")


def deliver(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the check-ins of `context.day`."""
    return base.deliver(CheckinFolder(), context, spark)


def read_catalogue(spark: SparkSession, path: str, job: str, warnings: list[str]) -> Catalogue:
    """Reads a catalogue of POIs from Parquet, with their pictures if it has any."""
    opened = frames.open_parquet(
        spark,
        path,
        needed_by=f"The job {job}",
        remedy="Put the POI catalogue there, or name it with --set source.pois_path=FILE.",
    )
    table = "pois.parquet" if path.endswith("pois.parquet") else "the POI catalogue"
    opened, images = split_images(opened, table)
    picked = frames.pick_columns(
        opened,
        table,
        required=POI_REQUIRED,
        optional=POI_OPTIONAL,
        remedy="A POI needs poi_id, latitude and longitude, for example ('p1', 40.71, -74.0).",
        warnings=warnings,
        unread=POI_UNREAD,
    )
    return Catalogue(describe_pois(picked), images)


def build_actions(checkins: DataFrame) -> DataFrame:
    """Turns check-ins into raw actions.

    Args:
        checkins: user_id, poi_id, category, longitude, latitude, action_ts_ms, tz_offset_min, record, is_torn.

    Returns:
        Rows of `raw_actions` without `day`. The id is a hash of user, time and POI alone. So a check-in delivered
        twice is recognised as an exact duplicate, even if blanks around an id differ.
    """
    # concat_ws skips nulls: rows that lack different parts could get the same id.
    parts = [
        F.coalesce(column, F.lit(""))
        for column in (trimmed("user_id"), F.col("action_ts_ms").cast("string"), trimmed("poi_id"))
    ]
    is_torn = F.col("is_torn")
    return checkins.select(
        F.when(~is_torn, F.sha2(F.concat_ws("|", *parts), 256)).alias("action_id"),
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
        F.when(is_torn, F.col("record")).alias("corrupt_record"),
        "record",
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
        "record",
    )


def build_delivery(
    actions: DataFrame,
    pois: DataFrame | None,
    settings: Settings,
    *,
    day: date,
    warehouse: Warehouse | None = None,
) -> Mapping[str, DataFrame]:
    """Builds the delivery of a day from all rows of a source.

    Args:
        actions: all rows of `raw_actions` that the source holds, without `day`.
        pois: its catalogue in the columns of `raw_pois`, `first_seen_date` left out; None to derive it from
            the actions.
        settings: `clean` and the settings of simulated impressions.
        day: the day of the delivery.
        warehouse: the deliveries of other days; None if there are none.
    """
    is_due = ~is_later(F.col("action_ts_ms"), day=day)
    delivered = None if warehouse is None else warehouse.actions
    up_to_day = actions.where(is_due)
    new = up_to_day if delivered is None else compute_once(keep_new_actions(up_to_day, delivered))
    judged = keep_good_actions(actions, day=LAST_DAY, settings=settings.clean)
    good_ever = compute_once(judged.drop("record", "corrupt_record"))
    good = good_ever.where(is_due)
    catalogue = _derive(good, settings, day=day, warehouse=warehouse) if pois is None else pois
    # Rows of later days are left out: they are not delivered yet.
    dated = with_first_seen(catalogue, good_ever)
    due = dated.where(F.coalesce("first_seen_date", F.lit(day)) <= F.lit(day)).withColumns(
        {"is_closed": F.lit(False), "is_simulated": F.lit(False)}
    )
    changed = due if warehouse is None else keep_changed_pois(due, warehouse)
    visits = keep_visits(good, dated)
    # This cuts the plan: every recall list starts from the requests and would compute them again.
    requests = compute_once(
        pick_requests(visits, settings.impressions, day=day, new=None if delivered is None else new)
    )
    return {
        "raw_actions": new,
        "raw_pois": changed,
        "raw_impressions": simulate_impressions(requests, visits, dated, settings.impressions, day=day),
    }


def _derive(good: DataFrame, settings: Settings, *, day: date, warehouse: Warehouse | None) -> DataFrame:
    pois = compute_once(derive_pois(good))
    if warehouse is None or warehouse.index is None or warehouse.actions is None:
        return pois
    live = warehouse.index.where("valid_to IS NULL").select("poi_id", "poi_lon", "poi_lat")
    delivered = keep_good_actions(warehouse.actions, day=day, settings=settings.clean)
    return confirm_places(pois, live, good, delivered, moved_km=settings.index.moved_km)


def with_first_seen(pois: DataFrame, actions: DataFrame) -> DataFrame:
    """Adds `first_seen_date`, the UTC day of the POI's first good action; null for a POI without any."""
    first = actions.groupBy("poi_id").agg(F.min("action_ts_ms").alias("_first_ms"))
    return (
        pois.join(first.withColumnRenamed("poi_id", "_poi_id"), trimmed("poi_id") == F.col("_poi_id"), "left")
        .withColumn("first_seen_date", event_date(F.col("_first_ms")))
        .drop("_first_ms", "_poi_id")
    )
