"""Trains a challenger on everything up to yesterday and promotes it if it passes the gate.

**Reads** cleaned actions and impressions. **Writes** the sample tables of the day and what users did in its
training period, an MLflow parent run with a child per stage, and a registered model version with alias
`challenger`; it becomes `champion` only if the gate (docs/operations.md) has nothing against its generated POIs, its
clicks and its vectors, compared with baselines and the last champions. A refusal leaves the champion and says why
in the log and in the version's tags. The nightly DAG picks up the champion on its next run.

Training goes on from its last checkpoint when `train` is retried.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable

from commands import DEFAULT_ARGS, RECIPE, START_DATE, TRAINING, run_job

YESTERDAY = "{{ data_interval_start | ds }}"

with DAG(
    dag_id="weekly_training",
    description="samples -> pre-training -> SFT -> DPO -> evaluation -> registry",
    doc_md=__doc__,
    # After Sunday's nightly run; the interval is that one day, so data_interval_start is the last day that is
    # complete.
    schedule=CronTriggerTimetable("0 6 * * 1", timezone="UTC", interval=timedelta(days=1)),
    start_date=START_DATE,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS | {"execution_timeout": timedelta(days=7)},
    tags=[TRAINING],
):
    samples = [
        run_job("etl", "pretrain_samples", day=YESTERDAY),
        run_job("etl", "training_others", day=YESTERDAY),
        run_job("etl", "ranking_samples", day=YESTERDAY),
    ]
    preference_pairs = run_job("etl", "preference_pairs", day=YESTERDAY)
    train = run_job("models", "train", "--recipe", RECIPE, day=YESTERDAY)

    samples[2] >> preference_pairs
    [*samples[:2], preference_pairs] >> train
