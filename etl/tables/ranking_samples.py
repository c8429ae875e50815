"""Table `ranking_samples`: each request with the POIs it showed and the user's history strictly before it.

In: accepted rows of `raw_impressions` (`etl/columns/impression_rules.py`) and `cleaned_actions` up to the day,
`poi_index`, `user_places`, `raw_profiles`. Point in time: no action at or after the request's time is in its history,
and a candidate is used only if its slot was live on the day of the request. Run: python -m etl ranking_samples --day D.
"""

from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.settings import SampleSettings, SequenceSettings
from conf.tables import CANDIDATE_NAMES, HISTORY_NAMES, REQUEST_COLUMNS
from etl.columns import spacetime
from etl.columns.as_of import known_before
from etl.columns.poi_slots import is_live
from etl.tables.histories import (
    empty_if_null,
    gather_spans,
    number_actions,
    span_before,
    split_of,
    with_travel,
)

REQUEST_NAMES = tuple(column.name for column in REQUEST_COLUMNS)
SLOT_ARRAYS = {
    "candidate_poi_ids": "poi_id",
    "candidate_block_ids": "block_id",
    "candidate_inner_ids": "inner_id",
    "candidate_lons": "slot_lon",
    "candidate_lats": "slot_lat",
    "candidate_category_ids": "category_id",
    "candidate_positions": "position",
    "labels": "label",
}


def with_live_slot(impressions: DataFrame, index: DataFrame) -> DataFrame:
    """Adds the slot of each shown POI that was live on the day of the request; null columns where there was none."""
    slots = index.select(
        "poi_id", "block_id", "inner_id", "category_id", "valid_from", "valid_to",
        F.col("poi_lon").alias("slot_lon"), F.col("poi_lat").alias("slot_lat"),
    )  # fmt: skip
    asked_on = spacetime.event_date(F.col("request_ts_ms"))
    live = impressions.select("request_id", "poi_id", "request_ts_ms").join(slots, "poi_id")
    live = live.where(is_live(asked_on))
    slot_names = ("block_id", "inner_id", "category_id", "slot_lon", "slot_lat")
    return impressions.join(
        live.select("request_id", "poi_id", *slot_names), ["request_id", "poi_id"], "left"
    )


def build_ranking_samples(
    shown: DataFrame,
    actions: DataFrame,
    places: DataFrame,
    profiles: DataFrame,
    *,
    day: date,
    first_day: date,
    index_version: int,
    request_type_id: int,
    samples: SampleSettings,
    sequences: SequenceSettings,
) -> DataFrame:
    """Builds the samples.

    Args:
        shown: result of `with_live_slot`; rows without slot are left out.
        actions: `cleaned_actions` up to the day, in one index version.
        places: `user_places` up to the day.
        profiles: `profile_states` up to the day; a request gets the profile known before its day.
        day: the job's day; splits are counted back from it.
        first_day: day of the first run (`etl/columns/as_of.py`).
        index_version: version of the index that the ids belong to.
        request_type_id: action type that a request asks for.
        samples: lengths and splits.
        sequences: radius of travel.

    Returns:
        Rows of the contract without `day`.
    """
    asked_on = spacetime.event_date(F.col("request_ts_ms"))
    requests = _group_requests(shown.where("block_id IS NOT NULL")).withColumn("asked_on", asked_on)
    numbered = with_travel(
        number_actions(actions), places, travel_km=sequences.travel_km, first_day=first_day
    )
    spans = span_before(requests, numbered, max_actions=samples.ranking_history)
    histories = gather_spans(spans, numbered, stretch=samples.ranking_history)
    split = split_of(
        F.col("asked_on"),
        day=F.lit(day), val_days=samples.val_days, test_days=samples.test_days,
    )  # fmt: skip
    joined = requests.join(histories.withColumnRenamed("span_id", "request_id"), "request_id", "left").join(
        known_before(requests, profiles, on="asked_on", first_day=first_day), ["user_id", "asked_on"], "left"
    )
    return _with_last_place(joined).select(
        split.alias("split"),
        *REQUEST_NAMES,
        F.lit(index_version).alias("index_version"),
        F.lit(request_type_id).alias("action_type_id"),
        *CANDIDATE_NAMES,
        "labels",
        F.size(empty_if_null("timestamps_ms")).alias("seq_len"),
        F.coalesce("profile_ids", F.array().cast("array<int>")).alias("profile_ids"),
        *(empty_if_null(name) for name in HISTORY_NAMES),
        "is_simulated",
    )


def _with_last_place(requests: DataFrame) -> DataFrame:
    """Fills in a missing place and time zone from the last action, never from the target.

    Serving does the same (`udfs/features/requests.py`).
    """
    place = {
        f"user_{axis}": F.coalesce(f"user_{axis}", F.try_element_at(f"poi_{axis}s", F.lit(-1)).cast("double"))
        for axis in ("lon", "lat")
    }
    zone = F.coalesce(
        "tz_offset_min",
        F.try_element_at("tz_offsets_min", F.lit(-1)),
        spacetime.tz_offset_from_longitude(F.col("user_lon")),
        F.lit(0),
    )
    return requests.withColumns(place).withColumn("tz_offset_min", zone)


def _group_requests(shown: DataFrame) -> DataFrame:
    """Builds one row per request with its candidates in the order of their positions."""
    fields = [F.col(field).alias(name) for name, field in SLOT_ARRAYS.items()]
    grouped = shown.groupBy("request_id").agg(
        # Accepted rows of a request agree, or lack place and zone: min() leaves out nulls.
        *(F.min(name).alias(name) for name in REQUEST_NAMES if name != "request_id"),
        F.bool_or("is_simulated").alias("is_simulated"),
        F.sort_array(
            F.collect_list(F.struct("position", "poi_id", F.struct(*fields).alias("candidate")))
        ).alias("rows"),
    )
    arrays = [F.col(f"rows.candidate.{name}").alias(name) for name in SLOT_ARRAYS]
    return grouped.select(*REQUEST_NAMES, "is_simulated", *arrays)
