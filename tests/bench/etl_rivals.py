"""Clean -> index -> sequences in Spark, DuckDB and Polars: the same work on the same Parquet, taken in turns.

    python -m tests.bench.etl_rivals --rows 1000000 10000000 50000000 --rounds 1 --runs 2

The work: from raw actions and raw POIs of a simulated city (`etl_city`), all delivered on one day, to the history of
every user as parallel arrays. Spark runs the project's own transforms (`etl_spark`); DuckDB (`etl_duckdb.sql`) and
Polars (`etl_polars`) are written by hand and evaluate the same: every refusing rule of POIs and actions that a first
night can meet, duplicate ids, repeated actions, the cap of actions per day, repaired ids, places and time zones, grid
cells, blocks and inner ids along Hilbert's curve, the last 400 actions per user, the user's place, richness, middle
of the visits, travel and pattern. Nobody writes the tables beside (quarantine, counts, index), nor Delta, nor infers
home and work. The project alone is ready for slots that moved or ended, accepted actions of earlier days, rows without
an id (their id is made from their content) and users' profiles; there are none of these in the city.

Per round each engine gets a process of its own, in which it does the work `--runs` times. Cold is the time from the
start of the process to the end of the first run; the session's start is a part of it and also told apart. Warm are
the runs after the first. Ratios are those of medians over rounds. After the first round the results of the engines
are compared row by row: figures are recorded only if all are equal. A rival that dies, of memory say, is told of and
left out of that size. Figures are those of the largest number of rows at which all engines ran; sizes of `--spark-only`
are run by Spark alone, for growth and memory.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from conf.results import record
from tests.bench.etl_city import DuckdbCity, write_city
from tests.bench.etl_runner import ENGINES
from tests.bench.measure import tree_memory_gib

COMMAND = "make bench-etl"
INTERVAL_S = 0.5
RIVALS = tuple(engine for engine in ENGINES if engine != "spark")


@dataclass(frozen=True)
class Outcome:
    """What one process of an engine took.

    Attributes:
        start_s: imports and session, part of `cold_s`.
        cold_s: from the start of the process to the end of the first run.
        warm_s: each further run.
        warm_cpu_s: CPU seconds of each further run, of all threads together.
        peak_gib: most memory of all its processes at one moment.
    """

    start_s: float
    cold_s: float
    warm_s: tuple[float, ...]
    warm_cpu_s: tuple[float, ...]
    peak_gib: float


@dataclass(frozen=True)
class Medians:
    """Medians over rounds, and the largest peak."""

    rows: int
    start_s: float
    cold_s: float
    warm_s: float
    warm_cpu_s: float
    peak_gib: float

    @staticmethod
    def of(rows: int, outcomes: Sequence[Outcome]) -> "Medians":
        """Returns the medians of one engine at one size."""
        return Medians(
            rows,
            statistics.median(outcome.start_s for outcome in outcomes),
            statistics.median(outcome.cold_s for outcome in outcomes),
            statistics.median(s for outcome in outcomes for s in outcome.warm_s),
            statistics.median(s for outcome in outcomes for s in outcome.warm_cpu_s),
            max(outcome.peak_gib for outcome in outcomes),
        )


def run_engine(engine: str, folder: Path, target: Path, *, runs: int) -> Outcome:
    """Runs an engine in a process of its own; CalledProcessError if it fails."""
    command = [sys.executable, "-m", "tests.bench.etl_runner", engine, str(folder), str(target)]
    command += ["--runs", str(runs)]
    started, peak = time.time(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, stdout=said)
        root = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak = max(peak, tree_memory_gib(root, above=peak))
            except psutil.NoSuchProcess:  # it ended between poll and look
                break
            time.sleep(INTERVAL_S)
        if child.wait() != 0:
            raise subprocess.CalledProcessError(child.returncode, command)
        said.seek(0)
        start, first, *others = [json.loads(line) for line in said if line.startswith("{")]
    return Outcome(
        start_s=start["seconds"],
        cold_s=first["at"] - started,
        warm_s=tuple(run["seconds"] for run in others),
        warm_cpu_s=tuple(run["cpu_seconds"] for run in others),
        peak_gib=peak,
    )


def measure_size(rows: int, engines: Sequence[str], *, rounds: int, runs: int) -> dict[str, Medians]:
    """Measures all engines at one size, in turns, and compares what they wrote; without the rivals that died."""
    outcomes: dict[str, list[Outcome]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory(prefix="bench-etl-") as scratch:
        root = Path(scratch)
        write_city(DuckdbCity(rows), root)
        for turn in range(rounds):
            for engine in list(outcomes):
                try:
                    outcome = run_engine(engine, root, root / engine, runs=runs)
                except subprocess.CalledProcessError as error:
                    if engine not in RIVALS:
                        raise
                    say(
                        f"{rows:>10,} rows, round {turn + 1}, {engine}: did not survive, code {error.returncode}"
                    )
                    del outcomes[engine]
                else:
                    outcomes[engine].append(outcome)
                    say(f"{rows:>10,} rows, round {turn + 1}, {engine}: {outcome}")
            if turn == 0:
                compare_all(root, list(outcomes))
    return {engine: Medians.of(rows, found) for engine, found in outcomes.items()}


def compare_all(root: Path, engines: Sequence[str]) -> None:
    """Compares the results of all engines with those of Spark; DifferentResultError if they differ."""
    from tests.bench.etl_compare import compare, digest  # imports the extra `bench`

    digests = {engine: digest(root / engine) for engine in engines}
    say(f"users-actions-digest: {digests}")
    for engine in engines:
        if engine != "spark":
            compare(root / "spark", root / engine, engine=engine)


def format_size(medians: dict[str, Medians]) -> str:
    """Returns a table of one size, one line per engine."""
    header = f"{'engine':8}{'rows':>12}{'start s':>9}{'cold s':>9}{'warm s':>9}{'rows/s':>11}{'CPU s':>8}{'GiB':>6}"
    lines = [
        f"{engine:8}{m.rows:>12,}{m.start_s:>9.1f}{m.cold_s:>9.1f}{m.warm_s:>9.2f}"
        f"{m.rows / m.warm_s:>11,.0f}{m.warm_cpu_s:>8.1f}{m.peak_gib:>6.2f}"
        for engine, m in medians.items()
    ]
    return "\n".join([header, *lines])


def record_all(sizes: Sequence[dict[str, Medians]], *, rounds: int) -> None:
    """Writes the figures of the last size at which all engines ran, and Spark's largest peak."""
    full = [medians for medians in sizes if set(medians) == set(ENGINES)][-1]
    spark, duck, polars = (full[engine] for engine in ENGINES)
    growth = ", ".join(
        f"{m['spark'].rows:,} rows in {m['spark'].warm_s:.1f} s and {m['spark'].peak_gib:.1f} GiB"
        for m in sizes
    )
    notes = (
        f"simulated city of {spark.rows:,} actions, clean -> index -> sequences, results equal row by row, medians "
        f"over {rounds} interleaved rounds. Warm: Spark {spark.warm_s:.1f} s ({spark.warm_cpu_s:.0f} CPU s), DuckDB "
        f"{duck.warm_s:.1f} s ({duck.warm_cpu_s:.0f}), Polars {polars.warm_s:.1f} s ({polars.warm_cpu_s:.0f}). Cold: "
        f"{spark.cold_s:.1f} s (session {spark.start_s:.1f}), {duck.cold_s:.1f} s, {polars.cold_s:.1f} s. "
        f"Peak: {spark.peak_gib:.1f}, {duck.peak_gib:.1f}, {polars.peak_gib:.1f} GiB. Spark by size: {growth}"
    )
    for name, value, unit, bar in (
        ("etl-rows-per-second", round(spark.rows / spark.warm_s), "rows/s", ""),
        ("etl-vs-duckdb", round(spark.warm_s / duck.warm_s, 2), "", "<= 2.5"),
        ("etl-vs-polars", round(spark.warm_s / polars.warm_s, 2), "", ""),
        ("etl-cold-vs-duckdb", round(spark.cold_s / duck.cold_s, 2), "", "<= 4"),
        ("etl-peak-gib", round(max(m["spark"].peak_gib for m in sizes), 2), "GiB", "< 8"),
    ):
        result = record(name, value, unit, bar, COMMAND, notes)
        say(f"{name}: {value} {unit} {bar} {'holds' if result.holds else 'FALLS SHORT'}")


def say(text: str) -> None:
    """Prints at once: a run takes minutes."""
    print(text, flush=True)


def main() -> int:
    """Measures, compares, records; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measures the ETL beside DuckDB and Polars, into results/.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--spark-only", type=int, nargs="*", default=[], help="sizes for Spark alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="runs per process; the first is the cold one")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    missing = [engine for engine in RIVALS if importlib.util.find_spec(engine) is None]
    if missing:
        say(f"error: {' and '.join(missing)} not installed. Run: make .venv/.bench.stamp")
        return 2
    sizes = []
    for rows, engines in (
        *((rows, ENGINES) for rows in options.rows),
        *((rows, ("spark",)) for rows in options.spark_only),
    ):
        sizes.append(measure_size(rows, engines, rounds=options.rounds, runs=options.runs))
        say(format_size(sizes[-1]))
    if not options.no_record:
        record_all(sizes, rounds=options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
