"""What a source of raw tables is, and how the delivery of one day is made and written.

A source is one small class with a `name` and a `read` method that returns the raw tables of a day as
frames; adding one touches nothing but its own file and the job table in `etl/__main__.py`. What all sources
share is here: opening files with errors that say what to do, counting what became of every record, and writing.

Delivery of day D: rows carry `day` = D. Delivered is what happened up to and including D and has not been delivered on
another day (`etl/deliveries.py`): the first night brings all history, every later one what is new by then. Every record
of the source is delivered, known (other days have delivered it) or outside of the window (later than D), and the
summary tells how many.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import reduce
from typing import Protocol

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from conf.cli import JobContext, JobSummary
from conf.errors import CorruptInputError, EmptyDeliveryError, IndexOrderError, MissingInputError
from conf.settings import Settings
from conf.tables import TABLES
from etl import contracts, source_files, storage
from etl import schema_drift as drift
from etl import source_values as values
from etl.deliveries import Warehouse, shape
from etl.session import local_frame
from etl.source_files import FilePart
from etl.spacetime import event_date

LOGGER = logging.getLogger(__name__)

DELIVERED_TABLES = ("raw_actions", "raw_pois", "raw_profiles", "raw_impressions", "ranking_requests")
CORRUPT = "_torn_record"
"""Column of delimited text that holds the record as it came, where it has too few or too many values."""

UNPRUNED = {"columnPruning": "false"}
"""Has Spark parse all columns of a record, whichever are used: else it does not see that there are too few or many."""


class Source(Protocol):
    """One kind of input.

    Attributes:
        name: name of the job.
        warnings: what is odd about the delivery and does not stop it, filled by `read`: columns that nobody reads.
        counts: what became of the records of the source, filled by `read`, for the notes of the summary; empty for a
            source that makes its records.
    """

    name: str
    warnings: list[str]
    counts: dict[str, int]

    def read(
        self, spark: SparkSession, settings: Settings, *, day: date, warehouse: Warehouse | None = None
    ) -> Mapping[str, DataFrame]:
        """Returns the delivery of a day: frames by raw table, `ranking_requests` apart.

        Columns that a frame lacks are delivered as null, `day` is added; tables left out are delivered empty.

        Args:
            spark: session.
            settings: where the source is.
            day: the day of the delivery.
            warehouse: what other days have delivered; None for nothing.
        """
        ...

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        """Returns the requests to be scored tonight, made from the day's delivery of `raw_impressions`."""
        ...


def deliver(source: Source, context: JobContext, spark: SparkSession) -> JobSummary:
    """Reads the delivery of `context.day` and replaces that day in all raw tables.

    Raises:
        MissingInputError: a file of the source is not there.
        CorruptInputError: a file cannot be read as what it should be.
        SchemaError: a required column is missing, or has changed to a type that does not convert; nothing is written.
        EmptyDeliveryError: the source holds no record at all; nothing is written.
        IndexOrderError: later days have been indexed, and the delivery holds POIs that they lack; nothing is written.
    """
    summary, warehouse = JobSummary(), Warehouse(spark, context.settings, context.day)
    try:
        frames = dict(source.read(spark, context.settings, day=context.day, warehouse=warehouse))
        _check_order(frames.get("raw_pois"), warehouse, source.name)
    except (PySparkException, Py4JJavaError) as error:
        raise _read_failure(error, context.settings) from error
    if source.counts and not source.counts["records"]:
        raise EmptyDeliveryError(path=context.settings.source.path, day=str(context.day))
    for name in DELIVERED_TABLES:
        started = time.perf_counter()
        if name == "ranking_requests" and "raw_impressions" in frames:
            # From what was just written, unless the run is dry: the impressions are not made a second time.
            shown = (
                frames["raw_impressions"]
                if context.dry_run
                else _read_back(spark, "raw_impressions", context)
            )
            frames[name] = source.make_requests(shown, context.settings, day=context.day)
        rows = _write(_shape(spark, frames.get(name), name, context.day), name, context, summary)
        summary.rows_in += rows
        summary.rows_out += 0 if context.dry_run else rows
        summary.notes[f"rows_{name}"] = rows
        summary.steps[name] = time.perf_counter() - started
        LOGGER.info("%s %s: %d rows of %s, %.1f s", source.name, context.day, rows, name, summary.steps[name])
    warnings = [*source.warnings, *_account_for(source, summary, context)]
    summary.notes["warnings"] = warnings
    for warning in warnings:
        LOGGER.warning("%s %s: %s", source.name, context.day, warning)
    return summary


def _account_for(source: Source, summary: JobSummary, context: JobContext) -> list[str]:
    """Says in the notes what became of every record; returns a warning if nothing was new."""
    if not source.counts:
        return []
    counts, rows = source.counts, int(str(summary.notes["rows_raw_actions"]))
    known = counts["records"] - counts["later"] - rows
    summary.notes["records"] = {
        "in_source": counts["records"],
        "delivered": rows,
        "delivered_on_other_days": known,
        "after_the_day": counts["later"],
    }
    if "pois" in counts:
        new = int(str(summary.notes["rows_raw_pois"]))
        summary.notes["catalogue"] = {
            "in_source": counts["pois"],
            "delivered": new,
            "held_by_the_index_or_not_due": counts["pois"] - new,
        }
    LOGGER.info(
        "%s %s: %d records in the source = %d delivered + %d delivered on other days + %d after the day",
        source.name, context.day, counts["records"], rows, known, counts["later"],
    )  # fmt: skip
    if rows:
        return []
    return [
        f"nothing is new on {context.day}: of {counts['records']} records in {context.settings.source.path} other days "
        f"have delivered {known}, and {counts['later']} are later than the day"
    ]


def _check_order(pois: DataFrame | None, warehouse: Warehouse, source: str) -> None:
    """Stops a delivery for a day before the last indexed one if it brings POIs: the index could not take them in."""
    last = warehouse.last_indexed_day
    if pois is None or last is None or last <= warehouse.day or pois.isEmpty():
        return
    known = storage.read_table(warehouse.spark, warehouse.root, "poi_index").select("poi_id")
    new = pois.select(F.btrim("poi_id").alias("poi_id")).join(known, "poi_id", "left_anti")
    if not new.isEmpty():
        raise IndexOrderError(day=str(warehouse.day), last_day=str(last), source=source)


def keep_dates(column: Column, *, day: date, since: date | None) -> Column:
    """Returns the condition that a date lies after `since` (null: ever) and not after `day`."""
    condition = column <= F.lit(day)
    return condition if since is None else condition & (column > F.lit(since))


@dataclass(frozen=True)
class Opened:
    """Files as opened: their rows in one or more parts, and what is odd about them."""

    parts: Sequence[FilePart]
    warnings: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns of all parts, each once."""
        return list(dict.fromkeys(name for part in self.parts for name in part.frame.columns))


def open_parquet(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> Opened:
    """Opens a Parquet file or folder; errors name the path and what to do."""
    found = source_files.find_files(spark, path, what="Parquet", needed_by=needed_by, remedy=remedy)
    parts = source_files.open_parquet(spark, found)
    names = [[*part.frame.columns, *part.unknown] for part in parts]
    return Opened(parts, [*found.warnings, *source_files.describe_differences(found, names)])


def open_csv(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> Opened:
    """Opens CSV files with a header each; every column is text, `CORRUPT` holds records of another width.

    Quoted values may hold line ends (RFC 4180). Where a stray quote makes one record of many lines, the lines are read
    one by one, so that only the line with the quote is refused.
    """
    found = source_files.find_files(spark, path, what="CSV", needed_by=needed_by, remedy=remedy)
    by_header: dict[tuple[str, ...], list[str]] = {}
    for file in found.files:
        by_header.setdefault(source_files.read_header(spark, file), []).append(file)
    parts = []
    for header, files in by_header.items():
        if not header:
            continue
        schema = T.StructType([T.StructField(name, T.StringType()) for name in (*header, CORRUPT)])
        reader = spark.read.options(**found.options(), columnNameOfCorruptRecord=CORRUPT, **UNPRUNED)
        reader = reader.schema(schema)
        rows = reader.csv(list(files), header=True, escape='"', multiLine=True)
        parts.append(FilePart(_reread_lines(rows, schema)))
    if not parts:
        raise MissingInputError(what="a header", where=path, needed_by=needed_by, remedy=remedy)
    return Opened(
        parts, [*found.warnings, *source_files.describe_differences(found, [p.frame.columns for p in parts])]
    )


def open_tsv(
    spark: SparkSession, path: str, names: Sequence[str], *, encoding: str, needed_by: str, remedy: str
) -> Opened:
    """Opens tab-separated files without header or quotes, columns by position; `CORRUPT` as in `open_csv`."""
    found = source_files.find_files(spark, path, what="delimited text", needed_by=needed_by, remedy=remedy)
    schema = T.StructType([T.StructField(name, T.StringType()) for name in (*names, CORRUPT)])
    options = {
        "sep": "\t",
        "encoding": encoding,
        "quote": "",
        "columnNameOfCorruptRecord": CORRUPT,
        **UNPRUNED,
    }
    rows = spark.read.options(**found.options(), **options).schema(schema).csv(list(found.files))
    return Opened([FilePart(rows)], found.warnings)


def pick_columns(
    opened: Opened,
    table: str,
    *,
    required: Mapping[str, str],
    optional: Mapping[str, str],
    remedy: str,
    warnings: list[str],
    unread: Collection[str] = (),
) -> DataFrame:
    """Selects columns by name, converted by kind; single values that do not convert become null.

    Args:
        opened: files as opened; neither the order nor the case of their columns matters.
        table: what the file is called in errors.
        required: kinds of columns that must be there (`etl/source_values.py`).
        optional: kinds of columns that are null where they are not there.
        remedy: what to do about a file that does not fit.
        warnings: takes sentences about files and columns that nobody reads.
        unread: columns that are known and not needed, and so no cause for a warning.

    Returns:
        The columns, plus `record`, the row as it came (its columns as JSON, or its text where it could not be told
        apart), and `is_torn`: it has too few or too many values.

    Raises:
        SchemaError: a required column is missing, or the values of a column do not convert.
    """
    wanted, frames = {**required, **optional}, []
    for part in opened.parts:
        there = [name for name in (*part.frame.columns, *part.unknown) if name != CORRUPT]
        names = drift.match_columns(there, table, wanted)
        described = {name: values.EXPECTED.get(kind, kind) for name, kind in required.items()}
        drift.require_names(there, table, described, remedy=remedy)
        drift.require_kinds(part, table, wanted, remedy=remedy, names=names)
        frames.append(_convert(part, wanted, names))
    warnings += opened.warnings
    warnings += drift.describe_additions(
        [name for name in opened.names if name != CORRUPT]
        + [name for part in opened.parts for name in part.unknown],
        table,
        {*wanted, *unread},
    )
    return reduce(DataFrame.unionByName, frames)


def _convert(part: FilePart, wanted: Mapping[str, str], names: Mapping[str, str]) -> DataFrame:
    frame, has_text = part.frame, CORRUPT in part.frame.columns
    columns = []
    for name, kind in wanted.items():
        if name not in names:
            columns.append(F.lit(None).cast(values.SPARK_TYPES[kind]).alias(name))
            continue
        actual = names[name]
        given = F.col(f"`{actual}`")
        if has_text and kind == "id":
            given = values.untyped_id(given)
        is_nanoseconds = actual in part.nanoseconds
        columns.append(
            values.convert(given, frame.schema[actual].dataType, kind, is_nanoseconds=is_nanoseconds).alias(
                name
            )
        )
    whole = F.to_json(
        F.struct(*(F.col(f"`{name}`") for name in frame.columns if name != CORRUPT)),
        {"ignoreNullFields": "false"},
    )
    record = F.coalesce(F.col(CORRUPT), whole) if has_text else whole
    is_torn = F.col(CORRUPT).isNotNull() if has_text else F.lit(False)
    return frame.select(*columns, record.alias("record"), is_torn.alias("is_torn"))


def _reread_lines(rows: DataFrame, schema: T.StructType) -> DataFrame:
    """Takes records of another width apart at their line ends and reads each line by itself."""
    folders = [name for name in rows.columns if name not in schema.names]
    options = {"columnNameOfCorruptRecord": CORRUPT, "escape": '"'}
    lines = F.filter(F.split(CORRUPT, r"\r?\n"), lambda line: line != "")
    apart = F.transform(lines, lambda line: F.from_csv(line, schema.toDDL(), options))
    whole = F.array(F.struct(*(F.col(f"`{name}`") for name in schema.names)))
    is_torn = F.coalesce(F.col(CORRUPT).contains("\n"), F.lit(False))
    records = F.explode(F.when(is_torn, apart).otherwise(whole)).alias("_row")
    return rows.select(*folders, records).select(*folders, "_row.*")


def collect_requests(impressions: DataFrame, *, day: date, action_type: str) -> DataFrame:
    """Makes the requests to be scored tonight: those of the day itself, POIs in order of position."""
    of_day = impressions.where(event_date(F.col("request_ts_ms")) == F.lit(day))
    shown = F.array_sort(F.collect_list(F.struct("position", "poi_id")))
    keys = ("request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon", "user_lat", "is_simulated")
    return (
        of_day.groupBy(*keys)
        .agg(shown.getField("poi_id").alias("candidate_poi_ids"))
        .withColumn("action_type", F.lit(action_type))
    )


def _shape(spark: SparkSession, frame: DataFrame | None, name: str, day: date) -> DataFrame:
    contract = TABLES[name]
    if frame is None:
        return local_frame(spark, [], contracts.spark_schema(contract))
    return shape(frame.withColumn("day", F.lit(day)), contract)


def _write(frame: DataFrame, name: str, context: JobContext, summary: JobSummary) -> int:
    root = context.settings.storage.root
    try:
        if context.dry_run:
            return frame.count()
        version = storage.replace_day(
            frame, name, root, day=context.day, run_id=context.run_id, job=context.job
        )
    except (PySparkException, Py4JJavaError) as error:
        raise _read_failure(error, context.settings) from error
    summary.tables[name] = version
    return _read_back(frame.sparkSession, name, context).count()


def _read_back(spark: SparkSession, name: str, context: JobContext) -> DataFrame:
    return storage.read_table(spark, context.settings.storage.root, name).where(F.col("day") == context.day)


def _read_failure(error: Exception, settings: Settings) -> Exception:
    """Returns a named error where a file broke while its rows were read, else the error itself."""
    text = str(error)
    if "FAILED_READ_FILE" not in text and "is not a Parquet file" not in text:
        return error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return CorruptInputError(
        path=settings.source.path,
        expected="the format of this source",
        cause=(lines or ["no message"])[0][:300],
    )
