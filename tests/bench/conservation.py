"""Cleans a city full of planted dirt and compares what became of every row with what was planted.

    python -m tests.bench.conservation --rows 1000000

One night of the synthetic city: deliver, poi_index, clean_actions, into tables in a folder that is removed afterwards.
Records three numbers over actions and POIs: rows in that are neither accepted nor quarantined nor planted exact
duplicates (has to be 0); the share of planted bad rows that are in quarantine under their very reason (1); the share
of quarantined rows that were planted under that reason (1). Planted and found rows are compared as multisets of (id,
reason), by Spark, from the tables as written.
"""

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext
from conf.results import record
from conf.rules import RULES
from conf.settings import CitySettings, CleanSettings, Settings, SparkSettings, StorageSettings
from etl.city import source
from etl.delta.storage import read_table
from etl.jobs import index_pois, runner
from etl.spark.session import open_session

COMMAND = "make bench-conservation"
SEVERITIES = {rule.code: rule.severity for rule in RULES}


@dataclass(frozen=True)
class Conservation:
    """What became of the rows of one delivery.

    Attributes:
        rows_in: delivered actions and POIs.
        difference: rows in - accepted - quarantined - planted exact duplicates, actions and POIs added by amount.
        planted: refusable rows that were planted, by reason.
        num_found: rows in quarantine.
        num_right: rows in quarantine that were planted under their reason.
        kept: accepted actions by what was repaired or flagged.
        planted_kept: actions planted to be repaired or flagged, by code.
    """

    rows_in: int
    difference: int
    planted: Counter[str]
    num_found: int
    num_right: int
    kept: Counter[str]
    planted_kept: Counter[str]

    @property
    def recall(self) -> float:
        return self.num_right / self.planted.total()

    @property
    def precision(self) -> float:
        return self.num_right / self.num_found


def settings_for(rows: int, root: str) -> Settings:
    """Returns settings of a city of about so many rows, with every kind of dirt."""
    num_actions = int(rows * 0.9)
    city = CitySettings(
        num_users=max(20, num_actions // 70),
        num_pois=max(900, num_actions // 30),
        num_actions=num_actions,
        num_requests=0,
        dirty_share=0.07,
        kept_dirt_share=0.03,
        bot_share=min(0.001, 10 / num_actions),
    )
    spark = SparkSettings(driver_memory="4g", shuffle_partitions=4 if rows > 50_000 else 1)
    clean = CleanSettings(max_actions_per_day=200)
    return Settings(city=city, clean=clean, spark=spark, storage=StorageSettings(root=root))


def measure(spark: SparkSession, settings: Settings) -> Conservation:
    """Runs a first night over the city's whole life and compares."""
    day = settings.city.first_day + timedelta(days=settings.city.num_days - 1)
    for name, step in (
        ("synthetic", source.deliver),
        ("poi_index", index_pois.index_pois),
        ("clean_actions", runner.clean_day),
    ):
        step(JobContext(name, day, settings, "conservation", False, argparse.Namespace()), spark)
    truth = source.plant_truth(spark, settings, day=day)
    tables = {
        name: read_table(spark, settings.storage.root, name)
        for name in ("raw_actions", "raw_pois", "quarantined_rows", "cleaned_actions", "poi_index")
    }
    payload = {
        name: F.get_json_object("payload", f"$.{name}") for name in ("action_id", "poi_id", "corrupt_record")
    }
    action_id = source.delivered_id(payload["action_id"], payload["corrupt_record"])
    rows_in, difference, planted, num_found, num_right = 0, 0, Counter[str](), 0, 0
    # On the first night every accepted POI has one slot.
    for raw, accepted, known, found_id in (
        ("raw_actions", "cleaned_actions", truth.actions, action_id),
        ("raw_pois", "poi_index", truth.pois, payload["poi_id"]),
    ):
        refused = (
            tables["quarantined_rows"]
            .where(F.col("source_table") == raw)
            .select(found_id.alias("id"), "reason")
        )
        compared = compare(known.toDF("id", "reason"), refused)
        delivered = tables[raw].count()
        rows_in += delivered
        num_dropped = sum(n for reason, n in compared["planted"].items() if SEVERITIES[reason] == "drop")
        difference += abs(delivered - tables[accepted].count() - compared["found"].total() - num_dropped)
        num_found += compared["found"].total()
        num_right += compared["right"].total()
        planted += Counter({r: n for r, n in compared["planted"].items() if SEVERITIES[r] == "refuse"})
        if raw == "raw_actions":
            planted_kept = Counter(
                {r: n for r, n in compared["planted"].items() if SEVERITIES[r] in ("repair", "flag")}
            )
    kept = (
        tables["cleaned_actions"].select(F.explode("repairs").alias("code")).groupBy("code").count().collect()
    )
    codes = Counter({row["code"]: row["count"] for row in kept})
    return Conservation(rows_in, difference, planted, num_found, num_right, codes, planted_kept)


def compare(planted: DataFrame, found: DataFrame) -> dict[str, Counter[str]]:
    """Compares two multisets of (id, reason); returns rows by reason: planted, found, in both."""
    sides = [
        frame.select(F.coalesce("id", F.lit("")).alias("id"), "reason", F.lit(n).alias("side"))
        for n, frame in enumerate((planted, found))
    ]
    counted = (
        sides[0]
        .unionByName(sides[1])
        .groupBy("id", "reason")
        .agg(F.count_if(F.col("side") == 0).alias("planted"), F.count_if(F.col("side") == 1).alias("found"))
        .groupBy("reason")
        .agg(
            F.sum("planted").alias("planted"),
            F.sum("found").alias("found"),
            F.sum(F.least("planted", "found")).alias("right"),
        )
        .collect()
    )
    return {
        name: Counter({row["reason"]: row[name] for row in counted if row[name]})
        for name in ("planted", "found", "right")
    }


def main() -> int:
    """Measures, records, and returns 0 if nothing is lost and every verdict is right."""
    parser = argparse.ArgumentParser(
        description="Records what the cleaning does to planted dirt in results/."
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        settings = settings_for(options.rows, root)
        spark = open_session(settings, "conservation")
        outcome = measure(spark, settings)
        spark.stop()
    kinds = len(outcome.planted)
    notes = (
        f"simulated city, {outcome.rows_in} rows in, {outcome.planted.total()} planted bad rows of {kinds} refused "
        f"kinds, {len(outcome.planted_kept)} kinds repaired or flagged; {outcome.num_found} rows in quarantine"
    )
    for name, value, unit, bar in (
        ("conservation-difference", outcome.difference, "rows", "== 0"),
        ("quarantine-recall", outcome.recall, "share of planted rows", "== 1"),
        ("quarantine-precision", outcome.precision, "share of quarantined rows", "== 1"),
    ):
        record(name, value, unit, bar, COMMAND, notes)
    off = {
        code: (n, outcome.kept[code])
        for code, n in sorted(outcome.planted_kept.items())
        if n != outcome.kept[code]
    }
    print(notes)
    print(f"difference {outcome.difference}, recall {outcome.recall}, precision {outcome.precision}")
    print(f"repaired or flagged, planted and found, where they differ: {off or 'nowhere'}")
    return 0 if (outcome.difference, outcome.recall, outcome.precision) == (0, 1.0, 1.0) else 1


if __name__ == "__main__":
    sys.exit(main())
