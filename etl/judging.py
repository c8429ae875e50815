"""The conditions that all delivered tables share: ids, times, places and time zones, each said once.

In: columns. Out: columns. `id_text`, `time_ms`, `minutes` and `degrees` read a value of whatever type a file or table
holds into the type of our contracts, null where it is none, and never fail; `clean_id` is the one way in which an id
is normalised, in every table. The conditions take columns and know no table; which of them refuse a row, and under
which code, is said in `conf/rules.py` and by the module that judges the table.
"""

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BinaryType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegralType,
    NullType,
    NumericType,
    StringType,
    TimestampType,
)

from etl.refusal import BLANKS

WHOLE_UP_TO = {"double": 2.0**53, "float": 2.0**24}
"""From here on neighbouring whole numbers of the type are one value, so the digits of an id are no longer known."""
WHOLE_NUMBER = r"^[+-]?(\d{1,20}(\.0*)?|\d(\.\d{1,18})?[eE]\+?\d{1,2})$"
"""A text that is taken for a whole number; Spark's own cast takes more, for example `1.5` and ` 7d`."""
NUMBER = r"^[+-]?(\d{1,20}(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?$"


def clean_id(column: Column) -> Column:
    """Returns an id without the blanks around it (`refusal.BLANKS`): how an id is normalised, in every table."""
    return F.btrim(column, F.lit(BLANKS))


def can_be_id(dtype: DataType) -> bool:
    """Tells whether a column of this type may hold ids: text, bytes, numbers; no dates, flags or nested values."""
    return isinstance(dtype, StringType | BinaryType | NumericType | NullType)


def id_text(column: Column, dtype: DataType) -> Column:
    """Returns an id as text, whatever the type of its column.

    Text stays as it is, integers become their digits. Numbers with a fraction become digits if they are whole and
    exact, as when a null in a column of integers has made pandas write floats; else they are no ids.

    Args:
        column: the id as delivered.
        dtype: its type; of a type that holds no ids (`can_be_id`) everything is null.
    """
    if isinstance(dtype, StringType | NullType):
        return column.cast("string")
    if isinstance(dtype, BinaryType):  # how old writers of Parquet store text
        return F.make_valid_utf8(column.cast("string"))
    if isinstance(dtype, NumericType):
        return _whole(column, dtype).cast("string")
    return F.lit(None).cast("string")


def time_ms(column: Column, dtype: DataType) -> Column:
    """Returns a time in epoch milliseconds as bigint, null where it is no whole number.

    Args:
        column: the time as delivered: a whole number as integer, float, decimal or text, or a timestamp.
        dtype: its type. A timestamp without zone, a date or a nested value is null.
    """
    if isinstance(dtype, TimestampType):
        return F.unix_millis(column)
    return _integer(column, dtype, "bigint")


def minutes(column: Column, dtype: DataType) -> Column:
    """Returns an offset in minutes as int, null where it is no whole number."""
    return _integer(column, dtype, "int")


def degrees(column: Column, dtype: DataType) -> Column:
    """Returns a coordinate as double, null where it is no number; NaN and infinity stay what they are."""
    if isinstance(dtype, NumericType | NullType):
        return column.cast("double")
    if isinstance(dtype, StringType):
        text = F.btrim(column, F.lit(BLANKS))
        return F.when(text.rlike(NUMBER), text).try_cast("double")
    return F.lit(None).cast("double")


def _integer(column: Column, dtype: DataType, kind: str) -> Column:
    if isinstance(dtype, DoubleType):  # larger than exact, and yet a number whose unit can be told
        return F.when(F.abs(column) < float("inf"), F.when(column % 1 == 0, column)).try_cast(kind)
    if isinstance(dtype, NumericType):
        return _whole(column, dtype).try_cast(kind)
    if isinstance(dtype, StringType):
        text = F.btrim(column, F.lit(BLANKS))
        number = F.when(text.rlike(WHOLE_NUMBER), text).try_cast("decimal(38,18)")
        return F.when(number % 1 == 0, number).try_cast(kind)
    return F.lit(None).cast(kind)


def _whole(column: Column, dtype: DataType) -> Column:
    """Returns a number as a number without fraction, null where it has one or is too large to be exact."""
    if isinstance(dtype, IntegralType):
        return column
    if isinstance(dtype, DecimalType):
        return F.when(column % 1 == 0, column.try_cast("decimal(38,0)"))
    assert isinstance(dtype, FloatType | DoubleType)
    # NaN compares as larger than everything, so it is none.
    exact = F.when(F.abs(column) < WHOLE_UP_TO[dtype.simpleString()], column)
    return F.when(exact % 1 == 0, exact.cast("decimal(20,0)"))
