"""Builds the tasks of our DAGs: each is one command line. Imports the standard library and Airflow only.

Airflow has its own environment. These variables on the machine that runs the tasks point to ours:

    SPACETIME_PYTHON   interpreter with the project installed (default: python on PATH)
    SPACETIME_HOME     folder that relative paths of the settings start from (default: the checkout)
    SPACETIME_CONF     settings layers over conf/base.yaml, separated by ':' (read by the jobs)
    SPACETIME_SOURCE   reader of raw tables: synthetic, checkins, tsmc, getnext or actions
    SPACETIME_RECIPE   model recipe of the training DAG
    SPACETIME_DAY      day that a run is for, instead of that of its schedule (the demo's next day)
    SPACETIME_MAX_AGE_H  hours after which a release is too old (default 36: one night may fail)
    SPACETIME_RETRY_S  seconds before the first retry, doubled for the next (default 60)
"""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Asset, Param, RetryDecision, RetryPolicy

PYTHON = os.environ.get("SPACETIME_PYTHON", "python")
HOME = os.environ.get("SPACETIME_HOME", str(Path(__file__).resolve().parents[1]))
SOURCE = os.environ.get("SPACETIME_SOURCE", "synthetic")
RECIPE = os.environ.get("SPACETIME_RECIPE", "conf/models/city.yaml")
MAX_AGE_H = os.environ.get("SPACETIME_MAX_AGE_H", "36")
RETRY_S = float(os.environ.get("SPACETIME_RETRY_S", "60"))

FEATURES = "features"
TRAINING = "training"
BACKFILL = "backfill"
TAGS = (FEATURES, TRAINING, BACKFILL)
"""Closed list: a DAG carries one of these."""

DAY_PARAM = Param(
    os.environ.get("SPACETIME_DAY") or None,
    type=["null", "string"],
    format="date",
    description="day of the run; empty: that of the schedule",
)
"""Shown when a run is started by hand, where the schedule's day may have no data, as in the demo."""

START_DATE = datetime(2026, 1, 1, tzinfo=UTC)
RELEASE = Asset("spacetime://features/releases")
"""Updated by every published release; ranking DAGs are scheduled on it."""

FINAL_EXIT_CODES = ("2", "3", "4")
"""Wrong settings, a failed data gate, versions that do not fit: a retry with the same input fails in the same
way."""


class JobRetryPolicy(RetryPolicy):
    """Retries failures that may pass (exit codes 1 and 5, a lost machine), not those that a retry cannot fix."""

    def evaluate(self, exception: BaseException, *args: object, **kwargs: object) -> RetryDecision:
        """Fails at once if the job said that a retry is useless."""
        match = re.search(r"exit code (\d+)", str(exception))
        if match and match.group(1) in FINAL_EXIT_CODES:
            return RetryDecision.fail(f"exit code {match.group(1)} does not change by retrying")
        return RetryDecision.default()


DEFAULT_ARGS = {
    "owner": "spacetime-gr",
    "retries": 2,
    "retry_delay": timedelta(seconds=RETRY_S),
    "retry_exponential_backoff": True,
    "retry_policy": JobRetryPolicy(),
    "execution_timeout": timedelta(hours=6),
}


def run_job(
    program: str,
    job: str,
    *options: str,
    day: str = "{{ params.day or ds }}",
    task_id: str = "",
    outlets: tuple[Asset, ...] = (),
) -> BashOperator:
    """Returns the task that runs one job for one day.

    Args:
        program: etl, models or udfs.
        job: name in the job table of the program.
        options: further arguments of the command line.
        day: template of the job's day.
        task_id: the task's name, by default the job's.
        outlets: assets that the task updates.
    """
    words = [PYTHON, "-m", program, job, "--day", day, "--run-id", '"$AIRFLOW_CTX_DAG_RUN_ID"', *options]
    return BashOperator(task_id=task_id or job, bash_command=" ".join(words), cwd=HOME, outlets=list(outlets))
