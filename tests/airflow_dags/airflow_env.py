"""Airflow lives in an environment of its own (.venv-airflow); tests reach it through its command line."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "airflow_dags"
AIRFLOW_BIN = ROOT / ".venv-airflow" / "bin"
INSPECT = Path(__file__).with_name("inspect_dags.py")


def is_installed() -> bool:
    """Tells whether `make test-airflow` has made the environment."""
    return (AIRFLOW_BIN / "airflow").exists()


def airflow_variables(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the process environment for Airflow with a home of its own, tasks run by this interpreter."""
    lines = (DAGS / "local.env").read_text().splitlines()
    local = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    ours = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "SPACETIME_PYTHON": sys.executable,
        "SPACETIME_HOME": str(ROOT),
    }
    return {**os.environ, **local, **ours, **(extra or {})}


def run_airflow(
    variables: Mapping[str, str], *words: str, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs `airflow ...`, or `python ...` of its environment if the first word ends in .py."""
    program = "python" if words[0].endswith(".py") else "airflow"
    return subprocess.run(
        [str(AIRFLOW_BIN / program), *words],
        env=dict(variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
