"""Nights of the feature jobs that make only what changed: equal to a full refresh, at a fraction of its cost.

    python -m tests.bench.refresh equal      incremental-embedding-max-diff
    python -m tests.bench.refresh cost       refresh-cost-ratio

Equal: ten nights on which some users act, POIs open, close, move and change their category, and one older day is
corrected. After each, the latest vectors of all users and live POIs stand beside those that the same jobs make of the
same inputs in an empty table; the keys must be the same. Cost: the seconds of user_embeddings and poi_embeddings on a
night with 1 % active users over those of a full refresh, in one warm session.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import cpu_seconds
from conf.results import record
from conf.settings import Settings
from etl.columns.poi_slots import is_live, keep_known
from etl.delta.storage import read_table
from models.config import DecoderConfig
from tests.bench.feature_tables import (
    IntArray,
    Users,
    make_slots,
    open_features,
    run_jobs,
    settings_for,
    write,
)
from tests.bench.serving_city import LAYOUT, SERVING, random_decoder, write_bundle

COMMAND = "make bench-refresh"
FIRST_DAY = date(2026, 3, 1)
JOBS = ("user_embeddings", "poi_embeddings")
KEYS = {"user_embeddings": "user_id", "poi_embeddings": "poi_id"}
NUM_NIGHTS, CORRECTED, CORRECTION_NIGHT = 10, 3, 6
EQUAL_USERS, EQUAL_POIS = 600, 1_500
ACTIVE_SHARE, COST_NIGHTS = 0.01, 3
TINY = DecoderConfig()


class City:
    """Users and POIs that change from night to night."""

    def __init__(self, spark: SparkSession, settings: Settings, lengths: IntArray, num_pois: int) -> None:
        self.spark, self.root = spark, settings.storage.root
        self.rng = np.random.default_rng(0)
        self.users = Users(lengths.tolist())
        self.sizes = np.maximum(1, lengths // 2)
        self.free = self.rng.permutation(LAYOUT.num_blocks * LAYOUT.max_inner)
        self.places: dict[int, int] = {}
        self.opened: dict[int, date] = {}
        self.acted: dict[date, IntArray] = {}
        self._deliver(FIRST_DAY, np.arange(len(lengths)), self._open(FIRST_DAY, num_pois))

    def live_a_day(self, day: date, *, active: int, changed_pois: int) -> None:
        """Lets some users act, and as many POIs each open, close, move and change their category."""
        users = np.sort(self.rng.choice(len(self.sizes), active, replace=False))
        more = self.rng.integers(1, 5, size=active)
        self.sizes[users] = np.minimum(self.sizes[users] + more, self.users.lengths[users])
        chosen = self.rng.choice(sorted(self.places), 3 * changed_pois, replace=False)
        closed, moved, filed = np.split(chosen, 3)
        slots = [self._change(day, np.concatenate([closed, moved]), valid_to=day, closed_day=day)]
        slots += [self._open(day, changed_pois), self._open(day, changed_pois, moved)]
        for number in closed.tolist():
            del self.places[number]
        slots.append(self._change(day, filed, category_id=1))
        self._deliver(day, users, pa.concat_tables(slots, promote_options="permissive"))

    def correct(self, day: date) -> None:
        """Takes back the last action of all who acted on an older day and not since, as a corrected delivery does."""
        since = [users for other, users in self.acted.items() if other > day]
        last = np.setdiff1d(self.acted[day], np.concatenate(since))
        self.sizes[last] = np.maximum(1, self.sizes[last] - 1)
        write(
            self.spark,
            self.root,
            "action_sequences",
            self.users.states(self.acted[day], self.sizes[self.acted[day]]),
            day,
        )

    def _deliver(self, day: date, users: IntArray, slots: pa.Table) -> None:
        self.acted[day] = users
        write(self.spark, self.root, "action_sequences", self.users.states(users, self.sizes[users]), day)
        write(self.spark, self.root, "poi_index", slots, day)

    def _open(self, day: date, size: int, numbers: IntArray | None = None) -> pa.Table:
        numbers = np.arange(size) + max(self.places, default=-1) + 1 if numbers is None else numbers
        places, self.free = self.free[:size], self.free[size:]
        self.places |= dict(zip(numbers.tolist(), places.tolist(), strict=True))
        self.opened |= dict.fromkeys(numbers.tolist(), day)
        return make_slots(numbers, places, day=day)

    def _change(self, day: date, numbers: IntArray, **changes: object) -> pa.Table:
        places = np.array([self.places[number] for number in numbers.tolist()], np.int64)
        opened = [self.opened[number] for number in numbers.tolist()]
        return make_slots(
            numbers, places, day=day, valid_from=opened, indexed_day=opened, changed_day=day, **changes
        )


def latest_vectors(spark: SparkSession, root: str, name: str, day: date) -> dict[str, np.ndarray]:
    """Returns the vector of each user, and of each POI that is live on the day, as readers of a release see them."""
    rows: DataFrame = read_table(spark, root, name).where(F.col("day") <= F.lit(day))
    latest = rows.groupBy(KEYS[name]).agg(F.max_by("embedding", "day").alias("embedding"))
    if name == "poi_embeddings":
        known = keep_known(read_table(spark, root, "poi_index"), day=day, index_version=1)
        latest = latest.join(known.where(is_live(F.lit(day))).select("poi_id"), "poi_id", "left_semi")
    table = latest.toArrow()
    return dict(
        zip(table[KEYS[name]].to_pylist(), map(np.asarray, table["embedding"].to_pylist()), strict=True)
    )


def drop(root: str) -> None:
    """Removes the feature tables, so that the jobs make all of them."""
    for name in JOBS:
        shutil.rmtree(f"{root}/{name}", ignore_errors=True)


def measure_equality(spark: SparkSession, folder: Path, model: Path) -> tuple[float, str]:
    """Returns the largest difference of a component over ten nights, and the notes."""
    settings, full = (
        settings_for(str(folder / "nights"), num_tasks=4),
        settings_for(str(folder / "full"), num_tasks=4),
    )
    lengths = np.random.default_rng(1).integers(6, 60, EQUAL_USERS)
    city = City(spark, settings, lengths, EQUAL_POIS)
    run_jobs(settings, FIRST_DAY, model, JOBS)
    difference, made, compared = 0.0, {name: 0 for name in JOBS}, 0
    for number in range(1, NUM_NIGHTS + 1):
        day = FIRST_DAY + timedelta(days=number)
        city.live_a_day(day, active=EQUAL_USERS // 10, changed_pois=EQUAL_POIS // 100)
        if number == CORRECTION_NIGHT:
            city.correct(FIRST_DAY + timedelta(days=CORRECTED))
        run_jobs(settings, day, model, JOBS)
        for name in ("action_sequences", "poi_index"):
            target = Path(full.storage.root, name)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(settings.storage.root, name), target)
        drop(full.storage.root)
        run_jobs(full, day, model, JOBS)
        for name in JOBS:
            made[name] += (
                read_table(spark, settings.storage.root, name).where(F.col("day") == F.lit(day)).count()
            )
            own, other = (latest_vectors(spark, each.storage.root, name, day) for each in (settings, full))
            if own.keys() != other.keys():
                raise SystemExit(
                    f"{name} {day}: {len(own.keys() ^ other.keys())} keys are in one of the two only"
                )
            compared += len(own)
            difference = max(difference, *(float(np.abs(own[key] - other[key]).max()) for key in own))
    return difference, (
        f"simulated users and POIs, random weights of the tiny shape; {NUM_NIGHTS} nights, {EQUAL_USERS} users, "
        f"{EQUAL_POIS} POIs; night {CORRECTION_NIGHT} corrects night {CORRECTED}; made again in all: "
        f"{made['user_embeddings']} users, {made['poi_embeddings']} POIs; {compared} vectors "
        f"compared, same keys every night"
    )


def measure_cost(spark: SparkSession, folder: Path, model: Path, num_users: int) -> tuple[float, str]:
    """Returns the seconds of a night over those of a full refresh, and the notes."""
    settings = settings_for(str(folder / "cost"), num_tasks=4)
    lengths = np.exp(np.random.default_rng(1).uniform(np.log(20), np.log(300), num_users)).astype(np.int64)
    city = City(spark, settings, lengths, 2 * num_users)
    few = settings_for(str(folder / "warm"), num_tasks=4)
    warm = City(spark, few, lengths[:64], 100)
    for number in range(2):  # workers, model, plans
        if number:
            warm.live_a_day(FIRST_DAY + timedelta(days=1), active=2, changed_pois=2)
        run_jobs(few, FIRST_DAY + timedelta(days=number), model, JOBS)
    full, full_cpu = clock(settings, FIRST_DAY, model)
    nights, cpus = [], []
    for number in range(1, COST_NIGHTS + 1):
        day = FIRST_DAY + timedelta(days=number)
        city.live_a_day(day, active=round(ACTIVE_SHARE * num_users), changed_pois=max(1, num_users // 1000))
        seconds, cpu = clock(settings, day, model)
        nights.append(seconds)
        cpus.append(cpu)
    return statistics.median(nights) / full, (
        f"simulated users and POIs, random weights, {SERVING.num_layers} layers, width {SERVING.hidden_dim}; "
        f"{num_users} users with 10 to 300 actions, {2 * num_users} POIs; full refresh {full:.1f} s ({full_cpu:.0f} "
        f"s of CPU); nights of {round(ACTIVE_SHARE * num_users)} users {_list(nights)} s (CPU {_list(cpus)} s), "
        f"most of which is the fixed cost of two Spark jobs"
    )


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in seconds)


def clock(settings: Settings, day: date, model: Path) -> tuple[float, float]:
    """Runs both jobs of a day; returns seconds and CPU seconds."""
    started, cpu = time.perf_counter(), cpu_seconds()
    run_jobs(settings, day, model, JOBS)
    return time.perf_counter() - started, cpu_seconds() - cpu


def main() -> int:
    """Measures, records, and returns 0 if the bar is reached."""
    parser = argparse.ArgumentParser(
        description="Are incremental nights equal to full ones, and how cheap are they?"
    )
    parser.add_argument("what", choices=("equal", "cost"))
    parser.add_argument("--users", type=int, default=15_000, help="of the city whose nights are timed")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refresh-") as work:
        folder = Path(work)
        spark = open_features(settings_for(work, num_tasks=4))
        if options.what == "equal":
            write_bundle(folder, random_decoder(TINY))
            value, notes = measure_equality(spark, folder, folder / "bundle")
            result = record(
                "incremental-embedding-max-diff",
                float(f"{value:.3e}"),
                "",
                "<= 0.000001",
                COMMAND,
                notes,
                options.results,
            )
        else:
            write_bundle(folder, random_decoder(SERVING))
            value, notes = measure_cost(spark, folder, folder / "bundle", options.users)
            result = record(
                "refresh-cost-ratio", round(value, 4), "", "<= 0.05", COMMAND, notes, options.results
            )
        spark.stop()
    print(f"{result.name} {result.value}: {result.notes}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
