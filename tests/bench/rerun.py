"""Runs every job of the demo's last night once more and compares the digests of all its tables with the demo's.

    python -m tests.bench.rerun --day 2026-03-01 --source synthetic

with SPACETIME_CONF naming the demo's settings layer. Records how many tables have equal digests (and so equal row
counts) after the first and the second run.
"""

import argparse
import json
import subprocess
import sys

from conf.results import record

RELEASES = "releases"
"""Not compared: its rows say when they were published. A rerun with equal content adds none."""


def run_job(*words: str) -> dict[str, object]:
    """Runs one of our commands and returns its summary."""
    done = subprocess.run([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return summary


def run_night(day: str, source: str) -> None:
    """Runs all jobs of a day."""
    run_job("etl", "night", "--source", source, "--day", day)
    run_samples(day)
    run_job("udfs", "release", "--day", day)


def run_samples(day: str) -> None:
    """Makes what trainings as of a day read."""
    for job in ("samples", "training_others"):
        run_job("etl", job, "--day", day)


def digest_night(day: str) -> dict[str, str]:
    """Returns the digest of every table's rows of a day; it tells the number of rows too."""
    notes = run_job("etl", "digest", "--day", day)["notes"]
    assert isinstance(notes, dict)
    return {name: digest for name, digest in notes["digests"].items() if name != RELEASES}


def main() -> int:
    """Compares two runs, records, and returns 0 if all digests are equal."""
    parser = argparse.ArgumentParser(description="Records whether reruns give equal tables in results/.")
    parser.add_argument("--day", required=True)
    parser.add_argument("--source", default="synthetic")
    options = parser.parse_args()
    run_samples(options.day)  # the demo makes those of its first night only
    first = digest_night(options.day)
    run_night(options.day, options.source)
    second = digest_night(options.day)
    different = sorted(name for name in {**first, **second} if first.get(name) != second.get(name))
    share = 1 - len(different) / len(first)
    notes = f"{len(first)} tables of {options.day}; different: {', '.join(different) or 'none'}"
    record("rerun-digests-equal", share, "share of tables", "== 1", "make bench-rerun", notes)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
