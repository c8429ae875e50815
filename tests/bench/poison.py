"""Rows that make the model fail: what they cost the others.

    python -m tests.bench.poison

The job `user_embeddings` over the same users twice, by turns: once as they are, once with one user in a thousand made
poisonous by a value at which the model raises. (One that computes NaN for some of its weights is not served at all.)
Records `poison-rows-lost` (good users without a vector, plus poisoned ones that are not in the quarantine with their
reason) and `poison-time-ratio` (median ratio of the seconds).
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.results import record
from conf.settings import Settings
from etl.delta.storage import read_table, table_location
from models.config import DecoderConfig
from models.network.decoder import SpacetimeDecoder
from tests.bench.feature_tables import (
    IntArray,
    Users,
    make_slots,
    open_features,
    run_jobs,
    settings_for,
    write,
)
from tests.bench.serving_city import random_decoder, write_bundle
from udfs.features.user_embeddings import REASON

COMMAND = "make bench-poison"
DAY = date(2026, 3, 1)
POISON_SHARE = 0.001
BELOW_ALL_IDS = -7
"""A category that no table has a row for: looking it up raises."""


def make_model(folder: Path) -> Path:
    """Writes a model of the tiny recipe's shape with random weights."""
    model: SpacetimeDecoder = random_decoder(DecoderConfig())
    return write_bundle(folder, model).folder


def poison(rows: pa.Table, users: IntArray) -> pa.Table:
    """Makes users fail by the category of their last action."""
    lists = rows["category_ids"].combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False).copy()
    values[lists.offsets.to_numpy()[users + 1] - 1] = BELOW_ALL_IDS
    column = pa.ListArray.from_arrays(lists.offsets, pa.array(values, lists.values.type))
    return rows.set_column(rows.schema.get_field_index("category_ids"), "category_ids", column)


def count_lost(spark: SparkSession, root: str, num_users: int, poisoned: set[str]) -> int:
    """Returns how many good users have no vector, and how many poisoned ones are not refused with their reason."""
    embedded = {
        row["user_id"] for row in read_table(spark, root, "user_embeddings").select("user_id").collect()
    }
    refused = read_table(spark, root, "quarantined_rows").where(F.col("reason") == REASON)
    named = {row[0] for row in refused.select(F.get_json_object("payload", "$.user_id")).collect()}
    everybody = {f"u{number:06d}" for number in range(num_users)}
    return len(everybody - poisoned - embedded) + len(poisoned - named) + len(named - poisoned)


def measure(
    spark: SparkSession, settings: dict[str, Settings], model: Path, *, num_users: int, repeats: int
) -> tuple[int, float, str]:
    """Returns rows lost, the ratio of seconds, and the notes."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 100, num_users)
    clean = Users(lengths.tolist()).states(np.arange(num_users), lengths)
    sick = np.sort(rng.choice(num_users, round(POISON_SHARE * num_users), replace=False))
    for name, own in settings.items():
        root = own.storage.root
        write(spark, root, "poi_index", make_slots(np.arange(10), np.arange(10), day=DAY), DAY)
        write(spark, root, "action_sequences", clean, DAY)
        if name == "poisoned":  # the contract would refuse them: here it has let them through
            location = table_location(root, "action_sequences")
            spark.sql(f"ALTER TABLE delta.`{location}` DROP CONSTRAINT category_ids_range")
            write(spark, root, "action_sequences", poison(clean, sick), DAY)
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    run_jobs(settings["clean"], DAY, model, ("user_embeddings",))  # workers, model, plans
    for _ in range(repeats):
        for name, own in settings.items():
            seconds[name].append(clock(lambda own=own: run_jobs(own, DAY, model, ("user_embeddings",))))
    poisoned = {f"u{number:06d}" for number in sick}
    lost = count_lost(spark, settings["poisoned"].storage.root, num_users, poisoned)
    ratio = statistics.median(
        other / own for own, other in zip(seconds["clean"], seconds["poisoned"], strict=True)
    )
    told = "; ".join(
        f"{name} {', '.join(f'{value:.1f}' for value in own)} s" for name, own in seconds.items()
    )
    micro_batch = settings["clean"].features.micro_batch
    return (
        lost,
        ratio,
        (
            f"random weights of the tiny shape; {num_users} users with 10 to 100 actions, {len(sick)} of them "
            f"poisoned; passes of {micro_batch}; whole job with its commit: {told}; "
            f"{ratio:.3f} x the time"
        ),
    )


def clock(call: Callable[[], object]) -> float:
    """Returns seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> int:
    """Measures, records, and returns 0 if the bars are reached."""
    parser = argparse.ArgumentParser(description="Records what failing rows cost in results/.")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="poison-") as work:
        model = make_model(Path(work))
        settings = {name: settings_for(f"{work}/{name}") for name in ("clean", "poisoned")}
        spark = open_features(settings["clean"])
        lost, ratio, notes = measure(spark, settings, model, num_users=options.users, repeats=options.repeats)
        spark.stop()
    lost_rows = record("poison-rows-lost", lost, "rows", "== 0", COMMAND, notes, options.results)
    slower = record("poison-time-ratio", round(ratio, 3), "", "<= 1.3", COMMAND, notes, options.results)
    print(f"poison-rows-lost {lost}, poison-time-ratio {ratio:.3f}: {notes}")
    return 0 if lost_rows.holds and slower.holds else 1


if __name__ == "__main__":
    sys.exit(main())
