"""Fails when the current release is too old.

The nightly DAG reports a night that failed. This DAG also detects a night that never started or that hangs, because
it reads the table of releases only. The task fails with exit code 3 (not retried) when the current release was
published, or its day ended, more than `SPACETIME_MAX_AGE_H` hours ago. Alert on it as on any other failed task.
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
