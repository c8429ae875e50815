"""The interface of a source of raw tables, and how the delivery of one day is built and written.

A source is one small class with a `name` and a `read` method that returns the raw tables of a day as
frames. A new source touches only its own file and the job table in `etl/__main__.py`. This module holds the
shared parts: opening files with helpful errors, counting the outcome of every record, and writing.

The rows of the delivery of day D carry `day` = D. It holds the events up to and including D that no other day has
delivered (`etl/jobs/deliveries.py`): the first run delivers all history, every later one the rows that are new by then.
Every record of the source is delivered, known (other days have delivered it), outside of the window (later than D) or
of a user who was erased; the summary counts each kind.
"""

import logging
import time
from collections.abc import Mapping
from datetime import date
from typing import Protocol

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import CorruptInputError, EmptyDeliveryError, IndexOrderError
from conf.settings import Settings
from conf.tables import TABLES
from etl.columns.spacetime import event_date
from etl.delta import contracts, storage
from etl.delta.erased_users import leave_out
from etl.jobs.deliveries import Warehouse, shape
from etl.spark.session import local_frame
from etl.tables.poi_index import keep_unknown_pois

LOGGER = logging.getLogger(__name__)

DELIVERED_TABLES = (
    "raw_actions", "raw_pois", "raw_poi_images", "raw_profiles", "raw_impressions", "ranking_requests",
)  # fmt: skip
OPTIONAL_TABLES = ("raw_poi_images",)
"""Tables that are made by the first delivery that brings rows of them."""


class Source(Protocol):
    """One kind of input.

    Attributes:
        name: name of the job.
        warnings: oddities that do not stop the delivery, such as unused columns; filled by `read`.
        counts: number of records by outcome, filled by `read`, for the notes of the summary; empty for a source that
            generates its records.
    """

    name: str
    warnings: list[str]
    counts: dict[str, int]

    def read(
        self, spark: SparkSession, settings: Settings, *, day: date, warehouse: Warehouse | None = None
    ) -> Mapping[str, DataFrame]:
        """Returns the delivery of a day: frames by raw table, except `ranking_requests`.

        Columns that a frame lacks are delivered as null, `day` is added; tables left out are delivered empty.

        Args:
            spark: session.
            settings: location of the source.
            day: the day of the delivery.
            warehouse: the deliveries of other days; None if there are none.
        """
        ...

    def make_requests(self, impressions: DataFrame, settings: Settings, *, day: date) -> DataFrame:
        """Returns the requests to score in this run, built from the day's delivery of `raw_impressions`."""
        ...


def deliver(source: Source, context: JobContext, spark: SparkSession) -> JobSummary:
    """Reads the delivery of `context.day` and replaces that day in all raw tables.

    Raises:
        MissingInputError: a file of the source does not exist.
        CorruptInputError: a file cannot be read in its format.
        SchemaError: a required column is missing, or has changed to a type that does not convert; nothing is written.
        EmptyDeliveryError: the source holds no record at all; nothing is written.
        IndexOrderError: later days have been indexed, and the delivery holds POIs that they lack; nothing is written.
    """
    summary, warehouse = JobSummary(), Warehouse(spark, context.settings, context.day)
    try:
        frames = dict(source.read(spark, context.settings, day=context.day, warehouse=warehouse))
        frames = {name: leave_out(frame, warehouse.erased) for name, frame in frames.items()}
        _check_order(frames.get("raw_pois"), warehouse, source.name)
    except (PySparkException, Py4JJavaError) as error:
        raise _read_failure(error, context.settings) from error
    if source.counts and not source.counts["records"]:
        raise EmptyDeliveryError(path=context.settings.source.path, day=str(context.day))
    for name in DELIVERED_TABLES:
        if name in OPTIONAL_TABLES and name not in frames and not warehouse.has(name):
            continue
        started = time.perf_counter()
        if name == "ranking_requests" and "raw_impressions" in frames:
            # From the rows just written, unless the run is dry: the impressions are not computed a second time.
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
    """Adds the outcome of all records to the notes; returns a warning if nothing was new."""
    if not source.counts:
        return []
    counts, rows = source.counts, int(str(summary.notes["rows_raw_actions"]))
    known = counts["records"] - counts["later"] - counts["erased"] - rows
    summary.notes["records"] = {
        "in_source": counts["records"],
        "delivered": rows,
        "delivered_on_other_days": known,
        "after_the_day": counts["later"],
        "of_erased_users": counts["erased"],
    }
    if "pois" in counts:
        new = int(str(summary.notes["rows_raw_pois"]))
        summary.notes["catalogue"] = {
            "in_source": counts["pois"],
            "delivered": new,
            "held_by_the_index_or_not_due": counts["pois"] - new,
        }
    LOGGER.info(
        "%s %s: %d records in the source = %d delivered + %d delivered on other days + %d after the day + %d of users "
        "who were erased",
        source.name, context.day, counts["records"], rows, known, counts["later"], counts["erased"],
    )  # fmt: skip
    if rows:
        return []
    return [
        f"nothing is new on {context.day}: of {counts['records']} records in {context.settings.source.path} other days "
        f"have delivered {known}, and {counts['later']} are later than the day"
    ]


def _check_order(pois: DataFrame | None, warehouse: Warehouse, source: str) -> None:
    """Stops a delivery for a day before the last indexed one if it brings POIs: the index could not add them."""
    last = warehouse.last_indexed_day
    if pois is None or last is None or last <= warehouse.day or pois.isEmpty():
        return
    stored = warehouse.stored_index
    if stored is not None and not keep_unknown_pois(pois, stored).isEmpty():
        raise IndexOrderError(day=str(warehouse.day), last_day=str(last), source=source)


def keep_dates(column: Column, *, day: date, since: date | None) -> Column:
    """Returns the condition that a date lies after `since` (null: ever) and not after `day`."""
    condition = column <= F.lit(day)
    return condition if since is None else condition & (column > F.lit(since))


def requests_of_day(impressions: DataFrame, *, day: date, action_type: str) -> DataFrame:
    """Builds the requests to score in this run: those of the day itself."""
    of_day = impressions.where(event_date(F.col("request_ts_ms")) == F.lit(day))
    return collect_requests(of_day, action_type=action_type)


def collect_requests(impressions: DataFrame, *, action_type: str | None) -> DataFrame:
    """Builds one request from the rows of each impression list, POIs in order of position; None = no action type."""
    shown = F.array_sort(F.collect_list(F.struct("position", "poi_id")))
    keys = ("request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon", "user_lat", "is_simulated")
    return (
        impressions.groupBy(*keys)
        .agg(shown.getField("poi_id").alias("candidate_poi_ids"))
        .withColumn("action_type", F.lit(action_type).cast("string"))
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
    # Counted in the table: counting the frame would compute the delivery a second time.
    summary.tables[name] = version
    return _read_back(frame.sparkSession, name, context).count()


def _read_back(spark: SparkSession, name: str, context: JobContext) -> DataFrame:
    return storage.read_table(spark, context.settings.storage.root, name).where(F.col("day") == context.day)


def _read_failure(error: Exception, settings: Settings) -> Exception:
    """Returns a specific error if reading the rows of a file failed, else the error itself."""
    text = str(error)
    if "FAILED_READ_FILE" not in text and "is not a Parquet file" not in text:
        return error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return CorruptInputError(
        path=settings.source.path,
        expected="the format of this source",
        cause=(lines or ["no message"])[0][:300],
    )
