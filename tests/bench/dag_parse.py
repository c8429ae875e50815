"""Records how long Airflow takes to parse our DAG files: the median of five processes."""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from conf.results import record
from tests.airflow_dags.airflow_env import INSPECT, airflow_variables, run_airflow

RUNS = 5


def main() -> int:
    """Measures and records; 1 if the files do not parse."""
    parsed = []
    with tempfile.TemporaryDirectory() as home:
        for _ in range(RUNS):
            done = run_airflow(airflow_variables(Path(home)), str(INSPECT))
            if done.returncode != 0:
                sys.stderr.write(done.stderr)
                return 1
            parsed.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = statistics.median(run["seconds"] for run in parsed)
    cold = statistics.median(run["cold_seconds"] for run in parsed)
    loaded = ", ".join(parsed[0]["heavy"]) or "nothing"
    notes = (
        "all DAG files, in a process that has Airflow loaded, as its DAG processor has; "
        f"median of {RUNS}; {cold:.1f} s with the import of Airflow itself; heavy modules loaded: {loaded}"
    )
    result = record("dag-parse-seconds", round(seconds, 3), "s", "< 2", "make bench-dags", notes)
    sys.stderr.write(f"{result.name}: {result.value} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
