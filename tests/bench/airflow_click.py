"""Does one click in Airflow make the next release of the demo's warehouse?

    python -m tests.bench.airflow_click [--work .demo/synthetic] [--minutes 30]

Run it after `make demo`. A real `airflow standalone` is started with a home of its own on a free port of loopback, with
the variables that the demo wrote for `make airflow`, and asked over its REST API for what the page asks for: unpause
`nightly_features` and run it by hand. Unpausing makes the scheduler run the last interval, too; both runs have to end
well. Records `airflow-click-releases`: the number of releases that became readable.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from conf.results import record
from tests.airflow_dags.airflow_env import AIRFLOW_BIN, ROOT, airflow_variables, run_airflow
from udfs.read_release import read_release

DAG = "nightly_features"
POLL_S, START_S = 5, 180


class Server:
    """The REST API of a running Airflow."""

    def __init__(self, url: str) -> None:
        self.url, self.token = url, ""

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until it answers, and signs in.

        Raises:
            RuntimeError: it ended, or does not answer in time.
        """
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if process.poll() is not None:
                raise RuntimeError(f"airflow standalone ended with {process.returncode}")
            with contextlib.suppress(OSError):
                self.token = self.ask("GET", "/auth/token")["access_token"]
                return
            time.sleep(POLL_S)
        raise RuntimeError(f"Airflow did not answer at {self.url} within {START_S} s")

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Sends one request; returns the answer."""
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def runs(self) -> list[dict[str, Any]]:
        """Returns the runs of the DAG."""
        found: list[dict[str, Any]] = self.ask("GET", f"/api/v2/dags/{DAG}/dagRuns")["dag_runs"]
        return found

    def failed_tasks(self, run_id: str) -> list[str]:
        """Returns the names of the tasks of a run that failed."""
        path = f"/api/v2/dags/{DAG}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances"
        tasks: list[dict[str, Any]] = self.ask("GET", path)["task_instances"]
        return [f"{task['task_id']} of {run_id}" for task in tasks if task["state"] == "failed"]


def read_variables(path: Path) -> dict[str, str]:
    """Reads the variables that the demo wrote."""
    words = (shlex.split(line)[0] for line in path.read_text(encoding="utf-8").splitlines() if line)
    return dict(word.split("=", 1) for word in words)


@contextlib.contextmanager
def standalone(variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `airflow standalone` in a process group of its own, and ends the group."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(AIRFLOW_BIN / "airflow"), "standalone"], env=dict(variables), cwd=ROOT, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def click(server: Server, minutes: float) -> list[dict[str, Any]]:
    """Unpauses the DAG and runs it by hand, as one click on the page does; returns all runs when they have ended.

    Raises:
        RuntimeError: they did not end in time.
    """
    until = time.monotonic() + 60 * minutes
    while True:  # the DAG files are read in the background
        with contextlib.suppress(urllib.error.HTTPError):
            server.ask("PATCH", f"/api/v2/dags/{DAG}", {"is_paused": False})
            break
        if time.monotonic() > until:
            raise RuntimeError(f"Airflow does not know the DAG {DAG}")
        time.sleep(POLL_S)
    server.ask("POST", f"/api/v2/dags/{DAG}/dagRuns", {"logical_date": None})
    while time.monotonic() < until:
        runs = server.runs()
        if runs and all(run["state"] in ("success", "failed") for run in runs):
            return runs
        time.sleep(POLL_S)
    raise RuntimeError(
        f"runs did not end within {minutes} minutes: {[run['state'] for run in server.runs()]}"
    )


def count_releases(root: str) -> int:
    """Returns the id of the current release, whose tables are all read."""
    for name in ("user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates"):
        assert read_release(None, root, name).num_rows, f"{name} of the current release is empty"
    return max(
        DeltaTable(f"{root}/releases").to_pyarrow_table(columns=["release_id"])["release_id"].to_pylist()
    )


def main() -> int:
    """Measures and records; 1 if a run failed or no release was made."""
    parser = argparse.ArgumentParser(description="One click in Airflow on the demo's warehouse.")
    parser.add_argument("--work", type=Path, default=Path(".demo/synthetic"), help="folder of the demo")
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    root = str(options.work / "warehouse")
    before = count_releases(root)
    with tempfile.TemporaryDirectory() as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        variables = airflow_variables(Path(home), read_variables(options.work / "airflow.env")) | {
            "AIRFLOW__API__PORT": str(port), "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
            "PATH": f"{AIRFLOW_BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        run_airflow(variables, "db", "migrate", timeout_s=300)
        started = time.monotonic()
        with standalone(variables, Path(home) / "standalone.log") as process:
            server = Server(f"http://127.0.0.1:{port}")
            server.wait(process)
            runs = click(server, options.minutes)
            failed = [task for run in runs for task in server.failed_tasks(run["dag_run_id"])]
    states = {f"{run['run_type']}": run["state"] for run in runs}
    made = count_releases(root) - before
    notes = (
        f"real airflow standalone on the demo's warehouse, over its REST API; runs {states}, "
        f"{time.monotonic() - started:.0f} s from start to end; release {before} before, {before + made} after"
    )
    is_right = made > 0 and set(states.values()) == {"success"}
    notes += f"; failed tasks: {', '.join(failed)}" if failed else ""
    result = record(
        "airflow-click-releases",
        made if is_right else 0,
        "releases",
        ">= 1",
        "make bench-airflow-click",
        notes,
    )
    sys.stderr.write(f"{result.name}: {result.value}; {notes}\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
