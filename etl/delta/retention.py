"""Retention of old Delta files and log entries; deletes those that nothing pins.

`vacuum_table` deletes data files that no kept version needs. Before that, Delta itself lists the files of the latest
and of every pinned version, and none of them may be among those to delete. Spark's own VACUUM knows an age only; this
module also knows which versions a release or a training still reads. `forget_history` makes the present version the
first: it deletes the files of all others and the log, whose statistics hold the smallest and largest value of every
column. Spark writes the log; the `deltalake` library and the file system maintain it. So the root must be a folder or
a URI that pyarrow opens, or a metastore's table that lies in one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from delta.tables import DeltaTable as SparkDeltaTable
from deltalake import DeltaTable
from pyarrow import fs
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.errors import CorruptInputError, DeletionRefusedError
from conf.settings import CATALOG_PREFIX
from etl.delta.storage import read_table, table_history, table_location, table_version

HISTORY_STARTS = "spacetime.historyStarts"
"""Table property: the version before which nothing was kept."""
_LOG_FILE = re.compile(r"\.?(\d{20})\.")
"""Commits, checkpoints and checksums begin with their version; Hadoop's checksums of them with a dot before it."""


def table_path(spark: SparkSession, root: str, name: str) -> str:
    """Returns the folder or URI of a table's files, whether it is known by path or by a metastore."""
    location = table_location(root, name)
    if root.startswith(CATALOG_PREFIX):
        row = SparkDeltaTable.forName(spark, location).detail().select("location").first()
        assert row is not None, "a table that exists has a location"
        location = str(row["location"])
    return re.sub("^s3a://", "s3://", location)  # Hadoop's name for s3


def vacuum_table(
    spark: SparkSession,
    root: str,
    name: str,
    *,
    keep_versions: Sequence[int],
    hours: float,
    dry_run: bool = False,
) -> list[str]:
    """Deletes data files that no kept version needs and no age protects; commits nothing.

    The `deltalake` library's own vacuum keeps versions too, but it makes two commits: an audited table would then have
    changed since its audit.

    Args:
        spark: session that lists, as a second check, the files that must stay.
        root: table root.
        name: the table.
        keep_versions: versions that stay readable, as far as the log knows them; the latest one always does.
        hours: age limit. Versions that were the latest within it stay, for jobs that still read them, and so do
            younger files, for jobs that have not committed them yet.
        dry_run: list the files without deleting them.

    Returns:
        The files deleted, as paths of their file system.

    Raises:
        DeletionRefusedError: by Delta's list, the latest or a pinned version needs one of the files to delete.
    """
    path = table_path(spark, root, name)
    system, folder = open_folder(path)
    youngest = datetime.now(UTC) - timedelta(hours=hours)
    commits = _commits(spark, root, name)
    kept: set[str] = set()
    for version in _versions_kept(commits, keep_versions, youngest):
        kept |= _files_of(DeltaTable(path, version=version))
    doomed = [
        info.path
        for info in system.get_file_info(fs.FileSelector(folder, recursive=True))
        if info.is_file and info.mtime <= youngest and _is_data_file(_below(folder, info.path))
        and _below(folder, info.path) not in kept
    ]  # fmt: skip
    if doomed:
        _refuse_live_files(spark, root, name, doomed, sorted(commits.keys() & set(keep_versions)))
    for file in doomed if not dry_run else []:
        system.delete_file(file)
        _delete_checksum(system, file)
    return doomed


def missing_files(spark: SparkSession, root: str, name: str, version: int) -> list[str]:
    """Returns the data files of a version that are missing or cut short.

    Raises:
        DeltaError: the log no longer has the version.
    """
    path = table_path(spark, root, name)
    system, folder = open_folder(path)
    sizes = {
        _below(folder, info.path): info.size
        for info in system.get_file_info(fs.FileSelector(folder, recursive=True))
        if info.is_file
    }
    files = pa.table(DeltaTable(path, version=version).get_add_actions()).select(["path", "size_bytes"])
    return [
        unquote(row["path"])
        for row in files.to_pylist()
        if sizes.get(unquote(row["path"])) != row["size_bytes"]
    ]


def damaged_files(path: str) -> list[str]:
    """Returns the data files that are no readable Parquet and that the latest version does not need; reads all files.

    Raises:
        CorruptInputError: the latest version needs a damaged file, so rows are lost.
    """
    system, folder = open_folder(path)
    needed, damaged = _files_of(DeltaTable(path)), []
    for info in system.get_file_info(fs.FileSelector(folder, recursive=True)):
        if not (info.is_file and _is_data_file(_below(folder, info.path))):
            continue
        cause = _find_damage(system, info.path)
        if cause and _below(folder, info.path) in needed:
            raise CorruptInputError(
                path=info.path, expected="a data file of the table's latest version", cause=cause
            )
        damaged += [info.path] if cause else []
    return damaged


def _find_damage(system: fs.FileSystem, file: str) -> str:
    """Returns why a Parquet file cannot be read to its end; empty if it can. Errors of access are raised."""
    try:
        with system.open_input_file(file) as opened:
            for _ in pq.ParquetFile(opened).iter_batches():
                pass
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:  # pyarrow has a plain OSError for a damaged footer or page
        return str(error)
    return ""


def restart_history(spark: SparkSession, root: str, name: str) -> int:
    """Commits a version with the same rows that does not refer to earlier files, and returns it.

    The commit that deletes rows holds the statistics of the files that it removes. So it cannot be the first of a
    history that must not contain them. A checkpoint lets the log begin here (`forget_history`).
    """
    location = table_location(root, name)
    table = location if root.startswith(CATALOG_PREFIX) else f"delta.`{location}`"
    start = table_version(spark, root, name) + 1
    spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('{HISTORY_STARTS}' = '{start}')")
    DeltaTable(table_path(spark, root, name), version=start).create_checkpoint()
    return start


def show_version(spark: SparkSession, root: str, name: str, version: int) -> int:
    """Commits a version with the rows of an earlier one, from the same files, and returns it.

    This uses `deltalake`, which compares two lists of files; Delta's own command runs Spark jobs for it.
    """
    DeltaTable(table_path(spark, root, name)).restore(version)
    return table_version(spark, root, name)


def forget_history(spark: SparkSession, root: str, name: str, start: int) -> int:
    """Deletes all data files and commits that no version from `start` on needs; returns the number of files.

    Versions before it can no longer be read. A run that was killed can be repeated.

    Args:
        spark: session.
        root: table root.
        name: the table.
        start: version that `restart_history` has committed.
    """
    path = table_path(spark, root, name)
    versions = range(start, table_version(spark, root, name) + 1)
    deleted = vacuum_table(spark, root, name, keep_versions=versions, hours=0)
    system, folder = open_folder(path)
    for info in system.get_file_info(fs.FileSelector(f"{folder}/_delta_log", recursive=True)):
        match = _LOG_FILE.match(info.base_name)
        if info.is_file and match and int(match.group(1)) < start:
            system.delete_file(info.path)
            deleted.append(info.path)
    return len(deleted)


def read_log(path: str) -> Iterator[bytes]:
    """Yields the content of every file of a table's log; of checkpoints, which are compressed, the decoded text."""
    system, folder = open_folder(path)
    for info in system.get_file_info(fs.FileSelector(f"{folder}/_delta_log", recursive=True)):
        if not info.is_file:
            continue
        with system.open_input_file(info.path) as file:
            if info.base_name.endswith(".parquet"):
                yield _texts(pq.read_table(file)).encode()
            else:
                yield file.read()


def open_folder(path: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a folder or URI, and the folder on it."""
    if urlparse(path).scheme:
        return fs.FileSystem.from_uri(path)
    return fs.LocalFileSystem(), path  # unchanged: '#' and '?' are ordinary characters in a path


def _commits(spark: SparkSession, root: str, name: str) -> dict[int, float]:
    """Returns the versions in the log with the time of each in seconds; `deltalake` finds none below a '#'."""
    rows = (
        table_history(spark, root, name).select("version", F.unix_millis("timestamp").alias("ms")).collect()
    )
    return {row["version"]: row["ms"] / 1000 for row in rows}


def _versions_kept(commits: Mapping[int, float], pinned: Sequence[int], since: datetime) -> list[int]:
    """Returns the versions of the log that are pinned, or were the latest at `since` or after it."""
    before = [version for version, seconds in commits.items() if seconds < since.timestamp()]
    return sorted(version for version in commits if version in pinned or version >= max(before, default=0))


def _is_data_file(path: str) -> bool:
    """Tells whether a file holds data; the log, and other names that begin with an underscore or a dot, do not."""
    return path.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in path.split("/"))


def _below(folder: str, path: str) -> str:
    return path.removeprefix(folder).lstrip("/")


def _files_of(table: DeltaTable) -> set[str]:
    """Returns the files of a version, as paths below the table's folder.

    Not `file_uris`: their encoding depends on the folder's name. The log encodes each path exactly once.
    """
    paths = pa.table(table.get_add_actions()).column("path").to_pylist()
    return {unquote(path) for path in paths}


def _refuse_live_files(
    spark: SparkSession, root: str, name: str, doomed: Sequence[str], pinned: Sequence[int]
) -> None:
    """Raises if Delta needs one of the files. It compares base names, which are unique and never encoded."""
    names = {file.rpartition("/")[2]: file for file in doomed}
    for version in (None, *pinned):
        needed = read_table(spark, root, name, version=version).inputFiles()
        live = sorted(names.keys() & {file.rpartition("/")[2] for file in needed})
        if live:
            raise DeletionRefusedError(
                table=name, version=version, files=[names[base] for base in live], doomed=len(doomed)
            )


def _delete_checksum(system: fs.FileSystem, file: str) -> None:
    """Deletes the checksum that Hadoop keeps next to a file of a local folder."""
    folder, _, base = file.rpartition("/")
    checksum = f"{folder}/.{base}.crc"
    if system.get_file_info(checksum).is_file:
        system.delete_file(checksum)


def _texts(table: pa.Table) -> str:
    return "\n".join(str(row) for row in table.to_pylist())
