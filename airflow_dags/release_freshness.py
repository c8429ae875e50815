"""Raises an alarm when readers have been looking at the same release for too long.

The nightly DAG tells of a night that failed; this one also of a night that never began, or that hangs: it asks the
table of releases alone. The task fails with exit code 3 (not retried) when the current release was published, or
its day ended, more than `SPACETIME_MAX_AGE_H` hours ago; connect the alarm to it as to any other failed task.
"""

from airflow.sdk import DAG, CronTriggerTimetable

from commands import DEFAULT_ARGS, FEATURES, MAX_AGE_H, START_DATE, run_job

with DAG(
    dag_id="release_freshness",
    description="fails when the current release is too old",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("0 * * * *", timezone="UTC"),
    start_date=START_DATE,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=[FEATURES],
):
    run_job("udfs", "releases", "--max-age-hours", MAX_AGE_H)
