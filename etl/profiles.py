"""Profile attributes of users as hashed ids: as of now, and after each day that changed them."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from conf.tokens import PROFILE_BUCKETS


def build_profile_ids(profiles: DataFrame, *, by: tuple[str, ...] = ("user_id",)) -> DataFrame:
    """Hashes the latest value of every attribute of a user into `profile_ids`, sorted, from 1."""
    latest = profiles.groupBy(*by, "attribute").agg(F.max_by("value", "day").alias("value"))
    bucket = F.pmod(F.xxhash64(F.concat_ws("=", "attribute", "value")), F.lit(PROFILE_BUCKETS)) + 1
    return latest.groupBy(*by).agg(F.sort_array(F.collect_set(bucket.cast("int"))).alias("profile_ids"))


def profile_states(profiles: DataFrame) -> DataFrame:
    """Returns `profile_ids` of a user after each day that changed them: `user_id`, `day`, `profile_ids`.

    Args:
        profiles: `raw_profiles`; a value told again is no change.
    """
    of_attribute = Window.partitionBy("user_id", "attribute").orderBy("day")
    last_of_day = profiles.groupBy("user_id", "attribute", "day").agg(F.max("value").alias("value"))
    before = F.lag(F.struct("value")).over(of_attribute)
    is_change = before.isNull() | ~before["value"].eqNullSafe(F.col("value"))
    changes = last_of_day.withColumn("is_change", is_change).where("is_change").drop("is_change")
    as_of = changes.select("user_id", F.col("day").alias("as_of")).distinct()
    told = changes.join(as_of, "user_id").where("day <= as_of")
    return build_profile_ids(told, by=("user_id", "as_of")).withColumnRenamed("as_of", "day")
