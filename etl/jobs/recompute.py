"""Jobs `clean_actions` and `action_sequences` of a day, and of the later days that the day makes stale.

In a usual run there is no later day, and nothing is done twice. After a correction or a backfill the later days are
recomputed, oldest first. So the tables do not depend on the order in which days are run, and the next run of the day,
or of any earlier one, repairs a kill in between. Days that are not stale are left alone, and a rerun whose rows are
already stored commits nothing: a backfill of many days in order computes each twice at most.

Some earlier days may have been delivered and never cleaned, since their run failed after the delivery. They are
computed first, as no later delivery would bring their rows again. They are judged with the catalogue of the day that
makes up for them, which has delivered their POIs.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import date

from pyspark.sql import SparkSession

from conf.cli import JobContext, JobSummary
from etl.delta import commits
from etl.jobs import runner

LOGGER = logging.getLogger(__name__)


def clean_days(context: JobContext, spark: SparkSession, *, as_of: date | None = None) -> JobSummary:
    """Cleans the day, then the later days that were cleaned before it; see `runner.clean_day`.

    A later day that was replayed is judged with the catalogue of its replay again.
    """
    undone = [] if as_of else _undone_days(context, spark, "cleaned_actions", after="raw_actions")
    for day in undone:
        runner.clean_day(_of_day(context, day), spark, as_of=context.day, may_refuse_all=True)
    is_current, later = _look_around(context, spark, "cleaned_actions", as_of=as_of)
    # A replay may refuse all rows once more; that is no error.
    summary = runner.clean_day(
        context, spark, as_of=as_of, skip_equal=is_current, may_refuse_all=as_of is not None
    )
    _report_undone(summary, undone)
    if not later:
        return summary
    logs = _read_commits(context, spark, "cleaned_actions")
    stale = logs.find_stale(later)
    # Recomputing a day makes all days after it stale.
    due = [day for day in later if day >= stale[0]] if stale else []
    due_commits = {day: logs.of_day(day) for day in due}
    as_of_days = {day: commit.as_of for day, commit in due_commits.items() if commit is not None}
    return _run_later(
        context,
        summary,
        due,
        lambda c: runner.clean_day(c, spark, as_of=as_of_days.get(c.day), may_refuse_all=True),
    )


def sequence_days(context: JobContext, spark: SparkSession) -> JobSummary:
    """Builds the sequences of the day, then of later days whose actions have changed; see `runner.sequence_day`."""
    undone = _undone_days(context, spark, "action_sequences", after="cleaned_actions")
    for day in undone:
        runner.sequence_day(_of_day(context, day), spark)
    is_current, later = _look_around(context, spark, "action_sequences")
    summary = runner.sequence_day(context, spark, skip_equal=is_current)
    _report_undone(summary, undone)
    if not later:
        return summary
    # Unlike cleaned days, sequences do not depend on each other: recomputing a day makes no later one stale.
    due = _read_commits(context, spark, "action_sequences").find_stale(later)
    return _run_later(context, summary, due, lambda c: runner.sequence_day(c, spark))


def _look_around(
    context: JobContext, spark: SparkSession, name: str, *, as_of: date | None = None
) -> tuple[bool, list[date]]:
    """Tells whether the day exists as requested and is not stale, and which later days exist (dry: none)."""
    logs, day = _read_commits(context, spark, name), context.day
    commit = logs.of_day(day)
    is_current = commit is not None and commit.as_of == as_of and not logs.find_stale([day])
    return is_current, [] if context.dry_run else [other for other in logs.days if other > day]


def _read_commits(context: JobContext, spark: SparkSession, name: str) -> commits.Commits:
    return commits.read_commits(spark, context.settings.storage.root, name, since=context.day)


def _run_later(
    context: JobContext, summary: JobSummary, days: list[date], run: Callable[[JobContext], JobSummary]
) -> JobSummary:
    """Runs the job for the later days and adds these days and their versions to the summary of the first."""
    for day in days:
        summary.tables |= run(_of_day(context, day)).tables
    if days:
        summary.notes["later_days"] = [str(day) for day in days]
    return summary


def _undone_days(context: JobContext, spark: SparkSession, name: str, *, after: str) -> list[date]:
    """Returns the days before this one that table `after` was committed for and `name` was not (dry: none)."""
    if context.dry_run:
        return []
    root = context.settings.storage.root
    upstream, done = (commits.last_commits(spark, root, table) for table in (after, name))
    return sorted(day for day in upstream if day < context.day and day not in done)


def _report_undone(summary: JobSummary, days: list[date]) -> None:
    """Records in summary and log which earlier days were made up for."""
    if days:
        summary.notes["undone_days"] = [str(day) for day in days]
        LOGGER.warning("delivered earlier and not done until now: %s", ", ".join(map(str, days)))


def _of_day(context: JobContext, day: date) -> JobContext:
    return replace(context, day=day)
