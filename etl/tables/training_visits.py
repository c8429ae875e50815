"""Table `training_visits`: how often each user was at each slot at each local hour, in the training period.

In: training actions (`etl/jobs/samples.py` keeps those before the validation days). Popularity by hour and
co-visitation are sums over this table (`models/copying/crowd_visits.py`) without the rows of the user in question. So a
row keeps its user, and a user's visits cannot leak into that user's crowd features. One aggregation. Run: python -m etl
training_others --day D.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.columns import spacetime


def build_training_visits(actions: DataFrame, *, index_version: int) -> DataFrame:
    """Builds the visits; rows of the contract without `day`.

    Args:
        actions: `cleaned_actions` of the training period in one index version, with `is_target`: whether the action
            may be a loss target.
        index_version: that version.
    """
    hour = spacetime.local_hour(F.col("action_ts_ms"), F.col("tz_offset_min")).alias("local_hour")
    visits = actions.where("is_target").groupBy("user_id", "block_id", "inner_id", hour)
    return visits.agg(
        F.count("*").alias("visits"), F.bool_or("is_simulated").alias("is_simulated")
    ).withColumn("index_version", F.lit(index_version))
