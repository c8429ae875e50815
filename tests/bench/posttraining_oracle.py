"""Writes what the click model knows: the log-odds of every exposure, without position and noise, and who likes what.

python -m tests.bench.posttraining_oracle FOLDER SINCE UNTIL
"""

import sys
from datetime import date
from pathlib import Path

from pyspark.sql import functions as F

from conf.settings import load_settings
from etl.city.geography import ATTRIBUTES, look_up, poi_id
from etl.city.shown import build_exposures, click_logit
from etl.city.users import build_users
from etl.spark.session import open_session


def main() -> int:
    """Writes `oracle.parquet` (request_id, poi_id, position, logit) and `likings.parquet` (user_id, likes)."""
    folder, since, until = Path(sys.argv[1]), *map(date.fromisoformat, sys.argv[2:4])
    settings = load_settings([folder / "settings.yaml"])
    spark = open_session(settings, "oracle")
    users = build_users(spark, settings.city)
    shown = build_exposures(users, city=settings.city, after=since, until=until)
    logit = click_logit(city=settings.city, observable=True).alias("logit")
    rows = shown.select("request_id", poi_id(F.col("poi_no")).alias("poi_id"), "position", logit)
    rows.write.mode("overwrite").parquet(str(folder / "oracle.parquet"))
    likings = users.select("user_id", look_up(ATTRIBUTES, F.col("likes_no")).alias("likes"))
    likings.write.mode("overwrite").parquet(str(folder / "likings.parquet"))
    spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
