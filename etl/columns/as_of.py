"""As-of features: the one way in which a sample gets what was known of its user (actions: `etl/tables/histories.py`).

A feature row of a day is made at the end of that day, so it is known from the next day on. The first run delivers the
whole past at once; its rows count as known before. Otherwise no sample of the history would have a home or a profile,
and a model would meet them at serving for the first time.
"""

from datetime import date

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

ALWAYS = date(1970, 1, 1)


def known_before(wanted: DataFrame, features: DataFrame, *, on: str, first_day: date) -> DataFrame:
    """Finds the last feature row of the user that was known before a day began.

    Args:
        wanted: `user_id` and the day `on`; pairs may repeat.
        features: `user_id`, `day` (unique together) and the features.
        on: name of the column of `wanted`, a date.
        first_day: day of the first run; its rows and earlier ones count as always known.

    Returns:
        `user_id`, `on` and the features, one row per distinct pair; null where nothing was known.
    """
    names = [name for name in features.columns if name not in ("user_id", "day")]
    known_from = F.when(F.col("day") <= F.lit(first_day), F.lit(ALWAYS)).otherwise(F.date_add("day", 1))
    feature_events = features.select(
        "user_id", known_from.alias("at"), F.lit(0).alias("kind"), "day", F.struct(*names).alias("known")
    )
    request_events = wanted.select("user_id", F.col(on).alias("at"), F.lit(1).alias("kind")).distinct()
    # On one day feature rows sort before requests.
    in_order = Window.partitionBy("user_id").orderBy("at", "kind", "day")
    # A struct is not null even if all its fields are, so a feature that has become null stays null. Column by column,
    # `ignorenulls` would bring an older value back.
    last = F.last("known", ignorenulls=True).over(in_order.rowsBetween(Window.unboundedPreceding, 0))
    events = feature_events.unionByName(request_events, allowMissingColumns=True)
    events = events.withColumn("known", last).where("kind = 1")
    return events.select(
        "user_id", F.col("at").alias(on), *(F.col(f"known.{name}").alias(name) for name in names)
    )
