"""Finds the reader for a file or folder by its shape: names of columns, or the first line. Without Spark."""

import csv
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import CorruptInputError, MissingInputError

CHECKIN_FILE = "checkins.parquet"
GETNEXT_MARKS = frozenset({"poi_catname", "utc_time"})
ACTION_MARKS = frozenset({"time", "user_id", "poi_id"})
TSMC_FIELDS = 8
SHAPES = {
    "checkins": f"a folder that holds {CHECKIN_FILE} and pois.parquet",
    "getnext": "a CSV file whose header names POI_catname and UTC_time",
    "tsmc": "a file of eight columns separated by tabs, without a header",
    "actions": "JSON lines or Parquet with time, user_id and poi_id",
}
"""Source -> the shape by which it is recognised."""
PARQUET_MAGIC = b"PAR1"
PEEK_BYTES = 1 << 16


def guess_source(path: str) -> str:
    """Returns the source whose shape the path has.

    Raises:
        MissingInputError: there is nothing at the path, or no reader knows its shape.
    """
    location = Path(path)
    if not path or not location.exists():
        raise MissingInputError(
            what="the data",
            where=path or "source.path (empty)",
            needed_by="The job outline",
            remedy="Name a file or folder with --set source.path=PATH; for a URI name the source, too: --source NAME.",
        )
    if (location / CHECKIN_FILE).exists():
        return "checkins"
    file = _first_file(location)
    columns = _parquet_columns(file)
    if columns is not None:
        if {name.lower() for name in columns} >= ACTION_MARKS:
            return "actions"
        raise _unknown_shape(file, f"Parquet with the columns {', '.join(columns)}")
    line = _first_line(file)
    if line.startswith(("{", "[")):
        return "actions"
    if {name.strip().lower() for name in next(csv.reader([line]), [])} >= GETNEXT_MARKS:
        return "getnext"
    if line.count("\t") == TSMC_FIELDS - 1:
        return "tsmc"
    raise _unknown_shape(file, f"text that begins with {line[:80]!r}" if line else "no text")


def _first_file(path: Path) -> Path:
    """Returns the file itself, or the first file of a folder, by name, that Spark would read."""
    if path.is_file():
        return path
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
    )
    if not files:
        raise _unknown_shape(path, "a folder without a file")
    return files[0]


def _parquet_columns(file: Path) -> list[str] | None:
    """Returns the names of the columns of a Parquet file; None if it is something else."""
    with file.open("rb") as stream:
        if stream.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC:
            return None
    try:
        return list(pq.read_schema(file).names)
    except (pa.ArrowException, OSError) as error:
        raise CorruptInputError(
            path=str(file), expected="Parquet", cause=str(error).splitlines()[0]
        ) from error


def _first_line(file: Path) -> str:
    """Returns the first line that is not blank of the first part of a text file, gzipped or not."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        text = stream.read(PEEK_BYTES).decode("utf-8-sig", errors="replace")
    return next((line.strip(" \r") for line in text.split("\n") if line.strip()), "")


def _unknown_shape(path: Path, content: str) -> MissingInputError:
    known = "; ".join(f"{name}: {shape}" for name, shape in SHAPES.items())
    hint = (
        f" If this file is {CHECKIN_FILE}, name the folder that holds it."
        if path.name == CHECKIN_FILE
        else ""
    )
    return MissingInputError(
        what=f"a shape that a reader knows (found: {content})",
        where=str(path),
        needed_by="The job outline",
        remedy=f"Known are {known}.{hint} Another shape needs renamed columns or a reader (docs/own-data.md).",
    )
