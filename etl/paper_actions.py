"""Actions in the paper's own form (JSON lines or Parquet) -> the raw tables (paper 3.1).

Run: python -m etl actions --day D --set source.path=PATH. `EXAMPLE` is one record; "action_id" and
"tz_offset_min" are optional. Values of a wrong type become null; a line that is no JSON goes to
`corrupt_record` as it is, so that the cleaning counts it. The POI catalogue is `source.pois_path` (columns as
in `etl/checkins.py`) or derived from the actions. Impressions are simulated.
"""

from collections.abc import Mapping
from datetime import date

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, SchemaError
from conf.settings import Settings
from etl import sources
from etl.checkins import POI_OPTIONAL, POI_REQUIRED, build_delivery, describe_pois

NEEDED_BY = "The job actions"
REQUESTED_TYPE = "click"
EXAMPLE = (
    '{"time": 1767225600000, "user_id": "u1", "user_geo": {"x": 116.4, "y": 39.9}, "poi_id": "p1", '
    '"poi_geo": {"x": 116.41, "y": 39.91}, "category": "food, French food", "action_type": "click"}'
)
# Read as text and converted one by one: a number in quotes is a number, and nonsense is null in its own field
# only.
RECORD = (
    "time string, user_id string, user_geo struct<x: string, y: string>, poi_id string, "
    "poi_geo struct<x: string, y: string>, category string, action_type string, "
    "action_id string, tz_offset_min string, corrupt_record string"
)
REQUIRED = ("time", "user_id", "poi_id", "action_type")


class PaperActions:
    """JSON lines or Parquet in the paper's form; names that end in `.parquet` are Parquet."""

    name = "actions"

    def read(self, spark: SparkSession, settings: Settings, *, day: date) -> Mapping[str, DataFrame]:
        path = settings.source.path
        if not path:
            raise MissingInputError(
                what="the file of actions",
                where="source.path (empty)",
                needed_by=NEEDED_BY,
                remedy="Name it with --set source.path=PATH.",
            )
        records = (
            _read_parquet(spark, path) if path.rstrip("/").endswith(".parquet") else _read_json(spark, path)
        )
        return build_delivery(shape_actions(records), _read_catalogue(spark, settings), settings, day=day)

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        return sources.collect_requests(impressions, day=day, action_type=REQUESTED_TYPE)


def deliver(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the actions of `context.day`."""
    return sources.deliver(PaperActions(), context, spark)


def shape_actions(records: DataFrame) -> DataFrame:
    """Turns records (`RECORD`) into rows of `raw_actions` without `day`.

    Without an id, a hash of the content is the id.
    """
    content = F.to_json(
        F.struct(*(name for name in records.columns if name not in ("action_id", "corrupt_record")))
    )
    is_corrupt = F.col("corrupt_record").isNotNull()
    return records.select(
        F.when(~is_corrupt, F.coalesce("action_id", F.sha2(content, 256))).alias("action_id"),
        "user_id",
        "poi_id",
        "action_type",
        F.col("time").try_cast("bigint").alias("action_ts_ms"),
        F.col("tz_offset_min").try_cast("int").alias("tz_offset_min"),
        *(_coordinate("user_geo", axis).alias(name) for axis, name in (("x", "user_lon"), ("y", "user_lat"))),
        *(_coordinate("poi_geo", axis).alias(name) for axis, name in (("x", "poi_lon"), ("y", "poi_lat"))),
        # "food, French food": the levels from the top; raw_actions keeps the text as logged.
        "category",
        "corrupt_record",
        F.lit(False).alias("is_simulated"),
    )


def _coordinate(geo: str, axis: str) -> Column:
    return F.col(geo).getField(axis).try_cast("double")


def _read_json(spark: SparkSession, path: str) -> DataFrame:
    lines = sources.read_lines(
        spark, path, needed_by=NEEDED_BY, remedy="Name the file or folder with --set source.path=PATH."
    )
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "corrupt_record"}
    return lines.select(F.from_json("value", RECORD, options).alias("record")).select("record.*")


def _read_parquet(spark: SparkSession, path: str) -> DataFrame:
    rows = sources.read_parquet(
        spark, path, needed_by=NEEDED_BY, remedy="Name the file or folder with --set source.path=PATH."
    )
    fields = {field.name: field.dataType for field in rows.schema.fields}
    for name in REQUIRED:
        if name not in fields:
            raise SchemaError(
                table=path,
                column=name,
                expected="string or number",
                found=f"no such column (columns there: {', '.join(fields)})",
                remedy=f"A record looks like this: {EXAMPLE}.",
            )
    wanted = T._parse_datatype_string(RECORD)
    assert isinstance(wanted, T.StructType)
    columns = []
    for field in wanted.fields:
        given = fields.get(field.name)
        if given is None:
            value = F.lit(None)
        elif isinstance(field.dataType, T.StructType):
            value = F.struct(
                *(F.col(field.name).getField(axis).cast("string").alias(axis) for axis in ("x", "y"))
            )
        else:
            value = F.col(field.name)
        columns.append(value.cast(field.dataType).alias(field.name))
    return rows.select(*columns)


def _read_catalogue(spark: SparkSession, settings: Settings) -> DataFrame | None:
    if not settings.source.pois_path:
        return None
    listed = sources.read_parquet(
        spark,
        settings.source.pois_path,
        needed_by=NEEDED_BY,
        remedy="Name the catalogue with --set source.pois_path=FILE.",
    )
    remedy = "A POI needs poi_id, latitude and longitude, for example ('p1', 39.91, 116.41)."
    return describe_pois(
        sources.pick_columns(
            listed, "the POI catalogue", required=POI_REQUIRED, optional=POI_OPTIONAL, remedy=remedy
        )
    )
