"""Searches all files of a folder for words, in the raw bytes and in what Parquet has compressed.

Knows nothing of Delta: whatever lies there is searched, of whatever version. Of a Parquet file every column is decoded
to text, and the smallest and largest values of its footer are bytes of the file itself.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq


def search(folder: Path, words: Iterable[str]) -> Counter[str]:
    """Counts by kind of file how often one of the words stands there."""
    pattern = re.compile(b"|".join(re.escape(word.encode()) for word in sorted(words)))
    hits: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found = sum(len(pattern.findall(content)) for content in _contents(path))
            if found:
                hits[_kind(path.relative_to(folder))] += found
    return hits


def _contents(path: Path) -> Iterator[bytes]:
    yield path.name.encode()
    yield path.read_bytes()
    if path.suffix == ".parquet" and path.stat().st_size:
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            for column in group.column_names:
                yield "\n".join(map(str, group[column].to_pylist())).encode("utf-8", "surrogateescape")


def _kind(path: Path) -> str:
    """Table and sort of file, or the folder: what a reader wants to see counted apart."""
    if path.parts[0] != "warehouse":
        return "/".join(path.parts[:2])
    sort = "log" if "_delta_log" in path.parts else "rows"
    return f"{path.parts[1]} {sort}"
