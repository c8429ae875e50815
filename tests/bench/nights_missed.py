"""Nights that do not run lose nothing: 20 nights of which any 6 are left out end with the tables of all 20.

    python -m tests.bench.nights_missed --scenarios 3

A small simulated city exports what it has logged: every night a file of actions in the paper's form into a folder that
holds the last eight, and a catalogue of the POIs opened by then. Some rows arrive up to five days late, some again in
a later file, some are bad, some repeat an id with other content. Compared with the run of all nights, as sets of rows:

- `cleaned_actions` but for the day of delivery, the numbers given out by the index and for categories (these are
  compared by name), and the flag `impossible_speed`, which looks at the neighbours within one delivery,
- live POIs with place, name and category,
- the last state of every user in `action_sequences`,
- refused rows with their reasons.

Records `nights-missed-rows-lost`: rows that one side has and the other has not, over all scenarios; it has to be 0.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext
from conf.results import record
from conf.settings import Settings, SourceSettings, SparkSettings, StorageSettings
from etl.delta.storage import read_table
from etl.jobs import index_pois, recompute
from etl.sources import paper_actions
from etl.spark.session import open_session

COMMAND = "make bench-nights-missed"
FIRST, NUM_NIGHTS, NUM_MISSED, KEPT_FILES, MAX_LATE = date(2026, 3, 1), 20, 6, 8, 5
NUM_USERS, NUM_POIS, PER_DAY = 40, 160, 4
LATE_SHARE, AGAIN_SHARE, BAD_SHARE, OTHER_SHARE = 0.08, 0.05, 0.04, 0.02
CATEGORIES = ("food, cafe", "food, bakery", "sights, museum", "outdoors, park", "work, office")
STEPS = {
    "actions": paper_actions.deliver,
    "poi_index": index_pois.index_pois,
    "clean_actions": recompute.clean_days,
    "action_sequences": recompute.sequence_days,
}
LEFT_OUT = {
    "cleaned_actions": ("day", "block_id", "inner_id", "category_id", "index_version"),
    "action_sequences": ("day", "block_ids", "inner_ids", "category_ids", "index_version"),
}


@dataclass(frozen=True)
class Export:
    """What a city has logged.

    Attributes:
        files: lines of the file of every night, in order.
        pois: poi_id, night from which it is listed, latitude, longitude, category.
    """

    files: Sequence[Sequence[str]]
    pois: Sequence[tuple[str, int, float, float, str]]


def make_export(seed: int) -> Export:
    """Simulates the city."""
    rng = random.Random(seed)
    pois = [
        (
            f"p{number:03}",
            0 if number < NUM_POIS // 2 else rng.randrange(NUM_NIGHTS),
            52.3 + rng.random() / 8,
            4.8 + rng.random() / 5,
            CATEGORIES[number % len(CATEGORIES)],
        )
        for number in range(NUM_POIS)
    ]
    files: list[list[str]] = [[] for _ in range(NUM_NIGHTS)]
    for night in range(NUM_NIGHTS):
        open_pois = [poi for poi in pois if poi[1] <= night]
        for user in range(NUM_USERS):
            for number in range(rng.randrange(2 * PER_DAY)):
                row = _action(rng, f"a-{night}-{user}-{number}", f"u{user:02}", night, rng.choice(open_pois))
                arrives = night + (rng.randint(1, MAX_LATE) if rng.random() < LATE_SHARE else 0)
                if rng.random() < BAD_SHARE:
                    row = _spoil(rng, row)
                _arrive(files, arrives, row)
                if rng.random() < AGAIN_SHARE:
                    _arrive(files, arrives + rng.randint(1, MAX_LATE), row)
                elif rng.random() < OTHER_SHARE and row["time"] is not None:
                    later = {**row, "time": int(str(row["time"])) + 1, "category": "other"}
                    _arrive(files, arrives + rng.randint(0, MAX_LATE), later)
    return Export(files, pois)


def _action(
    rng: random.Random, action_id: str, user: str, night: int, poi: tuple[str, int, float, float, str]
) -> dict[str, object]:
    start = datetime.combine(FIRST + timedelta(days=night), datetime.min.time(), UTC)
    poi_id, _, lat, lon, category = poi
    return {
        "action_id": action_id,
        "user_id": user,
        "time": int(start.timestamp() * 1000) + rng.randrange(86_400_000),
        "user_geo": {"x": round(lon + rng.gauss(0, 0.01), 6), "y": round(lat + rng.gauss(0, 0.01), 6)},
        "poi_id": poi_id,
        "poi_geo": {"x": lon, "y": lat},
        "category": category,
        "action_type": "click",
        "tz_offset_min": 60,
    }


def _spoil(rng: random.Random, row: dict[str, object]) -> dict[str, object]:
    spoiled: dict[str, object] = rng.choice(
        [
            {"user_id": None},
            {"poi_id": "of-a-test"},
            {"time": int(str(row["time"])) // 1000},
            {"poi_geo": {"x": 0.0, "y": 0.0}},
            {"action_type": "hover"},
        ]
    )
    return {**row, **spoiled}


def _arrive(files: list[list[str]], night: int, row: dict[str, object]) -> None:
    if night < NUM_NIGHTS:
        files[night].append(json.dumps(row))


def run_nights(spark: SparkSession, export: Export, folder: Path, *, missed: Collection[int]) -> Settings:
    """Runs the nights that are not missed, each on what the export folder holds by then; returns the settings."""
    inbox = folder / "export"
    inbox.mkdir(parents=True)
    settings = Settings(
        spark=SparkSettings(driver_memory="3g", shuffle_partitions=1, quick_start=True),
        storage=StorageSettings(root=str(folder / "warehouse"), artifacts=str(folder / "artifacts")),
        source=SourceSettings(path=str(inbox), pois_path=str(folder / "pois.parquet")),
    )
    for night, lines in enumerate(export.files):
        (inbox / f"night-{night:02}.json").write_text("\n".join(lines) + "\n")
        if night >= KEPT_FILES:
            (inbox / f"night-{night - KEPT_FILES:02}.json").unlink()
        listed = [poi for poi in export.pois if poi[1] <= night]
        names = ("poi_id", "listed", "latitude", "longitude", "category")
        table = pa.table(dict(zip(names, map(list, zip(*listed, strict=True)), strict=True)))
        pq.write_table(table.drop_columns(["listed"]), folder / "pois.parquet")
        if night in missed:
            continue
        day = FIRST + timedelta(days=night)
        for job, step in STEPS.items():
            step(JobContext(job, day, settings, f"night-{night}", False, argparse.Namespace()), spark)
        print(f"night {night + 1} of {NUM_NIGHTS}", flush=True)
    return settings


def read_outcome(spark: SparkSession, settings: Settings) -> dict[str, list[str]]:
    """Returns what is compared: rows as JSON, sorted, by name of the comparison."""
    root = settings.storage.root
    names = read_table(spark, root, "categories").select(
        "category_id", F.col("category").alias("category_name")
    )
    cleaned = read_table(spark, root, "cleaned_actions").join(names, "category_id", "left")
    slow = F.filter("repairs", lambda code: code != "impossible_speed")
    index = read_table(spark, root, "poi_index").where("valid_to IS NULL").join(names, "category_id", "left")
    sequences = read_table(spark, root, "action_sequences")
    last = sequences.groupBy("user_id").agg(F.max("day").alias("day"))
    refused = read_table(spark, root, "quarantined_rows").select("source_table", "reason", "payload")
    frames = {
        "cleaned_actions": cleaned.withColumn("repairs", slow),
        "poi_index": index.select("poi_id", "poi_lon", "poi_lat", "name", "category_name"),
        "action_sequences": sequences.join(last, ["user_id", "day"]),
        "quarantined_rows": refused,
    }
    return {name: _as_json(frame.drop(*LEFT_OUT.get(name, ()))) for name, frame in frames.items()}


def _as_json(frame: DataFrame) -> list[str]:
    text = F.to_json(F.struct(*sorted(frame.columns)), {"ignoreNullFields": "false"})
    return sorted({row["text"] for row in frame.select(text.alias("text")).collect()})


def compare(expected: dict[str, list[str]], found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns the rows that only one side has, by name of the comparison; `-` is missing, `+` too much."""
    return {
        name: [f"- {row}" for row in sorted(set(rows) - set(found[name]))]
        + [f"+ {row}" for row in sorted(set(found[name]) - set(rows))]
        for name, rows in expected.items()
    }


def choose_missed(number: int) -> tuple[int, ...]:
    """Returns the nights of a scenario that do not run: six in a row first, then any; never the last."""
    rng = random.Random(1000 + number)
    if number == 0:
        first = rng.randrange(1, NUM_NIGHTS - 1 - NUM_MISSED)
        return tuple(range(first, first + NUM_MISSED))
    return tuple(sorted(rng.sample(range(NUM_NIGHTS - 1), NUM_MISSED)))


def main() -> int:
    """Runs, compares, records; returns 0 if nothing is lost."""
    parser = argparse.ArgumentParser(description="Records what missed nights lose in results/.")
    parser.add_argument("--scenarios", type=int, default=3, help="choices of six nights that do not run")
    parser.add_argument("--seed", type=int, default=11, help="of the city")
    options = parser.parse_args()
    export, total, told = make_export(options.seed), 0, []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        spark = open_session(
            Settings(spark=SparkSettings(driver_memory="3g", shuffle_partitions=1, quick_start=True)),
            "nights missed",
        )
        first = read_outcome(spark, run_nights(spark, export, work / "all", missed=()))
        for number in range(options.scenarios):
            missed = choose_missed(number)
            folder = work / f"missed-{number}"
            differences = compare(
                first, read_outcome(spark, run_nights(spark, export, folder, missed=missed))
            )
            shutil.rmtree(folder)
            lost = {table: len(rows) for table, rows in differences.items()}
            total += sum(lost.values())
            told.append(f"nights {', '.join(str(night + 1) for night in missed)} missed")
            print(f"{told[-1]}: {lost}")
            for rows in differences.values():
                print("\n".join(row[:600] for row in rows[:6]))
        spark.stop()
    rows = ", ".join(f"{len(rows)} {table}" for table, rows in first.items())
    notes = (
        f"simulated city, {sum(map(len, export.files))} delivered lines; {rows} compared; {'; '.join(told)}"
    )
    record("nights-missed-rows-lost", total, "rows", "== 0", COMMAND, notes)
    print(notes)
    return 0 if total == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
