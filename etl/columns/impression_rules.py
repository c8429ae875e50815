"""Faults of impressions: the conditions of `conf/rules.py` on `raw_impressions`.

In: impressions of many deliveries, one row per request and shown POI. Out: the judged rows (accepted, refused,
dropped) with clean values next to the delivered ones: rows in = accepted + refused + dropped. If several deliveries
hold a request, the last one counts.
"""

from functools import reduce

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from conf.rules import rules_of
from conf.settings import CleanSettings
from conf.tables import RAW_IMPRESSIONS
from etl.columns.judging import clean_id
from etl.columns.refusal import first_reason, found_codes, is_empty, is_placeholder, with_detail
from etl.columns.request_rules import request_refusals, request_repairs, with_clean_request

PAYLOAD_COLUMNS = tuple(name for name in RAW_IMPRESSIONS.column_names if name != "day")
IDS = ("request_id", "user_id", "poi_id")
OTHER_REQUEST, REPEATED = "impression_of_other_request", "impression_repeated"
EXACT, AGAIN = "impression_exact_duplicate", "impression_delivered_again"
WHOSE = ("clean_user_id", "request_ts_ms")
"""What all rows of a request say alike."""
WHERE = ("clean_user_lon", "clean_user_lat", "clean_tz_offset_min")
"""What all rows of a request say alike, unless they do not say it: a damaged place is unknown, not another one."""


def judge_impressions(impressions: DataFrame, *, settings: CleanSettings) -> DataFrame:
    """Judges every impression of every delivery; no row is lost or doubled.

    Within a delivery the first good row of a request in order (position, POI, content) sets its user, time and place;
    rows that disagree are refused. If good rows share request and POI, the first stands; rows equal to it are dropped,
    other rows are refused. Between deliveries the last one stands: rows of earlier ones are dropped if it holds the
    same POI, and refused if it gives the id to another request.

    Args:
        impressions: `raw_impressions`, any days.
        settings: bounds of accepted values; a time is in the future if it lies after the row's day of delivery.

    Returns:
        The raw columns plus `status`, `reason` (for dropped rows the rule that drops them), `detail`, `repairs`, and
        the columns of `keep_accepted` under `clean_*` names.
    """
    refusing = rules_of(RAW_IMPRESSIONS.name, "refuse")
    conditions = _refusals(settings)
    row_rules = tuple(rule for rule in refusing if rule.code in conditions)
    checked = (
        with_clean_request(impressions)
        .withColumn("clean_poi_id", clean_id(F.col("poi_id")))
        .withColumns(
            {
                "reason": first_reason(row_rules, conditions),
                "repairs": found_codes(request_repairs("impression", IDS)),
                "content_hash": F.xxhash64(*PAYLOAD_COLUMNS),
            }
        )
    )
    is_good = F.col("reason").isNull()
    # Bad rows are spread by their content: a broken export without ids would otherwise be one group.
    owner = F.when(is_good, F.col("clean_request_id")).otherwise(F.col("content_hash").cast("string"))
    # All later windows are partitioned by the owner and further columns, so this one shuffle serves them all.
    by_owner = checked.withColumns({"owner": owner, "is_good": is_good}).repartition("owner")
    judged = _between_deliveries(_within_delivery(by_owner))
    status = F.when(F.col("reason").isNull(), "accepted").when(F.col("reason").isin(EXACT, AGAIN), "dropped")
    return with_detail(judged.withColumn("status", status.otherwise("refused")), refusing).drop(
        "owner", "is_good", "content_hash"
    )


def keep_accepted(judged: DataFrame) -> DataFrame:
    """Keeps the accepted rows with clean values, in the columns of `raw_impressions` without `day`."""
    cleaned = {*IDS, "user_lon", "user_lat", "tz_offset_min"}
    return judged.where("status = 'accepted'").select(
        *(F.col(f"clean_{name}").alias(name) if name in cleaned else F.col(name) for name in PAYLOAD_COLUMNS)
    )


def _refusals(settings: CleanSettings) -> dict[str, Column]:
    poi, label = F.col("clean_poi_id"), F.col("label")
    return {
        **request_refusals("impression", day=F.col("day"), settings=settings, ids=IDS),
        "impression_missing_poi": is_empty(poi) | is_placeholder(poi),
        "impression_bad_position": F.coalesce(F.col("position") < 1, F.lit(True)),
        "impression_bad_label": ~F.coalesce(label.isin(0, 1), F.lit(False)),
    }


def _within_delivery(rows: DataFrame) -> DataFrame:
    """Gives a reason to good rows that disagree with their request's first row of the day, or repeat a POI."""
    first_of_request = Window.partitionBy("owner", "is_good", "day").orderBy(*_ORDER)
    headed = rows.withColumn("head", _head(first_of_request))
    consistent = _with_reason(headed, OTHER_REQUEST, ~_agrees("head"))
    same_poi = Window.partitionBy("owner", "is_good", "day", "clean_poi_id", "is_standing").orderBy(*_ORDER)
    ranked = consistent.withColumn("is_standing", F.col("reason").isNull()).withColumns(
        {"nth": F.row_number().over(same_poi), "first_hash": F.first("content_hash").over(same_poi)}
    )
    is_equal = F.col("content_hash") == F.col("first_hash")
    repeated = _with_reason(ranked, EXACT, (F.col("nth") > 1) & is_equal)
    return _with_reason(repeated, REPEATED, F.col("nth") > 1).drop("head", "nth", "first_hash", "is_standing")


def _between_deliveries(rows: DataFrame) -> DataFrame:
    """Gives a reason to rows whose request a later delivery has replaced, or has assigned to another user or time."""
    standing = rows.withColumn("is_standing", F.col("reason").isNull())
    newest_first = (F.desc("day"), *_ORDER)
    last_of_request = Window.partitionBy("owner", "is_standing").orderBy(*newest_first)
    headed = standing.withColumn("head", _head(last_of_request))
    consistent = _with_reason(headed, OTHER_REQUEST, ~_agrees("head"))
    same_poi = Window.partitionBy("owner", "is_standing", "clean_poi_id").orderBy(*newest_first)
    last = consistent.withColumn("is_standing", F.col("reason").isNull()).withColumn(
        "nth", F.row_number().over(same_poi)
    )
    return _with_reason(last, AGAIN, F.col("nth") > 1).drop("head", "nth", "is_standing")


def _with_reason(rows: DataFrame, code: str, condition: Column) -> DataFrame:
    """Gives a reason to rows that have none and meet a condition."""
    reason = F.when(F.col("reason").isNull() & condition, F.lit(code)).otherwise(F.col("reason"))
    return rows.withColumn("reason", reason)


def _head(in_order: WindowSpec) -> Column:
    """Returns the values of a request's first row; a missing value comes from the first row that has one."""
    # By default the frame of an ordered window ends at the current row, and misses values of later rows.
    whole = in_order.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    return F.struct(*(F.first(name, ignorenulls=True).over(whole).alias(name) for name in (*WHOSE, *WHERE)))


def _agrees(head: str) -> Column:
    """Tells whether a row does not contradict `head` on its request."""
    agreements = [F.col(name).eqNullSafe(F.col(f"{head}.{name}")) for name in WHOSE]
    agreements += [F.col(name).isNull() | (F.col(name) == F.col(f"{head}.{name}")) for name in WHERE]
    return reduce(Column.__and__, agreements)


_ORDER = ("position", "clean_poi_id", "label", "content_hash")
"""Total, but for equal rows."""
