"""Trains a challenger on everything up to yesterday and promotes it if it passes the gate.

**Reads** cleaned actions, impressions and the texts and pictures of POIs. **Writes** the sample tables of the day, the
tables of what users did in its training period, the vectors of new texts and pictures, an MLflow parent run with a
child per stage, and a registered model version with alias `challenger`. The challenger becomes `champion` only if it
passes the gate (docs/operations.md), which compares its generated POIs, its clicks, its vectors and its lift with
baselines and the last champions. If it is refused, the champion stays, and the log and the version's tags give the
reasons. The nightly DAG uses the champion from its next run on.

A retry of `train` continues from the last checkpoint.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable

from commands import DAY_PARAM, DEFAULT_ARGS, RECIPE, START_DATE, TRAINING, run_job

YESTERDAY = "{{ params.day or (data_interval_start | ds) }}"

with DAG(
    dag_id="weekly_training",
    description="samples -> pre-training -> SFT -> DPO -> evaluation -> registry",
    doc_md=__doc__,
    # It runs after Sunday's nightly run. The interval is that one day, so data_interval_start is the last
    # complete day.
    schedule=CronTriggerTimetable("0 6 * * 1", timezone="UTC", interval=timedelta(days=1)),
    start_date=START_DATE,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS | {"execution_timeout": timedelta(days=7)},
    params={"day": DAY_PARAM},
    tags=[TRAINING],
):
    samples = [
        run_job("etl", "pretrain_samples", day=YESTERDAY),
        run_job("etl", "training_others", day=YESTERDAY),
        run_job("etl", "ranking_samples", day=YESTERDAY),
        run_job("udfs", "poi_vectors", day=YESTERDAY),
        run_job("udfs", "poi_image_vectors", day=YESTERDAY),
    ]
    preference_pairs = run_job("etl", "preference_pairs", day=YESTERDAY)
    train = run_job("models", "train", "--recipe", RECIPE, day=YESTERDAY)

    samples[2] >> preference_pairs
    [*samples, preference_pairs] >> train
