"""The conditions that all delivered tables share: ids, times, places and time zones, each defined once.

In: columns. Out: columns. `id_text`, `time_ms`, `minutes` and `degrees` convert a value of any delivered type into the
type of our contracts. They return null for an invalid value and never fail. `clean_id` is the only way in which an id
is normalised, in every table. The conditions take columns and know no table. `conf/rules.py` and the module that
judges a table define which of them refuse a row, and under which code.
"""

from datetime import UTC, date, datetime

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

from conf.settings import CleanSettings
from etl.columns import spacetime
from etl.columns.refusal import BLANKS, is_not_finite, trimmed

WHOLE_UP_TO = {"double": 2.0**53, "float": 2.0**24}
"""From here on neighbouring whole numbers of the type are one value, so the digits of an id are no longer known."""
WHOLE_NUMBER = r"^[+-]?(\d{1,20}(\.0*)?|\d(\.\d{1,18})?[eE]\+?\d{1,2})$"
"""A text that is taken for a whole number; Spark's own cast takes more, for example `1.5` and ` 7d`."""
NUMBER = r"^[+-]?(\d{1,20}(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?$"

MAX_TZ_OFFSET_MIN = 840
"""Kiribati is 14 hours ahead of UTC, and nothing is farther from it."""
MAX_HOURS = 14
"""The same in hours. No zone is off UTC by 1 to 14 minutes, so such a number is in hours, at any place."""
MAX_TZ_DIFFERENCE_MIN = 300
"""Between the delivered zone and the nautical one. Whole China keeps Beijing's time: 3 h off in the west."""
LEAST_AHEAD_MIN, MOST_AHEAD_MIN = -90, 240
"""How far clocks are ahead of the sun, minutes. They are set ahead, by summer time or to keep a country together:
Spain's far west by 2.6 h in summer, China's by 3.2 h; behind it by an hour at most, in Norway's and China's east."""
MOST = 0.5
"""Share of a column's offsets that have to look wrong before the column does: it was made by one rule, right or wrong
for all rows, while single rows may be wrong for other reasons (a traveller's clock, damage)."""


def clean_id(column: Column) -> Column:
    """Returns an id without the blanks around it (`refusal.BLANKS`): how an id is normalised, in every table."""
    return trimmed(column)


def can_be_id(dtype: DataType) -> bool:
    """Tells whether a column of this type may hold ids: text, bytes, numbers; no dates, flags or nested values."""
    return isinstance(dtype, StringType | BinaryType | NumericType | NullType)


def id_text(column: Column, dtype: DataType) -> Column:
    """Returns an id as text, from a column of any type.

    Text stays as it is, integers become their digits. Floats become digits if they are whole and exact (pandas writes
    floats for a column of integers with a null); other floats are no ids.

    Args:
        column: the id as delivered.
        dtype: its type; all values of a type that holds no ids (`can_be_id`) are null.
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


def epoch_ms(day: date | Column) -> Column:
    """Returns the start of a UTC day in epoch milliseconds."""
    if isinstance(day, Column):
        return F.unix_date(day).cast("bigint") * spacetime.MS_PER_DAY
    return F.lit(int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)).cast("bigint")


def time_faults(time: Column, *, day: date | Column, settings: CleanSettings) -> dict[str, Column]:
    """Returns the faults that a time in epoch milliseconds can have, by code, in the order in which they are tried.

    Args:
        time: bigint, any value.
        day: the day of the delivery or of the question: no time can be after its end.
        settings: earliest day, and the time by which a clock may be ahead.
    """
    earliest = epoch_ms(settings.earliest_day)
    latest = epoch_ms(day) + spacetime.MS_PER_DAY + settings.max_future_min * 60_000
    return {
        "time_negative": time < 0,
        "time_zero": time == 0,
        "time_in_seconds": time.between(F.floor(earliest / 1000), F.floor(latest / 1000)),
        "time_in_microseconds": time.between(earliest * 1000, latest * 1000),
        "time_in_nanoseconds": time.between(earliest * 1_000_000, latest * 1_000_000),
        "time_in_future": time > latest,
        "time_too_early": time < earliest,
    }


def place_faults(lon: Column, lat: Column) -> dict[str, Column]:
    """Returns the faults of a place, by code; the row is then kept without the place."""
    is_given, is_broken = lon.isNotNull() & lat.isNotNull(), is_not_finite(lon, lat)
    return {
        "place_not_finite": is_broken,
        "place_incomplete": lon.isNull() != lat.isNull(),
        "place_out_of_range": is_given & ~is_broken & ~spacetime.is_on_earth(lon, lat),
        "place_zero": (lon == 0) & (lat == 0),
    }


def clean_place(lon: Column, lat: Column) -> tuple[Column, Column]:
    """Returns a place, or null if it is invalid: out of range, one coordinate missing, or the zeros of a default."""
    is_usable = spacetime.is_on_earth(lon, lat) & ~((lon == 0) & (lat == 0))
    return F.when(is_usable, lon), F.when(is_usable, lat)


def is_swapped_range(lon: Column, lat: Column) -> Column:
    """Tells whether a place is on earth only with longitude and latitude swapped."""
    return ~spacetime.is_on_earth(lon, lat) & spacetime.is_on_earth(lat, lon)


def is_time_zone(tz: Column) -> Column:
    """Tells whether a number can be an offset in minutes; null for null."""
    return tz.between(-MAX_TZ_OFFSET_MIN, MAX_TZ_OFFSET_MIN)


def is_zone_of_hours(tz: Column) -> Column:
    """Tells whether an offset must be in hours."""
    return tz.between(-MAX_HOURS, MAX_HOURS) & (tz != 0)


def has_wrong_sign(tz: Column, lon: Column) -> Column:
    """Tells whether no place at a longitude keeps such an offset, but places there keep its negative."""
    valid = F.when(is_time_zone(tz), tz)  # the smallest integer has no negative
    return ~_can_be_kept(valid, lon) & _can_be_kept(-valid, lon)


def is_zone_far(tz: Column, lon: Column) -> Column:
    """Tells whether an offset in minutes does not fit a longitude: hours off, hours for minutes, or a wrong sign."""
    valid = F.when(is_time_zone(tz), tz)
    apart = F.abs(valid - spacetime.tz_offset_from_longitude(lon))
    # Across the date line, two offsets that are a day apart show the same time of day.
    is_far = F.least(apart, F.lit(1440) - apart) > MAX_TZ_DIFFERENCE_MIN
    return is_zone_of_hours(valid) | F.coalesce(is_far, F.lit(False)) | has_wrong_sign(valid, lon)


def zone_warning(tz: Column, lon: Column) -> Column:
    """Aggregates a column of offsets to a warning in words; null if the column as a whole is right.

    Args:
        tz: offsets as delivered, minutes.
        lon: longitude for each offset: the POI's, or the user's if the POI's is unknown.
    """
    is_offset = is_time_zone(tz) & (tz != 0)
    num_offsets, num_hours = F.count_if(is_offset), F.count_if(is_zone_of_hours(tz))
    num_placed, num_wrong = F.count_if(is_offset & lon.isNotNull()), F.count_if(has_wrong_sign(tz, lon))
    return F.when(
        num_hours > MOST * num_offsets,
        F.format_string(
            "tz_offset_min looks like hours: %d of %d offsets other than 0 lie between -14 and 14, and no zone is off "
            "UTC by so few minutes; they are taken as minutes and flagged (tz_far_from_place)", num_hours, num_offsets
        ),
    ).when(
        num_wrong > MOST * num_placed,
        F.format_string(
            "tz_offset_min seems to have the wrong sign: %d of %d offsets fit their longitude only with the other one "
            "(it is what to add to UTC for local time); they are taken as they are", num_wrong, num_placed
        ),
    )  # fmt: skip


def _can_be_kept(tz: Column, lon: Column) -> Column:
    """Tells whether an offset is possible at a longitude, by how far its clock is ahead of the sun."""
    known = F.when(lon.between(-180.0, 180.0), lon)
    ahead = tz - F.floor(known * 4)  # the sun takes 4 minutes a degree
    turned = F.pmod(ahead + 720, F.lit(1440)) - 720  # the other side of the date line has another day
    return turned.between(LEAST_AHEAD_MIN, MOST_AHEAD_MIN)


def _integer(column: Column, dtype: DataType, kind: str) -> Column:
    if isinstance(dtype, DoubleType):  # too large to be exact, but its unit can still be recognised
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
    # NaN compares as larger than everything, so it is not whole.
    exact = F.when(F.abs(column) < WHOLE_UP_TO[dtype.simpleString()], column)
    return F.when(exact % 1 == 0, exact.cast("decimal(20,0)"))
