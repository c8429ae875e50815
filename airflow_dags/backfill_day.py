"""Recomputes the tables of one past day, for example after a cleaning rule was corrected. It publishes nothing.

Trigger it with the day: `airflow dags trigger backfill_day --conf '{"day": "2026-01-31"}'`. Raw tables stay
as delivered. `poi_index` is left alone, since its ids depend on the order of days. Days may be recomputed in any
order: later days of cleaned actions and sequences that become stale are recomputed automatically. Features of later
days are not recomputed; trigger the DAG for each later day that has to be published again.
"""

from airflow.sdk import DAG, Param

from commands import BACKFILL, DEFAULT_ARGS, START_DATE, run_job

DAY = "{{ params.day }}"

with DAG(
    dag_id="backfill_day",
    description="recompute cleaned actions, sequences and features of one past day",
    doc_md=__doc__,
    schedule=None,
    start_date=START_DATE,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"day": Param("2026-01-01", type="string", format="date", description="day to recompute")},
    tags=[BACKFILL],
):
    clean_actions = run_job("etl", "clean_actions", day=DAY)
    action_sequences = run_job("etl", "action_sequences", day=DAY)
    features = [
        run_job("udfs", "user_embeddings", day=DAY),
        run_job("udfs", "poi_embeddings", day=DAY),
        run_job("udfs", "ranking_scores", day=DAY),
        run_job("udfs", "poi_candidates", day=DAY),
    ]
    audit = run_job("udfs", "audit", day=DAY)

    clean_actions >> action_sequences >> features >> audit
