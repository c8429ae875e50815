"""What a night with few active users costs beside a full rebuild, in one warm session.

    python -m tests.bench.night_cost --actions 12000000

A rebuild is the three jobs (poi_index, clean_actions, action_sequences) over everything that was ever delivered, at
once: the quickest way there is. A night is the same jobs over a day on which one user in a hundred acts, on top of it.
Records the median night's seconds over the rebuild's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from datetime import date, timedelta

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.results import record
from conf.settings import CitySettings, Settings, SparkSettings, StorageSettings
from etl.city import source as city_source
from etl.city.geography import uniform
from etl.delta import storage
from etl.spark.session import open_session
from tests.bench import nights

ACTIVE_SHARE = 0.01
NUM_NIGHTS = 3
HISTORY_DAYS = 60


def settings_for(root: str, actions: int) -> Settings:
    """Returns the settings of a city with about 70 actions per user."""
    city = CitySettings(
        num_users=max(200, actions // 70),
        num_pois=max(900, actions // 300),  # the densest block stays below index.max_inner
        num_actions=actions,
        num_requests=0,
        num_days=HISTORY_DAYS + NUM_NIGHTS,
    )
    heap = "8g" if actions > 3_000_000 else "4g"
    spark = SparkSettings(driver_memory=heap, shuffle_partitions=16 if actions > 3_000_000 else 4)
    return Settings(city=city, spark=spark, storage=StorageSettings(root=root))


def deliver(spark: SparkSession, settings: Settings, day: date, since: date | None) -> int:
    """Delivers what happened after `since`: all of it, or of a night what active users did; returns the actions."""
    since_then = settings.source.model_copy(update={"since": since})
    told = city_source.SyntheticCity().read(
        spark, settings.model_copy(update={"source": since_then}), day=day
    )
    root = settings.storage.root
    for name in nights.RAW_TABLES:
        rows = nights.shape(told[name], name)
        if since is not None and name == "raw_actions":
            # Of all who act on the day, which are many more, one in a hundred users of the city.
            num_active = round(ACTIVE_SHARE * settings.city.num_users)
            by_chance = (
                rows.select("user_id").distinct().orderBy(uniform(3, str(day), F.col("user_id")), "user_id")
            )
            rows = rows.join(F.broadcast(by_chance.limit(num_active)), "user_id", "left_semi")
        storage.replace_day(rows, name, root, day=day, run_id="cost", job="cost")
    return storage.read_table(spark, root, "raw_actions").where(F.col("day") == day).count()


def run_jobs(spark: SparkSession, settings: Settings, day: date) -> dict[str, float]:
    """Runs the three jobs; returns the seconds of each."""
    seconds = {}
    for name in nights.JOBS:
        started = time.perf_counter()
        nights.run_job(name, spark, settings, day)
        seconds[name] = time.perf_counter() - started
    return seconds


def measure(spark: SparkSession, settings: Settings) -> tuple[float, str]:
    """Returns the ratio and the notes."""
    first = settings.city.first_day + timedelta(days=HISTORY_DAYS - 1)
    num_actions = deliver(spark, settings, first, None)
    full = run_jobs(spark, settings, first)
    runs, sizes, users = [], [], []
    for number in range(NUM_NIGHTS):
        day = first + timedelta(days=number + 1)
        sizes.append(deliver(spark, settings, day, day - timedelta(days=1)))
        runs.append(run_jobs(spark, settings, day))
        of_day = storage.read_table(spark, settings.storage.root, "action_sequences").where(
            F.col("day") == day
        )
        users.append(of_day.count())
    night = statistics.median(sum(run.values()) for run in runs)
    jobs = "; ".join(
        f"{name} {full[name]:.1f} s, nights {', '.join(f'{run[name]:.1f}' for run in runs)}" for name in full
    )
    return night / sum(full.values()), (
        f"simulated city, {num_actions} actions of {settings.city.num_users} users; nights of {sizes} actions by "
        f"{users} users; rebuild {sum(full.values()):.1f} s, median night {night:.1f} s ({jobs})"
    )


def main() -> int:
    """Measures, records, and returns 0 if the bar is reached."""
    parser = argparse.ArgumentParser(description="Records what a night costs beside a rebuild in results/.")
    parser.add_argument("--actions", type=int, default=12_000_000)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cost-") as root:
        settings = settings_for(root, options.actions)
        spark = open_session(settings, "night cost")
        warm_up = settings_for(f"{root}/warm", 20_000)
        measure(spark, warm_up)
        ratio, notes = measure(
            spark, settings.model_copy(update={"storage": StorageSettings(root=f"{root}/city")})
        )
        spark.stop()
    result = record("night-cost-ratio", ratio, "", "<= 0.1", "make bench-night-cost", notes, options.results)
    print(f"night-cost-ratio {ratio:.3f}: {notes}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
