"""Do faults of operations that were found by hand still happen? Runs the tests that are marked with each of them.

    python -m tests.bench.operations

A fault is one of fifteen rows (an id, a file, a kill, a rollback, a model, a day, an option that hurt) or the vacuum of
a folder whose name is no URI (`c18`). A row holds if at least one test is marked with it and all of them pass. Records
`operations-cases-right`.
"""

import argparse
import sys
from collections import defaultdict

import pytest

from conf.results import record

COMMAND = "make bench-operations"
ROWS = (*(str(number) for number in range(1, 16)), "c18")


class Outcomes:
    """Collects how the tests of each row ended, as a plugin of pytest."""

    def __init__(self) -> None:
        self.rows_of: dict[str, list[str]] = {}
        self.ended: dict[str, list[bool]] = defaultdict(list)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.rows_of[item.nodeid] = [str(mark.args[0]) for mark in item.iter_markers("operations")]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for row in self.rows_of.get(report.nodeid, []):
                self.ended[row].append(report.outcome == "passed")


def main() -> int:
    """Runs the tests, records, and returns 0 if all rows hold."""
    parser = argparse.ArgumentParser(description="Records how many faults of operations stay repaired.")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    outcomes = Outcomes()
    pytest.main(["-m", "operations", "-q", "-p", "no:cacheprovider", "tests"], plugins=[outcomes])
    right = [row for row in ROWS if outcomes.ended[row] and all(outcomes.ended[row])]
    wrong = [row for row in ROWS if row not in right]
    counts = ", ".join(f"{row}: {len(outcomes.ended[row])}" for row in ROWS)
    notes = f"tests per row: {counts}; rows that do not hold: {wrong or 'none'}"
    result = record("operations-cases-right", len(right), "rows", "== 16", COMMAND, notes, options.results)
    print(f"operations-cases-right {len(right)}: {notes}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
