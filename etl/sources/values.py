"""Conversion of delivered values: one interpretation for each kind of column, for every reader and format.

A kind names the use of a column: `id`, `string`, `degrees`, `minutes` (an offset), `epoch` (a time that may be
epoch milliseconds) or `clock` (a time that is written out, or a timestamp). `convert` reads a column of any type
into a kind. A single invalid value becomes null, and the cleaning refuses its row alone. `etl/columns/judging.py`
reads numbers, ids and offsets, as in tables. This module adds times as files spell them, and the types that cannot
hold a kind.
"""

from collections.abc import Collection, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.columns import judging

SPARK_TYPES = {
    "id": "string",
    "string": "string",
    "degrees": "double",
    "minutes": "int",
    "epoch": "bigint",
    "clock": "bigint",
}
"""Type of the converted column, by kind; times are epoch milliseconds."""
EXPECTED = {
    "id": "string or whole number",
    "degrees": "double",
    "minutes": "int",
    "epoch": "epoch milliseconds, or a date with a clock",
    "clock": "timestamp",
}
"""What a column of a kind should be, for errors; others are called by their type."""
ISO = (
    r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?"
    r" ?(Z|UTC|GMT|[+-]\d{2}(:?\d{2})?)?$"
)
"""A date with a clock. Spark's own cast takes a clock alone for one of today, and a year for its first midnight."""
NOT_FINITE = r"^(?i)(nan|[+-]?inf(inity)?)$"
FLOAT_TOKEN = r"^-?\d+\.\d+(E-?\d+)?$"
"""How `from_json` hands over a number with a fraction, read as text."""
WHOLE_FLOAT = r"^\d+\.0+$"
NANOSECONDS_PER_MS = 1_000_000
LARGEST_EXACT = 2**53
"""Doubles tell whole numbers below this apart."""


def may_hold(kind: str, dtype: T.DataType) -> bool:
    """Tells whether a column of a type may hold values of a kind; no value of any other type converts."""
    if kind == "id":
        return judging.can_be_id(dtype)
    if isinstance(dtype, T.StringType | T.NullType):
        return True
    if kind == "string":
        return not isinstance(dtype, T.ArrayType | T.MapType | T.StructType)
    if kind in ("degrees", "minutes"):
        return isinstance(dtype, T.NumericType)
    is_time = isinstance(dtype, T.TimestampType | T.TimestampNTZType)
    return is_time or (kind == "epoch" and isinstance(dtype, T.NumericType))


def always_converts(kind: str, dtype: T.DataType) -> bool:
    """Tells whether every value of a type converts into a kind, so that the values need not be checked."""
    if isinstance(dtype, T.NullType) or kind == "string":
        return True
    if kind == "id":
        return isinstance(dtype, T.StringType | T.IntegralType)
    if kind == "degrees":
        return isinstance(dtype, T.NumericType)
    if kind == "minutes":
        return isinstance(dtype, T.ByteType | T.ShortType | T.IntegerType)
    return isinstance(dtype, T.TimestampType | T.TimestampNTZType | T.IntegralType)


def convert(column: Column, dtype: T.DataType, kind: str, *, is_nanoseconds: bool = False) -> Column:
    """Converts a column into a kind; invalid values become null.

    Args:
        column: the values as delivered.
        dtype: their type.
        kind: a key of `SPARK_TYPES`.
        is_nanoseconds: the file declares these whole numbers as epoch nanoseconds.
    """
    if kind == "id":
        return judging.id_text(column, dtype)
    if kind == "string":
        return column.cast("string")
    if kind == "degrees":
        return degrees(column, dtype)
    if kind == "minutes":
        return judging.minutes(column, dtype)
    if is_nanoseconds:
        # Integer arithmetic only: a double of this size would be off by hundreds of nanoseconds.
        return (
            (column - F.pmod(column, F.lit(NANOSECONDS_PER_MS))).cast("decimal(20,0)") / NANOSECONDS_PER_MS
        ).cast("bigint")
    if isinstance(dtype, T.TimestampType | T.TimestampNTZType):
        return F.unix_millis(column.cast("timestamp"))
    written_out = clock_ms(column) if isinstance(dtype, T.StringType) else F.lit(None).cast("bigint")
    return written_out if kind == "clock" else F.coalesce(judging.time_ms(column, dtype), written_out)


def record_json(rows: DataFrame, columns: Sequence[str], ids: Collection[str]) -> Column:
    """Returns rows as they were delivered, as JSON with nulls.

    Args:
        rows: the delivered rows, in the types of their file.
        columns: columns to keep, in order.
        ids: the columns that hold ids. A whole float among them is written digit by digit, not as 1.0126086E7, so
            that readers and erasures find it.
    """
    values = [
        (_id_as_text(F.col(f"`{name}`"), rows.schema[name].dataType) if name in ids else F.col(f"`{name}`"))
        .alias(name)
        for name in columns
    ]  # fmt: skip
    return F.to_json(F.struct(*values), {"ignoreNullFields": "false"})


def _id_as_text(column: Column, dtype: T.DataType) -> Column:
    if not isinstance(dtype, T.FloatType | T.DoubleType):
        return column
    is_whole = (column == F.floor(column)) & (F.abs(column) < LARGEST_EXACT)
    return F.when(is_whole, column.cast("decimal(16,0)").cast("string")).otherwise(column.cast("string"))


def degrees(column: Column, dtype: T.DataType) -> Column:
    """Returns a coordinate as double; words for NaN and infinity keep their meaning, for the rules to name them."""
    known = judging.degrees(column, dtype)
    if not isinstance(dtype, T.StringType):
        return known
    word = F.trim(column)
    return F.coalesce(known, F.when(word.rlike(NOT_FINITE), word).try_cast("double"))


def clock_ms(text: Column) -> Column:
    """Returns epoch milliseconds of `2012-04-03 18:00:09`, also with `T`, a fraction, a zone or an offset; else null.

    Without an offset the clock is UTC.
    """
    trimmed = judging.clean_id(text)
    return F.unix_millis(
        F.when(trimmed.rlike(ISO), F.replace(trimmed, F.lit(","), F.lit("."))).try_cast("timestamp")
    )


def untyped_id(text: Column) -> Column:
    """Returns an id of a text-only format (CSV): `470.0`, as written for integers with a gap, becomes 470."""
    trimmed = judging.clean_id(text)
    return F.when(trimmed.rlike(WHOLE_FLOAT), F.regexp_replace(trimmed, r"\.0+$", "")).otherwise(text)


def json_id(text: Column, record: Column, name: str) -> Column:
    """Returns an id of a JSON record: numbers with a fraction are read as numbers, text stays text.

    Args:
        text: the value from `from_json`, which does not tell whether it was in quotes.
        record: the record, which tells that.
        name: key of the value.
    """
    number = F.regexp_extract(record, rf'"{name}"\s*:\s*(-?\d+(\.\d+)?([eE][+-]?\d+)?)', 1).try_cast("double")
    is_number = text.rlike(FLOAT_TOKEN) & (text.try_cast("double") == number)
    return F.when(is_number, judging.id_text(number, T.DoubleType())).otherwise(text)
