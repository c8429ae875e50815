"""Turns the day's raw actions into a published release of the four feature tables.

**Reads** the day's delivery (`SPACETIME_SOURCE`). **Writes** raw, cleaned and derived tables for the day,
then one row of `releases`. Readers see nothing of the new day until that row is written: if a task fails, they
still have the last release.

**Missed nights** need no action. The next night delivers every row that no other night has delivered, regardless
of the day on which the action happened (docs/operations.md, "A scheduler that was down").

**Rerun** any task for any day as often as needed: it replaces the rows that it wrote before. Only `poi_index` has
to run in the order of days. **Exit codes** 2 (settings), 3 (data gate) and 4 (versions) are not retried: the
task's log ends with the remedy. The model is the registry's champion. If the champion changes during a run,
`publish` refuses tables of two models (exit code 4).

**By hand**: the form that starts a run asks for the day; without one it is the day of the schedule.

`publish` updates the asset `spacetime://features/releases`; schedule ranking DAGs on it.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable

from commands import DAY_PARAM, DEFAULT_ARGS, FEATURES, RELEASE, SOURCE, START_DATE, run_job

with DAG(
    dag_id="nightly_features",
    description="raw actions of a day -> published user, POI, score and candidate features",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    start_date=START_DATE,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    dagrun_timeout=timedelta(hours=20),
    params={"day": DAY_PARAM},
    tags=[FEATURES],
):
    # The reader delivers rows that no other night has: late rows, and rows of nights that did not run.
    read_source = run_job("etl", SOURCE, task_id="read_source")
    poi_index = run_job("etl", "poi_index")
    clean_actions = run_job("etl", "clean_actions")
    action_sequences = run_job("etl", "action_sequences")
    features = [
        run_job("udfs", "user_embeddings"),
        run_job("udfs", "poi_embeddings"),
        run_job("udfs", "ranking_scores"),
        run_job("udfs", "poi_candidates"),
    ]
    audit = run_job("udfs", "audit")
    publish = run_job("udfs", "publish", outlets=(RELEASE,))
    report = run_job("models", "report")

    read_source >> poi_index >> clean_actions >> action_sequences >> features >> audit >> publish >> report
