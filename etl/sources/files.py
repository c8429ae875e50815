"""The files behind the path of a source: which are read, which are not, and how to open them with Spark.

A path is taken literally first: a name with `[`, `{`, `*` or `?` is that file if it exists, and a pattern only if it
does not. Spark leaves out names that begin with `_` or `.`. Such a file is refused with that reason if the path names
it, and named in a warning if it lies in a folder. Subfolders are read; folders called `name=value` give a column
`name`, as text.

Parquet files are opened one by one, by the schemas in their footers. So the files of one folder may differ in columns
and types, and a type that Spark does not know spoils its own column only.
"""

import codecs
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from conf.errors import CorruptInputError, HiddenInputError, MissingInputError, SchemaError

HEAD_BYTES = 65_536
"""How much of a file is looked at to tell its shape."""
MAX_FOOTERS = 20_000
"""Parquet files of a folder at most: the schema of each is read by itself, a few milliseconds."""
MARKERS = ("_SUCCESS", "_committed_", "_started_", "_metadata", "_common_metadata")
"""Hidden names that writers leave behind; they hold no rows."""
TABLE_LOGS = frozenset(("_delta_log", ".hoodie"))
"""Folders that make a folder of files a table."""
GLOB_CHARACTERS = frozenset("[]{}*?")
UNKNOWN_TYPES = ("TIME(", "FLOAT16", "INTERVAL")
"""Logical types of Parquet that Spark cannot read, as Parquet spells them."""
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class InputFiles:
    """The files behind one path.

    Attributes:
        path: the path of the settings.
        files: files to read, sorted.
        base: folder below which folders named `name=value` are columns; None where the path is one file.
        skipped: hidden files of the folder, which are not read.
    """

    path: str
    files: tuple[str, ...]
    base: str | None
    skipped: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """Names the files that are not read, if there are any."""
        if not self.skipped:
            return []
        shown = ", ".join(self.skipped[:5]) + (", ..." if len(self.skipped) > 5 else "")
        return [
            f"{len(self.skipped)} files of {self.path} are not read, since their names begin with '_' or '.': {shown}"
        ]

    def by_folders(self) -> list["InputFiles"]:
        """Groups the files by the columns that their folders name.

        In one read, Spark would silently leave out every file that lacks a folder which others have.
        """
        groups: dict[tuple[str, ...], list[str]] = {}
        for file in self.files:
            folders = file.removeprefix(self.base).split("/")[:-1] if self.base else []
            names = tuple(folder.partition("=")[0] for folder in folders if "=" in folder)
            groups.setdefault(names, []).append(file)
        return [replace(self, files=tuple(files)) for files in groups.values()]

    def options(self) -> dict[str, str]:
        """Returns the options with which Spark reads exactly these files."""
        # Spark would take a bracket or a star in the name of a file for a pattern.
        return {"__globPaths__": "false", **({"basePath": self.base} if self.base else {})}


@dataclass(frozen=True)
class FilePart:
    """Files of one path that agree in their columns.

    Attributes:
        frame: their rows.
        nanoseconds: columns that hold epoch nanoseconds as bigint.
        unknown: columns that Spark cannot read, with their types as Parquet spells them; `frame` lacks them.
    """

    frame: DataFrame
    nanoseconds: frozenset[str] = frozenset()
    unknown: Mapping[str, str] = field(default_factory=dict)


def find_files(spark: SparkSession, path: str, *, what: str, needed_by: str, remedy: str) -> InputFiles:
    """Lists the files behind a path.

    Args:
        spark: session.
        path: file, folder or pattern; local, or a URI of a file system that Hadoop knows.
        what: kind of files, for errors: `Parquet`, `text`.
        needed_by: reader of the files, for errors.
        remedy: advice for the case that there are none.

    Raises:
        MissingInputError: there is no file.
        HiddenInputError: the path is one file whose name Spark leaves out.
    """
    roots = _resolve(spark, path)
    if not roots:
        raise MissingInputError(what=f"the {what} input", where=path, needed_by=needed_by, remedy=remedy)
    visible, skipped, is_single = [], [], False
    for root in roots:
        files, hidden, is_file = _walk(spark, root)
        if is_file and hidden and len(roots) == 1:
            raise HiddenInputError(path=path)
        visible += files
        skipped += hidden
        is_single = is_file and len(roots) == 1
    if not visible:
        raise MissingInputError(what=f"any {what} file", where=path, needed_by=needed_by, remedy=remedy)
    base = None if is_single or len(roots) > 1 else roots[0]
    return InputFiles(path, tuple(sorted(visible)), base, tuple(sorted(skipped)))


def read_head(spark: SparkSession, file: str, num_bytes: int = HEAD_BYTES) -> bytes:
    """Returns the first bytes of a file, decompressed as its name says."""
    jvm, conf = spark._jvm, spark._jsc.hadoopConfiguration()
    assert jvm is not None
    location = jvm.org.apache.hadoop.fs.Path(file)
    stream = location.getFileSystem(conf).open(location)
    try:
        codec = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(conf).getCodec(location)
        plain = stream if codec is None else codec.createInputStream(stream)
        bounded = jvm.org.apache.commons.io.input.BoundedInputStream(plain, num_bytes)
        return bytes(jvm.org.apache.commons.io.IOUtils.toByteArray(bounded))
    except Py4JJavaError as error:
        cause = str(error.java_exception).splitlines()[0]
        raise CorruptInputError(path=file, expected="a file of its kind", cause=cause) from error
    finally:
        stream.close()


def read_header(spark: SparkSession, file: str) -> tuple[str, ...]:
    """Returns the names in the first record of a CSV file that is not blank; empty for an empty file.

    Raises:
        SchemaError: two columns have one name.
    """
    text = codecs.decode(read_head(spark, file), "utf-8", "replace").removeprefix(BYTE_ORDER_MARK)
    records = csv.reader(io.StringIO(text, newline=""))
    first = next((record for record in records if any(name.strip() for name in record)), [])
    names = tuple(name.strip() or f"_c{number}" for number, name in enumerate(first))
    refuse_repeated(names, file)
    return names


def size_of(spark: SparkSession, file: str) -> int:
    """Returns the size of a file in storage, bytes."""
    jvm, conf = spark._jvm, spark._jsc.hadoopConfiguration()
    assert jvm is not None
    location = jvm.org.apache.hadoop.fs.Path(file)
    return int(location.getFileSystem(conf).getFileStatus(location).getLen())


def open_parquet(spark: SparkSession, inputs: InputFiles) -> list[FilePart]:
    """Opens Parquet files: one part for each schema among them, since the files of a folder need not agree.

    Raises:
        CorruptInputError: one of them is no Parquet file.
        SchemaError: two columns of a file differ in case only.
    """
    spark.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")
    return [part for group in inputs.by_folders() for part in _open_parquet(spark, group)]


def _open_parquet(spark: SparkSession, inputs: InputFiles) -> list[FilePart]:
    """Opens Parquet files whose folders name the same columns."""
    if len(inputs.files) > MAX_FOOTERS:
        raise CorruptInputError(
            path=inputs.path,
            expected=f"at most {MAX_FOOTERS} Parquet files",
            cause=f"it has {len(inputs.files)}; write them to fewer, larger ones",
        )
    by_schema: dict[str, tuple[StructType, frozenset[str], dict[str, str], list[str]]] = {}
    for file in inputs.files:
        schema, nanoseconds, unknown = _read_footer(spark, file)
        key = json.dumps([schema.jsonValue(), sorted(nanoseconds), unknown])
        by_schema.setdefault(key, (schema, nanoseconds, unknown, []))[3].append(file)
    return [
        FilePart(spark.read.options(**inputs.options()).schema(schema).parquet(*files), nanoseconds, unknown)
        for schema, nanoseconds, unknown, files in by_schema.values()
    ]


def refuse_repeated(names: Sequence[str], table: str) -> None:
    """Checks that no two columns differ in case only, since either could be meant.

    Raises:
        SchemaError: two columns do.
    """
    spellings: dict[str, str] = {}
    for name in names:
        if name.lower() in spellings:
            raise SchemaError(
                table=table,
                column=name,
                expected="one column of that name",
                found=f"two, {spellings[name.lower()]!r} and {name!r}",
                remedy="Rename one of them, or leave it out.",
            )
        spellings[name.lower()] = name


def describe_differences(inputs: InputFiles, names: Sequence[Iterable[str]]) -> list[str]:
    """Returns a warning that names the columns which only some of the files have, if there are any.

    Args:
        inputs: the files.
        names: column names of each group of files.
    """
    groups: list[set[str]] = [set(group) for group in names]
    everywhere = [name for name in groups[0] if all(name in group for group in groups)] if groups else []
    partial = sorted({name for group in groups for name in group}.difference(everywhere))
    if not partial:
        return []
    return [
        f"only some files of {inputs.path} have the columns {', '.join(partial)}: null in rows of the others"
    ]


def _resolve(spark: SparkSession, path: str) -> list[str]:
    """Returns the path, made absolute, if it exists literally; else the paths that it matches as a pattern."""
    is_local = "://" not in path and not path.startswith("file:")
    absolute = os.path.abspath(path) if is_local else path.rstrip("/")
    if is_local and os.path.exists(absolute):
        return [absolute]
    jvm, conf = spark._jvm, spark._jsc.hadoopConfiguration()
    assert jvm is not None
    location = jvm.org.apache.hadoop.fs.Path(absolute)
    system = location.getFileSystem(conf)
    if not is_local and system.exists(location):
        return [absolute]
    if not GLOB_CHARACTERS & set(path):
        return []
    matched = system.globStatus(location) or []
    return sorted(_plain(status.getPath(), is_local) for status in matched)


def _plain(location: Any, is_local: bool) -> str:
    return str(location.toUri().getPath() if is_local else location.toString())


def _walk(spark: SparkSession, root: str) -> tuple[list[str], list[str], bool]:
    """Returns the visible and the hidden files below a root, and whether the root is itself a file."""
    if "://" not in root and not root.startswith("file:"):
        return _walk_local(Path(root))
    jvm, conf = spark._jvm, spark._jsc.hadoopConfiguration()
    assert jvm is not None
    location = jvm.org.apache.hadoop.fs.Path(root)
    system = location.getFileSystem(conf)
    top = system.getFileStatus(location)
    if top.isFile():
        return _sort_out([root], [location.getName()], is_file=True)
    entries, files = system.listFiles(location, True), []
    base = len(top.getPath().toString().rstrip("/")) + 1
    while entries.hasNext():
        files.append(entries.next().getPath().toString())
    return _sort_out(files, [name[base:] for name in files], is_file=False)


def _walk_local(root: Path) -> tuple[list[str], list[str], bool]:
    if root.is_file():
        return _sort_out([str(root)], [root.name], is_file=True)
    files = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return _sort_out(
        [str(file) for file in files], [str(file.relative_to(root)) for file in files], is_file=False
    )


def _sort_out(files: list[str], names: list[str], *, is_file: bool) -> tuple[list[str], list[str], bool]:
    tables = [file for file, name in zip(files, names, strict=True) if TABLE_LOGS & set(name.split("/"))]
    if tables:
        raise CorruptInputError(
            path=tables[0],
            expected="a file of an export",
            cause="it is the log of a table (Delta or Hudi), whose folder holds deleted and replaced rows, too; write "
            "the rows that the table shows to Parquet",
        )
    visible: list[str] = []
    hidden: list[str] = []
    for file, name in zip(files, names, strict=True):
        parts = name.split("/")
        if any(part.startswith(MARKERS) for part in parts) or name.endswith(".crc"):
            continue
        (hidden if any(_is_hidden(part) for part in parts) else visible).append(file)
    return visible, hidden, is_file


def _is_hidden(name: str) -> bool:
    """Tells whether Spark leaves out a file or folder of this name."""
    return (name.startswith("_") and "=" not in name) or name.startswith(".") or name.endswith("._COPYING_")


def _read_footer(spark: SparkSession, file: str) -> tuple[StructType, frozenset[str], dict[str, str]]:
    """Returns the columns of a Parquet file that Spark can read, those in nanoseconds, and those it cannot read."""
    jvm, conf = spark._jvm, spark._jsc.hadoopConfiguration()
    assert jvm is not None
    parquet = jvm.org.apache.parquet
    try:
        source = parquet.hadoop.util.HadoopInputFile.fromPath(jvm.org.apache.hadoop.fs.Path(file), conf)
        reader = parquet.hadoop.ParquetFileReader.open(source)
        try:
            message = reader.getFooter().getFileMetaData().getSchema()
        finally:
            reader.close()
    except Py4JJavaError as error:
        cause = str(error.java_exception.getMessage() or error.java_exception).splitlines()[0]
        raise CorruptInputError(path=file, expected="Parquet", cause=cause) from error
    readable, nanoseconds, unknown = [], set(), {}
    refuse_repeated([column.getName() for column in message.getFields()], file)
    for column in message.getFields():
        name, kind = column.getName(), _logical_type(column)
        if kind.startswith(UNKNOWN_TYPES):
            unknown[name] = kind
            continue
        readable.append(column)
        if kind.startswith("TIMESTAMP(NANOS"):
            nanoseconds.add(name)
    fields = spark.sparkContext._gateway.new_array(parquet.schema.Type, len(readable))  # type: ignore[union-attr]
    for number, column in enumerate(readable):
        fields[number] = column
    converter = jvm.org.apache.spark.sql.execution.datasources.parquet.ParquetToSparkSchemaConverter(
        spark._jsparkSession.sessionState().conf()
    )
    converted = converter.convert(parquet.schema.MessageType(message.getName(), fields))
    return StructType.fromJson(json.loads(converted.json())), frozenset(nanoseconds), unknown


def _logical_type(column: Any) -> str:
    annotation = column.getLogicalTypeAnnotation()
    return "" if annotation is None else str(annotation.toString())
