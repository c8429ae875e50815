"""How a delivered file may differ from what a reader expects: additions pass with a warning, breaks stop the delivery.

An unknown column is named in a warning. A missing required column, a struct in place of a number, or a column whose
values no longer convert stop the job before anything is written. A single value that does not convert is a dirty row,
which the cleaning refuses alone. A column is broken if most of its values do not convert, and its first rows show
that. So a delivery costs one more Spark action on at most `SAMPLE_ROWS` rows, and none if every column has a type that
always converts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.errors import SchemaError
from etl.sources import values as values
from etl.sources.files import FilePart, refuse_repeated

SAMPLE_ROWS = 1000
MAX_UNCONVERTED = 0.5
"""Share of the values of a column that may fail to convert; of a column that changed its type nearly all do."""


@dataclass(frozen=True)
class Probe:
    """One column of a file whose values may not convert.

    Attributes:
        name: its name in the file.
        expected: the required type.
        found: its type in the file.
        given: the value as delivered.
        converted: the converted value; null where it does not convert.
    """

    name: str
    expected: str
    found: str
    given: Column
    converted: Column


def match_columns(names: Sequence[str], table: str, wanted: Collection[str]) -> dict[str, str]:
    """Finds the wanted columns in a file, without regard to case.

    Returns:
        Wanted name -> name in the file, for the columns that the file has.

    Raises:
        SchemaError: two columns of the file differ in case only.
    """
    refuse_repeated(names, table)
    by_lower_name = {name.lower(): name for name in names}
    return {name: by_lower_name[name.lower()] for name in wanted if name.lower() in by_lower_name}


def require_names(names: Collection[str], table: str, required: Mapping[str, str], *, remedy: str) -> None:
    """Checks that the names are among those of a file, without regard to case.

    Raises:
        SchemaError: one is missing.
    """
    lower = {name.lower() for name in names}
    for name, wanted in required.items():
        if name.lower() not in lower:
            problem = f"no such column (columns there: {', '.join(names)})"
            raise SchemaError(table=table, column=name, expected=wanted, found=problem, remedy=remedy)


def require_kinds(
    part: FilePart,
    table: str,
    wanted: Mapping[str, str],
    *,
    remedy: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Checks that the columns, where present, hold values that convert.

    Args:
        part: files as opened.
        table: name of the file in errors.
        wanted: kind of every column (`etl/sources/values.py`).
        remedy: advice for a file that does not fit.
        names: names of the columns in the file, where they differ.

    Raises:
        SchemaError: a column has a type that cannot be converted, or most of its first values do not convert.
    """
    probes = []
    for column, kind in wanted.items():
        name = (names or {}).get(column, column)
        expected = values.EXPECTED.get(kind, kind)
        if name in part.unknown:
            raise SchemaError(
                table=table, column=name, expected=expected, found=part.unknown[name], remedy=remedy
            )
        if name not in part.frame.columns:
            continue
        dtype = part.frame.schema[name].dataType
        if name in part.nanoseconds and kind in ("clock", "epoch"):
            continue
        if not values.may_hold(kind, dtype):
            refuse_column(part.frame, table, name, expected, remedy=remedy)
        if not values.always_converts(kind, dtype):
            value = F.col(f"`{name}`")
            probes.append(
                Probe(name, expected, dtype.simpleString(), value, values.convert(value, dtype, kind))
            )
    refuse_unconverted(part.frame, table, probes, remedy=remedy)


def refuse_column(frame: DataFrame, table: str, name: str, expected: str, *, remedy: str) -> NoReturn:
    """Refuses a column none of whose values converts.

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
        SchemaError: names the column, both types and an example.
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
            problem = f"{probe.found}, where {broken} of the first {values} values do not convert"
            raise SchemaError(
                table=table,
                column=probe.name,
                expected=probe.expected,
                found=problem,
                example=_unwrap(row[f"example_{number}"]),
                remedy=remedy,
            )


def describe_additions(names: Collection[str], table: str, known: Collection[str]) -> list[str]:
    """Returns a warning that names the columns that nothing reads; empty if there are none."""
    lower = {name.lower() for name in known}
    return describe_unread(table, [name for name in names if name.lower() not in lower])


def describe_unread(table: str, names: Sequence[str]) -> list[str]:
    """Returns a warning that names columns, if there are any."""
    return [f"{table} has columns that are not read: {', '.join(names)}"] if names else []


def _unwrap(shown: str) -> str:
    return shown.removeprefix('{"value":').removesuffix("}")
