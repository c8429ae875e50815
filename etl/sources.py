"""What a source of raw tables is, and how the delivery of one day is cut out and written.

A source is one small class with a `name` and a `read` method that returns the raw tables of a day as
frames; adding one touches nothing but its own file and the job table in `etl/__main__.py`. What all sources
share is here: which rows belong to a delivery, reading files with errors that say what to do, and writing.

Delivery of day D: rows carry `day` = D. Delivered are events that happened after `source.since` (null: ever)
up to and including D: the first night brings all history, every later one its own day.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from datetime import date
from typing import Protocol

from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import CorruptInputError, MissingInputError
from conf.settings import Settings
from conf.tables import TABLES
from etl import contracts, storage
from etl.schema_drift import describe_additions, require_columns, require_types
from etl.session import local_frame
from etl.spacetime import event_date

LOGGER = logging.getLogger(__name__)

DELIVERED_TABLES = ("raw_actions", "raw_pois", "raw_profiles", "raw_impressions", "ranking_requests")
FIRST_MS, LAST_MS = 10**12, 10**13
"""Times within are 13-digit epoch milliseconds (2001 to 2286); others cannot be dated."""


class Source(Protocol):
    """One kind of input.

    Attributes:
        name: name of the job.
        warnings: what is odd about the delivery and does not stop it, filled by `read`: columns that nobody reads.
    """

    name: str
    warnings: list[str]

    def read(self, spark: SparkSession, settings: Settings, *, day: date) -> Mapping[str, DataFrame]:
        """Returns the delivery of a day: frames by raw table, `ranking_requests` apart.

        Columns that a frame lacks are delivered as null, `day` is added; tables left out are delivered empty.
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
    """
    summary = JobSummary()
    frames = dict(source.read(spark, context.settings, day=context.day))
    summary.notes["warnings"] = source.warnings
    for warning in source.warnings:
        LOGGER.warning("%s %s: %s", source.name, context.day, warning)
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
    return summary


def keep_window(frame: DataFrame, ts_ms: str, *, day: date, since: date | None) -> DataFrame:
    """Keeps the rows whose time lies in the days after `since` up to `day`.

    Rows whose time cannot be dated (null, or not 13-digit milliseconds) are kept: no day would claim them
    later, and it is for the cleaning to refuse and count them.
    """
    in_window = keep_dates(F.col("_event_date"), day=day, since=since)
    dated = F.col(ts_ms).between(FIRST_MS, LAST_MS - 1)
    return (
        frame.withColumn("_event_date", F.when(dated, event_date(F.col(ts_ms))))
        .where(F.col("_event_date").isNull() | in_window)
        .drop("_event_date")
    )


def keep_dates(column: Column, *, day: date, since: date | None) -> Column:
    """Returns the condition that a date lies after `since` (null: ever) and not after `day`."""
    condition = column <= F.lit(day)
    return condition if since is None else condition & (column > F.lit(since))


def read_parquet(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> DataFrame:
    """Opens a Parquet file or folder; errors name the path and what to do."""
    return _open(lambda: spark.read.parquet(path), path, "Parquet", needed_by, remedy)


def read_text_table(
    spark: SparkSession, path: str, schema: str, options: Mapping[str, str], *, needed_by: str, remedy: str
) -> DataFrame:
    """Opens a delimited text file without a header, columns by position as in `schema`."""
    return _open(
        lambda: spark.read.options(**options).schema(schema).csv(path),
        path,
        "delimited text",
        needed_by,
        remedy,
    )


def read_csv(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> DataFrame:
    """Opens a CSV file with a header; every column is text."""
    return _open(
        lambda: spark.read.csv(path, header=True, escape='"', multiLine=False), path, "CSV", needed_by, remedy
    )


def read_lines(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> DataFrame:
    """Opens a text file; one column `value` with one row per line that is not blank."""
    lines = _open(lambda: spark.read.text(path), path, "text", needed_by, remedy)
    return lines.where(F.trim("value") != "")


def pick_columns(
    frame: DataFrame,
    table: str,
    *,
    required: Mapping[str, str],
    optional: Mapping[str, str],
    remedy: str,
    warnings: list[str],
    unread: Collection[str] = (),
) -> DataFrame:
    """Selects columns by name with the given types; single values that do not convert become null.

    Args:
        frame: a file as opened; the order of its columns does not matter.
        table: what the file is called in errors.
        required: types of columns that must be there.
        optional: types of columns that are null where they are not there.
        remedy: what to do about a file that does not fit.
        warnings: takes a sentence that names the columns which nobody reads.
        unread: columns that are known and not needed, and so no cause for a warning.

    Raises:
        SchemaError: a required column is missing, or the values of a column do not convert.
    """
    wanted = {**required, **optional}
    require_columns(frame, table, required, remedy=remedy)
    require_types(frame, table, wanted, remedy=remedy)
    warnings += describe_additions(frame, table, {*wanted, *unread})
    have = set(frame.columns)
    return frame.select(
        *(
            (F.col(f"`{name}`").try_cast(kind) if name in have else F.lit(None).cast(kind)).alias(name)
            for name, kind in wanted.items()
        )
    )


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
    have = set(frame.columns)
    columns = [
        F.lit(day).alias("day")
        if column.name == "day"
        # Bytes that are no UTF-8 become U+FFFD, which the cleaning refuses: other readers of the table fail on them.
        else F.make_valid_utf8(column.name).alias(column.name)
        if column.name in have and column.type == "string"
        else F.col(column.name)
        if column.name in have
        else F.lit(None).cast(column.type).alias(column.name)
        for column in contract.columns
    ]
    return frame.select(*columns)


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
    return CorruptInputError(
        path=settings.source.path, expected="the format of this source", cause=_first_line(text)
    )


def _open(read: Callable[[], DataFrame], path: str, expected: str, needed_by: str, remedy: str) -> DataFrame:
    try:
        return read()
    except (PySparkException, Py4JJavaError) as error:
        raise _input_error(error, path, expected=expected, needed_by=needed_by, remedy=remedy) from error


def _input_error(error: Exception, path: str, *, expected: str, needed_by: str, remedy: str) -> Exception:
    text = str(error)
    if "PATH_NOT_FOUND" in text or "does not exist" in text:
        return MissingInputError(what=f"the {expected} input", where=path, needed_by=needed_by, remedy=remedy)
    if isinstance(error, AnalysisException) and "UNABLE_TO_INFER_SCHEMA" in text:
        return MissingInputError(what=f"any {expected} file", where=path, needed_by=needed_by, remedy=remedy)
    return CorruptInputError(path=path, expected=expected, cause=_first_line(text))


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:300]
