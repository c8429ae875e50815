"""Table `pretrain_samples`: windows of consecutive actions in train, val and test, with context before them.

In: `cleaned_actions` up to the day, `user_places`, `raw_profiles`. Every action is in the window of exactly one sample
and in the context of the few after it. The split follows the UTC day of the action, so a history that the first run
delivered at once is used like one that grew day by day. A loss target is an action of interest inside the window
(paper 3.1; all actions if `samples.interest_only` is off). Monotonous users leave the training split (paper:
richness). Run: python -m etl pretrain_samples --day D.
"""

from datetime import date

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from conf.settings import SampleSettings, SequenceSettings
from conf.tables import HISTORY_NAMES
from etl.columns.as_of import known_before
from etl.tables.histories import gather_spans, number_actions, pattern_of, richness, split_of, with_travel


def build_pretrain_samples(
    actions: DataFrame,
    places: DataFrame,
    profiles: DataFrame,
    *,
    day: date,
    first_day: date,
    index_version: int,
    samples: SampleSettings,
    sequences: SequenceSettings,
) -> DataFrame:
    """Builds the samples, still including monotonous users and windows without target.

    Args:
        actions: `cleaned_actions` up to the day, in one index version.
        places: `user_places` up to the day.
        profiles: `profile_states` up to the day; a window gets the profile known before the day of its first target.
        day: the job's day; splits are counted back from it.
        first_day: day of the first run (`etl/columns/as_of.py`).
        index_version: version of the index that the ids belong to.
        samples: lengths, splits, threshold of richness.
        sequences: radius and share of travel.

    Returns:
        Rows of the contract without `day`, plus `is_kept` (false: the job counts and drops the row).
    """
    numbered = with_travel(
        number_actions(actions), places, travel_km=sequences.travel_km, first_day=first_day
    )
    dated = numbered.withColumn(
        "split",
        split_of(F.col("event_date"), day=F.lit(day), val_days=samples.val_days, test_days=samples.test_days),
    )
    spans = _cut_windows(dated, samples)
    gathered = gather_spans(spans.select("user_id", "span_id", "first_number", "last_number"), numbered,
                            stretch=samples.window_actions)  # fmt: skip
    is_target = F.zip_with(
        "numbers",
        "is_interests",
        lambda number, interest: (
            (number >= F.col("window_number")) & (interest | F.lit(not samples.interest_only))
        ),
    )
    in_window = F.slice("is_travels", F.col("num_context") + 1, F.size("is_travels"))
    built = (
        gathered.join(spans, "span_id")
        .join(_train_richness(dated), "user_id", "left")
        .join(
            known_before(spans, profiles, on="window_date", first_day=first_day), ["user_id", "window_date"]
        )
        .withColumn("num_context", F.col("window_number") - F.col("first_number"))
        .withColumns(
            {"is_targets": is_target, "pattern": pattern_of(in_window, mixed_share=sequences.mixed_share)}
        )
    )
    return _shape(built, index_version=index_version, min_richness=samples.min_richness)


def _shape(built: DataFrame, *, index_version: int, min_richness: float) -> DataFrame:
    """Selects the columns of the contract and adds which rows stay."""
    has_target = F.exists("is_targets", lambda flag: flag)
    is_rich = F.coalesce("richness", F.lit(0.0)) >= min_richness
    return built.select(
        "split",
        F.col("span_id").alias("sample_id"),
        "user_id",
        F.lit(index_version).alias("index_version"),
        "pattern",
        F.coalesce("richness", F.lit(0.0)).alias("richness"),
        F.size("numbers").alias("seq_len"),
        "num_context",
        "is_targets",
        F.coalesce("profile_ids", F.array().cast("array<int>")).alias("profile_ids"),
        *HISTORY_NAMES,
        "is_simulated",
        (has_target & (is_rich | (F.col("split") != "train"))).alias("is_kept"),
    )


def _cut_windows(dated: DataFrame, samples: SampleSettings) -> DataFrame:
    """Cuts each user's actions of a split into windows; a span is a window with its context in front."""
    in_split = Window.partitionBy("user_id", "split").orderBy("number")
    window = F.floor((F.row_number().over(in_split) - 1) / samples.window_actions).cast("int")
    windows = dated.withColumn("window", window).groupBy("user_id", "split", "window")
    cut = windows.agg(
        F.min("number").alias("window_number"),
        F.max("number").alias("last_number"),
        F.min("event_date").alias("window_date"),
        F.bool_or("is_simulated").alias("is_simulated"),
    )
    return cut.select(
        "user_id",
        "split",
        F.concat_ws("/", "user_id", "split", "window").alias("span_id"),
        F.greatest(F.col("window_number") - samples.context_actions, F.lit(1)).alias("first_number"),
        "window_number",
        "last_number",
        "window_date",
        "is_simulated",
    )


def _train_richness(dated: DataFrame) -> DataFrame:
    """Returns `user_id`, `richness` of the interest actions of the training split."""
    train = dated.where("split = 'train' AND is_interest")
    visits = train.groupBy("user_id", "poi_id").agg(F.count("*").alias("visits"))
    return visits.groupBy("user_id").agg(richness(F.col("visits")).alias("richness"))
