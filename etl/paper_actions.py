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
from conf.errors import MissingInputError
from conf.settings import Settings
from etl import schema_drift as drift
from etl import sources
from etl.checkins import POI_OPTIONAL, POI_REQUIRED, POI_UNREAD, build_delivery, describe_pois

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
SCALARS = {
    "time": "bigint",
    "user_id": "string",
    "poi_id": "string",
    "category": "string",
    "action_type": "string",
    "action_id": "string",
    "tz_offset_min": "int",
}
PLACES, AXES = ("user_geo", "poi_geo"), ("x", "y")
REQUIRED = ("time", "user_id", "poi_id", "action_type")
REMEDY = f"A record looks like this: {EXAMPLE}."


class PaperActions:
    """JSON lines or Parquet in the paper's form; names that end in `.parquet` are Parquet."""

    name = "actions"

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def read(self, spark: SparkSession, settings: Settings, *, day: date) -> Mapping[str, DataFrame]:
        path = settings.source.path
        if not path:
            raise MissingInputError(
                what="the file of actions",
                where="source.path (empty)",
                needed_by=NEEDED_BY,
                remedy="Name it with --set source.path=PATH.",
            )
        read = _read_parquet if path.rstrip("/").endswith(".parquet") else _read_json
        records = read(spark, path, self.warnings)
        catalogue = _read_catalogue(spark, settings, self.warnings)
        return build_delivery(shape_actions(records), catalogue, settings, day=day)

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


def _read_json(spark: SparkSession, path: str, warnings: list[str]) -> DataFrame:
    lines = sources.read_lines(
        spark, path, needed_by=NEEDED_BY, remedy="Name the file or folder with --set source.path=PATH."
    )
    warnings += _check_lines(lines, path)
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "corrupt_record"}
    return lines.select(F.from_json("value", RECORD, options).alias("record")).select("record.*")


def _check_lines(lines: DataFrame, path: str) -> list[str]:
    """Looks at the keys and values of the first records; returns warnings, raises SchemaError."""
    keys = F.array_distinct(F.flatten(F.collect_set(F.json_object_keys("value"))))
    row = lines.limit(drift.SAMPLE_ROWS).agg(F.array_sort(keys).alias("keys")).first()
    known = row["keys"] if row is not None else []
    if not known:
        return []  # no line is a record: the cleaning counts them
    drift.require_names(known, path, dict.fromkeys(REQUIRED, "string or number"), remedy=REMEDY)
    probes = []
    for name, wanted in SCALARS.items():
        given = F.get_json_object("value", f"$.{name}")
        # from_json reads an object into a text column as it stands; no id looks like that.
        converted = F.when(~given.rlike(r"^\s*[\[{]"), given).try_cast(wanted)
        probes.append(drift.Probe(name, wanted, "JSON", given, converted))
    for place in PLACES:
        whole = F.get_json_object("value", f"$.{place}")
        for axis in AXES:
            value = F.get_json_object("value", f"$.{place}.{axis}")
            # A place without this axis does not convert; one whose axis is null has no value.
            has_axis = F.array_contains(F.json_object_keys(whole), axis)
            given = F.when(F.coalesce(has_axis, F.lit(False)), value).otherwise(whole)
            probes.append(drift.Probe(f"{place}.{axis}", "double", "JSON", given, value.try_cast("double")))
    drift.refuse_unconverted(lines, path, probes, remedy=REMEDY)
    return drift.describe_unread(path, [key for key in known if key not in {*SCALARS, *PLACES}])


def _read_parquet(spark: SparkSession, path: str, warnings: list[str]) -> DataFrame:
    rows = sources.read_parquet(
        spark, path, needed_by=NEEDED_BY, remedy="Name the file or folder with --set source.path=PATH."
    )
    drift.require_columns(rows, path, dict.fromkeys(REQUIRED, "string or number"), remedy=REMEDY)
    drift.require_types(rows, path, SCALARS, remedy=REMEDY)
    have, columns = set(rows.columns), []
    for field in _record_type().fields:  # in their order: ids are made from the content
        value = F.col(field.name) if field.name in have & {*SCALARS, *PLACES} else F.lit(None)
        if field.name in have & set(PLACES):
            axes = _axes(rows, field.name, path)
            drift.require_types(axes, path, dict.fromkeys(axes.columns, "double"), remedy=REMEDY)
            value = F.struct(*(value.getField(axis).cast("string").alias(axis) for axis in AXES))
        columns.append(value.cast(field.dataType).alias(field.name))
    warnings += drift.describe_additions(rows, path, {*SCALARS, *PLACES})
    return rows.select(*columns)


def _record_type() -> T.StructType:
    record = T._parse_datatype_string(RECORD)
    assert isinstance(record, T.StructType)
    return record


def _axes(rows: DataFrame, place: str, path: str) -> DataFrame:
    """Returns the coordinates of a place as columns `place.x`, `place.y`; SchemaError if it has none."""
    kind = rows.schema[place].dataType
    if not isinstance(kind, T.StructType) or not set(AXES) <= set(kind.names):
        drift.refuse_column(rows, path, place, "struct<x: double, y: double>", remedy=REMEDY)
    return rows.select(*(F.col(place).getField(axis).alias(f"{place}.{axis}") for axis in AXES))


def _read_catalogue(spark: SparkSession, settings: Settings, warnings: list[str]) -> DataFrame | None:
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
            listed,
            "the POI catalogue",
            required=POI_REQUIRED,
            optional=POI_OPTIONAL,
            remedy=remedy,
            warnings=warnings,
            unread=POI_UNREAD,
        )
    )
