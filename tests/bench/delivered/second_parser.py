"""Counts the records of files again, with the standard library and pyarrow only: nothing of the pipeline is imported.

A record is what a person would count: an object of JSON, an element of an array, a line that is no JSON; a row of CSV,
which may go over several lines; a line of a TSV; a row of Parquet. Blank lines are none.
"""

import csv
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq


def count_json(folder: Path) -> int:
    """Returns the records of all JSON files below a folder."""
    return sum(_count_json_text(_read(path, "utf-8-sig")) for path in _files(folder))


def count_csv(folder: Path) -> int:
    """Returns the rows of all CSV files below a folder, headers left out."""
    total = 0
    for path in _files(folder):
        with _open(path, "utf-8-sig") as lines:
            total += sum(bool(row) for row in csv.reader(lines)) - 1
    return total


def count_tsv(folder: Path) -> int:
    """Returns the lines of all TSV files below a folder."""
    return sum(bool(line.strip()) for path in _files(folder) for line in _read(path, "latin-1").split("\n"))


def count_parquet(folder: Path) -> int:
    """Returns the rows of all Parquet files below a folder."""
    return sum(pq.ParquetFile(path).metadata.num_rows for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _open(path: Path, encoding: str):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding, newline="")


def _read(path: Path, encoding: str) -> str:
    with _open(path, encoding) as file:
        return file.read()


def _count_json_text(text: str) -> int:
    whole = _values(text)
    if whole is not None:
        return sum(len(value) if isinstance(value, list) else 1 for value in whole)
    total = 0
    for line in text.splitlines():
        if line.strip():
            values = _values(line.strip().removesuffix(","))
            total += 1 if values is None else sum(len(v) if isinstance(v, list) else 1 for v in values)
    return total


def _values(text: str) -> list[object] | None:
    """Returns the JSON values that follow each other in a text; None if there is anything else in it."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return found
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return None
        found.append(value)
