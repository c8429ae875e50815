"""Rows that break a rule: the first matching reason, the offending value, and the quarantined row.

In: a delivered frame and one condition per rule of `conf/rules.py`. Out: the frame with `reason` (null =
fine) and `detail`, and rows in the shape of table `quarantined_rows`.
"""

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.rules import Rule

MAX_DETAIL = 200
"""Letters of an offending value that are shown; the payload holds all of it."""


def is_blank(text: Column) -> Column:
    """Tells whether a text is null or holds nothing but blanks."""
    return F.coalesce(F.trim(text), F.lit("")) == ""


def is_too_long(texts: Sequence[str], max_length: int) -> Column:
    """Tells whether one of the named columns is longer than `max_length` letters."""
    return F.greatest(*(F.coalesce(F.length(name), F.lit(0)) for name in texts)) > max_length


def with_reason(frame: DataFrame, rules: Sequence[Rule], conditions: Mapping[str, Column]) -> DataFrame:
    """Adds `reason` and `detail` of the first rule that a row breaks; null for a row that breaks none.

    Args:
        frame: delivered rows with whatever the conditions read.
        rules: in the order in which they are tried.
        conditions: by code; a null counts as not broken.
    """
    reason, detail = F.lit(None).cast("string"), F.lit(None).cast("string")
    for rule in reversed(rules):
        broken = conditions[rule.code]
        reason = F.when(broken, F.lit(rule.code)).otherwise(reason)
        detail = F.when(broken, describe_values(rule)).otherwise(detail)
    return frame.withColumns({"reason": reason, "detail": detail})


def describe_values(rule: Rule) -> Column:
    """Returns `column=value` for the columns of a rule, shortened."""
    parts = [
        F.concat(F.lit(f"{name}="), F.coalesce(F.col(name).cast("string"), F.lit("null")))
        for name in rule.columns
    ]
    return F.substring(F.concat_ws(", ", *parts), 1, MAX_DETAIL)


def to_quarantine(refused: DataFrame, *, source_table: str, payload_columns: Sequence[str]) -> DataFrame:
    """Turns refused rows into rows of `quarantined_rows` (without `day`), whole payload kept.

    Rows with equal payload are numbered, so that none is lost under the table's key.
    """
    payload = F.to_json(F.struct(*payload_columns), {"ignoreNullFields": "false"})
    rows = refused.select(
        F.lit(source_table).alias("source_table"), "reason", "detail", payload.alias("payload")
    ).withColumn("row_hash", F.sha2("payload", 256))
    same = Window.partitionBy("row_hash").orderBy("reason", "detail")
    return rows.withColumn("duplicate_no", F.row_number().over(same) - 1)
