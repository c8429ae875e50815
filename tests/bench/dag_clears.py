"""Has Airflow execute the nightly DAG twice: undisturbed, and with every task killed once in the middle or cleared.

    python -m tests.bench.dag_clears

Both start from copies of the same first night of a simulated city with a model. The tasks' interpreter is
`killed_once.py`, which kills the job and its JVM; the retries are Airflow's own. Then the digests of all tables are
compared, and the backfill DAG recomputes the night in the disturbed copy, after which they are compared again. The work
is kept between calls, so that the parts can be run one by one.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import yaml

from conf.results import record
from tests import small_city
from tests.airflow_dags.airflow_env import ROOT, airflow_variables, run_airflow

COMMAND = "make bench-dag-clears"
NIGHT = str(small_city.DAYS[1])
SOURCE_TABLES = ("releases", "withdrawals")
"""Not compared: they tell when something was published."""
TIMEOUT_S = 1500


def prepare(work: Path) -> None:
    """Makes the first night and the model that all copies start from."""
    if (work / "base.done").exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    layer = small_city.write_settings(work / "base", num_users=60)
    for words in (*small_city.night(0), *small_city.training()):
        small_city.run(layer, *words)
    (work / "base.done").touch()


def settings_of(work: Path, name: str) -> Path:
    """Copies the tables and returns a settings layer for the copy; the model registry stays the base's."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("warehouse", "artifacts"):
        shutil.copytree(work / "base" / part, folder / part)
    content = yaml.safe_load((work / "base" / "settings.yaml").read_text())
    content["storage"] = {"root": str(folder / "warehouse"), "artifacts": str(folder / "artifacts")}
    layer = folder / "settings.yaml"
    layer.write_text(yaml.safe_dump(content))
    return layer


def execute(work: Path, name: str, layer: Path, mode: str, *words: str) -> None:
    """Has Airflow execute a DAG.

    Raises:
        RuntimeError: the run did not succeed.
    """
    interpreter = f"{sys.executable} {ROOT / 'tests' / 'bench' / 'killed_once.py'}"
    (work / "kills").mkdir(exist_ok=True)
    variables = airflow_variables(
        work / name / "airflow",
        {
            "SPACETIME_CONF": str(layer),
            "SPACETIME_PYTHON": interpreter,
            "SPACETIME_RETRY_S": "1",
            "KILLED_ONCE_MODE": mode,
            "KILLED_ONCE_FOLDER": str(work / "kills"),
        },
    )
    migrated = run_airflow(variables, "db", "migrate")
    executed = run_airflow(variables, "dags", "test", *words, timeout_s=TIMEOUT_S)
    (work / f"{name}-{words[0]}.log").write_text(executed.stdout + executed.stderr)
    if migrated.returncode or executed.returncode:
        raise RuntimeError(f"Airflow ended with {executed.returncode}; see {work / name}-{words[0]}.log")


def digests(layer: Path) -> dict[str, str]:
    """Digests all tables as of the night."""
    notes = small_city.run(layer, "etl", "digest", "--day", NIGHT)["notes"]
    assert isinstance(notes, dict)
    return {name: digest for name, digest in notes["digests"].items() if name not in SOURCE_TABLES}


def run_part(work: Path, name: str, mode: str) -> dict[str, str]:
    """Executes the nightly DAG in a copy, unless that was done, and returns the digests."""
    known = work / f"{name}.json"
    if not known.exists():
        layer = settings_of(work, name)
        execute(work, name, layer, mode, "nightly_features", NIGHT)
        known.write_text(json.dumps(digests(layer)))
    found: dict[str, str] = json.loads(known.read_text())
    return found


def run_backfill(work: Path) -> dict[str, str]:
    """Has the backfill DAG recompute the night in the disturbed copy and returns the digests."""
    layer = work / "disturbed" / "settings.yaml"
    execute(work, "disturbed", layer, "measure", "backfill_day", NIGHT, "--conf", json.dumps({"day": NIGHT}))
    return digests(layer)


def main() -> int:
    """Runs what has not been run, compares, records, and returns 0 if all tasks were survived."""
    parser = argparse.ArgumentParser(
        description="Records how many tasks survive a kill or a clear in results/."
    )
    parser.add_argument("--work", type=Path, default=Path(".demo/dag-clears"), help="kept between calls")
    parser.add_argument("--part", choices=("base", "undisturbed", "disturbed"), help="stop after this part")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    work = options.work.absolute()
    prepare(work)
    if options.part == "base":
        return 0
    expected = run_part(work, "undisturbed", "measure")
    if options.part == "undisturbed":
        return 0
    found = run_part(work, "disturbed", "kill")
    if options.part == "disturbed":
        return 0
    backfilled = run_backfill(work)
    told = {path.stem: path.read_text() for path in sorted((work / "kills").glob("*.kill"))}
    tasks = sorted(path.stem for path in (work / "kills").glob("*.seconds"))
    names = sorted({*expected, *found})
    different = [name for name in names if expected.get(name) != found.get(name)]
    changed = [name for name in names if found.get(name) != backfilled.get(name)]
    survived = len(set(tasks) & set(told)) / len(tasks) if not different else 0.0
    killed = [task for task, what in told.items() if what.startswith("killed")]
    notes = (
        f"{len(tasks)} tasks of nightly_features, each disturbed once: killed in the middle and tried again by "
        f"Airflow: {', '.join(killed)}; done before the kill and run again as if cleared: "
        f"{', '.join(sorted(set(told) - set(killed))) or 'none'}; {len(names)} tables compared, "
        f"different: {', '.join(different) or 'none'}; after backfill_day of the same night different: "
        f"{', '.join(changed) or 'none'}; simulated city, local Spark"
    )
    record("dag-clears-survived", survived, "share of tasks", "== 1", COMMAND, notes, options.results)
    print(notes)
    return 0 if survived == 1 and not changed else 1


if __name__ == "__main__":
    sys.exit(main())
