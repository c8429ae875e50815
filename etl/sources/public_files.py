"""Public check-in files in their own formats -> the raw tables: the raw TSMC2014 TSV and the CSV of GETNext.

Run: python -m etl tsmc --day D --set source.path=FILE (or getnext). Both become check-ins as in
`etl/sources/checkins.py`; the catalogue is derived from the check-ins up to the day, since neither file has one.
"""

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from conf.cli import JobContext, JobSummary
from conf.errors import SchemaError
from conf.settings import Settings
from etl.columns import judging
from etl.sources import base, frames
from etl.sources import values as values
from etl.sources.checkins import FileSource, build_actions
from etl.sources.frames import CORRUPT
from etl.sources.schema_drift import Probe, describe_unread, refuse_unconverted

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
    "user_id": "id",
    "POI_id": "id",
    "POI_catname": "string",
    "latitude": "degrees",
    "longitude": "degrees",
    "UTC_time": "string",
}
GETNEXT_OPTIONAL = {"timezone": "minutes"}
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


class TsmcFile(FileSource):
    """The TSMC2014 TSV: eight columns without a header, Latin-1 or UTF-8, times with names of weekday and month."""

    name = "tsmc"

    def read_actions(self, spark: SparkSession, settings: Settings) -> DataFrame:
        path = self.path(settings, "the file of check-ins")
        opened = frames.open_tsv(
            spark,
            path,
            TSMC_COLUMNS,
            # In Latin-1 every byte is a character, so nothing is lost before `_decoded` looks for UTF-8.
            encoding="ISO-8859-1",
            needed_by="The job tsmc",
            remedy="Name the file with --set source.path=FILE.",
        )
        rows = reduce(
            DataFrame.unionByName, (part.frame.select(*TSMC_COLUMNS, CORRUPT) for part in opened.parts)
        )
        self.warnings += [*opened.warnings, *_check_format(rows, path)]
        text = {name: _decoded(F.col(name)) for name in (*TSMC_COLUMNS, CORRUPT)}
        rows = rows.withColumns(text)
        kinds = dict.fromkeys(("user_id", "venue_id"), "id") | {"tz_offset_min": "minutes"}
        kinds |= {"latitude": "degrees", "longitude": "degrees"}
        converted = {name: _convert(name, kind).alias(name) for name, kind in kinds.items()}
        fields = F.to_json(F.struct(*TSMC_COLUMNS), {"ignoreNullFields": "false"})
        num_fields = F.size(F.split(CORRUPT, "\t"))
        checkins = rows.select(
            converted["user_id"],
            converted["venue_id"].alias("poi_id"),
            "category",
            *(converted[name] for name in ("latitude", "longitude", "tz_offset_min")),
            parse_time(F.col("utc_time")).alias("action_ts_ms"),
            F.coalesce(CORRUPT, fields).alias("record"),
            # With more than eight columns, the first eight are still in their places.
            F.coalesce(num_fields < len(TSMC_COLUMNS), F.lit(False)).alias("is_torn"),
        )
        return build_actions(checkins)


class GetnextFile(FileSource):
    """The CSV of GETNext (`NYC_train.csv` and its like), read by the names in its header."""

    name = "getnext"

    def read_actions(self, spark: SparkSession, settings: Settings) -> DataFrame:
        path = self.path(settings, "the file of check-ins")
        opened = frames.open_csv(
            spark, path, needed_by="The job getnext", remedy="Name the file with --set source.path=FILE."
        )
        named = frames.pick_columns(
            opened,
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
            F.col("timezone").alias("tz_offset_min"),
            parse_time(F.col("UTC_time")).alias("action_ts_ms"),
            "record",
            "is_torn",
        )
        return build_actions(checkins)


def deliver_tsmc(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the check-ins of `context.day` from a TSMC2014 TSV."""
    return base.deliver(TsmcFile(), context, spark)


def deliver_getnext(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the check-ins of `context.day` from a GETNext CSV."""
    return base.deliver(GetnextFile(), context, spark)


def parse_time(text: Column) -> Column:
    """Returns epoch milliseconds of `Tue Apr 03 18:00:09 +0000 2012` or `2012-04-03 18:00:09`, else null.

    Spark's own parser does not read names of weekdays, so the first form is rearranged.
    """
    words = F.split(judging.clean_id(text), " +")
    month = F.array_position(F.array(*map(F.lit, MONTHS)), F.get(words, F.lit(1)))
    parts = (
        F.get(words, F.lit(5)),
        F.lpad(month.cast("string"), 2, "0"),
        F.lpad(F.get(words, F.lit(2)), 2, "0"),
    )
    rearranged = F.concat(
        F.concat_ws("-", *parts), F.lit(" "), F.get(words, F.lit(3)), F.get(words, F.lit(4))
    )
    is_long = F.size(words) == 6
    return values.clock_ms(F.when(is_long, rearranged).otherwise(text))


def _decoded(text: Column) -> Column:
    """Decodes text that was read as Latin-1: as UTF-8 where its bytes are valid UTF-8, which is no accident."""
    as_utf8 = F.encode(text, "ISO-8859-1").cast("string")
    return F.when(F.is_valid_utf8(as_utf8), F.ltrim(as_utf8, F.lit("\ufeff"))).otherwise(text)


def _convert(name: str, kind: str) -> Column:
    value = F.col(name)
    return values.convert(values.untyped_id(value) if kind == "id" else value, T.StringType(), kind)


def _check_format(rows: DataFrame, path: str) -> list[str]:
    """Checks the first rows, since refusing a file with other columns row by row would hide the cause.

    Columns after the eighth pass with a warning, which is returned: the first eight are still in their places.

    Raises:
        SchemaError: there are fewer columns, or they hold something else.
    """
    first = rows.first()
    if first is None:
        return []
    first_values: Sequence[str | None] = [first[name] for name in TSMC_COLUMNS]
    if first_values[-1] is None:
        num_columns = sum(value is not None for value in first_values)
        raise SchemaError(
            table=path,
            column="utc_time",
            expected="string, the eighth of eight columns separated by tabs",
            found=f"{num_columns} columns in the first row",
            remedy=TSMC_REMEDY,
        )
    probes = [
        Probe(name, values.SPARK_TYPES[kind], "text", F.col(name), _convert(name, kind))
        for name, kind in (("latitude", "degrees"), ("longitude", "degrees"), ("tz_offset_min", "minutes"))
    ]
    probes.append(_time_probe("utc_time", "Tue Apr 03 18:00:09 +0000 2012"))
    refuse_unconverted(rows, path, probes, remedy=TSMC_REMEDY)
    has_more = first[CORRUPT] is not None
    return describe_unread(path, ["those after the eighth"] if has_more else [])


def _time_probe(name: str, form: str) -> Probe:
    return Probe(name, f"time like {form}", "text", F.col(name), parse_time(F.col(name)))
