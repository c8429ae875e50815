"""Table `training_transitions`: how much each user went from one slot to another, in the training period.

In: training actions (`etl/jobs/samples.py` keeps those before the validation days). A transition leads from any action
to one that may be a loss target, one to three actions later, within hours (`conf/transitions.py`), and to another slot.
Rows keep their user, as in `training_visits`. One window by user, one aggregation. Run: python -m etl training_others
--day D.
"""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from conf.transitions import STEP_HOURS, STEP_WEIGHTS
from conf.units import MS_PER_HOUR

FIELDS = ("block_id", "inner_id", "action_ts_ms", "is_target", "is_simulated")


def build_training_transitions(actions: DataFrame, *, index_version: int) -> DataFrame:
    """Builds the transitions; rows of the contract without `day`.

    Args:
        actions: `cleaned_actions` of the training period in one index version, with `is_target`: whether the action
            may be a loss target.
        index_version: that version.
    """
    in_order = Window.partitionBy("user_id").orderBy("action_ts_ms", "action_id")
    steps = [
        F.struct(
            F.lead(F.struct(*FIELDS), step).over(in_order).alias("next"),
            F.lit(weight).alias("weight"),
            F.lit(int(hours * MS_PER_HOUR)).alias("longest_ms"),
        )
        for step, (weight, hours) in enumerate(zip(STEP_WEIGHTS, STEP_HOURS, strict=True), start=1)
    ]
    # The window needs a separate projection; an explode cannot contain one.
    ahead = actions.select("user_id", *FIELDS, F.array(*steps).alias("steps"))
    pairs = ahead.withColumn("step", F.explode("steps")).select("*", "step.*")
    is_other_slot = (F.col("block_id") != F.col("next.block_id")) | (
        F.col("inner_id") != F.col("next.inner_id")
    )
    in_time = F.col("next.action_ts_ms") - F.col("action_ts_ms") <= F.col("longest_ms")
    transitions = pairs.where(F.col("next.is_target") & is_other_slot & in_time)
    return (
        transitions.groupBy(
            "user_id",
            "block_id",
            "inner_id",
            F.col("next.block_id").alias("next_block_id"),
            F.col("next.inner_id").alias("next_inner_id"),
        )
        .agg(
            F.sum("weight").alias("weight"),
            F.bool_or(F.col("is_simulated") | F.col("next.is_simulated")).alias("is_simulated"),
        )
        .withColumn("index_version", F.lit(index_version))
    )
