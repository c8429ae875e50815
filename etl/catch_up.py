"""Jobs `clean_actions` and `action_sequences` of a day, and of the later days that the day leaves behind.

On a usual night no later day is there, and nothing is done twice. After a correction or a backfill the later days are
made anew, oldest first, so in whatever order days are run, the tables are those of a run in order; and a kill in
between is made good by the next run of the day, or of any earlier one. Days that are not behind are left alone, and a
rerun that finds its rows stored already commits nothing: a backfill of many days in order makes each twice at most.
"""

from collections.abc import Callable
from datetime import date, timedelta

from pyspark.sql import SparkSession

from conf.cli import JobContext, JobSummary
from etl import commits, nightly

Run = Callable[[JobContext, bool], JobSummary]
"""Runs the job for the day of a context; may leave out the commit of rows that are stored already."""


def clean_days(context: JobContext, spark: SparkSession, *, as_of: date | None = None) -> JobSummary:
    """Cleans the day, then the later days that were cleaned before it; see `nightly.clean_day`.

    A later day that was replayed is judged with the catalogue of its replay again.
    """
    root, name = context.settings.storage.root, "cleaned_actions"
    summary = _run_day(
        context, spark, name, lambda c, skip: nightly.clean_day(c, spark, as_of=as_of, skip_equal=skip)
    )
    later = _later_days(context, spark, name)
    behind = commits.days_behind(spark, root, name, later)
    # Whatever is made anew leaves all days after it behind.
    due = [day for day in later if day >= behind[0]] if behind else []
    as_of_by_day = (
        {day: commit.as_of for day, commit in commits.last_commits(spark, root, name).items()} if due else {}
    )
    return _run_later(
        context, summary, due, lambda c: nightly.clean_day(c, spark, as_of=as_of_by_day.get(c.day))
    )


def sequence_days(context: JobContext, spark: SparkSession) -> JobSummary:
    """Makes the sequences of the day, then of later days whose actions have changed; see `nightly.sequence_day`."""
    root, name = context.settings.storage.root, "action_sequences"
    summary = _run_day(context, spark, name, lambda c, skip: nightly.sequence_day(c, spark, skip_equal=skip))
    due = commits.days_behind(spark, root, name, _later_days(context, spark, name))
    return _run_later(context, summary, due, lambda c: nightly.sequence_day(c, spark))


def _run_day(context: JobContext, spark: SparkSession, name: str, run: Run) -> JobSummary:
    root, day = context.settings.storage.root, context.day
    stored = [other for other in commits.days_from(spark, root, name, day) if other == day]
    is_current = bool(stored) and not commits.days_behind(spark, root, name, stored)
    return run(context, is_current)


def _later_days(context: JobContext, spark: SparkSession, name: str) -> list[date]:
    if context.dry_run:
        return []
    return commits.days_from(spark, context.settings.storage.root, name, context.day + timedelta(days=1))


def _run_later(
    context: JobContext, summary: JobSummary, days: list[date], run: Callable[[JobContext], JobSummary]
) -> JobSummary:
    """Runs the job for the days and takes into the summary of the first which they were, and the versions."""
    for day in days:
        later = JobContext(
            context.job, day, context.settings, context.run_id, context.dry_run, context.options
        )
        summary.tables |= run(later).tables
    if days:
        summary.notes["later_days"] = [str(day) for day in days]
    return summary
