"""Contracts in Spark: schema, CHECK constraints, frames that conform to it, digests of their rows."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StructField, StructType, _parse_datatype_string

from conf.errors import SchemaError
from conf.tables import Column, TableContract

TABLE_PROPERTIES = {
    # Training reads tables with the deltalake library, which knows none of these two features.
    "delta.enableDeletionVectors": "false",
    "delta.columnMapping.mode": "none",
    # Releases and trainings pin versions, and Delta would forget them after 30 days (etl/delta/retention.py frees the
    # files).
    "delta.logRetentionDuration": "interval 3650 days",
}
"""What a table is made with."""


def spark_schema(contract: TableContract) -> StructType:
    """Returns the Spark schema of a table: types, nullability, comments."""
    return StructType([as_field(column, contract) for column in contract.columns])


def loosen_schema(stored: StructType, contract: TableContract) -> StructType:
    """Returns the schema of a table, loosened to what its contract allows; nothing is tightened.

    Missing nullable columns of the contract are appended. Columns and array elements become nullable where the contract
    allows nulls.
    """
    allowed = {field.name.lower(): field for field in spark_schema(contract)}
    fields = [_loosen(field, allowed.get(field.name.lower())) for field in stored]
    known = {field.name.lower() for field in stored}
    return StructType([*fields, *(f for name, f in allowed.items() if f.nullable and name not in known)])


def check_constraints(contract: TableContract) -> dict[str, str]:
    """Returns the CHECK constraints of a table, by name; none for tables as delivered."""
    if contract.raw:
        return {}
    checks = {f"{column.name}_range": _bounds(column) for column in contract.columns if _bounds(column)}
    checks |= {f"{column.name}_known": _membership(column) for column in contract.columns if column.allowed}
    for group in contract.equal_lengths:
        first = group[0]
        checks[f"{first}_lengths"] = " AND ".join(f"size({name}) = size({first})" for name in group[1:])
    return checks


def conform(frame: DataFrame, contract: TableContract) -> DataFrame:
    """Selects the contract's columns in order, cast to their types.

    Raises:
        SchemaError: a column is missing.
    """
    for column in contract.columns:
        if column.name not in frame.columns:
            raise SchemaError(
                table=contract.name,
                column=column.name,
                expected=column.type,
                found=f"only {', '.join(frame.columns)}",
                remedy="Correct the job that builds the table.",
            )
    # The contract's text, not the field's type: a cast cannot turn nullable elements into elements that are not.
    return frame.select(*(F.col(column.name).cast(column.type) for column in contract.columns))


def digest_table(frame: DataFrame, contract: TableContract) -> str:
    """Returns a hash of the business columns that does not depend on the order of rows, and the row count.

    Each row is hashed by itself; the sums of the two halves of its hash make the digest, so equal tables have equal
    digests however they are stored, and a row that occurs twice counts twice.
    """
    names = [name for name in contract.business_columns if name in frame.columns]
    as_text = F.to_json(
        F.struct(*(_hashable(contract.column(name)) for name in names)), {"ignoreNullFields": "false"}
    )
    hashed = F.sha2(as_text, 256)
    # Twelve hex digits are 48 bits: from 2^15 rows on their sum could overflow a bigint, but not a decimal(38,0).
    halves = [
        F.sum(F.conv(F.substring(hashed, start, 12), 16, 10).cast("decimal(38,0)")) for start in (1, 13)
    ]
    row = frame.agg(F.count("*").alias("n"), halves[0].alias("a"), halves[1].alias("b")).first()
    assert row is not None
    return f"{row['n']}-{int(row['a'] or 0):x}-{int(row['b'] or 0):x}"


def as_field(column: Column, contract: TableContract) -> StructField:
    """Returns the Spark field of one column of a table; array elements may be null in delivered tables only."""
    data_type = _parse_datatype_string(column.type)
    if isinstance(data_type, ArrayType) and not contract.raw:
        data_type = ArrayType(data_type.elementType, containsNull=False)
    return StructField(column.name, data_type, column.nullable, {"comment": column.doc})


def _loosen(stored: StructField, allowed: StructField | None) -> StructField:
    if allowed is None:
        return stored
    data_type = stored.dataType
    if isinstance(data_type, ArrayType) and isinstance(allowed.dataType, ArrayType):
        data_type = ArrayType(data_type.elementType, data_type.containsNull or allowed.dataType.containsNull)
    return StructField(stored.name, data_type, stored.nullable or allowed.nullable, stored.metadata)


def _hashable(column: Column) -> F.Column:
    if column.type.startswith("map<"):
        # Equal maps may hold their entries in different orders, which JSON would show.
        return F.array_sort(F.map_entries(column.name)).alias(column.name)
    return F.col(column.name)


def _membership(column: Column) -> str:
    """Returns the condition that a value is in the column's closed list; Delta takes null for a broken CHECK."""
    condition = f"{column.name} IN ({', '.join(repr(value) for value in column.allowed)})"
    return f"({column.name} IS NULL OR {condition})" if column.nullable else condition


def _bounds(column: Column) -> str:
    """Returns the condition on one column's range; NaN stands for an unknown place in arrays and passes."""
    parts = []
    subject = "x" if column.is_array else column.name
    if column.low is not None:
        parts.append(f"{subject} >= {column.low}")
    if column.high is not None:
        parts.append(f"{subject} <= {column.high}")
    condition = " AND ".join(parts)
    if not condition:
        return ""
    if column.is_array:
        return f"forall({column.name}, x -> {condition})"
    return f"({column.name} IS NULL OR ({condition}))" if column.nullable else condition
