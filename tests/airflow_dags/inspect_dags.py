"""Parses our DAG files as Airflow's DAG processor does and prints what it found, as JSON.

Runs in Airflow's environment. `seconds` is what the files cost in a process that has Airflow loaded already,
as the DAG processor has; `cold_seconds` adds the import of Airflow itself.
"""

import json
import os
import sys
import time
from pathlib import Path

started = time.perf_counter()
from airflow.dag_processing.dagbag import BundleDagBag  # noqa: E402
from airflow.sdk import DAG  # noqa: E402

FOLDER = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])


def describe(dag: DAG) -> dict[str, object]:
    """Returns what our rules ask of a DAG."""
    return {
        "tags": sorted(dag.tags),
        "doc": dag.doc_md or "",
        "tasks": {
            task.task_id: {
                "command": task.bash_command,
                "upstream": sorted(task.upstream_task_ids),
                "retries": task.retries,
                "owner": task.owner,
                "outlets": [asset.uri for asset in task.outlets],
            }
            for task in dag.tasks
        },
    }


loaded = time.perf_counter()
bag = BundleDagBag(dag_folder=str(FOLDER), bundle_name="dags-folder", bundle_path=FOLDER)
ended = time.perf_counter()
found = {
    "seconds": ended - loaded,
    "cold_seconds": ended - started,
    "errors": bag.import_errors,
    "heavy": sorted({"pyspark", "torch", "delta", "pandas", "mlflow", "conf", "etl"} & set(sys.modules)),
    "dags": {name: describe(dag) for name, dag in bag.dags.items()},
}
sys.stdout.write(json.dumps(found) + "\n")
