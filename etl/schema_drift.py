"""How a delivered file may differ from what a reader expects: additions pass with a warning, breaks stop the delivery.

A column that nobody asked for is named in a warning. A required column that is missing, a struct where a number was, or
a column whose values no longer convert stop the job before anything is written. One value that does not convert is no
drift but a dirty row, and the cleaning refuses it alone: a column is broken if most of its values are, and that shows
in its first rows. So a delivery costs one more Spark action on at most `SAMPLE_ROWS` rows, and none at all if every
column has a type that always converts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from conf.errors import SchemaError

SAMPLE_ROWS = 1000
MAX_UNCONVERTED = 0.5
"""Share of the values of a column that may fail to convert; of a column that changed its type nearly all do."""
NESTED = (T.ArrayType, T.MapType, T.StructType)
SAFE: dict[str, tuple[type[T.DataType], ...]] = {
    "string": (T.DataType,),
    "int": (T.ByteType, T.ShortType, T.IntegerType),
    "bigint": (T.ByteType, T.ShortType, T.IntegerType, T.LongType),
    "double": (T.NumericType,),
    "timestamp": (T.TimestampType, T.TimestampNTZType, T.DateType),
}
"""Types of which every value converts, by the type that is wanted."""


@dataclass(frozen=True)
class Probe:
    """One column of a file whose values may not convert.

    Attributes:
        name: its name in the file.
        expected: the type that is wanted.
        found: the type that it has there.
        given: the value as delivered.
        converted: the value as wanted; null where it does not convert.
    """

    name: str
    expected: str
    found: str
    given: Column
    converted: Column


def require_columns(frame: DataFrame, table: str, required: Mapping[str, str], *, remedy: str) -> None:
    """Checks that the columns are there.

    Raises:
        SchemaError: one is missing.
    """
    require_names(frame.columns, table, required, remedy=remedy)


def require_names(names: Collection[str], table: str, required: Mapping[str, str], *, remedy: str) -> None:
    """Checks that the names are among those of a file; raises as `require_columns`."""
    for name, wanted in required.items():
        if name not in names:
            found = f"no such column (columns there: {', '.join(names)})"
            raise SchemaError(table=table, column=name, expected=wanted, found=found, remedy=remedy)


def require_types(frame: DataFrame, table: str, wanted: Mapping[str, str], *, remedy: str) -> None:
    """Checks that the columns, where they are there, hold values of a type that converts.

    Raises:
        SchemaError: a column holds structs, arrays or maps, or most of its first values do not convert.
    """
    probes = []
    for field in frame.schema.fields:
        expected, kind = wanted.get(field.name), field.dataType
        if expected is None or always_converts(kind, expected):
            continue
        if not may_convert(kind, expected):
            refuse_column(frame, table, field.name, expected, remedy=remedy)
        given = F.col(f"`{field.name}`")
        probes.append(Probe(field.name, expected, kind.simpleString(), given, given.try_cast(expected)))
    refuse_unconverted(frame, table, probes, remedy=remedy)


def refuse_column(frame: DataFrame, table: str, name: str, expected: str, *, remedy: str) -> NoReturn:
    """Refuses a column of which no value converts.

    Raises:
        SchemaError: always, with the first value of the column as an example.
    """
    value = F.col(f"`{name}`")
    row = frame.where(value.isNotNull()).select(F.to_json(F.struct(value.alias("value"))).alias("v")).first()
    raise SchemaError(
        table=table,
        column=name,
        expected=expected,
        found=frame.schema[name].dataType.simpleString(),
        example="" if row is None else _unwrap(row["v"]),
        remedy=remedy,
    )


def refuse_unconverted(frame: DataFrame, table: str, probes: Sequence[Probe], *, remedy: str) -> None:
    """Converts the first rows of a file, and stops if most values of a column do not convert.

    Raises:
        SchemaError: it names the column, both types and an example.
    """
    if not probes:
        return
    figures = []
    for number, probe in enumerate(probes):
        is_broken = probe.given.isNotNull() & probe.converted.isNull()
        shown = F.to_json(F.struct(probe.given.alias("value")))
        figures += [
            F.count(probe.given).alias(f"values_{number}"),
            F.count_if(is_broken).alias(f"broken_{number}"),
            F.min(F.when(is_broken, shown)).alias(f"example_{number}"),
        ]
    row = frame.limit(SAMPLE_ROWS).agg(*figures).first()
    assert row is not None, "an aggregation without keys has one row"
    for number, probe in enumerate(probes):
        values, broken = row[f"values_{number}"], row[f"broken_{number}"]
        if broken > MAX_UNCONVERTED * values:
            found = f"{probe.found}, where {broken} of the first {values} values do not convert"
            raise SchemaError(
                table=table,
                column=probe.name,
                expected=probe.expected,
                found=found,
                example=_unwrap(row[f"example_{number}"]),
                remedy=remedy,
            )


def describe_additions(frame: DataFrame, table: str, known: Collection[str]) -> list[str]:
    """Returns a warning that names the columns which no one reads; none if there are none."""
    return describe_unread(table, [name for name in frame.columns if name not in known])


def describe_unread(table: str, names: Sequence[str]) -> list[str]:
    """Returns a warning that names columns, if there are any."""
    return [f"{table} has columns that are not read: {', '.join(names)}"] if names else []


def always_converts(kind: T.DataType, wanted: str) -> bool:
    """Tells whether every value of a type converts into the wanted one."""
    if isinstance(kind, NESTED):
        return False
    return kind.simpleString() == wanted or isinstance(kind, SAFE.get(wanted, ()))


def may_convert(kind: T.DataType, wanted: str) -> bool:
    """Tells whether values of a type may convert: text may hold anything; a number is no time, its unit is a guess."""
    return isinstance(kind, T.StringType) or (isinstance(kind, T.NumericType) and wanted != "timestamp")


def _unwrap(shown: str) -> str:
    return shown.removeprefix('{"value":').removesuffix("}")
