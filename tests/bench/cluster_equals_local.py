"""Runs the nights' ETL and a feature job on a Spark standalone cluster of two workers and locally, and compares tables.

    python -m tests.bench.cluster_equals_local

The cluster is Spark's own: a master and two workers with a core each, as processes of this machine, started with the
`spark-class` of the installed package. Both runs are the same commands with another `spark.master`; a model is trained
first, without Spark. Tables are compared by the digests of `python -m etl digest`, day by day.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pyspark

from conf.results import record
from tests import small_city

COMMAND = "make bench-cluster"
PORT, PAGE_PORT = 17077, 18080
SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
DEPLOY = "org.apache.spark.deploy"
NUM_WORKERS = 2
NOT_COMPARED = ("releases", "withdrawals", "table_statistics")
STEPS = [*small_city.night(0), ("etl", "samples", "--day", str(small_city.DAYS[0])), *small_city.night(1)]
FEATURES = [("udfs", "user_embeddings", "--day", str(day)) for day in small_city.DAYS[:2]]
CLUSTER = {
    "spark.executor.cores": "1", "spark.executor.memory": "1g", "spark.cores.max": str(NUM_WORKERS),
    "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
    "spark.python.daemon.module": "udfs.worker_daemon",
}  # fmt: skip


@contextlib.contextmanager
def standalone_cluster(folder: Path) -> Iterator[str]:
    """Starts a master and two workers, waits until both are registered, and ends them."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        **os.environ, "SPARK_NO_DAEMONIZE": "1", "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_WORKER_DIR": str(folder),
    }  # fmt: skip
    master = f"spark://127.0.0.1:{PORT}"
    commands = [["master.Master", "--host", "127.0.0.1", "--port", str(PORT), "--webui-port", str(PAGE_PORT)]]
    commands += [
        ["worker.Worker", "--cores", "1", "--memory", "1g", "--webui-port", str(PAGE_PORT + number), master]
        for number in range(1, NUM_WORKERS + 1)
    ]
    started = []
    try:
        for name, *words in commands:
            log = (folder / f"{name}-{len(started)}.log").open("w")
            started.append(
                subprocess.Popen([SPARK_CLASS, f"{DEPLOY}.{name}", *words], env=variables, stdout=log, stderr=log,
                                 start_new_session=True)
            )  # fmt: skip
        await_workers()
        yield master
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def await_workers() -> None:
    """Waits until the master's page lists the workers as alive."""
    for _ in range(240):
        with (
            contextlib.suppress(URLError, ConnectionError),
            urlopen(f"http://127.0.0.1:{PAGE_PORT}/json/") as page,
        ):
            if page.read().decode().replace(" ", "").count('"state":"ALIVE"') >= NUM_WORKERS:
                return
        time.sleep(0.25)
    raise RuntimeError("the workers did not register within a minute; see the logs beside the tables")


def run_steps(folder: Path, model: Path | None, master: str, conf: dict[str, str]) -> None:
    """Runs the commands in a process of their own, since a process has one Spark for ever."""
    layer = small_city.write_settings(folder, num_users=120, spark={"master": master, "conf": conf})
    words = [sys.executable, "-m", "tests.bench.cluster_equals_local", "--steps", str(layer)]
    subprocess.run([*words, *(["--model", str(model)] if model else [])], check=True)


def train(folder: Path) -> Path:
    """Trains a model on the samples of the first night and returns its bundle."""
    _, words = small_city.training()
    small_city.run(folder / "settings.yaml", *words)
    return folder / "artifacts" / "training" / str(small_city.DAYS[0]) / "bundle"


def digests(folder: Path) -> dict[str, str]:
    """Digests the tables of both days, locally."""
    found = {}
    for day in small_city.DAYS[:2]:
        summary = small_city.run(folder / "local.yaml", "etl", "digest", "--day", str(day))
        notes = summary["notes"]
        assert isinstance(notes, dict)
        found |= {
            f"{name} {day}": digest for name, digest in notes["digests"].items() if name not in NOT_COMPARED
        }
    return found


def run_here(layer: Path, model: Path | None) -> int:
    """Runs the steps of one process: the nights, or the feature job once there is a model."""
    for program, job, *words in FEATURES if model else STEPS:
        started = time.perf_counter()
        small_city.run(layer, program, job, *words, *(["--model", str(model)] if model else []))
        print(f"{program} {job} {' '.join(words)}: {time.perf_counter() - started:.1f} s", flush=True)
    return 0


def compare(work: Path, results: str) -> int:
    """Runs everything on both, compares and records."""
    local, cluster = work / "local", work / "cluster"
    started = time.monotonic()
    run_steps(local, None, "local[2]", {"spark.python.daemon.module": "udfs.worker_daemon"})
    bundle = train(local)
    run_steps(local, bundle, "local[2]", {"spark.python.daemon.module": "udfs.worker_daemon"})
    local_s, started = time.monotonic() - started, time.monotonic()
    with standalone_cluster(work / "spark") as master:
        run_steps(cluster, None, master, CLUSTER)
        run_steps(cluster, bundle, master, CLUSTER)
        cluster_s = time.monotonic() - started
    for folder in (local, cluster):  # read by one and the same local Spark
        shutil.copy(local / "settings.yaml", folder / "local.yaml")
        text = (folder / "local.yaml").read_text().replace(str(local), str(folder))
        (folder / "local.yaml").write_text(text)
    expected, found = digests(local), digests(cluster)
    different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    share = 1 - len(different) / len({*expected, *found})
    executors = len(list((work / "spark").glob("app-*/*")))
    notes = (
        f"{len(expected)} tables and days of two nights of a simulated city and the users' vectors; different: "
        f"{', '.join(different) or 'none'}; {executors} executors on {NUM_WORKERS} workers of one core, all on one "
        f"machine; local {local_s:.0f} s with the training, cluster {cluster_s:.0f} s with its start"
    )
    record("cluster-equals-local", share, "share of tables", "== 1", COMMAND, notes, results)
    print(notes)
    return 0 if share == 1 else 1


def main() -> int:
    """Compares, or runs the steps of one side."""
    parser = argparse.ArgumentParser(description="Records whether a cluster gives the tables of a local run.")
    parser.add_argument("--work", type=Path, default=Path(".demo/cluster"), help="made again")
    parser.add_argument(
        "--steps", type=Path, metavar="LAYER", help="run the commands with these settings and end"
    )
    parser.add_argument(
        "--model", type=Path, metavar="BUNDLE", help="with --steps: run the feature job with it"
    )
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    if options.steps:
        return run_here(options.steps, options.model)
    shutil.rmtree(options.work, ignore_errors=True)
    return compare(options.work.absolute(), options.results)


if __name__ == "__main__":
    sys.exit(main())
