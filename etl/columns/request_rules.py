"""Faults of requests: the conditions of `conf/rules.py` on `ranking_requests`, and on requests from other places.

In: delivered requests. Out: the judged rows (accepted, refused, dropped) with clean values next to the delivered ones:
rows in = accepted + refused + exact duplicates dropped. The conditions on the columns of a request hold for the rows of
`raw_impressions` too (`etl/columns/impression_rules.py`); there a request has one row per POI that it showed.
"""

from collections.abc import Sequence
from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from conf.rules import rules_of
from conf.settings import CleanSettings
from conf.tables import RANKING_REQUESTS
from etl.columns.judging import (
    clean_id,
    clean_place,
    is_swapped_range,
    is_time_zone,
    is_zone_far,
    place_faults,
    time_faults,
)
from etl.columns.refusal import (
    first_reason,
    found_codes,
    is_broken_text,
    is_empty,
    is_placeholder,
    is_too_long,
    with_detail,
)

PAYLOAD_COLUMNS = tuple(name for name in RANKING_REQUESTS.column_names if name != "day")
REPEATED = "request_repeated"


def judge_requests(
    requests: DataFrame, *, day: date, settings: CleanSettings, content: Sequence[str] = PAYLOAD_COLUMNS
) -> DataFrame:
    """Judges every delivered request; no row is lost or doubled.

    If several good rows share an id, the first by time, user and content stands for it; rows equal to it are dropped,
    other rows are refused.

    Args:
        requests: columns of `ranking_requests`; further columns pass through.
        day: the job's day; requests of later days are refused.
        settings: bounds of accepted values.
        content: all delivered columns; rows that agree in them are equal.

    Returns:
        The given columns plus `status` (accepted, refused, dropped), `reason`, `detail`, `repairs`, and the columns
        of `keep_accepted` under `clean_*` names.
    """
    refusing = rules_of(RANKING_REQUESTS.name, "refuse")
    conditions = request_refusals("request", day=F.lit(day), settings=settings)
    row_rules = tuple(rule for rule in refusing if rule.code in conditions)
    candidates = clean_candidates(requests)
    spelling = F.col("action_type") != F.col("clean_action_type")
    checked = with_clean_request(requests).withColumns(
        {
            "clean_candidate_poi_ids": candidates,
            "clean_action_type": F.nullif(F.lower(clean_id(F.col("action_type"))), F.lit("")),
            "content_hash": F.xxhash64(*content),
        }
    )
    is_trimmed = F.coalesce(F.col("candidate_poi_ids") != F.col("clean_candidate_poi_ids"), F.lit(False))
    repairs = request_repairs("request")
    repairs["request_id_trimmed"] = F.coalesce(repairs["request_id_trimmed"], F.lit(False)) | is_trimmed
    judged = checked.withColumns(
        {
            "reason": first_reason(row_rules, conditions),
            "repairs": found_codes({**repairs, "request_action_type_spelling": spelling}),
        }
    )
    return with_detail(_with_repetition(judged), refusing)


def keep_accepted(judged: DataFrame, *, more: Sequence[str] = ()) -> DataFrame:
    """Keeps the accepted requests with clean values, in the columns of `ranking_requests` without `day`, and `more`.

    Place, time zone and action type are null where a request lacks them or has them wrong. Candidates may still
    include invalid ids (`is_no_id`); the array itself is never null.
    """
    clean = {name: F.col(f"clean_{name}").alias(name) for name in _CLEANED}
    return judged.where("status = 'accepted'").select(
        *(clean.get(name, F.col(name)) for name in PAYLOAD_COLUMNS), *more
    )


def with_clean_request(rows: DataFrame) -> DataFrame:
    """Adds the clean values of a request under `clean_*` names; null where a value is unusable.

    A placeholder word such as `nan` is not an id if more than one user or time has one: it then stands for many
    requests. A single request may well be called `nan`.
    """
    request_id = clean_id(F.col("request_id"))
    lon, lat = clean_place(F.col("user_lon"), F.col("user_lat"))
    tz = F.col("tz_offset_min")
    of_words = rows.where(is_placeholder(request_id))
    is_shared = F.count_distinct(F.struct(clean_id(F.col("user_id")), "request_ts_ms")) > 1
    # An aggregate without keys has one row even for empty input, so the cross join below loses no request.
    shared = F.broadcast(of_words.agg(is_shared.alias("is_word_shared")))
    is_id = ~is_empty(request_id) & ~(is_placeholder(request_id) & F.col("is_word_shared"))
    return (
        rows.crossJoin(shared)
        .withColumns(
            {
                "clean_request_id": F.when(is_id, request_id),
                "clean_user_id": clean_id(F.col("user_id")),
                "clean_user_lon": lon,
                "clean_user_lat": lat,
                "clean_tz_offset_min": F.when(is_time_zone(tz), tz),
            }
        )
        .drop("is_word_shared")
    )


def clean_candidates(requests: DataFrame) -> Column:
    """Returns the candidates of requests as ids without blanks around them; an empty array where there are none."""
    candidates, dtype = F.col("candidate_poi_ids"), requests.schema["candidate_poi_ids"].dataType
    if isinstance(dtype, ArrayType) and not dtype.containsNull:
        # A table of an earlier contract declares that no element is null, and Spark would rely on that.
        candidates = F.from_json(F.to_json(candidates), "array<string>")
    return F.coalesce(F.transform(candidates, clean_id), F.array().cast("array<string>"))


def request_refusals(
    prefix: str, *, day: Column, settings: CleanSettings, ids: Sequence[str] = ("request_id", "user_id")
) -> dict[str, Column]:
    """Returns the refusing conditions on a request, by code; they read the columns of `with_clean_request`.

    Args:
        prefix: prefix of the codes.
        day: day of the delivery.
        settings: bounds of accepted values.
        ids: columns that hold ids.
    """
    user, time = F.col("clean_user_id"), F.col("request_ts_ms")
    conditions = {
        "missing_id": F.col("clean_request_id").isNull(),
        "missing_user": is_empty(user),
        "missing_time": time.isNull(),
        "text_too_long": is_too_long(ids, settings.max_text_length),
        "placeholder_user": is_placeholder(user),
        "broken_text": is_broken_text(*(clean_id(F.col(name)) for name in ids)),
        **time_faults(time, day=day, settings=settings),
        "place_swapped": is_swapped_range(F.col("user_lon"), F.col("user_lat")),
    }
    return {f"{prefix}_{code}": condition for code, condition in conditions.items()}


def request_repairs(prefix: str, ids: Sequence[str] = ("request_id", "user_id")) -> dict[str, Column]:
    """Returns the conditions under which a request is kept with a value repaired or flagged, by code."""
    tz, is_trimmed = F.col("tz_offset_min"), F.lit(False)
    for name in ids:
        is_trimmed |= F.coalesce(F.col(name) != F.col(f"clean_{name}"), F.lit(False))
    conditions = {
        "id_trimmed": is_trimmed,
        **place_faults(F.col("user_lon"), F.col("user_lat")),
        "tz_out_of_range": ~is_time_zone(tz),
        "tz_far_from_place": is_zone_far(tz, F.col("clean_user_lon")),
    }
    return {f"{prefix}_{code}": condition for code, condition in conditions.items()}


def is_no_id(text: Column, *, max_length: int) -> Column:
    """Tells whether a trimmed text cannot be the id of a POI; never null."""
    is_bad = is_empty(text) | is_placeholder(text) | is_broken_text(text) | (F.length(text) > max_length)
    return F.coalesce(is_bad, F.lit(True))


def _with_repetition(judged: DataFrame) -> DataFrame:
    """Adds `status`, and the reason of good rows whose id stands for another request.

    Bad rows are spread by their content: a broken export without ids would otherwise be one group.
    """
    is_good = F.col("reason").isNull()
    owner = F.when(is_good, F.col("clean_request_id")).otherwise(F.col("content_hash").cast("string"))
    same_id = Window.partitionBy("owner", "is_good").orderBy("request_ts_ms", "clean_user_id", "content_hash")
    ranked = judged.withColumns({"owner": owner, "is_good": is_good}).withColumns(
        {"nth": F.row_number().over(same_id), "before": F.lag("content_hash").over(same_id)}
    )
    is_repeat = F.coalesce(F.col("before") == F.col("content_hash"), F.lit(False))
    status = F.when(~F.col("is_good"), "refused").when(is_repeat, "dropped")
    status = status.when(F.col("nth") > 1, "refused").otherwise("accepted")
    return (
        ranked.withColumn("status", status)
        .withColumn(
            "reason",
            F.when(F.col("is_good") & (F.col("status") == "refused"), F.lit(REPEATED)).otherwise(
                F.col("reason")
            ),
        )
        .drop("owner", "is_good", "nth", "before", "content_hash")
    )


_CLEANED = (
    "request_id",
    "user_id",
    "tz_offset_min",
    "user_lon",
    "user_lat",
    "action_type",
    "candidate_poi_ids",
)
