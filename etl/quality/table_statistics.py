"""The figures that the gates judge: one aggregation per table, one Spark action for all tables of an audit.

In: the rows of one day of every table. Out: one row per figure (`FIGURE_SCHEMA`), in the columns of `table_statistics`
with an example of a counted value. Every figure without a shuffle is an aggregate of one scan. Repeated keys and
changed ids read a few columns separately, since shuffling whole rows costs more than reading keys twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import reduce
from types import MappingProxyType

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.gates import TableGates, gates_of
from conf.tables import TABLES, Column, TableContract
from conf.units import MS_PER_DAY

FIGURE_SCHEMA = "table_name string, column_name string, statistic string, value double, example string"

ROWS, ROWS_OF_DAY = "rows", "rows_of_the_day"
NULLS, OUT_OF_BOUNDS, NOT_ALLOWED, TRUE = "nulls", "out_of_bounds", "not_allowed", "true"
LENGTHS_DIFFER, NOT_UNIT_LENGTH = "lengths_differ", "not_unit_length"
NEWEST_DAY, REPEATED, CHANGED = "newest_day", "repeated", "changed"
COUNTED, TOP, SENT_AGAIN = "counted: ", "most of one value", "sent_again"
"""`COUNTED` is followed by the value whose rows were counted."""
MAX_VALUES = 200
"""Values of a histogram that are kept, the most frequent ones."""

EPOCH = date(1970, 1, 1)
EMBEDDING = "embedding"
UNIT_TOLERANCE = 1e-3
LENGTH = f"sqrt(aggregate({EMBEDDING}, 0D, (total, x) -> total + double(x) * double(x)))"
"""The Euclidean length of a vector."""


@dataclass(frozen=True)
class Aggregate:
    """A figure to count, as SQL text: hundreds of column objects would take a call into the JVM for each part.

    Attributes:
        column: name of the column that the figure is about; empty for the table.
        statistic: one of the names above.
        value: aggregate, a number.
        example: aggregate, a counted value as text.
    """

    column: str
    statistic: str
    value: str
    example: str = "NULL"


def measure_tables(
    tables: Mapping[str, DataFrame],
    before: Mapping[str, DataFrame],
    eve: Mapping[str, DataFrame] = MappingProxyType({}),
    *,
    day: date,
) -> DataFrame:
    """Measures tables, as one frame that one action computes.

    Args:
        tables: the rows of the day of each table (all rows if a table is not written by day).
        before: all rows of the tables with frozen columns, as they stood before the run.
        eve: the rows of the day before, for the tables that watch for repeated deliveries.
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
        if gates.histograms or gates.crowded_by:
            parts.append(measure_spread(rows, gates, name, day=day))
        if gates.repeated_after_days and name in eve:
            parts.append(measure_sent_again(rows, eve[name], name, gates.repeated_after_days, day=day))
    return reduce(DataFrame.unionAll, parts)


def measure_rows(rows: DataFrame, contract: TableContract, *, day: date) -> DataFrame:
    """Counts, in one scan, every figure that needs single rows only: nulls, bounds, lists, lengths, shares, age."""
    gates = gates_of(contract.name)
    figures = [Aggregate("", ROWS, "count(*)")]
    if gates.counted_by:
        figures.append(Aggregate("", ROWS_OF_DAY, f"count_if({gates.counted_by} = DATE'{day}')"))
    for column in contract.columns:
        if is_checked(column):
            figures += _figures_of_column(column)
    figures += [Aggregate(name, TRUE, f"count_if({name})") for name in gates.shares]
    if gates.newest:
        figures.append(_newest_day(gates.newest, contract, day))
    for group in contract.equal_lengths:
        differ = " OR ".join(f"size({name}) <> size({group[0]})" for name in group[1:])
        figures.append(Aggregate(group[0], LENGTHS_DIFFER, f"count_if({differ})"))
    if EMBEDDING in contract.column_names:
        # NaN is larger than every number in Spark, so it is out of bounds too.
        is_off = f"{LENGTH} NOT BETWEEN {1 - UNIT_TOLERANCE} AND {1 + UNIT_TOLERANCE}"
        figures.append(_count(EMBEDDING, NOT_UNIT_LENGTH, is_off, shown=LENGTH))
    return _compute(rows, contract.name, figures)


def measure_repeated(rows: DataFrame, table: str, columns: Sequence[str]) -> DataFrame:
    """Counts the rows whose values of these columns occur in another row, too."""
    repeated = rows.groupBy(*columns).agg(F.count("*").alias("n")).where("n > 1")
    example = f"min(to_json(struct({', '.join(columns)})))"
    return _compute(
        repeated, table, [Aggregate(", ".join(columns), REPEATED, "coalesce(sum(n), 0)", example)]
    )


def measure_changed(
    rows: DataFrame, before: DataFrame, contract: TableContract, frozen: Sequence[str]
) -> DataFrame:
    """Counts the keys of `before` that are missing now, or have other values in columns that never change."""
    key = list(contract.key)
    was = before.select(*key, F.struct(*frozen).alias("was"))
    current = rows.select(*key, F.struct(*frozen).alias("now"))
    # Null-safe: `now` is null for a missing key, and a plain comparison would not count it.
    changed = was.join(current, key, "left").where(~F.col("was").eqNullSafe(F.col("now")))
    shown = f"to_json(struct({', '.join(key)}, was, now), map('ignoreNullFields', 'false'))"
    figure = Aggregate(", ".join(frozen), CHANGED, "count(*)", f"min({shown})")
    return _compute(changed, contract.name, [figure])


def measure_spread(rows: DataFrame, gates: TableGates, table: str, *, day: date) -> DataFrame:
    """Counts the rows of the day itself by each watched value, in one shuffle; keeps the most frequent values only."""
    watched = {each.name: each.value for each in gates.histograms}
    if gates.crowded_by:
        watched[gates.crowded_by] = gates.crowded_by
    pairs = ", ".join(
        f"struct('{name}' AS column_name, string({value}) AS value)" for name, value in watched.items()
    )
    of_day = rows.where(f"{gates.counted_by} = DATE'{day}'") if gates.counted_by else rows
    counted = (
        of_day.selectExpr(f"inline(array({pairs}))")
        .groupBy("column_name", "value")
        .agg(F.count("*").alias("n"))
    )
    is_top = f"column_name = '{gates.crowded_by}'"
    # Negative counts, so that the most frequent values come first; there are too many users to collect them.
    pair = f"CASE WHEN NOT ({is_top}) THEN struct(-n AS less, value) END"
    by_name = counted.groupBy("column_name").agg(
        F.expr("max(struct(n, value))").alias("top"),
        F.expr(f"slice(array_sort(collect_list({pair})), 1, {MAX_VALUES})").alias("frequent"),
    )
    row = "named_struct('statistic', {}, 'value', double({}), 'example', {})"
    top = row.format(f"'{TOP}'", "top.n", "top.value")
    counts = row.format(f"concat('{COUNTED}', coalesce(x.value, 'null'))", "-x.less", "x.value")
    figures = by_name.selectExpr(
        "column_name",
        f"inline(CASE WHEN {is_top} THEN array({top}) ELSE transform(frequent, x -> {counts}) END)",
    )
    return figures.selectExpr(f"'{table}' AS table_name", "column_name", "statistic", "value", "example")


def measure_sent_again(
    rows: DataFrame, eve: DataFrame, table: str, columns: Sequence[str], *, day: date
) -> DataFrame:
    """Counts the rows that repeat a row of the day before, exactly one day later to the millisecond.

    Only events of the day before itself are compared: its delivery may hold a history of years.
    """
    *key, time = columns
    start_ms = ((day - EPOCH).days - 1) * MS_PER_DAY
    of_eve = eve.where(F.col(time) >= F.lit(start_ms))
    moved = of_eve.select(*key, (F.col(time) + MS_PER_DAY).alias(time))
    repeated = rows.join(moved, [*key, time], "left_semi")
    example = f"min(to_json(struct({', '.join(columns)})))"
    return _compute(repeated, table, [Aggregate(", ".join(columns), SENT_AGAIN, "count(*)", example)])


def is_checked(column: Column) -> bool:
    """Tells whether a column is checked here: arrays and maps are not, as Delta checks their elements."""
    return not column.is_array and not column.type.startswith("map<")


def has_bounds(column: Column) -> bool:
    """Tells whether values can lie out of bounds: fractions must be finite even where no bound is given."""
    return column.low is not None or column.high is not None or column.type in ("float", "double")


def _newest_day(name: str, contract: TableContract, day: date) -> Aggregate:
    """Returns the newest day; raw tables use plausible times only, since a time of 9e18 would be newer than all."""
    newest = name
    if contract.column(name).type != "date":
        newest = f"date_from_unix_date(int(floor({name} / {MS_PER_DAY})))"
    if contract.raw:
        end_ms = ((day - EPOCH).days + 2) * MS_PER_DAY  # clocks may be ahead
        newest = f"CASE WHEN {name} BETWEEN 0 AND {end_ms - 1} THEN {newest} END"
    return Aggregate(name, NEWEST_DAY, f"unix_date(max({newest}))", f"max({newest})")


def _figures_of_column(column: Column) -> list[Aggregate]:
    name = column.name
    figures = [Aggregate(name, NULLS, f"count_if({name} IS NULL)")]
    if has_bounds(column):
        broken = [f"{name} < {column.low}"] if column.low is not None else []
        if column.high is not None:
            broken.append(f"{name} > {column.high}")
        if column.type in ("float", "double"):
            broken += [f"isnan({name})", f"abs({name}) = double('infinity')"]
        figures.append(_count(name, OUT_OF_BOUNDS, " OR ".join(broken), shown=name))
    if column.allowed:
        allowed = ", ".join(map(repr, column.allowed))
        figures.append(_count(name, NOT_ALLOWED, f"{name} NOT IN ({allowed})", shown=name))
    return figures


def _count(column: str, statistic: str, condition: str, *, shown: str) -> Aggregate:
    """Counts the rows that meet a condition; the example is the smallest text, so that reruns show the same."""
    example = f"min(CASE WHEN {condition} THEN string({shown}) END)"
    return Aggregate(column, statistic, f"count_if({condition})", example)


def _compute(rows: DataFrame, table: str, figures: Sequence[Aggregate]) -> DataFrame:
    """Computes figures in one aggregation, as rows of `FIGURE_SCHEMA`."""
    columns = {
        "column_name": [repr(figure.column) for figure in figures],
        "statistic": [repr(figure.statistic) for figure in figures],
        "value": [f"double({figure.value})" for figure in figures],
        "example": [f"string({figure.example})" for figure in figures],
    }
    arrays = [f"array({', '.join(texts)}) AS {name}" for name, texts in columns.items()]
    return rows.selectExpr(*arrays).selectExpr(
        f"'{table}' AS table_name", f"inline(arrays_zip({', '.join(columns)}))"
    )
