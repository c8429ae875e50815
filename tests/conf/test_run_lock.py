"""Which jobs may run at the same time."""

import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import TablesInUseError
from conf.run_lock import LOCK, hold_tables

KILLED = """
import os, signal, sys
from conf.run_lock import hold_tables
with hold_tables(sys.argv[1], "alone", job="udfs erase", run_id="killed"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def hold(folder: Path, access: str, job: str = "a job"):
    return hold_tables(str(folder), access, job=job, run_id="run")


def test_jobs_that_write_run_beside_each_other(tmp_path):
    with hold(tmp_path, "shared"), hold(tmp_path, "shared"), hold(tmp_path, "none"):
        pass


def test_a_job_that_deletes_does_not_start_beside_one_that_writes(tmp_path):
    with (
        hold(tmp_path, "shared"),
        pytest.raises(TablesInUseError, match="at least one job") as caught,
        hold(tmp_path, "alone", "udfs vacuum"),
    ):
        pass
    assert caught.value.exit_code == 5  # which the DAGs retry


@pytest.mark.parametrize("access", ["shared", "alone"])
def test_nothing_starts_beside_a_job_that_deletes(tmp_path, access):
    with (
        hold(tmp_path, "alone", "udfs erase"),
        pytest.raises(TablesInUseError, match="in use by"),
        hold(tmp_path, access),
    ):
        pass


def test_the_message_names_the_job_that_deletes(tmp_path):
    with (
        hold(tmp_path, "alone", "udfs erase"),
        pytest.raises(TablesInUseError) as caught,
        hold(tmp_path, "shared"),
    ):
        pass
    assert "udfs erase (run run, process" in str(caught.value)


def test_a_job_that_failed_or_was_killed_leaves_no_lock(tmp_path):
    with pytest.raises(ValueError, match="any"), hold(tmp_path, "alone"):
        raise ValueError("any")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)

    with hold(tmp_path, "alone"):
        pass


def test_jobs_that_only_look_need_no_folder(tmp_path):
    with hold(tmp_path / "artifacts", "none"):
        pass
    assert not (tmp_path / "artifacts" / LOCK).exists()
