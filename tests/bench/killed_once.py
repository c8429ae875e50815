"""Stands in for the interpreter of Airflow's tasks: runs a job, kills it once in the middle, or runs it twice.

    python killed_once.py -m PROGRAM JOB --day D ...

With KILLED_ONCE_MODE=measure it runs the job and notes its seconds in the folder KILLED_ONCE_FOLDER. With `kill` the
first run of a job gets SIGKILL, JVM and all, at a random share of those seconds, and the task fails, so that Airflow
tries again; a job that is done before gets its second run at once, as if somebody had cleared its task. What happened
is noted beside.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

EARLIEST, LATEST = 0.4, 0.9
"""Share of the undisturbed seconds at which the kill comes: most jobs spend the first third on starting Spark."""


def main() -> int:
    """Runs the job as the mode says and returns its exit code."""
    folder, words = Path(os.environ["KILLED_ONCE_FOLDER"]), sys.argv[1:]
    job = "-".join(words[1:3])
    seconds, told = folder / f"{job}.seconds", folder / f"{job}.{os.environ['KILLED_ONCE_MODE']}"
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *words], start_new_session=True)
    if os.environ["KILLED_ONCE_MODE"] == "measure" or told.exists():
        code = process.wait()
        if code == 0 and not told.exists():
            seconds.write_text(str(time.monotonic() - started))
        return code
    share = random.Random(job).uniform(EARLIEST, LATEST)
    try:
        code = process.wait(timeout=share * float(seconds.read_text()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        told.write_text(f"killed at {share:.2f}")
        return 1
    told.write_text("cleared")
    return code or subprocess.run([sys.executable, *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
