"""What the gates cost of a night: the audit's seconds beside those of all jobs, at the size of `make bench-night-cost`.

    python -m tests.bench.gate_time --actions 12000000

The city of `night_cost.py` and its nights, on which one user in a hundred acts, with a request of each such user. The
model has random weights of the real shape, since what it costs does not depend on what it has learnt; so the audit may
refuse a night, and is timed all the same. One warm session; a night is ETL, features, audit and publish.
"""

import argparse
import statistics
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext
from conf.errors import GateFailedError
from conf.results import record
from conf.settings import Settings, StorageSettings
from conf.tables import TABLES
from conf.tokens import TokenLayout
from etl.city import source as city_source
from etl.delta import storage
from etl.spark.session import open_session
from models.config import DecoderConfig
from tests.bench import night_cost, nights
from tests.bench.serving_city import random_decoder, write_bundle
from udfs.__main__ import JOBS

NUM_NIGHTS, BUILT_FILE = 2, "built"
SHAPE = DecoderConfig(hidden_dim=64, ffn_dim=192, num_layers=2, num_heads=4, num_kv_heads=2, embedding_dim=32)
"""That of the demo's recipe: a larger model makes the night longer, and the audit less so."""
Seconds = dict[str, float]


def settings_for(folder: Path, actions: int) -> Settings:
    """Returns the settings of the city, of which every active user asks once a night."""
    settings = night_cost.settings_for(str(folder / "warehouse"), actions)
    storage_settings = StorageSettings(root=str(folder / "warehouse"), artifacts=str(folder / "artifacts"))
    asked = round(night_cost.ACTIVE_SHARE * settings.city.num_users) * settings.city.num_days
    features = settings.features.model_copy(update={"model": str(folder / "model" / "bundle"), "top_k": 20})
    conf = {**settings.spark.conf, "spark.python.daemon.module": "udfs.worker_daemon"}
    return settings.model_copy(
        update={
            "storage": storage_settings,
            "features": features,
            "city": settings.city.model_copy(update={"num_requests": asked}),
            "spark": settings.spark.model_copy(update={"conf": conf}),
        }
    )


def deliver_requests(spark: SparkSession, settings: Settings, day: date) -> int:
    """Delivers what is asked and shown on a day; returns the number of requests."""
    since_eve = settings.source.model_copy(update={"since": day - timedelta(days=1)})
    city = city_source.SyntheticCity()
    shown = city.read(spark, settings.model_copy(update={"source": since_eve}), day=day)["raw_impressions"]
    requests = city.make_requests(shown, settings, day=day)
    for name, rows in (("raw_impressions", shown), ("ranking_requests", requests)):
        shaped = nights.shape(rows, name) if TABLES[name].raw else rows
        storage.replace_day(shaped, name, settings.storage.root, day=day, run_id="gates", job="gates")
    return (
        storage.read_table(spark, settings.storage.root, "ranking_requests")
        .where(F.col("day") == day)
        .count()
    )


def make_model(spark: SparkSession, settings: Settings, folder: Path) -> None:
    """Writes a bundle that fits the index."""
    rows = storage.read_table(spark, settings.storage.root, "poi_index").agg(
        F.max("block_id"), F.max("inner_id"), F.max("category_id"), F.count("*")
    )
    blocks, inner, categories, pois = rows.collect()[0]
    layout = TokenLayout(
        index_version=settings.index.version,
        num_blocks=blocks + 16,
        max_inner=inner + 64,
        num_categories=categories + 8,
    )
    write_bundle(folder, random_decoder(SHAPE, layout, num_pois=pois))


def run_features(settings: Settings, day: date, job: str) -> float:
    """Runs a job of `python -m udfs`; returns its seconds."""
    options = argparse.Namespace(model="", requests="", replace=True)
    context = JobContext(job, day, settings, f"gates-{job}-{day}", False, options)
    started = time.perf_counter()
    try:
        steps = JOBS[job].run(context).steps
        print(f"{day} {job}: {time.perf_counter() - started:.1f} s {steps}", file=sys.stderr, flush=True)
    except GateFailedError as error:
        print(f"{day} {job}: {time.perf_counter() - started:.1f} s, {error}", file=sys.stderr, flush=True)
    return time.perf_counter() - started


def run_night(spark: SparkSession, settings: Settings, day: date) -> tuple[Seconds, int, int]:
    """Runs a night; returns the seconds by job, actions and requests."""
    actions = night_cost.deliver(spark, settings, day, day - timedelta(days=1))
    requests = deliver_requests(spark, settings, day)
    seconds = night_cost.run_jobs(spark, settings, day)
    for job in ("features", "audit"):
        seconds[job] = run_features(settings, day, job)
    return seconds, actions, requests


def build(spark: SparkSession, settings: Settings, folder: Path, first: date) -> None:
    """Builds everything up to the first day, unless the folder has it."""
    if (folder / BUILT_FILE).exists():
        return
    night_cost.deliver(spark, settings, first, None)
    deliver_requests(spark, settings, first)
    night_cost.run_jobs(spark, settings, first)
    make_model(spark, settings, folder / "model")
    for job in ("features", "audit"):
        run_features(settings, first, job)
    (folder / BUILT_FILE).touch()


def measure(folder: Path, actions: int) -> tuple[float, str]:
    """Returns the share of the audit, and the notes."""
    settings = settings_for(folder, actions)
    spark = open_session(settings, "gate time")
    first = settings.city.first_day + timedelta(days=night_cost.HISTORY_DAYS - 1)
    build(spark, settings, folder, first)
    runs, sizes = [], []
    for number in range(NUM_NIGHTS):
        seconds, *size = run_night(spark, settings, first + timedelta(days=number + 1))
        print(seconds, size, file=sys.stderr, flush=True)
        runs.append(seconds)
        sizes.append(size)
    share = statistics.median(run["audit"] / sum(run.values()) for run in runs)
    jobs = "; ".join(f"{name} {', '.join(f'{run[name]:.1f}' for run in runs)} s" for name in runs[0])
    return share, (
        f"simulated city, {actions} actions of {settings.city.num_users} users; nights of (actions, requests) {sizes}: "
        f"{jobs}; recipe of the demo with random weights, CPU"
    )


def main() -> int:
    """Measures, records, and returns 0 if the bar is reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--actions", type=int, default=12_000_000)
    parser.add_argument("--work", type=Path, help="folder that keeps the city and its first day")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gate-time-") as folder:
        share, notes = measure(options.work or Path(folder), options.actions)
    result = record("gate-time-share", share, "", "<= 0.1", "make bench-gate-time", notes, options.results)
    print(f"gate-time-share {share:.3f}: {notes}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
