"""The tables of one release as small Arrow tables and counts, the input of the report.

In: the table root and a day or release id. Out: a `Release`, and a `ReleaseTables` that reads every table at the Delta
version of the release (the latest version if the release has none). It reads the requested columns only, and only rows
of the release's day or up to it. This module does not depend on HTML or plots.

A section without its input is not an error of the release: the section prints the text of `NothingToShowError`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from conf.releases import Release, table_location
from conf.tables import TABLES


class NothingToShowError(Exception):
    """The input of a section is missing; the text is printed instead of the section."""


@dataclass(frozen=True)
class Commit:
    """The Delta commit behind a table of the release."""

    version: int
    is_pinned: bool
    job: str
    day: str
    run_id: str


def open_table(root: str, name: str, version: int | None = None) -> DeltaTable | None:
    """Opens a table at a version (None = the latest); None if it has never been written.

    Raises:
        MissingInputError: the root is a metastore, which only Spark can open.
    """
    return DeltaTable(table_location(root, name), version=version) if is_written(root, name) else None


def is_written(root: str, name: str) -> bool:
    """Returns whether a table has been written; raises as `open_table`."""
    return DeltaTable.is_deltatable(table_location(root, name))


@dataclass(frozen=True)
class ReleaseTables:
    """Reads the tables of one release.

    Attributes:
        root: table root.
        release: the release that pins the versions.
    """

    root: str
    release: Release
    _open: dict[str, DeltaTable] = field(default_factory=dict, repr=False)

    @property
    def day(self) -> date:
        return self.release.day

    @cached_property
    def until(self) -> ds.Expression:
        """Rows of the release's day and of all days before."""
        return ds.field("day") <= pa.scalar(self.day)

    @cached_property
    def today(self) -> ds.Expression:
        """Rows of the release's day."""
        return ds.field("day") == pa.scalar(self.day)

    def exists(self, name: str) -> bool:
        """Returns whether the table has been written, without opening its latest version."""
        return is_written(self.root, name)

    def scan(self, name: str, columns: Sequence[str], where: ds.Expression | None = None) -> pa.Table:
        """Reads some columns of the rows that meet `where`."""
        return self._dataset(name).to_table(columns=list(columns), filter=where)

    def batches(self, name: str, columns: Sequence[str], where: ds.Expression) -> "list[pa.RecordBatch]":
        """Reads as `scan`, one batch at a time."""
        return self._dataset(name).to_batches(columns=list(columns), filter=where)

    def count(self, name: str, where: ds.Expression | None = None) -> int:
        """Counts the rows that meet `where`; 0 if the table has never been written."""
        return self._dataset(name).count_rows(filter=where) if self.exists(name) else 0

    def count_distinct(self, name: str, column: str, where: ds.Expression) -> int:
        """Counts the values of a column; 0 if the table has never been written."""
        return pc.count_distinct(self.scan(name, [column], where)[column]).as_py() if self.exists(name) else 0

    def latest(
        self, name: str, key: str, columns: Sequence[str], where: ds.Expression | None = None
    ) -> pd.DataFrame:
        """Returns the last row per key as of the release's day, by key, as readers of a feature table see it.

        Args:
            name: a table written by day.
            key: column that names the entity.
            columns: further columns; arrays are better fetched for a sample of keys.
            where: further condition.
        """
        condition = self.until if where is None else self.until & where
        scanned = self.scan(name, ["day", key, *columns], condition)
        rows = scanned.set_column(
            0, "day", scanned["day"].cast(pa.int32())
        ).to_pandas()  # dates would be Python objects
        return (
            rows.sort_values([key, "day"], kind="stable")
            .drop_duplicates(key, keep="last")
            .reset_index(drop=True)
        )

    def commit(self, name: str) -> Commit:
        """Returns the commit of the version that is read, with job and run from its commit metadata."""
        table = self._table(name)
        last: dict[str, Any] = {}
        try:
            last = table.history(limit=1)[0]
            note = json.loads(last.get("userMetadata") or "{}")
        except (
            DeltaError,
            IndexError,
        ):  # a later entry of the log is cut; below a folder with '#' none is found
            note = {}
        except json.JSONDecodeError:  # commit metadata of another writer, for example of a manual repair
            note = {}
        return Commit(
            version=table.version(),
            is_pinned=name in self.release.table_versions,
            job=str(note.get("job", last.get("operation", ""))),
            day=str(note.get("day", "")),
            run_id=str(note.get("run_id", "")),
        )

    def _table(self, name: str) -> DeltaTable:
        if name not in self._open:
            version = self.release.table_versions.get(name)
            try:
                table = open_table(self.root, name, version)
            except DeltaError as error:
                raise NothingToShowError(
                    f"Version {version} of table {name} can no longer be read: {error}"
                ) from error
            if table is None:
                raise NothingToShowError(f"Table {name} has not been written.")
            self._open[name] = table
        return self._open[name]

    def _dataset(self, name: str) -> ds.Dataset:
        return self._table(name).to_pyarrow_dataset()


def count_by(table: pa.Table, column: str) -> dict[str, int]:
    """Counts the rows per value, most frequent first, ties by name."""
    counted = table.group_by(column).aggregate([([], "count_all")]).to_pydict()
    pairs = zip(counted[column], counted["count_all"], strict=True)
    return dict(
        sorted(((str(value), int(count)) for value, count in pairs), key=lambda pair: (-pair[1], pair[0]))
    )


def sample_keys(keys: np.ndarray, size: int) -> np.ndarray:
    """Picks at most `size` keys by their hash: the same on every run and machine, in any order."""
    if len(keys) <= size:
        return np.sort(keys)
    hashes = pd.util.hash_array(keys.astype(object), categorize=False)
    return np.sort(keys[np.argsort(hashes, kind="stable")[:size]])


def known_tables() -> list[str]:
    """Returns the names of all tables of the contract, except the log of releases, in order of the data flow."""
    return [name for name in TABLES if name != "releases"]
