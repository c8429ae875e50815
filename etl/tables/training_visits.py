"""Table `training_visits`: how often each user was at each slot at each local hour, in the training period.

In: training actions (`etl/jobs/samples.py` keeps those before the validation days). Popularity by hour and users with a
similar past are sums over it (`models/copying/crowd_visits.py`), less the rows of whoever asks; so a row keeps its
user, and a user's own visits cannot leak into what the user is told of others. One aggregation. Run: python -m etl
training_others --day D.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.columns import spacetime


def build_training_visits(actions: DataFrame, *, index_version: int) -> DataFrame:
    """Builds the visits; rows of the contract without `day`.

    Args:
        actions: `cleaned_actions` of the training period in one index version, with `is_target`: may the action be a
            loss target.
        index_version: that version.
    """
    hour = spacetime.local_hour(F.col("action_ts_ms"), F.col("tz_offset_min")).alias("local_hour")
    visits = actions.where("is_target").groupBy("user_id", "block_id", "inner_id", hour)
    return visits.agg(
        F.count("*").alias("visits"), F.bool_or("is_simulated").alias("is_simulated")
    ).withColumn("index_version", F.lit(index_version))
