"""Tables of files: opens Parquet and delimited text, picks columns by name and reads them by kind.

Errors name path, column, both types and an example. Every row keeps its original content (`record`). Rows of delimited
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
    """Files as opened: their rows in one or more parts, and warnings about them."""

    parts: Sequence[FilePart]
    warnings: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns of all parts, each once."""
        return list(dict.fromkeys(name for part in self.parts for name in part.frame.columns))


def open_parquet(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> Opened:
    """Opens a Parquet file or folder; errors name the path and a remedy."""
    inputs = files.find_files(spark, path, what="Parquet", needed_by=needed_by, remedy=remedy)
    parts = files.open_parquet(spark, inputs)
    names = [[*part.frame.columns, *part.unknown] for part in parts]
    return Opened(parts, [*inputs.warnings, *files.describe_differences(inputs, names)])


def open_csv(spark: SparkSession, path: str, *, needed_by: str, remedy: str) -> Opened:
    """Opens CSV files with a header each; every column is text, `CORRUPT` holds records of another width.

    Quoted values may hold line ends (RFC 4180). If a stray quote joins many lines into one record, the lines are read
    one by one, so that only the line with the quote is refused.
    """
    inputs = files.find_files(spark, path, what="CSV", needed_by=needed_by, remedy=remedy)
    by_header: dict[tuple[str, ...], list[str]] = {}
    for file in inputs.files:
        by_header.setdefault(files.read_header(spark, file), []).append(file)
    parts = []
    groups = [
        (header, group.files)
        for header, alike in by_header.items()
        for group in replace(inputs, files=tuple(alike)).by_folders()
    ]
    for header, paths in groups:
        if not header:
            continue
        schema = T.StructType([T.StructField(name, T.StringType()) for name in (*header, CORRUPT)])
        reader = spark.read.options(**inputs.options(), columnNameOfCorruptRecord=CORRUPT, **UNPRUNED)
        reader = reader.schema(schema)
        rows = reader.csv(list(paths), header=True, escape='"', multiLine=True)
        parts.append(FilePart(_reread_lines(rows, schema)))
    if not parts:
        raise MissingInputError(what="a header", where=path, needed_by=needed_by, remedy=remedy)
    return Opened(
        parts, [*inputs.warnings, *files.describe_differences(inputs, [p.frame.columns for p in parts])]
    )


def open_tsv(
    spark: SparkSession, path: str, names: Sequence[str], *, encoding: str, needed_by: str, remedy: str
) -> Opened:
    """Opens tab-separated files without header or quotes, columns by position; `CORRUPT` as in `open_csv`."""
    inputs = files.find_files(spark, path, what="delimited text", needed_by=needed_by, remedy=remedy)
    schema = T.StructType([T.StructField(name, T.StringType()) for name in (*names, CORRUPT)])
    options = {
        "sep": "\t",
        "encoding": encoding,
        "quote": "",
        "columnNameOfCorruptRecord": CORRUPT,
        **UNPRUNED,
    }
    reader = spark.read.options(**inputs.options(), **options).schema(schema)
    return Opened([FilePart(reader.csv(list(group.files))) for group in inputs.by_folders()], inputs.warnings)


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
        table: name of the file in errors.
        required: kinds of required columns (`etl/sources/values.py`).
        optional: kinds of columns that are null if the file lacks them.
        remedy: advice for a file that does not fit.
        warnings: receives sentences about unused files and columns.
        unread: columns that are known but not needed, and so cause no warning.

    Returns:
        The columns, plus `record`, the row as delivered (its columns as JSON, or its text where it could not be split),
        and `is_torn`: whether it has too few or too many values.

    Raises:
        SchemaError: a required column is missing, or the values of a column do not convert.
    """
    kinds, frames = {**required, **optional}, []
    for part in opened.parts:
        present = [name for name in (*part.frame.columns, *part.unknown) if name != CORRUPT]
        names = drift.match_columns(present, table, kinds)
        described = {name: values.EXPECTED.get(kind, kind) for name, kind in required.items()}
        drift.require_names(present, table, described, remedy=remedy)
        drift.require_kinds(part, table, kinds, remedy=remedy, names=names)
        frames.append(_convert(part, kinds, names))
    warnings += opened.warnings
    warnings += drift.describe_additions(
        [name for name in opened.names if name != CORRUPT]
        + [name for part in opened.parts for name in part.unknown],
        table,
        {*kinds, *unread},
    )
    return reduce(DataFrame.unionByName, frames)


def _convert(part: FilePart, kinds: Mapping[str, str], names: Mapping[str, str]) -> DataFrame:
    frame, has_text = part.frame, CORRUPT in part.frame.columns
    columns = []
    for name, kind in kinds.items():
        if name not in names:
            columns.append(F.lit(None).cast(values.SPARK_TYPES[kind]).alias(name))
            continue
        actual = names[name]
        value = F.col(f"`{actual}`")
        if has_text and kind == "id":
            value = values.untyped_id(value)
        is_nanoseconds = actual in part.nanoseconds
        columns.append(
            values.convert(value, frame.schema[actual].dataType, kind, is_nanoseconds=is_nanoseconds).alias(
                name
            )
        )
    ids = {names[name] for name, kind in kinds.items() if kind == "id" and name in names}
    whole = values.record_json(frame, [name for name in frame.columns if name != CORRUPT], ids)
    record = F.coalesce(F.col(CORRUPT), whole) if has_text else whole
    is_torn = F.col(CORRUPT).isNotNull() if has_text else F.lit(False)
    return frame.select(*columns, record.alias("record"), is_torn.alias("is_torn"))


def _reread_lines(rows: DataFrame, schema: T.StructType) -> DataFrame:
    """Splits records of another width at their line ends and reads each line separately."""
    folders = [name for name in rows.columns if name not in schema.names]
    options = {"columnNameOfCorruptRecord": CORRUPT, "escape": '"'}
    lines = F.filter(F.split(CORRUPT, r"\r?\n"), lambda line: line != "")
    apart = F.transform(lines, lambda line: F.from_csv(line, schema.toDDL(), options))
    whole = F.array(F.struct(*(F.col(f"`{name}`") for name in schema.names)))
    is_torn = F.coalesce(F.col(CORRUPT).contains("\n"), F.lit(False))
    records = F.explode(F.when(is_torn, apart).otherwise(whole)).alias("_row")
    return rows.select(*folders, records).select(*folders, "_row.*")
