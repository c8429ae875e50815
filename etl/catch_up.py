"""Jobs `clean_actions` and `action_sequences` of a day, and of the later days that the day leaves behind.

On a usual night no later day is there, and nothing is done twice. After a correction or a backfill the later days are
made anew, oldest first, so in whatever order days are run, the tables are those of a run in order; and a kill in
between is made good by the next run of the day, or of any earlier one. Days that are not behind are left alone, and a
rerun that finds its rows stored already commits nothing: a backfill of many days in order makes each twice at most.
"""

from collections.abc import Callable
from datetime import date

from pyspark.sql import SparkSession

from conf.cli import JobContext, JobSummary
from etl import commits, nightly


def clean_days(context: JobContext, spark: SparkSession, *, as_of: date | None = None) -> JobSummary:
    """Cleans the day, then the later days that were cleaned before it; see `nightly.clean_day`.

    A later day that was replayed is judged with the catalogue of its replay again.
    """
    is_current, later = _look_around(context, spark, "cleaned_actions", as_of=as_of)
    # A replay looks for what has changed since; that nothing has is no news.
    summary = nightly.clean_day(
        context, spark, as_of=as_of, skip_equal=is_current, may_refuse_all=as_of is not None
    )
    if not later:
        return summary
    seen = _read_commits(context, spark, "cleaned_actions")
    behind = seen.behind(later)
    # Whatever is made anew leaves all days after it behind.
    due = [day for day in later if day >= behind[0]] if behind else []
    made = {day: seen.of_day(day) for day in due}
    as_of_days = {day: commit.as_of for day, commit in made.items() if commit is not None}
    return _run_later(
        context,
        summary,
        due,
        lambda c: nightly.clean_day(c, spark, as_of=as_of_days.get(c.day), may_refuse_all=True),
    )


def sequence_days(context: JobContext, spark: SparkSession) -> JobSummary:
    """Makes the sequences of the day, then of later days whose actions have changed; see `nightly.sequence_day`."""
    is_current, later = _look_around(context, spark, "action_sequences")
    summary = nightly.sequence_day(context, spark, skip_equal=is_current)
    if not later:
        return summary
    due = _read_commits(context, spark, "action_sequences").behind(later)
    return _run_later(context, summary, due, lambda c: nightly.sequence_day(c, spark))


def _look_around(
    context: JobContext, spark: SparkSession, name: str, *, as_of: date | None = None
) -> tuple[bool, list[date]]:
    """Tells whether the day is there as asked for and not behind, and which later days are there (dry: none)."""
    seen, day = _read_commits(context, spark, name), context.day
    made = seen.of_day(day)
    is_current = made is not None and made.as_of == as_of and not seen.behind([day])
    return is_current, [] if context.dry_run else [other for other in seen.days if other > day]


def _read_commits(context: JobContext, spark: SparkSession, name: str) -> commits.Commits:
    return commits.read_commits(spark, context.settings.storage.root, name, since=context.day)


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
