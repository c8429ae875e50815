"""Implausible days of a delivery: after today, before the earliest event, or far beyond the last delivered day.

The index runs strictly forward, so one run with a mistyped year would block every later run. The check comes before
anything is written; `--any-day` lets such a day through.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime

from pyspark.sql import SparkSession

from conf.cli import JobContext
from conf.errors import UnlikelyDayError
from etl.jobs.deliveries import Warehouse

MAX_GAP_DAYS = 31
"""Between a delivery and the one before it."""


def refuse_unlikely_day(context: JobContext, spark: SparkSession) -> None:
    """Checks the day of a job that delivers or indexes.

    Raises:
        UnlikelyDayError: the day is implausible, and `--any-day` was not given.
    """
    if context.options.any_day:
        return
    problem = find_problem(
        context.day,
        today=datetime.now(UTC).date(),
        earliest=context.settings.clean.earliest_day,
        last=lambda: Warehouse(spark, context.settings, context.day).last_day(),
    )
    if problem:
        raise UnlikelyDayError(day=str(context.day), problem=problem)


def find_problem(day: date, *, today: date, earliest: date, last: Callable[[], date | None]) -> str | None:
    """Returns the reason why a day is implausible, in words; None if it is plausible.

    Args:
        day: day of the job.
        today: present day, UTC.
        earliest: first day that an event may have.
        last: returns the last earlier day with a delivery; None before the first delivery. It is called last, as it
            reads a table.
    """
    if day > today:
        return f"it lies after today, {today} UTC"
    if day < earliest:
        return f"it lies before {earliest}, the earliest day of an event (clean.earliest_day)"
    delivered = last()
    if delivered is not None and (day - delivered).days > MAX_GAP_DAYS:
        return f"the last day delivered before it is {delivered}, more than {MAX_GAP_DAYS} days earlier"
    return None
