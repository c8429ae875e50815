"""Measures what one core does in a second, per stage of a night: what `scale_on_paper` is computed from.

    python -m tests.bench.scale_rates

One night of a simulated city, compiled as in production (no quick start), with a model of conf/models/tiny.yaml that
is hardly trained, as its speed does not depend on what it has learnt. Core seconds are the CPU time of this process,
the JVM and the workers, Spark's start not counted; so they hold on a machine that others use, too. Small data has a
large share of fixed costs: at scale the rates are higher.
"""

import argparse
import shutil
import sys
from pathlib import Path

from conf.results import record
from tests import small_city

COMMAND = "make bench-rates"
NUM_USERS, NUM_POIS = 15_000, 6_000
DAY = str(small_city.DAYS[0])
BRIEFLY = [word for stage in small_city.STAGES for word in ("--set-recipe", f"{stage}.max_steps=2")]


class Stopwatch:
    """Runs commands and tells the core seconds that each took."""

    def __init__(self, layer: Path) -> None:
        self.layer, self._before = layer, 0.0

    def run(self, *words: str) -> tuple[dict, float]:
        """Returns the summary of a command and its core seconds."""
        summary = small_city.run(self.layer, *words)
        now = float(str(summary["cpu_seconds"]))
        took, self._before = now - self._before, now
        return summary, took


def bytes_of(folder: Path) -> int:
    """Returns the size of the Parquet files of a table."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet") if "_delta_log" not in path.parts)


def main() -> int:
    """Runs a night, records the rates and returns 0."""
    parser = argparse.ArgumentParser(description="Records rows per core second of each stage in results/.")
    parser.add_argument("--work", type=Path, default=Path(".demo/rates"), help="made again")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    folder = options.work.absolute()
    spark = {"quick_start": False, "driver_memory": "3g", "shuffle_partitions": 4}
    layer = small_city.write_settings(folder, num_users=NUM_USERS, num_pois=NUM_POIS, spark=spark)
    watch = Stopwatch(layer)
    watch.run("etl", "synthetic", "--day", DAY)
    watch.run("etl", "poi_index", "--day", DAY)
    cleaned, clean_s = watch.run("etl", "clean_actions", "--day", DAY)
    sequenced, sequence_s = watch.run("etl", "action_sequences", "--day", DAY)
    watch.run("etl", "samples", "--day", DAY)
    watch.run("models", "train", "--day", DAY, *BRIEFLY)
    users, user_s = watch.run("udfs", "user_embeddings", "--day", DAY)
    pois, poi_s = watch.run("udfs", "poi_embeddings", "--day", DAY)
    mean_length = sequenced["rows_in"] / sequenced["rows_out"]
    about = f"simulated city, {cleaned['rows_in']} actions of {sequenced['rows_out']} users, one night"
    model = f"recipe tiny (64 wide, 2 layers), {mean_length:.0f} actions a user; {about}"
    rates = {
        "rate-clean-actions": (cleaned["rows_in"], clean_s, "actions per core second", about),
        "rate-sequence-actions": (sequenced["rows_in"], sequence_s, "actions per core second", about),
        "rate-user-vectors": (users["rows_out"], user_s, "users per core second", model),
        "rate-poi-vectors": (pois["rows_out"], poi_s, "POIs per core second", model),
    }
    for name, (rows, seconds, unit, notes) in rates.items():
        notes += f"; {rows} rows in {seconds:.1f} core seconds"
        print(record(name, round(rows / seconds, 1), unit, "", COMMAND, notes, options.results))
    tables = ("raw_actions", "cleaned_actions", "action_sequences")
    per_action = sum(bytes_of(folder / "warehouse" / name) for name in tables) / cleaned["rows_in"]
    record("bytes-per-action", round(per_action, 1), "bytes", "", COMMAND,
           f"Parquet of {', '.join(tables)} over delivered actions; {about}", options.results)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
