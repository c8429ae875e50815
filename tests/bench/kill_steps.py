"""The process that the kill sweep kills: runs the ETL's jobs in order and tells of each when it begins and ends.

    python -m tests.bench.kill_steps --root FOLDER --plan night --start 3

Prints `ready` once the session is open, then `begin N` and `done N` per step. With `--pause` it waits for a line on
stdin after every step, so that who started it can look at the tables.
"""

import argparse
import sys
from datetime import date, timedelta

from pyspark.sql import SparkSession

from conf.cli import JobContext
from conf.settings import CitySettings, Settings, SparkSettings, StorageSettings
from etl.city import source
from etl.jobs import index_pois, recompute, replay, samples
from etl.spark.session import open_session

DAYS = [date(2026, 1, 12) + timedelta(days=number) for number in range(3)]
JOBS = {
    "synthetic": source.deliver,
    "poi_index": index_pois.index_pois,
    "clean_actions": recompute.clean_days,
    "action_sequences": recompute.sequence_days,
    "pretrain_samples": samples.sample_windows,
    "training_others": samples.count_others,
    "ranking_samples": samples.sample_requests,
    "preference_pairs": samples.sample_pairs,
    "replay": replay.replay_day,
}
NIGHT = ("synthetic", "poi_index", "clean_actions", "action_sequences")
SAMPLES = ("pretrain_samples", "training_others", "ranking_samples", "preference_pairs")
Plan = list[tuple[str, date]]
PLANS: dict[str, Plan] = {
    # Three nights; the last two are wrong (more dirt) and will be corrected.
    "base": [(job, day) for day in DAYS for job in NIGHT] + [(job, DAYS[2]) for job in SAMPLES],
    # The last night once more over a corrected delivery, then the night before, which brings the last one up.
    "night": [(job, DAYS[2]) for job in (*NIGHT, *SAMPLES)]
    + [(job, DAYS[1]) for job in ("synthetic", "clean_actions", "action_sequences", "replay")]
    + [(job, DAYS[2]) for job in SAMPLES],
}
DIRT = {"base": 0.1, "night": 0.02}


def settings_of(root: str, plan: str, day: date) -> Settings:
    """Returns the settings of a step: a tiny city, the same but for its dirt in both plans."""
    since = None if day == DAYS[0] else day - timedelta(days=1)
    city = CitySettings(
        num_users=40,
        num_pois=900,
        num_actions=4_000,
        num_requests=300,
        num_days=15,
        dirty_share=DIRT[plan],
    )
    spark = SparkSettings(driver_memory="1g", shuffle_partitions=1, quick_start=True)
    base = Settings(city=city, spark=spark, storage=StorageSettings(root=root))
    return base.model_copy(update={"source": base.source.model_copy(update={"since": since})})


def run_step(spark: SparkSession, root: str, plan: str, number: int) -> None:
    """Runs one step of a plan, as the command line does."""
    job, day = PLANS[plan][number]
    options = argparse.Namespace(as_of=None)
    JOBS[job](JobContext(job, day, settings_of(root, plan, day), "kills", False, options), spark)


def main() -> int:
    """Runs the steps of a plan from one on."""
    parser = argparse.ArgumentParser(description="Runs ETL jobs until it is killed.")
    parser.add_argument("--root", required=True)
    parser.add_argument("--plan", choices=tuple(PLANS), required=True)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--pause", action="store_true")
    options = parser.parse_args()
    spark = open_session(settings_of(options.root, options.plan, DAYS[0]), "kill steps")
    _tell("ready")
    for number in range(options.start, len(PLANS[options.plan])):
        _tell(f"begin {number}")
        run_step(spark, options.root, options.plan, number)
        _tell(f"done {number}")
        if options.pause:
            sys.stdin.readline()
    spark.stop()
    return 0


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
