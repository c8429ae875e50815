"""Sixty small nights through the storage layer: how many files are there, and does reading a night get slower?

    python -m tests.bench.small_files --nights 60 --rows 10000

A night replaces its day of `cleaned_actions` (a table by day) and merges into `poi_index` (a table by key: some POIs
change, some are new). Afterwards the first night is read at the version it left behind and the last at the latest, in
turns, in one warm session and each time without the log that Delta keeps in memory: a reader's first look. Of
`cleaned_actions` that is the night's rows; of `poi_index` the whole index, whose rows hardly grow.
"""

import argparse
import statistics
import sys
import tempfile
import time
from datetime import date, timedelta

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.results import record
from conf.settings import Settings, SparkSettings, StorageSettings
from conf.tables import TABLES, TableContract
from etl.delta import storage
from etl.spark.session import open_session

COMMAND = "make bench-scale"
FIRST_DAY = date(2026, 1, 1)
MAX_FILES_PER_NIGHT = 4
"""Of a table by day, however small the night; the default of spark.shuffle_partitions."""
MAX_FILES = 60
"""Of a table by key, however many nights; Delta compacts from 50 small files on."""
CHANGED, NEW = 100, 20
"""POIs of the index that a night changes and adds."""


def rows_of(spark: SparkSession, contract: TableContract, first: int, last: int, day: date) -> DataFrame:
    """Returns rows number `first` to `last` of a table, all values made from the number and the day."""
    number = F.col("id")
    values = {
        "action_id": F.concat(F.lit(f"{day}-"), number.cast("string")),
        "user_id": F.concat(F.lit("u"), (F.xxhash64(number) % 997).cast("string")),
        "poi_id": F.concat(F.lit("p"), number.cast("string")),
        "index_version": F.lit(1),
        "text": F.concat(F.lit(f"as of {day} "), F.sha2(number.cast("string"), 256)),
        "is_simulated": F.lit(True),
    }
    plain = {"date": F.lit(day), "string": F.lit("x"), "boolean": F.lit(True)}

    def value_of(name: str, kind: str) -> Column:
        if kind.startswith("array"):
            return F.array()
        return values.get(name, plain.get(kind, number % 80))

    columns = [
        value_of(column.name, column.type).cast(column.type).alias(column.name) for column in contract.columns
    ]
    return spark.range(first, last, numPartitions=4).select(*columns)


def write_night(spark: SparkSession, root: str, day: date, *, night: int, rows: int) -> dict[str, int]:
    """Writes one night and returns the version of each table after it."""
    run = {"day": day, "run_id": f"night-{night}", "job": "bench"}
    # As the jobs do: what is written has gone through a shuffle.
    actions = rows_of(spark, TABLES["cleaned_actions"], 0, rows, day).repartition("user_id")
    index = TABLES["poi_index"]
    if night == 0:
        pois = rows_of(spark, index, 0, rows, FIRST_DAY)
    else:
        start = (night * CHANGED) % (rows - CHANGED)
        grown = rows + night * NEW
        changed = rows_of(spark, index, start, start + CHANGED, day)
        pois = changed.unionByName(rows_of(spark, index, grown - NEW, grown, day))
        pois = pois.withColumn("valid_from", F.lit(FIRST_DAY))
    return {
        "cleaned_actions": storage.replace_day(actions, "cleaned_actions", root, **run),
        "poi_index": storage.merge_rows(pois, "poi_index", root, **run),
    }


def read_seconds(spark: SparkSession, root: str, name: str, *, version: int | None, day: date) -> float:
    """Reads a night of a table, all columns, and returns the seconds, the table's log included."""
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
    started = time.perf_counter()
    table = storage.read_table(spark, root, name, version=version)
    rows = table.where(F.col("day") == day) if "day" in table.columns else table
    rows.agg(F.count("*"), F.sum(F.xxhash64(*rows.columns).cast("decimal(38,0)"))).collect()
    return time.perf_counter() - started


def main() -> int:
    """Measures, records; returns 1 if there are more files than allowed."""
    parser = argparse.ArgumentParser(description="Records how reading slows down over small nights.")
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=9, help="reads of each night")
    options = parser.parse_args()
    days = [FIRST_DAY + timedelta(days=n) for n in range(options.nights)]
    with tempfile.TemporaryDirectory(prefix="bench-nights-") as root:
        spark = open_session(
            Settings(storage=StorageSettings(root=root), spark=SparkSettings()), "bench-nights"
        )
        first: dict[str, int] = {}
        for night, day in enumerate(days):
            versions = write_night(spark, root, day, night=night, rows=options.rows)
            first = first or versions
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in first}
        for _ in range(options.reads + 2):
            for name, version in first.items():
                early = read_seconds(spark, root, name, version=version, day=days[0])
                late = read_seconds(spark, root, name, version=None, day=days[-1])
                found[name].append((early, late))
        files = {
            name: DeltaTable.forPath(spark, storage.table_location(root, name)).detail().first()["numFiles"]
            for name in first
        }
        spark.stop()
    # The first two reads of each warm the JVM up.
    medians = {
        name: [statistics.median(side) for side in zip(*runs[2:], strict=True)]
        for name, runs in found.items()
    }
    ratios = {name: late / early for name, (early, late) in medians.items()}
    told = "; ".join(
        f"{name}: {files[name]} files, night 1 in {early:.2f} s, night {options.nights} in {late:.2f} s"
        for name, (early, late) in medians.items()
    )
    notes = (
        f"simulated rows, {options.nights} nights of {options.rows:,} rows, the worse of two tables; {told}"
    )
    ratio = round(max(ratios.values()), 2)
    result = record("small-files-read-ratio", ratio, "", "<= 1.3", COMMAND, notes)
    print(f"{notes}\nsmall-files-read-ratio: {ratio} {'holds' if result.holds else 'FALLS SHORT'}")
    too_many = (
        files["cleaned_actions"] > MAX_FILES_PER_NIGHT * options.nights or files["poi_index"] > MAX_FILES
    )
    if too_many:
        print(f"too many files: {files}")
    return int(too_many)


if __name__ == "__main__":
    sys.exit(main())
