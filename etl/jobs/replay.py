"""Replay: applies today's rules to the rows of a day once more, after a fix outside of the rows.

Run: python -m etl replay --day D [--as-of R]. Writes what `clean_actions` writes for D: `cleaned_actions`,
`user_places`, `quarantined_rows`.

Every delivered row stays in `raw_actions`, so a replay judges all rows of the day, not only the quarantined
ones. Whether a row is a duplicate, or beyond the cap of its user, depends on the other rows of the day. Judging
all rows also ensures that rows in = accepted + quarantined + dropped, however often the job runs. Rules and
settings are today's, as in every rerun of `clean_actions`. But a rerun reads the catalogue of day D, so it cannot
know a POI that was delivered later. The replay reads the index as it stood at the end of day R (by default the
whole index). So it is a pure function of (inputs, D, R), and `clean_actions --day D` reverts it. An accepted action
stays accepted, as slots are only appended. An action that was delivered again and accepted on a later day is an
exact duplicate of that one.

Later days are recomputed (`etl/jobs/recompute.py`), their histories by `action_sequences --day D`; the summary
mentions both. Refused POIs are not replayed: ids are assigned in order of first sight, so a repaired POI is delivered
again and indexed on that day.
"""

from datetime import date

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from etl.delta import storage
from etl.jobs import recompute

LAST_DAY = date(9998, 12, 31)
"""After all others, and still with a day after it: what is as of its end is before that."""


def replay_day(context: JobContext, spark: SparkSession) -> JobSummary:
    """Judges the day again and says in the notes how the quarantine of its actions changed.

    Raises:
        MissingInputError: the inputs of the day have never been written.
        RowsLostError: the counts do not add up.
    """
    before = _count_quarantined(context, spark)
    summary = recompute.clean_days(context, spark, as_of=context.options.as_of or LAST_DAY)
    after = summary.notes["reasons"]
    assert isinstance(after, dict)
    changed = {
        reason: after.get(reason, 0) - before.get(reason, 0)
        for reason in sorted({*before, *after})
        if after.get(reason, 0) != before.get(reason, 0)
    }
    summary.notes |= {"quarantined_before": before, "quarantined_change": changed}
    if changed:
        summary.notes["next"] = (
            f"python -m etl action_sequences --day {context.day}; it brings the later days up too"
        )
    return summary


def _count_quarantined(context: JobContext, spark: SparkSession) -> dict[str, int]:
    root = context.settings.storage.root
    if not storage.table_exists(spark, root, "quarantined_rows"):
        return {}
    of_day = (F.col("day") == context.day) & (F.col("source_table") == "raw_actions")
    counted = storage.read_table(spark, root, "quarantined_rows").where(of_day).groupBy("reason").count()
    return {row["reason"]: row["count"] for row in counted.collect()}
