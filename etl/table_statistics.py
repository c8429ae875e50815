"""The figures that the gates judge: one aggregation per table, one Spark action for all tables of an audit.

In: the rows of one day of every table. Out: one row per figure (`FIGURE_SCHEMA`), in the columns of `table_statistics`
with an example of what was counted. Every figure that needs no shuffle is an aggregate of one scan; repeated keys and
changed ids read their own few columns, since carrying whole rows through a shuffle costs more than reading keys twice.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import reduce

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.gates import gates_of
from conf.tables import TABLES, Column, TableContract
from etl.spacetime import event_date

FIGURE_SCHEMA = "table_name string, column_name string, statistic string, value double, example string"

ROWS, ROWS_OF_DAY = "rows", "rows_of_the_day"
NULLS, OUT_OF_BOUNDS, NOT_ALLOWED, TRUE = "nulls", "out_of_bounds", "not_allowed", "true"
LENGTHS_DIFFER, NOT_UNIT_LENGTH = "lengths_differ", "not_unit_length"
NEWEST_DAY, REPEATED, CHANGED = "newest_day", "repeated", "changed"

EMBEDDING = "embedding"
UNIT_TOLERANCE = 1e-3


def measure_tables(
    tables: Mapping[str, DataFrame], before: Mapping[str, DataFrame], *, day: date
) -> DataFrame:
    """Measures tables, as one frame that one action computes.

    Args:
        tables: the rows of the day of each table (all rows of one that is not written by day).
        before: all rows, as they stood before the night, of the tables with frozen columns.
        day: the day that is audited.

    Returns:
        One row per figure, as in `FIGURE_SCHEMA`.
    """
    parts = []
    for name, rows in tables.items():
        contract, gates = TABLES[name], gates_of(name)
        parts.append(measure_rows(rows, contract, day=day))
        parts += [
            measure_repeated(rows, name, columns) for columns in (contract.key, *gates.unique) if columns
        ]
        if gates.frozen and name in before:
            parts.append(measure_changed(rows, before[name], contract, gates.frozen))
    return reduce(DataFrame.unionAll, parts)


def measure_rows(rows: DataFrame, contract: TableContract, *, day: date) -> DataFrame:
    """Counts, in one scan, everything that one row shows by itself: nulls, bounds, lists, lengths, shares, age."""
    gates = gates_of(contract.name)
    figures = [_figure("", ROWS, F.count("*"))]
    if gates.counted_by:
        figures.append(_figure("", ROWS_OF_DAY, F.count_if(F.col(gates.counted_by) == F.lit(day))))
    for column in contract.columns:
        if is_checked(column):
            figures += _measure_column(column)
    figures += [_figure(name, TRUE, F.count_if(F.col(name))) for name in gates.shares]
    if gates.newest:
        newest = F.col(gates.newest)
        as_date = newest if contract.column(gates.newest).type == "date" else event_date(newest)
        figures.append(_figure(gates.newest, NEWEST_DAY, F.max(F.unix_date(as_date)), F.max(as_date)))
    for group in contract.equal_lengths:
        differ = [F.size(name) != F.size(group[0]) for name in group[1:]]
        figures.append(_figure(group[0], LENGTHS_DIFFER, F.count_if(reduce(SparkColumn.__or__, differ))))
    if EMBEDDING in contract.column_names:
        length = vector_length(F.col(EMBEDDING))
        # NaN is larger than every number in Spark, so that it lies outside, too.
        is_off = ~length.between(1 - UNIT_TOLERANCE, 1 + UNIT_TOLERANCE)
        figures.append(_count(EMBEDDING, NOT_UNIT_LENGTH, is_off, shown=length))
    return rows.agg(F.array(*figures).alias("figures")).select(
        F.lit(contract.name).alias("table_name"), F.inline("figures")
    )


def measure_repeated(rows: DataFrame, table: str, columns: Sequence[str]) -> DataFrame:
    """Counts the rows whose values of these columns occur in another row, too."""
    repeated = rows.groupBy(*columns).agg(F.count("*").alias("n")).where("n > 1")
    figure = _figure(
        ", ".join(columns),
        REPEATED,
        F.coalesce(F.sum("n"), F.lit(0)),
        F.min(F.to_json(F.struct(*columns))),
    )
    return _single(repeated, table, figure)


def measure_changed(
    rows: DataFrame, before: DataFrame, contract: TableContract, frozen: Sequence[str]
) -> DataFrame:
    """Counts the keys of `before` that are gone, or have other values in columns that never change."""
    key = list(contract.key)
    was = before.select(*key, F.struct(*frozen).alias("was"))
    now = rows.select(*key, F.struct(*frozen).alias("now"))
    changed = was.join(now, key, "left").where(~F.col("was").eqNullSafe(F.col("now")))
    example = F.min(F.to_json(F.struct(*key, "was", "now"), {"ignoreNullFields": "false"}))
    return _single(changed, contract.name, _figure(", ".join(frozen), CHANGED, F.count("*"), example))


def is_checked(column: Column) -> bool:
    """Tells whether a column is looked at by itself: arrays and maps are not, Delta checks their elements."""
    return not column.is_array and not column.type.startswith("map<")


def vector_length(vector: SparkColumn) -> SparkColumn:
    """Returns the Euclidean length of an array of numbers."""
    return F.sqrt(
        F.aggregate(vector, F.lit(0.0), lambda total, x: total + x.cast("double") * x.cast("double"))
    )


def has_bounds(column: Column) -> bool:
    """Tells whether values can lie out of bounds: fractions must be finite even where no bound is given."""
    return column.low is not None or column.high is not None or column.type in ("float", "double")


def _measure_column(column: Column) -> list[SparkColumn]:
    value = F.col(column.name)
    figures = [_figure(column.name, NULLS, F.count_if(value.isNull()))]
    if has_bounds(column):
        broken = F.lit(False)
        if column.low is not None:
            broken = broken | (value < column.low)
        if column.high is not None:
            broken = broken | (value > column.high)
        if column.type in ("float", "double"):
            broken = broken | F.isnan(value) | (F.abs(value) == float("inf"))
        figures.append(_count(column.name, OUT_OF_BOUNDS, broken, shown=value))
    if column.allowed:
        figures.append(_count(column.name, NOT_ALLOWED, ~value.isin(*column.allowed), shown=value))
    return figures


def _count(column: str, statistic: str, condition: SparkColumn, *, shown: SparkColumn) -> SparkColumn:
    """Counts the rows that meet a condition; the example is the smallest text, so that reruns show the same."""
    return _figure(column, statistic, F.count_if(condition), F.min(F.when(condition, shown.cast("string"))))


def _figure(
    column: str, statistic: str, value: SparkColumn, example: SparkColumn | None = None
) -> SparkColumn:
    return F.struct(
        F.lit(column).alias("column_name"),
        F.lit(statistic).alias("statistic"),
        value.cast("double").alias("value"),
        (F.lit(None) if example is None else example).cast("string").alias("example"),
    )


def _single(rows: DataFrame, table: str, figure: SparkColumn) -> DataFrame:
    return rows.agg(figure.alias("figure")).select(F.lit(table).alias("table_name"), "figure.*")
