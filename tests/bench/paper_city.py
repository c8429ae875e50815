"""Writes the synthetic city of the paper's tables as a check-in folder (`checkins.parquet`, `pois.parquet`).

    python -m tests.bench.paper_city --out FOLDER

Settings: conf/paper_city.yaml. Everything in it is simulated. A folder that is complete is left as it is.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from pyspark.sql import functions as F

from conf.settings import CONF_DIR, load_settings
from etl.city.source import SyntheticCity
from etl.spark.session import open_session

SETTINGS = CONF_DIR / "paper_city.yaml"
CHECKINS, POIS = "checkins.parquet", "pois.parquet"


def write_city(out: Path) -> None:
    """Writes all actions and POIs of the city's life; as small as they are, the driver holds them."""
    settings = load_settings([SETTINGS])
    spark = open_session(settings, "paper city")
    last_day = settings.city.first_day + timedelta(days=settings.city.num_days - 1)
    tables = SyntheticCity().read(spark, settings, day=last_day)
    actions = tables["raw_actions"].select(
        "user_id",
        "poi_id",
        F.timestamp_millis("action_ts_ms").alias("utc_time"),
        F.coalesce("tz_offset_min", F.lit(0)).alias("tz_offset_min"),
    )
    # One row per POI, as known on the last day.
    pois = tables["raw_pois"].select(
        "poi_id", F.col("poi_lon").alias("longitude"), F.col("poi_lat").alias("latitude"), "category"
    )
    out.mkdir(parents=True, exist_ok=True)
    order = ["user_id", "utc_time", "poi_id"]
    checkins = actions.toPandas().sort_values(order, kind="stable")  # type: ignore[attr-defined]
    checkins["utc_time"] = checkins["utc_time"].dt.tz_localize("UTC")
    pois.toPandas().sort_values("poi_id").to_parquet(out / POIS, index=False)  # type: ignore[attr-defined]
    checkins.to_parquet(out / CHECKINS, index=False)


def main() -> int:
    """Writes the folder unless it is there."""
    parser = argparse.ArgumentParser(description="Writes the synthetic city of the paper's tables.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    if not (options.out / CHECKINS).is_file():
        write_city(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
