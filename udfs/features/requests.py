"""Judged requests of a day -> the columns that the model reads: action type and history strictly before the request.

Shared by `ranking_scores` and `poi_candidates`. Nothing later than a request enters its columns.
"""

from collections.abc import Sequence
from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.settings import CleanSettings
from conf.tables import ACTION_SEQUENCES, HISTORY_NAMES, PROFILE_IDS
from conf.tokens import ACTION_TYPES
from etl.columns.request_rules import judge_requests, keep_accepted
from etl.columns.spacetime import event_date, tz_offset_from_longitude

REQUEST_NAMES = ("request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon", "user_lat")
PAYLOAD_NAMES = (*REQUEST_NAMES, "action_type")


def judge_requests_of(ranking_requests: DataFrame, *, day: date, settings: CleanSettings) -> DataFrame:
    """Judges the requests of a day (`etl/columns/request_rules.py`)."""
    return judge_requests(ranking_requests.where(F.col("day") == F.lit(day)), day=day, settings=settings)


def prepare_requests(judged: DataFrame, *, action_type_id: int, more: Sequence[str] = ()) -> DataFrame:
    """Keeps the accepted requests and adds their action type and date.

    Args:
        judged: result of `judge_requests_of`.
        action_type_id: the model's action type, used for requests that name none.
        more: further columns to keep.

    Returns:
        The columns of `ranking_requests` but `day`, clean, plus `action_type_id` (null if unknown) and `request_date`
        (UTC).
    """
    action_type = F.col("action_type")
    type_id = F.when(action_type.isNull(), F.lit(action_type_id)).otherwise(type_id_of(action_type))
    return keep_accepted(judged, more=more).withColumns(
        {"action_type_id": type_id, "request_date": event_date(F.col("request_ts_ms"))}
    )


def type_id_of(action_type: Column) -> Column:
    """Returns the id of an action type; null if it is not known."""
    type_ids = F.create_map(*(F.lit(item) for pair in enumerate(ACTION_TYPES) for item in reversed(pair)))
    return type_ids[action_type]


def with_defaults(states: DataFrame) -> DataFrame:
    """Fills in a missing place and time zone of a request from its history, as in `ranking_samples`."""
    last = {name: F.get(name, F.size(name) - 1) for name in ("poi_lons", "poi_lats", "tz_offsets_min")}
    lon = F.coalesce("user_lon", last["poi_lons"].cast("double"))
    zone = F.coalesce("tz_offset_min", last["tz_offsets_min"], tz_offset_from_longitude(lon), F.lit(0))
    return states.withColumns(
        {
            "user_lon": lon,
            "user_lat": F.coalesce("user_lat", last["poi_lats"].cast("double")),
            "tz_offset_min": zone,
        }
    )


def with_history(requests: DataFrame, sequences: DataFrame, *, as_of: Column) -> DataFrame:
    """Adds each user's actions strictly before the request, as known at the end of a day.

    Args:
        requests: with `user_id`, `request_ts_ms` and `is_simulated`.
        sequences: `action_sequences`, any days; the latest row per user up to the day is used.
        as_of: the day of each request; the job's day for the daily requests.

    Returns:
        The rows of `requests` plus `profile_ids`, `seq_len` and the history arrays, empty for users without a
        history; a request is simulated if it or its history is.
    """
    dated = requests.withColumn("as_of", as_of)
    latest = latest_sequences(sequences, dated).withColumnRenamed("is_simulated", "is_history_simulated")
    joined = dated.join(latest.drop("day", "index_version"), ["user_id", "as_of"], "left").drop("as_of")
    num_before = F.size(F.filter("timestamps_ms", lambda timestamp_ms: timestamp_ms < F.col("request_ts_ms")))
    joined = joined.withColumn("seq_len", F.coalesce(num_before, F.lit(0)))
    arrays = {name: _or_empty(F.slice(name, F.lit(1), F.col("seq_len")), name) for name in HISTORY_NAMES}
    return (
        joined.withColumns(arrays)
        .withColumn("profile_ids", F.coalesce("profile_ids", F.array().cast(PROFILE_IDS.type)))
        .withColumn("is_simulated", F.col("is_simulated") | F.coalesce("is_history_simulated", F.lit(False)))
        .drop("is_history_simulated")
    )


def latest_sequences(sequences: DataFrame, requests: DataFrame) -> DataFrame:
    """Returns the latest row of each user up to each day `as_of` of the requests, with that day.

    The row's day is looked up on two narrow columns first; arrays are then read and shuffled for the used rows only.
    """
    user_days = requests.select("user_id", "as_of").distinct()
    state = (
        sequences.select("user_id", "day")
        .join(user_days, "user_id")
        .where("day <= as_of")
        .groupBy("user_id", "as_of")
        .agg(F.max("day").alias("day"))
    )
    columns = ("user_id", "day", "index_version", "profile_ids", *HISTORY_NAMES, "is_simulated")
    return sequences.select(*columns).join(state, ["user_id", "day"])


def _or_empty(array: Column, name: str) -> Column:
    return F.coalesce(array, F.array().cast(ACTION_SEQUENCES.column(name).type))
