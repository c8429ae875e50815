"""Profile attributes of users: judges rows and hashes them to ids, as of now and after each day that changed them.

In: `raw_profiles`, as delivered. `judge_profiles` decides which rows count. `keep_accepted` keeps those with clean
values: one per attribute, user and day. Serving (`build_profile_ids`) and training (`profile_states`) take the value of
the latest day, and the largest of several on that day, in any order of the rows.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.rules import rules_of
from conf.settings import CleanSettings
from conf.tables import RAW_PROFILES
from conf.tokens import PROFILE_BUCKETS
from etl.columns.judging import clean_id
from etl.columns.refusal import (
    first_reason,
    found_codes,
    is_broken_text,
    is_empty,
    is_placeholder,
    is_too_long,
    with_detail,
)

PAYLOAD_COLUMNS = tuple(name for name in RAW_PROFILES.column_names if name != "day")
CONFLICTING = "profile_conflicting"


def judge_profiles(profiles: DataFrame, *, settings: CleanSettings) -> DataFrame:
    """Judges every delivered row; no row is lost or doubled.

    If an attribute of a user has several good values on one day, the largest stands; rows equal to it are dropped,
    other rows are refused.

    Args:
        profiles: `raw_profiles`, any days.
        settings: maximum length of a text.

    Returns:
        The raw columns plus `status` (accepted, refused, dropped), `reason`, `detail`, `repairs` and `clean_*`.
    """
    refusing = rules_of(RAW_PROFILES.name, "refuse")
    conditions = _refusals(settings)
    checked = profiles.withColumns({f"clean_{name}": clean_id(F.col(name)) for name in PAYLOAD_COLUMNS})
    is_trimmed = F.lit(False)
    for name in PAYLOAD_COLUMNS:
        is_trimmed |= F.coalesce(F.col(name) != F.col(f"clean_{name}"), F.lit(False))
    reasoned = checked.withColumns(
        {
            "reason": first_reason(tuple(rule for rule in refusing if rule.code in conditions), conditions),
            "repairs": found_codes({"profile_trimmed": is_trimmed}),
            "content_hash": F.xxhash64(*PAYLOAD_COLUMNS),
        }
    )
    is_good = F.col("reason").isNull()
    # Bad rows are spread by their content: a broken export without users would otherwise be one group.
    owner = F.when(is_good, F.col("clean_user_id")).otherwise(F.col("content_hash").cast("string"))
    same = Window.partitionBy("owner", "is_good", "clean_attribute", "day").orderBy(
        F.desc("clean_value"), "content_hash"
    )
    ranked = reasoned.withColumns({"owner": owner, "is_good": is_good}).withColumns(
        {"nth": F.row_number().over(same), "first_value": F.first("clean_value").over(same)}
    )
    is_again = F.col("is_good") & (F.col("nth") > 1)
    is_conflict = F.col("clean_value") != F.col("first_value")
    status = F.when(~F.col("is_good") | (is_again & is_conflict), "refused").when(is_again, "dropped")
    judged = ranked.withColumns(
        {
            "status": status.otherwise("accepted"),
            "reason": F.when(is_again & is_conflict, F.lit(CONFLICTING)).otherwise(F.col("reason")),
        }
    )
    return with_detail(judged.drop("owner", "is_good", "nth", "first_value", "content_hash"), refusing)


def keep_accepted(judged: DataFrame) -> DataFrame:
    """Keeps the accepted rows with clean values, in the columns of `raw_profiles`."""
    clean = (F.col(f"clean_{name}").alias(name) for name in PAYLOAD_COLUMNS)
    return judged.where("status = 'accepted'").select("day", *clean)


def build_profile_ids(profiles: DataFrame, *, by: tuple[str, ...] = ("user_id",)) -> DataFrame:
    """Hashes the latest value of every attribute of a user into `profile_ids`, sorted, from 1."""
    last = F.max(F.struct("day", "value")).alias("last")
    latest = profiles.groupBy(*by, "attribute").agg(last).select(*by, "attribute", "last.value")
    bucket = F.pmod(F.xxhash64(F.concat_ws("=", "attribute", "value")), F.lit(PROFILE_BUCKETS)) + 1
    return latest.groupBy(*by).agg(F.sort_array(F.collect_set(bucket.cast("int"))).alias("profile_ids"))


def profile_states(profiles: DataFrame) -> DataFrame:
    """Returns `profile_ids` of a user after each day that changed them: `user_id`, `day`, `profile_ids`.

    Args:
        profiles: `raw_profiles`; a repeated value is no change.
    """
    of_attribute = Window.partitionBy("user_id", "attribute").orderBy("day")
    last_of_day = profiles.groupBy("user_id", "attribute", "day").agg(F.max("value").alias("value"))
    # In a struct, so that null means that there is no earlier day, not that its value was null.
    before = F.lag(F.struct("value")).over(of_attribute)
    is_change = before.isNull() | ~before["value"].eqNullSafe(F.col("value"))
    changes = last_of_day.withColumn("is_change", is_change).where("is_change").drop("is_change")
    as_of = changes.select("user_id", F.col("day").alias("as_of")).distinct()
    known_rows = changes.join(as_of, "user_id").where("day <= as_of")
    return build_profile_ids(known_rows, by=("user_id", "as_of")).withColumnRenamed("as_of", "day")


def _refusals(settings: CleanSettings) -> dict[str, Column]:
    user, attribute, value = (F.col(f"clean_{name}") for name in PAYLOAD_COLUMNS)
    return {
        "profile_missing_user": is_empty(user) | is_placeholder(user),
        "profile_missing_attribute": is_empty(attribute) | is_placeholder(attribute),
        "profile_missing_value": is_empty(value),
        "profile_text_too_long": is_too_long(PAYLOAD_COLUMNS, settings.max_text_length),
        "profile_broken_text": is_broken_text(user, attribute, value),
    }
