"""One engine in one process: runs the work a number of times and prints what each run took, as JSON lines.

    python -m tests.bench.etl_runner spark FOLDER TARGET --runs 2

The first line says what the start took (imports, and for Spark the session), then one line per run. CPU seconds are
those of this process and its children, the JVM among them.
"""

import argparse
import importlib
import json
import time
from pathlib import Path

import psutil

ENGINES = ("spark", "duckdb", "polars")


def main() -> None:
    """Starts the engine and runs it."""
    parser = argparse.ArgumentParser(description="Runs clean -> index -> sequences in one engine.")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    started = time.perf_counter()
    engine = importlib.import_module(f"tests.bench.etl_{options.engine}")
    session = engine.start()
    _say("start", started, cpu_before=0.0)
    for _ in range(options.runs):
        started, cpu_before = time.perf_counter(), cpu_seconds()
        engine.run(session, options.folder, options.target)
        _say("run", started, cpu_before)


def cpu_seconds() -> float:
    """Returns the CPU seconds that this process and its descendants have used."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def _say(step: str, started: float, cpu_before: float) -> None:
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu_before
    print(json.dumps({"step": step, "at": time.time(), "seconds": seconds, "cpu_seconds": cpu}), flush=True)


if __name__ == "__main__":
    main()
