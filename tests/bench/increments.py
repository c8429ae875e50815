"""Runs thirty nights in several ways and compares the tables: increments, a full rebuild, a backfill out of order.

    python -m tests.bench.increments

Nights: as they come, with late rows, rows that arrive again, corrections of the day's and of older deliveries.
Rebuild: the jobs day by day over the raw tables as they are in the end. Backfill: the index strictly forward, then the
other jobs, the last days in a random order. Records the share of digests (table and day) that are equal to the
rebuild's; and one build of everybody's sequences from all actions at once must give each user's latest row.
"""

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.cli import cpu_seconds
from conf.errors import IndexOrderError
from conf.results import record
from conf.settings import Settings
from conf.tables import ACTION_SEQUENCES
from etl.delta import contracts
from etl.delta.storage import read_table
from etl.spark.session import open_session
from etl.tables import action_sequences
from tests.bench import nights

NUM_USERS, NUM_ACTIONS, NUM_DAYS = 300, 12_000, 30
CORRECTED_SAME_DAY = (4, 11, 25)
"""Nights whose first delivery was wrong and is corrected at once: catalogue and actions."""
CORRECTED_LATER = {9: 6, 17: 15, 23: 18}
"""Night -> older night whose actions are delivered again."""
NUM_SHUFFLED = 6
LOGGER = logging.getLogger(__name__)


def run_nights(spark: SparkSession, settings: Settings, told: nights.Deliveries, days: list[date]) -> None:
    """Runs every night as it comes, corrections among them."""
    late_corrections = set(CORRECTED_LATER.values())
    for number, day in enumerate(days):
        if number in CORRECTED_SAME_DAY:
            nights.deliver({**told.right, **told.wrong}, settings, day)
            run_night(spark, settings, day)
        actions = told.wrong if number in late_corrections else told.right
        nights.deliver({**told.right, "raw_actions": actions["raw_actions"]}, settings, day)
        run_night(spark, settings, day)
        if number in CORRECTED_LATER:
            older = days[CORRECTED_LATER[number]]
            nights.deliver({"raw_actions": told.right["raw_actions"]}, settings, older)
            for name in ("clean_actions", "action_sequences"):
                nights.run_job(name, spark, settings, older)


def run_night(spark: SparkSession, settings: Settings, day: date) -> None:
    """Runs the three jobs of a night."""
    started, cpu = time.perf_counter(), cpu_seconds()
    for name in nights.JOBS:
        nights.run_job(name, spark, settings, day)
    LOGGER.info(
        "night %s took %.1f s, %.1f s of CPU", day, time.perf_counter() - started, cpu_seconds() - cpu
    )


def backfill(spark: SparkSession, settings: Settings, days: list[date], rng: random.Random) -> bool:
    """Runs the index over the days in order, then the other jobs in a random one; tells whether the index refused."""
    for day in days:
        nights.run_job("poi_index", spark, settings, day)
    for name in ("clean_actions", "action_sequences"):
        for day in rng.sample(days, len(days)):
            nights.run_job(name, spark, settings, day)
    try:
        nights.run_job("poi_index", spark, settings, days[0])
    except IndexOrderError:
        return True
    return False


def is_state_of_full_build(spark: SparkSession, settings: Settings, day: date) -> bool:
    """Tells whether the latest row of every user equals one build over all actions at once."""
    root = settings.storage.root
    of_user = F.max_by(F.struct("*"), "day").alias("row")
    latest = read_table(spark, root, "action_sequences").groupBy("user_id").agg(of_user).select("row.*")
    places = read_table(spark, root, "user_places").groupBy("user_id").agg(of_user).select("row.*")
    full = action_sequences.build_action_sequences(
        read_table(spark, root, "cleaned_actions"),
        places,
        read_table(spark, root, "raw_profiles"),
        index_version=settings.index.version,
        settings=settings.sequences,
    )
    built = contracts.conform(full.withColumn("day", F.lit(day)), ACTION_SEQUENCES)
    latest = contracts.conform(latest.withColumn("day", F.lit(day)), ACTION_SEQUENCES)
    return contracts.digest_table(built, ACTION_SEQUENCES) == contracts.digest_table(latest, ACTION_SEQUENCES)


def measure(spark: SparkSession, folder: Path) -> tuple[float, str]:
    """Returns the share of equal digests and the notes."""
    sizes = {"num_users": NUM_USERS, "num_days": NUM_DAYS, "num_actions": NUM_ACTIONS}
    ways = {
        name: nights.settings_for(str(folder / name), **sizes) for name in ("nights", "rebuild", "backfill")
    }
    days = nights.days_of(ways["nights"].city)
    started = time.perf_counter()
    told = nights.deliveries(spark, ways["nights"])
    run_nights(spark, ways["nights"], told, days)
    seconds = {"nights": time.perf_counter() - started}
    for name in nights.RAW_TABLES:
        shutil.copytree(folder / "nights" / name, folder / "rebuild" / name)
    started = time.perf_counter()
    for day in days[:-NUM_SHUFFLED]:
        run_night(spark, ways["rebuild"], day)
    shutil.copytree(folder / "rebuild", folder / "backfill")
    for day in days[-NUM_SHUFFLED:]:
        run_night(spark, ways["rebuild"], day)
    seconds["rebuild"] = time.perf_counter() - started
    started = time.perf_counter()
    has_refused = backfill(spark, ways["backfill"], days[-NUM_SHUFFLED:], random.Random(5))
    seconds["backfill"] = time.perf_counter() - started
    digests = {name: nights.digest_days(spark, way.storage.root, days) for name, way in ways.items()}
    pairs = [(name, key) for name in ("nights", "backfill") for key in digests["rebuild"]]
    off = [f"{name} {key}" for name, key in pairs if digests[name][key] != digests["rebuild"][key]]
    state_holds = is_state_of_full_build(spark, ways["nights"], days[-1])
    checks = len(pairs) + 2
    share = 1 - (len(off) + (not has_refused) + (not state_holds)) / checks
    notes = (
        f"simulated city, {NUM_DAYS} nights, {NUM_USERS} users, {NUM_ACTIONS} actions; {len(CORRECTED_SAME_DAY)} "
        f"nights corrected at once, {len(CORRECTED_LATER)} later; backfill with the last {NUM_SHUFFLED} days in random "
        f"order; {len(pairs)} digests beside the rebuild's, different: {', '.join(off[:6]) or 'none'}; index refused "
        f"an older day: {has_refused}; one build of all sequences equals the latest rows: {state_holds}; seconds: "
        + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    )
    return share, notes


def main() -> int:
    """Measures, records, and returns 0 if everything is equal."""
    parser = argparse.ArgumentParser(description="Records whether increments equal a rebuild in results/.")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    LOGGER.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="increments-") as folder:
        spark = open_session(
            nights.settings_for(folder, num_users=1, num_days=2, num_actions=10), "increments"
        )
        share, notes = measure(spark, Path(folder))
        spark.stop()
    record(
        "increment-equals-full",
        share,
        "share of digests",
        "== 1",
        "make bench-increments",
        notes,
        options.results,
    )
    print(notes)
    return 0 if share == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
