"""One user with a tenth of all actions beside a city of equal users: what do clean_actions and action_sequences take?

    python -m tests.bench.hot_user --rows 1000000

Both cities have the same number of actions, delivered on one day into Delta tables; the jobs are those of the night,
in one session, in turns. The first round warms the JVM up and is not counted. The cap on a user's actions per day is
lifted in both, as it would make the hot user an ordinary one.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext
from conf.results import record
from conf.settings import CleanSettings, Settings, SparkSettings, StorageSettings
from etl.delta import storage
from etl.jobs import index_pois, runner
from etl.spark.session import open_session
from tests.bench.etl_city import DAY, DuckdbCity, write_city

COMMAND = "make bench-scale"
HOT_SHARE = 0.1
JOBS = {"clean_actions": runner.clean_day, "action_sequences": runner.sequence_day}


def settings_for(root: Path) -> Settings:
    """Returns settings without a cap on the actions of a user."""
    return Settings(
        storage=StorageSettings(root=str(root)),
        clean=CleanSettings(max_actions_per_day=1_000_000_000),
        spark=SparkSettings(driver_memory="4g"),
    )


def deliver(spark: SparkSession, city: DuckdbCity, settings: Settings) -> None:
    """Writes a city into its raw tables and indexes its POIs."""
    with tempfile.TemporaryDirectory(prefix="bench-city-") as folder:
        write_city(city, Path(folder))
        for name in ("raw_actions", "raw_pois"):
            rows = spark.read.parquet(f"{folder}/{name}.parquet")
            storage.replace_day(rows, name, settings.storage.root, day=DAY, run_id="bench", job="bench")
    index_pois.index_pois(_context("poi_index", settings), spark)


def run_night(spark: SparkSession, settings: Settings) -> dict[str, float]:
    """Runs the jobs and returns the seconds of each."""
    seconds = {}
    for name, job in JOBS.items():
        started = time.perf_counter()
        job(_context(name, settings), spark)
        seconds[name] = time.perf_counter() - started
    return seconds


def share_of_hot_user(spark: SparkSession, settings: Settings) -> float:
    """Returns the share of accepted actions that belong to the user with most."""
    sequences = storage.read_table(spark, settings.storage.root, "action_sequences")
    row = sequences.agg(F.max("num_actions").alias("most"), F.sum("num_actions").alias("all")).first()
    assert row is not None
    return float(row["most"] / row["all"])


def _context(job: str, settings: Settings) -> JobContext:
    return JobContext(job, DAY, settings, "bench", False, argparse.Namespace())


def main() -> int:
    """Measures and records."""
    parser = argparse.ArgumentParser(description="Records what a hot user costs, in results/.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds, after one to warm up")
    options = parser.parse_args()
    cities = {
        "uniform": DuckdbCity(options.rows, user_skew=1.0),
        "hot": DuckdbCity(options.rows, user_skew=1.0, hot_share=HOT_SHARE),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cities}
    with tempfile.TemporaryDirectory(prefix="bench-hot-") as scratch:
        settings = {name: settings_for(Path(scratch) / name) for name in cities}
        spark = open_session(settings["hot"], "bench-hot-user")
        for name, city in cities.items():
            deliver(spark, city, settings[name])
        for turn in range(options.rounds + 1):
            # The JVM gets faster all the while: who goes first changes from round to round.
            for name in list(cities) if turn % 2 else reversed(cities):
                seconds = run_night(spark, settings[name])
                print(f"round {turn}, {name}: {seconds}", flush=True)
                if turn:
                    found[name].append(seconds)
        share = share_of_hot_user(spark, settings["hot"])
        spark.stop()
    medians = {name: statistics.median(sum(run.values()) for run in runs) for name, runs in found.items()}
    by_job = ", ".join(
        f"{job} {statistics.median(run[job] for run in found['uniform']):.1f} and "
        f"{statistics.median(run[job] for run in found['hot']):.1f} s"
        for job in JOBS
    )
    notes = (
        f"simulated city, {options.rows:,} actions, one user with {share:.1%} of those accepted; medians of "
        f"{options.rounds} interleaved rounds in one warm session, uniform and hot: {by_job}"
    )
    ratio = round(medians["hot"] / medians["uniform"], 2)
    result = record("hot-user-ratio", ratio, "", "<= 1.5", COMMAND, notes)
    print(f"{notes}\nhot-user-ratio: {ratio} {'holds' if result.holds else 'FALLS SHORT'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
