"""Public check-in files in their own formats -> the raw tables: the raw TSMC2014 TSV and the CSV of GETNext.

Run: python -m etl tsmc --day D --set source.path=FILE (or getnext). Both become check-ins as in
`etl/checkins.py`; the catalogue is derived from the check-ins up to the day, since neither file has one.
"""

from collections.abc import Mapping
from datetime import date

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, SchemaError
from conf.settings import Settings
from etl import sources
from etl.checkins import ACTION_TYPE, build_actions, build_delivery
from etl.schema_drift import Probe, describe_unread, refuse_unconverted

TSMC_COLUMNS = (
    "user_id",
    "venue_id",
    "category_id",
    "category",
    "latitude",
    "longitude",
    "tz_offset_min",
    "utc_time",
)
GETNEXT_REQUIRED = {
    "user_id": "string",
    "POI_id": "string",
    "POI_catname": "string",
    "latitude": "double",
    "longitude": "double",
    "UTC_time": "string",
}
GETNEXT_OPTIONAL = {"timezone": "double"}
GETNEXT_UNREAD = (
    "POI_catid", "POI_catid_code", "local_time", "day_of_week", "norm_in_day_time", "trajectory_id",
    "norm_day_shift", "norm_relative_time",
)  # fmt: skip
GETNEXT_REMEDY = f"Its header must name {', '.join((*GETNEXT_REQUIRED, *GETNEXT_OPTIONAL))}."
TSMC_REMEDY = (
    "The raw TSMC2014 file has a user, a venue, its category's id and name, latitude, longitude, "
    "the offset in minutes and the time, for example "
    "'470\\t49bbd6c0f964a520f4531fe3\\t4bf58dd8d48988d127951735\\t"
    "Arts & Crafts Store\\t40.71981\\t-74.00258\\t-240\\tTue Apr 03 18:00:09 +0000 2012'."
)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class TsmcFile:
    """The TSMC2014 TSV: eight columns without a header, Latin-1, times with names of weekday and month."""

    name = "tsmc"

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def read(self, spark: SparkSession, settings: Settings, *, day: date) -> Mapping[str, DataFrame]:
        path = _path(settings, self.name)
        # An extra column shows rows with more fields than the format has; Spark would cut them off silently.
        schema = ", ".join(f"{name} string" for name in (*TSMC_COLUMNS, "excess"))
        options = {"sep": "\t", "encoding": "ISO-8859-1", "quote": "", "mode": "PERMISSIVE"}
        rows = sources.read_text_table(
            spark,
            path,
            schema,
            options,
            needed_by="The job tsmc",
            remedy="Name the file with --set source.path=FILE.",
        )
        self.warnings += _check_format(rows, path)
        checkins = rows.select(
            "user_id",
            F.col("venue_id").alias("poi_id"),
            "category",
            F.col("latitude").try_cast("double").alias("latitude"),
            F.col("longitude").try_cast("double").alias("longitude"),
            F.col("tz_offset_min").try_cast("int").alias("tz_offset_min"),
            parse_time(F.col("utc_time")).alias("action_ts_ms"),
        )
        return build_delivery(build_actions(checkins), None, settings, day=day)

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        return sources.collect_requests(impressions, day=day, action_type=ACTION_TYPE)


class GetnextFile:
    """The CSV of GETNext (`NYC_train.csv` and its like), read by the names in its header."""

    name = "getnext"

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def read(self, spark: SparkSession, settings: Settings, *, day: date) -> Mapping[str, DataFrame]:
        rows = sources.read_csv(
            spark,
            _path(settings, self.name),
            needed_by="The job getnext",
            remedy="Name the file with --set source.path=FILE.",
        )
        named = sources.pick_columns(
            rows,
            "the GETNext CSV",
            required=GETNEXT_REQUIRED,
            optional=GETNEXT_OPTIONAL,
            remedy=GETNEXT_REMEDY,
            warnings=self.warnings,
            unread=GETNEXT_UNREAD,
        )
        refuse_unconverted(
            named, "the GETNext CSV", [_time_probe("UTC_time", "2012-04-03 18:00:09")], remedy=GETNEXT_REMEDY
        )
        checkins = named.select(
            "user_id",
            F.col("POI_id").alias("poi_id"),
            F.col("POI_catname").alias("category"),
            "latitude",
            "longitude",
            F.col("timezone").try_cast("int").alias("tz_offset_min"),
            parse_time(F.col("UTC_time")).alias("action_ts_ms"),
        )
        return build_delivery(build_actions(checkins), None, settings, day=day)

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        return sources.collect_requests(impressions, day=day, action_type=ACTION_TYPE)


def deliver_tsmc(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the check-ins of `context.day` from a TSMC2014 TSV."""
    return sources.deliver(TsmcFile(), context, spark)


def deliver_getnext(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the check-ins of `context.day` from a GETNext CSV."""
    return sources.deliver(GetnextFile(), context, spark)


def parse_time(text: Column) -> Column:
    """Returns epoch milliseconds of `Tue Apr 03 18:00:09 +0000 2012` or `2012-04-03 18:00:09`, else null.

    Spark's own parser does not read names of weekdays, so the first form is rearranged.
    """
    words = F.split(F.trim(text), " +")
    month = F.array_position(F.array(*map(F.lit, MONTHS)), F.get(words, F.lit(1)))
    parts = (F.get(words, F.lit(5)), F.lpad(month.cast("string"), 2, "0"), F.get(words, F.lit(2)))
    rearranged = F.concat(
        F.concat_ws("-", *parts), F.lit(" "), F.get(words, F.lit(3)), F.get(words, F.lit(4))
    )
    is_long = F.size(words) == 6
    return F.unix_millis(F.when(is_long, rearranged).otherwise(text).try_cast("timestamp"))


def _check_format(rows: DataFrame, path: str) -> list[str]:
    """Looks at the first rows: refused row by row, a file with other columns would not tell the cause.

    Columns after the eighth pass with a warning, which is returned: the eight before them are where they should be.

    Raises:
        SchemaError: there are fewer, or they hold something else.
    """
    first = rows.first()
    if first is None:
        return []
    if first["utc_time"] is None:
        found = sum(value is not None for value in first)
        raise SchemaError(
            table=path,
            column="utc_time",
            expected="string, the eighth of eight columns separated by tabs",
            found=f"{found} columns in the first row",
            remedy=TSMC_REMEDY,
        )
    probes = [
        Probe(name, kind, "text", F.col(name), F.col(name).try_cast(kind))
        for name, kind in (("latitude", "double"), ("longitude", "double"), ("tz_offset_min", "int"))
    ]
    probes.append(_time_probe("utc_time", "Tue Apr 03 18:00:09 +0000 2012"))
    refuse_unconverted(rows, path, probes, remedy=TSMC_REMEDY)
    return describe_unread(path, ["those after the eighth"] if first["excess"] is not None else [])


def _time_probe(name: str, form: str) -> Probe:
    return Probe(name, f"time like {form}", "text", F.col(name), parse_time(F.col(name)))


def _path(settings: Settings, job: str) -> str:
    if not settings.source.path:
        raise MissingInputError(
            what="the file of check-ins",
            where="source.path (empty)",
            needed_by=f"The job {job}",
            remedy="Name it with --set source.path=FILE.",
        )
    return settings.source.path
