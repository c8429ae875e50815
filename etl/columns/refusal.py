"""Rows that break a rule: the first matching reason, the offending value, and the quarantined row.

In: a delivered frame and one condition per rule of `conf/rules.py`. Out: the frame with `reason` (null =
no fault) and `detail`, and rows in the shape of table `quarantined_rows`. The conditions for invalid ids are
here too, as they are the same for all ids.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, Row, Window
from pyspark.sql import functions as F

from conf.rules import Rule

MAX_DETAIL = 200
"""Letters of an offending value that are shown; the payload holds all of it."""
BLANKS = " \t\r\n\u00a0\u200b\u3000\ufeff"
"""What is cut off around ids: blanks, line ends, and their invisible relatives beyond ASCII."""
PLACEHOLDERS = ("null", "(null)", "<null>", "\\n", "none", "nil", "nan", "undefined", "n/a", "#n/a")
"""Words for nothing, in small letters: what export tools write where an id is missing (`\\N` is Hive's)."""
BROKEN_TEXT = r"[\x00-\x1f\x7f-\x9f\ufffd]"
"""Control characters, and the mark that stands for what was no UTF-8; bytes that are none become it here."""


def trimmed(text: str | Column) -> Column:
    """Returns a text column without the blanks around it; null stays null."""
    return F.btrim(F.col(text) if isinstance(text, str) else text, F.lit(BLANKS))


def is_empty(text: Column) -> Column:
    """Tells whether a trimmed text is null or holds nothing."""
    return F.coalesce(text, F.lit("")) == ""


def is_placeholder(text: Column) -> Column:
    """Tells whether a trimmed text is a word for nothing; null for null."""
    return F.lower(text).isin(*PLACEHOLDERS)


def is_broken_text(*texts: Column) -> Column:
    """Tells whether one of the texts holds a control character or broken UTF-8: one search for all."""
    # Not concat: one null makes its result null, and a broken text next to the null would pass.
    return F.concat_ws("", *texts).rlike(BROKEN_TEXT)


def is_too_long(texts: Sequence[str], max_length: int) -> Column:
    """Tells whether one of the named columns is longer than `max_length` letters."""
    return F.greatest(*(F.coalesce(F.length(name), F.lit(0)) for name in texts)) > max_length


def is_not_finite(*numbers: Column) -> Column:
    """Tells whether one of the numbers is NaN or infinite; false for null."""
    broken = F.lit(False)
    for number in numbers:
        broken |= F.isnan(number) | F.coalesce(F.abs(number) == float("inf"), F.lit(False))
    return broken


def first_reason(rules: Sequence[Rule], conditions: Mapping[str, Column]) -> Column:
    """Returns the code of the first rule that a row breaks; null for a row that breaks none.

    Args:
        rules: in the order in which they are tried.
        conditions: by code; a null counts as not broken.
    """
    first, *others = rules
    reason = F.when(conditions[first.code], F.lit(first.code))
    for rule in others:
        reason = reason.when(conditions[rule.code], F.lit(rule.code))
    return reason


def found_codes(conditions: Mapping[str, Column]) -> Column:
    """Returns the codes of all conditions that hold, sorted; null counts as not holding."""
    return F.array_compact(F.array(*(F.when(held, F.lit(code)) for code, held in sorted(conditions.items()))))


def with_detail(frame: DataFrame, rules: Sequence[Rule]) -> DataFrame:
    """Adds `detail`, the shortened values that break the rule of the row's `reason`; null without a reason."""
    codes_by_columns: dict[tuple[str, ...], list[str]] = {}
    for rule in rules:
        codes_by_columns.setdefault(rule.columns, []).append(rule.code)
    detail = F.when(F.col("reason").isNull(), F.lit(None).cast("string"))
    for columns, codes in codes_by_columns.items():
        detail = detail.when(F.col("reason").isin(*codes), _describe_values(columns))
    return frame.withColumn("detail", detail)


def count_rows(judged: DataFrame) -> DataFrame:
    """Counts judged rows by `status`, `reason` and, of accepted ones, `repairs`: one pass, few rows."""
    repairs = F.when(F.col("status") == "accepted", F.col("repairs"))
    return judged.groupBy("status", "reason", repairs.alias("repairs")).count()


def tally(counted: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Sums the rows of `count_rows`: by `status`; `reasons` of refused and `repairs` of accepted rows."""
    statuses: Counter[str] = Counter(accepted=0, refused=0, dropped=0)
    reasons: Counter[str] = Counter()
    repairs: Counter[str] = Counter()
    for row in counted:
        statuses[row["status"]] += row["count"]
        if row["reason"]:
            reasons[row["reason"]] += row["count"]
        repairs.update(dict.fromkeys(row["repairs"] or (), row["count"]))
    by_number = [dict(sorted(c.items(), key=lambda item: (-item[1], item[0]))) for c in (reasons, repairs)]
    return {"statuses": dict(statuses), "reasons": by_number[0], "repairs": by_number[1]}


def to_quarantine(
    refused: DataFrame, *, source_table: str, payload_columns: Sequence[str], by_day: bool = False
) -> DataFrame:
    """Turns refused rows into rows of `quarantined_rows`, with the whole payload and no nulls.

    Rows with equal payload are numbered, so that none is lost under the table's key.

    Args:
        refused: rows with `reason` and `detail`.
        source_table: table of the delivery.
        payload_columns: delivered columns.
        by_day: keep the `day` of each row and number the rows of each day; else all rows belong to one day, and the
            column is left out.
    """
    payload = F.to_json(F.struct(*payload_columns), {"ignoreNullFields": "false"})
    days = ["day"] if by_day else []
    rows = refused.select(
        *days,
        F.lit(source_table).alias("source_table"),
        "reason",
        F.coalesce("detail", F.lit("null")).alias("detail"),
        F.coalesce(payload, F.lit("{}")).alias("payload"),
    ).withColumn("row_hash", F.sha2("payload", 256))
    same = Window.partitionBy(*days, "row_hash").orderBy("reason", "detail")
    return rows.withColumn("duplicate_no", F.row_number().over(same) - 1)


def _describe_values(columns: Sequence[str]) -> Column:
    """Returns `column=value` for some columns."""
    parts = [
        F.concat(F.lit(f"{name}="), F.coalesce(F.col(name).cast("string"), F.lit("null"))) for name in columns
    ]
    return F.substring(F.concat_ws(", ", *parts), 1, MAX_DETAIL)
