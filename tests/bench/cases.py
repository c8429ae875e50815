"""Exports that nobody here made: does each end as its README expects?

    make bench-cases

runs every folder of `tests/cases` through the real command lines, on small warehouses of its own, compares exit codes,
messages and tables with its `expected.json`, and records how many are right.
"""

import argparse
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import yaml

from conf.results import record
from conf.settings import load_settings
from etl.spark.session import open_session
from tests.cases.case_city import build_case_city
from tests.cases.foreign_cases import CASES, Place, find_differences

NUM_CASES = 23
SPARK = {"quick_start": True, "shuffle_partitions": 1, "driver_memory": "2g",
         "conf": {"spark.python.daemon.module": "udfs.worker_daemon"}}  # fmt: skip


def main() -> int:
    """Runs the cases, records how many are right, and returns 0 if all are."""
    parser = argparse.ArgumentParser(description="Records foreign-cases-right in results/.")
    parser.add_argument(
        "--only", nargs="*", metavar="WORD", help="cases whose name holds a word; nothing is recorded"
    )
    options = parser.parse_args()
    chosen = [name for name in CASES if not options.only or any(word in name for word in options.only)]
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        layer = folder / "session.yaml"
        layer.write_text(yaml.safe_dump({"spark": SPARK}))
        settings = load_settings([layer])
        spark = open_session(settings, "cases")
        city = cache(lambda: build_case_city(spark, settings, folder / "city"))
        for name in chosen:
            started = time.perf_counter()
            (folder / name).mkdir()
            problems = find_differences(name, Place(work=folder / name, layer=layer, city=city))
            print(
                f"{'wrong' if problems else 'right'}  {time.perf_counter() - started:5.1f} s  {name}",
                flush=True,
            )
            for problem in problems:
                print(f"       {problem}", flush=True)
            wrong += [name] if problems else []
        spark.stop()
    right = len(chosen) - len(wrong)
    if not options.only:
        notes = f"{len(chosen)} folders of tests/cases" + (f"; wrong: {', '.join(wrong)}" if wrong else "")
        record("foreign-cases-right", right, "cases", f"== {NUM_CASES}", "make bench-cases", notes)
    return 0 if not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
