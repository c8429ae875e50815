"""Tables of files: Parquet and delimited text opened, and their columns picked by name and read by kind.

Errors name path, column, both types and an example. Every row keeps what its file held (`record`). Rows of delimited
text that have too few or too many values are marked (`is_torn`), so that no value is shifted or cut off silently.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from conf.errors import MissingInputError
from etl.sources import files
from etl.sources import schema_drift as drift
from etl.sources import values as values
from etl.sources.files import FilePart

CORRUPT = "_torn_record"
"""Column of delimited text that holds the record as it came, where it has too few or too many values."""

UNPRUNED = {"columnPruning": "false"}
"""Has Spark parse all columns of a record, whichever are used: else it does not see that there are too few or many."""


@dataclass(frozen=True)
class Opened:
    """Files as opened: their rows in one or more parts, and what is odd about them."""

    parts: Sequence[FilePart]
    warnings: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns of all parts, each once."""
        return list(dict.fromkeys(name for part in self.parts for name in part.frame.columns))


def open_parquet(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> Opened:
    """Opens a Parquet file or folder; errors name the path and what to do."""
    found = files.find_files(spark, path, what="Parquet", needed_by=needed_by, remedy=remedy)
    parts = files.open_parquet(spark, found)
    names = [[*part.frame.columns, *part.unknown] for part in parts]
    return Opened(parts, [*found.warnings, *files.describe_differences(found, names)])


def open_csv(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> Opened:
    """Opens CSV files with a header each; every column is text, `CORRUPT` holds records of another width.

    Quoted values may hold line ends (RFC 4180). Where a stray quote makes one record of many lines, the lines are read
    one by one, so that only the line with the quote is refused.
    """
    found = files.find_files(spark, path, what="CSV", needed_by=needed_by, remedy=remedy)
    by_header: dict[tuple[str, ...], list[str]] = {}
    for file in found.files:
        by_header.setdefault(files.read_header(spark, file), []).append(file)
    parts = []
    groups = [
        (header, group.files)
        for header, alike in by_header.items()
        for group in replace(found, files=tuple(alike)).by_folders()
    ]
    for header, paths in groups:
        if not header:
            continue
        schema = T.StructType([T.StructField(name, T.StringType()) for name in (*header, CORRUPT)])
        reader = spark.read.options(**found.options(), columnNameOfCorruptRecord=CORRUPT, **UNPRUNED)
        reader = reader.schema(schema)
        rows = reader.csv(list(paths), header=True, escape='"', multiLine=True)
        parts.append(FilePart(_reread_lines(rows, schema)))
    if not parts:
        raise MissingInputError(what="a header", where=path, needed_by=needed_by, remedy=remedy)
    return Opened(
        parts, [*found.warnings, *files.describe_differences(found, [p.frame.columns for p in parts])]
    )


def open_tsv(
    spark: SparkSession, path: str, names: Sequence[str], *, encoding: str, needed_by: str, remedy: str
) -> Opened:
    """Opens tab-separated files without header or quotes, columns by position; `CORRUPT` as in `open_csv`."""
    found = files.find_files(spark, path, what="delimited text", needed_by=needed_by, remedy=remedy)
    schema = T.StructType([T.StructField(name, T.StringType()) for name in (*names, CORRUPT)])
    options = {
        "sep": "\t",
        "encoding": encoding,
        "quote": "",
        "columnNameOfCorruptRecord": CORRUPT,
        **UNPRUNED,
    }
    reader = spark.read.options(**found.options(), **options).schema(schema)
    return Opened([FilePart(reader.csv(list(group.files))) for group in found.by_folders()], found.warnings)


def pick_columns(
    opened: Opened,
    table: str,
    *,
    required: Mapping[str, str],
    optional: Mapping[str, str],
    remedy: str,
    warnings: list[str],
    unread: Collection[str] = (),
) -> DataFrame:
    """Selects columns by name, converted by kind; single values that do not convert become null.

    Args:
        opened: files as opened; neither the order nor the case of their columns matters.
        table: what the file is called in errors.
        required: kinds of columns that must be there (`etl/sources/values.py`).
        optional: kinds of columns that are null where they are not there.
        remedy: what to do about a file that does not fit.
        warnings: takes sentences about files and columns that nobody reads.
        unread: columns that are known and not needed, and so no cause for a warning.

    Returns:
        The columns, plus `record`, the row as it came (its columns as JSON, or its text where it could not be told
        apart), and `is_torn`: it has too few or too many values.

    Raises:
        SchemaError: a required column is missing, or the values of a column do not convert.
    """
    wanted, frames = {**required, **optional}, []
    for part in opened.parts:
        there = [name for name in (*part.frame.columns, *part.unknown) if name != CORRUPT]
        names = drift.match_columns(there, table, wanted)
        described = {name: values.EXPECTED.get(kind, kind) for name, kind in required.items()}
        drift.require_names(there, table, described, remedy=remedy)
        drift.require_kinds(part, table, wanted, remedy=remedy, names=names)
        frames.append(_convert(part, wanted, names))
    warnings += opened.warnings
    warnings += drift.describe_additions(
        [name for name in opened.names if name != CORRUPT]
        + [name for part in opened.parts for name in part.unknown],
        table,
        {*wanted, *unread},
    )
    return reduce(DataFrame.unionByName, frames)


def _convert(part: FilePart, wanted: Mapping[str, str], names: Mapping[str, str]) -> DataFrame:
    frame, has_text = part.frame, CORRUPT in part.frame.columns
    columns = []
    for name, kind in wanted.items():
        if name not in names:
            columns.append(F.lit(None).cast(values.SPARK_TYPES[kind]).alias(name))
            continue
        actual = names[name]
        given = F.col(f"`{actual}`")
        if has_text and kind == "id":
            given = values.untyped_id(given)
        is_nanoseconds = actual in part.nanoseconds
        columns.append(
            values.convert(given, frame.schema[actual].dataType, kind, is_nanoseconds=is_nanoseconds).alias(
                name
            )
        )
    ids = {names[name] for name, kind in wanted.items() if kind == "id" and name in names}
    whole = values.record_json(frame, [name for name in frame.columns if name != CORRUPT], ids)
    record = F.coalesce(F.col(CORRUPT), whole) if has_text else whole
    is_torn = F.col(CORRUPT).isNotNull() if has_text else F.lit(False)
    return frame.select(*columns, record.alias("record"), is_torn.alias("is_torn"))


def _reread_lines(rows: DataFrame, schema: T.StructType) -> DataFrame:
    """Takes records of another width apart at their line ends and reads each line by itself."""
    folders = [name for name in rows.columns if name not in schema.names]
    options = {"columnNameOfCorruptRecord": CORRUPT, "escape": '"'}
    lines = F.filter(F.split(CORRUPT, r"\r?\n"), lambda line: line != "")
    apart = F.transform(lines, lambda line: F.from_csv(line, schema.toDDL(), options))
    whole = F.array(F.struct(*(F.col(f"`{name}`") for name in schema.names)))
    is_torn = F.coalesce(F.col(CORRUPT).contains("\n"), F.lit(False))
    records = F.explode(F.when(is_torn, apart).otherwise(whole)).alias("_row")
    return rows.select(*folders, records).select(*folders, "_row.*")
