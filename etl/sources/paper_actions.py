"""Actions in the paper's own form (JSON or Parquet) -> the raw tables (paper 3.1).

Run: python -m etl actions --day D --set source.path=PATH. `EXAMPLE` is one record; "action_id" and
"tz_offset_min" are optional. Values of a wrong type become null; text that is not a record is kept in
`corrupt_record`, so that the cleaning counts it. The POI catalogue is `source.pois_path` (columns as
in `etl/sources/checkins.py`) or derived from the actions. Impressions are simulated.
"""

from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from conf.cli import JobContext, JobSummary
from conf.settings import Settings
from etl.columns import judging
from etl.sources import base, files, json_records
from etl.sources import schema_drift as drift
from etl.sources import values as values
from etl.sources.checkins import FileSource
from etl.sources.files import FilePart, InputFiles

NEEDED_BY = "The job actions"
REQUESTED_TYPE = "click"
EXAMPLE = (
    '{"time": 1767225600000, "user_id": "u1", "user_geo": {"x": 116.4, "y": 39.9}, "poi_id": "p1", '
    '"poi_geo": {"x": 116.41, "y": 39.91}, "category": "food, French food", "action_type": "click"}'
)
# Read as text and converted one by one: a number in quotes is a number, and an invalid value is null in its own field
# only.
RECORD = (
    "time string, user_id string, user_geo struct<x: string, y: string>, poi_id string, "
    "poi_geo struct<x: string, y: string>, category string, action_type string, "
    "action_id string, tz_offset_min string, corrupt_record string"
)
SCALARS = {
    "time": "epoch",
    "user_id": "id",
    "poi_id": "id",
    "category": "string",
    "action_type": "string",
    "action_id": "id",
    "tz_offset_min": "minutes",
}
"""Keys and their kinds (`etl/sources/values.py`)."""
PLACES, AXES = ("user_geo", "poi_geo"), ("x", "y")
REQUIRED = ("time", "user_id", "poi_id", "action_type")
REMEDY = f"A record looks like this: {EXAMPLE}."
REMEDY_PATH = "Name the file or folder with --set source.path=PATH."


class PaperActions(FileSource):
    """JSON or Parquet in the paper's form; names that end in `.parquet` are Parquet."""

    name = "actions"
    requested_type = REQUESTED_TYPE

    def read_actions(self, spark: SparkSession, settings: Settings) -> DataFrame:
        path = self.path(settings, "the file of actions")
        inputs = files.find_files(spark, path, what="text", needed_by=NEEDED_BY, remedy=REMEDY_PATH)
        is_parquet = [file.lower().endswith((".parquet", ".parq", ".pq")) for file in inputs.files]
        if path.rstrip("/").endswith(".parquet") or all(is_parquet):
            return shape_actions(_read_parquet(spark, inputs, path, self.warnings))
        self.warnings += inputs.warnings
        return shape_actions(_read_json(spark, inputs, path, self.warnings))


def deliver(context: JobContext, spark: SparkSession) -> JobSummary:
    """Delivers the actions of `context.day`."""
    return base.deliver(PaperActions(), context, spark)


def shape_actions(records: DataFrame) -> DataFrame:
    """Turns records into rows of `raw_actions` without `day`.

    Args:
        records: the fields of `RECORD`, the converted values of `SCALARS` (suffix `_value`), and `record`.

    Without an id, a hash of the content is the id; it ignores blanks around ids and the spelling of numbers.
    """
    normalised = {
        name: F.coalesce(F.col(f"{name}_value").cast("string"), F.col(name))
        for name in ("time", "tz_offset_min")
    } | {name: judging.clean_id(F.col(f"{name}_value")) for name in ("user_id", "poi_id")}
    names = [
        field.name for field in _record_type().fields if field.name not in ("action_id", "corrupt_record")
    ]
    content = F.to_json(F.struct(*(normalised.get(name, F.col(name)).alias(name) for name in names)))
    is_corrupt = F.col("corrupt_record").isNotNull()
    return records.select(
        F.when(~is_corrupt, F.coalesce("action_id_value", F.sha2(content, 256))).alias("action_id"),
        F.col("user_id_value").alias("user_id"),
        F.col("poi_id_value").alias("poi_id"),
        "action_type",
        F.col("time_value").alias("action_ts_ms"),
        F.col("tz_offset_min_value").alias("tz_offset_min"),
        *(_coordinate("user_geo", axis).alias(name) for axis, name in (("x", "user_lon"), ("y", "user_lat"))),
        *(_coordinate("poi_geo", axis).alias(name) for axis, name in (("x", "poi_lon"), ("y", "poi_lat"))),
        # "food, French food": the levels from the top; raw_actions keeps the text as logged.
        "category",
        "corrupt_record",
        "record",
        F.lit(False).alias("is_simulated"),
    )


def _coordinate(geo: str, axis: str) -> Column:
    return values.degrees(_unquoted(F.col(geo).getField(axis)), T.StringType())


def _unquoted(text: Column) -> Column:
    """Removes the quotes from NaN and Infinity: read as text, these bare words of JSON get quotes, strings do not."""
    return F.regexp_replace(text, r'^"(NaN|[+-]?Infinity|[+-]?INF)"$', "$1")


def _read_json(spark: SparkSession, inputs: InputFiles, path: str, warnings: list[str]) -> DataFrame:
    records = json_records.read_records(spark, inputs)
    folders = [name for name in records.columns if name in SCALARS]
    keys = _sample_keys(records.where("is_object"), path)
    records = records.withColumn("text", _with_our_case(F.col("record"), keys))
    warnings += _check_records(records.where("is_object"), path, keys, folders)
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "corrupt_record"}
    parsed = records.withColumn("parsed", F.from_json("text", RECORD, options))
    columns = {}
    for field in _record_type().fields:
        value = F.when(F.col("is_object"), F.col(f"parsed.{field.name}"))
        columns[field.name] = F.coalesce(value, F.col(field.name)) if field.name in folders else value
    columns["corrupt_record"] = F.when(F.col("is_object"), F.col("parsed.corrupt_record")).otherwise(
        F.col("record")
    )
    named = parsed.select("record", "text", *(column.alias(name) for name, column in columns.items()))
    converted = {}
    for name, kind in SCALARS.items():
        text = _unquoted(F.col(name))
        if kind == "id":
            text = values.json_id(text, F.col("text"), name)
        converted[f"{name}_value"] = values.convert(text, T.StringType(), kind)
    return named.withColumns(converted)


def _sample_keys(records: DataFrame, path: str) -> list[str]:
    """Returns the keys of the first records, sorted; SchemaError if two of them differ in case only."""
    keys = F.array_distinct(F.flatten(F.collect_set(F.json_object_keys("record"))))
    row = records.limit(drift.SAMPLE_ROWS).agg(F.array_sort(keys).alias("keys")).first()
    known: list[str] = row["keys"] if row is not None else []
    files.refuse_repeated(known, path)
    return known


def _with_our_case(record: Column, keys: list[str]) -> Column:
    """Replaces the keys of a record that differ from ours in case only by our spelling."""
    ours = {name.lower(): name for name in (*SCALARS, *PLACES)}
    for key in keys:
        spelling = ours.get(key.lower(), key)
        if spelling != key:
            record = F.regexp_replace(record, rf'"{key}"(\s*:)', f'"{spelling}"$1')
    return record


def _check_records(records: DataFrame, path: str, known: list[str], folders: list[str]) -> list[str]:
    """Looks at the keys and values of the first records; returns warnings, raises SchemaError."""
    if not known:
        return []  # no text is a record: the cleaning counts them
    drift.require_names([*known, *folders], path, dict.fromkeys(REQUIRED, "string or number"), remedy=REMEDY)
    probes = []
    for name, kind in SCALARS.items():
        delivered = F.get_json_object("text", f"$.{name}")
        # from_json copies an object into a text column literally; no id looks like that.
        plain = F.when(~delivered.rlike(r"^\s*[\[{]"), delivered)
        expected = values.SPARK_TYPES[kind]
        probes.append(
            drift.Probe(name, expected, "JSON", delivered, values.convert(plain, T.StringType(), kind))
        )
    for place in PLACES:
        whole = F.get_json_object("text", f"$.{place}")
        for axis in AXES:
            value = F.get_json_object("text", f"$.{place}.{axis}")
            # A place without this axis does not convert; one whose axis is null has no value.
            has_axis = F.array_contains(F.json_object_keys(whole), axis)
            delivered = F.when(F.coalesce(has_axis, F.lit(False)), value).otherwise(whole)
            converted = values.degrees(value, T.StringType())
            probes.append(drift.Probe(f"{place}.{axis}", "double", "JSON", delivered, converted))
    drift.refuse_unconverted(records, path, probes, remedy=REMEDY)
    read_names = {name.lower() for name in (*SCALARS, *PLACES)}
    return drift.describe_unread(path, [key for key in known if key.lower() not in read_names])


def _read_parquet(spark: SparkSession, inputs: InputFiles, path: str, warnings: list[str]) -> DataFrame:
    parts = files.open_parquet(spark, inputs)
    names = [[*part.frame.columns, *part.unknown] for part in parts]
    warnings += [*inputs.warnings, *files.describe_differences(inputs, names)]
    everything = list(dict.fromkeys(name for group in names for name in group))
    warnings += drift.describe_additions(everything, path, {*SCALARS, *PLACES})
    return reduce(DataFrame.unionByName, (_read_part(part, path) for part in parts))


def _read_part(part: FilePart, path: str) -> DataFrame:
    """Reads Parquet files of one schema into the fields of `RECORD` and the converted values."""
    rows, present = part.frame, [*part.frame.columns, *part.unknown]
    matched = drift.match_columns(present, path, (*SCALARS, *PLACES))
    drift.require_names(present, path, dict.fromkeys(REQUIRED, "string or number"), remedy=REMEDY)
    drift.require_kinds(part, path, SCALARS, remedy=REMEDY, names=matched)
    columns, converted = [], []
    for field in _record_type().fields:  # in their order: ids are hashes of the content
        value = F.col(f"`{matched[field.name]}`") if field.name in matched else F.lit(None)
        if field.name in SCALARS:
            kind, name = SCALARS[field.name], matched.get(field.name)
            result = (
                F.lit(None).cast(values.SPARK_TYPES[kind])
                if name is None
                else values.convert(
                    value, rows.schema[name].dataType, kind, is_nanoseconds=name in part.nanoseconds
                )
            )
            converted.append(result.alias(f"{field.name}_value"))
        if field.name in PLACES and field.name in matched:
            axes = _axes(rows, matched[field.name], path)
            drift.require_kinds(FilePart(axes), path, dict.fromkeys(axes.columns, "degrees"), remedy=REMEDY)
            value = F.struct(*(value.getField(axis).cast("string").alias(axis) for axis in AXES))
        columns.append(value.cast(field.dataType).alias(field.name))
    ids = {matched[name] for name, kind in SCALARS.items() if kind == "id" and name in matched}
    record = values.record_json(rows, rows.columns, ids)
    return rows.select(*columns, *converted, record.alias("record"))


def _record_type() -> T.StructType:
    record = T._parse_datatype_string(RECORD)
    assert isinstance(record, T.StructType)
    return record


def _axes(rows: DataFrame, place: str, path: str) -> DataFrame:
    """Returns the coordinates of a place as columns `place.x`, `place.y`; SchemaError if it has none."""
    kind = rows.schema[place].dataType
    if not isinstance(kind, T.StructType) or not set(AXES) <= set(kind.names):
        drift.refuse_column(rows, path, place, "struct<x: double, y: double>", remedy=REMEDY)
    return rows.select(*(F.col(f"`{place}`").getField(axis).alias(f"{place}.{axis}") for axis in AXES))
