"""What the features of the demo give a ranking model, compared with the click model that drew the clicks.

    python -m tests.bench.demo_lift [--work .demo/synthetic] [--day D]

Run it after `make demo`. The lift is the one that the demo has measured and printed; the oracle ranks the same test
rows by the planted log-odds, without position and noise. Records `demo-lift-points`; it holds if the lift is at least
1.0 and the lower end of its interval is above 0.
"""

import argparse
import os
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from pyspark.sql import functions as F

from conf.files import read_json
from conf.results import record
from conf.settings import Settings, load_settings
from etl.city.geography import poi_id
from etl.city.shown import build_exposures, click_logit
from etl.city.users import build_users
from etl.spark.session import open_session
from models.config import Recipe
from models.data.arrays import Float64Array
from models.evaluation.metrics import auc
from models.lift.held_out import HeldOut
from models.lift.measure import cut_by_time
from models.lift.show import LIFT_FILE, best_set
from models.registry.held_out import find_lift_rows
from models.serving.bundle import load_bundle
from models.training.pipeline import open_training

BAR_POINTS = 1.0


def planted_logits(settings: Settings, held_out: HeldOut, day: date) -> Float64Array:
    """Returns the planted log-odds of every held-out row, (rows,)."""
    spark = open_session(settings, "oracle")
    users = build_users(spark, settings.city)
    since = datetime.fromtimestamp(int(held_out.timestamps_ms.min()) / 1000, UTC).date() - timedelta(days=2)
    shown = build_exposures(users, city=settings.city, after=since, until=day)
    logit = click_logit(city=settings.city, observable=True).alias("logit")
    rows = shown.select("request_id", poi_id(F.col("poi_no")).alias("poi_id"), logit).toArrow()
    spark.stop()
    known = {
        (request, poi): value
        for request, poi, value in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True)
    }
    samples = held_out.exposures.samples
    requests = samples["request_id"].to_pylist()
    pairs = [
        (request, poi)
        for request, pois in zip(requests, samples["candidate_poi_ids"].to_pylist(), strict=True)
        for poi in pois
    ]
    return np.array([known[pair] for pair in pairs])


def main() -> int:
    """Records the lift of the demo; returns 0 if it holds."""
    parser = argparse.ArgumentParser(description="The lift of make demo, compared with the oracle.")
    parser.add_argument("--work", type=Path, default=Path(".demo/synthetic"), help="folder of the demo")
    parser.add_argument("--day", default="2026-02-28", help="day of the training")
    options = parser.parse_args()
    os.environ.pop("SPACETIME_CONF", None)
    settings = load_settings([options.work / "settings.yaml"])
    training = open_training(settings, options.day, Recipe())
    figures = read_json(training.folder / LIFT_FILE, expected="the lift of a training")
    bundle = load_bundle(training.bundle_folder)
    held_out = find_lift_rows(training, bundle)
    if not figures.get("sets") or isinstance(held_out, str):
        sys.stderr.write(f"demo-lift-points is not recorded: {figures.get('missing') or held_out}\n")
        return 1
    cut = cut_by_time(held_out.timestamps_ms, held_out.exposures.requests)
    assert not isinstance(cut, str)
    oracle = auc(
        planted_logits(settings, held_out, date.fromisoformat(options.day))[cut.test],
        held_out.exposures.labels[cut.test],
    )
    best = best_set(figures)
    points = {name: 100 * value for name, value in figures["differences"][best]["auc"].items()}
    result = record(
        "demo-lift-points", round(points["value"], 2), "points of AUC", f">= {BAR_POINTS}", "make bench-demo",
        f"simulated; interval {points['low']:+.2f} to {points['high']:+.2f} by users; AUC "
        f"{figures['sets']['base']['auc']:.4f} of the base features, {figures['sets'][best]['auc']:.4f} with all, "
        f"{oracle:.4f} of the click model itself; "
        f"{figures['requests']['test']} test requests of {figures['users']} users",
    )  # fmt: skip
    is_sure = points["low"] > 0
    sys.stderr.write(
        f"{result.name}: {result.value} {result.notes} {'holds' if result.holds and is_sure else 'FALLS SHORT'}\n"
    )
    return 0 if result.holds and is_sure else 1


if __name__ == "__main__":
    sys.exit(main())
