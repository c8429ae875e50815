"""Runs a command and records how long it took and how much memory its processes held, at most, at one moment.

    python -m tests.bench.measure demo -- make demo

writes `demo-seconds` and `demo-peak-gib` to results/.

Memory is the sum over the whole process tree (JVM and Python workers too) of the proportional set size where
the system tells it, else of the resident set size; sampled, so a peak shorter than the interval is missed.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from conf.results import record

INTERVAL_S = 0.5
LOOK_SHARE = 0.03
"""At most so much of the time goes into looking, which takes long where many processes run."""
BARS = {
    ("demo", "seconds"): "<= 300",
    ("demo", "peak-gib"): "< 6",
    ("test", "seconds"): "<= 1200",
}
"""Bars of the project by name and quantity; what is not here is only told."""


def tree_memory_gib(root: psutil.Process, *, above: float = 0.0) -> float:
    """Returns the memory that a process and all its descendants hold now, in GiB; shared pages count once.

    Not more than the sum of the resident sizes, which is quick to read: if that is not above `above`, it is returned.
    """
    resident = _tree_resident_gib(root)
    if resident <= above:
        return resident
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except psutil.NoSuchProcess:  # it ended while we looked
            continue
        except psutil.AccessDenied:  # a kernel that hides the page map of other processes
            total += process.memory_info().rss
    return total / 2**30


def _tree_resident_gib(root: psutil.Process) -> float:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**30


def measure(command: Sequence[str]) -> tuple[int, float, float]:
    """Runs a command to its end and returns exit code, seconds and peak memory in GiB."""
    started, peak = time.perf_counter(), 0.0
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    root = psutil.Process(child.pid)
    while child.poll() is None:
        looked = time.perf_counter()
        try:
            peak = max(peak, tree_memory_gib(root, above=peak))
        except psutil.NoSuchProcess:  # it ended between poll and look
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(INTERVAL_S, (time.perf_counter() - looked) / LOOK_SHARE))
    return child.wait(), time.perf_counter() - started, peak


def main() -> int:
    """Measures, records if the command succeeded, and returns the command's exit code."""
    parser = argparse.ArgumentParser(description="Records seconds and peak memory of a command in results/.")
    parser.add_argument("name", help="prefix of the result names")
    parser.add_argument("--notes", default="", help="what one has to know to read the numbers")
    parser.add_argument("--as", dest="shown", default="", help="the command as others would type it")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    options = parser.parse_args()
    command = [word for word in options.command if word != "--"]
    code, seconds, peak = measure(command)
    if code != 0:
        sys.stderr.write(f"{command[0]} ended with exit code {code}; nothing was recorded\n")
        return code
    shown = options.shown or " ".join(command)
    for quantity, value, unit in (("seconds", round(seconds, 1), "s"), ("peak-gib", round(peak, 2), "GiB")):
        bar = BARS.get((options.name, quantity), "")
        result = record(f"{options.name}-{quantity}", value, unit, bar, shown, options.notes)
        sys.stderr.write(
            f"{result.name}: {value} {unit} {bar} {'holds' if result.holds else 'FALLS SHORT'}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
