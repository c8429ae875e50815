"""Pinned tables: the Delta version that a training reads, its number of rows, and a digest of their content.

A version alone does not show whether a table changed: a repeated job writes a new version with the same rows. So a
pin also holds a digest of the rows, which depends on neither their order nor the files. A restarted training keeps its
pins as long as the digests agree and the log still has the versions. An erasure removes versions; then a stage begins
again, on the newest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from conf.tables import TABLES
from models.data.dataset import TableAt, open_table
from models.data.ragged import rows_and_places

_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Pin:
    """A table as a training reads it.

    Attributes:
        version: Delta version.
        num_rows: rows of the day (of the whole table if it has no days).
        num_simulated: rows of them that come from a simulation.
        digest: 16 hex digits over the rows' business columns, independent of their order.
        has_moved: the version of an earlier pin is gone, so a stage that has read it begins again.
    """

    version: int
    num_rows: int
    num_simulated: int
    digest: str
    has_moved: bool = False

    @property
    def identity(self) -> str:
        """What tells whether a stage may go on with this pin."""
        return f"{self.digest}@{self.version}" if self.has_moved else self.digest


def locate_table(root: str, name: str) -> str:
    """Returns the folder or URI of a table."""
    return f"{root.rstrip('/')}/{name}"


def pin_table(root: str, name: str, day: str, known: Pin | None = None) -> Pin:
    """Pins the newest version of a table, or keeps a known pin if the rows are still the same.

    Args:
        root: table root.
        name: table name.
        day: day of the rows in the digest, if the table has days.
        known: pin of an earlier start; None = none.

    Raises:
        MissingInputError: there is no such table.
    """
    location = locate_table(root, name)
    remedy = f"Run: {TABLES[name].command} --day {day}."
    table = open_table(TableAt(location), needed_by="The training", remedy=remedy)
    version = int(table.version())
    if known is not None and known.version == version:
        return known
    contract = TABLES[name]
    dataset = table.to_pyarrow_dataset()
    wanted = None
    if contract.write == "day":
        wanted = pds.field("day") == pa.scalar(day).cast(dataset.schema.field("day").type)
    columns = [column for column in contract.business_columns if column in dataset.schema.names]
    num_rows, num_simulated, total = 0, 0, np.uint64(0)
    with np.errstate(over="ignore"):
        for batch in dataset.to_batches(columns=columns, filter=wanted):
            num_rows += batch.num_rows
            num_simulated += (
                int(np.count_nonzero(batch.column("is_simulated"))) if "is_simulated" in columns else 0
            )
            # A sum ignores the order as xor does, but two equal rows do not cancel out.
            total += _hash_rows(batch).sum(dtype=np.uint64)
    digest = f"{int(total ^ np.uint64(num_rows)):016x}"
    if known is None or (known.digest, known.num_rows) != (digest, num_rows):
        return Pin(version, num_rows, num_simulated, digest)
    if _has_version(location, known.version):
        return known
    return Pin(version, num_rows, num_simulated, digest, has_moved=True)


def _has_version(location: str, version: int) -> bool:
    """Tells whether the log still has a version; an erasure removes those that showed the users."""
    try:
        DeltaTable(location, version=version)
    except DeltaError:
        return False
    return True


def _hash_rows(batch: pa.RecordBatch) -> np.ndarray:
    """Returns a 64-bit hash of each row, from the hashes of its columns."""
    return _hash_fields(batch.columns, batch.num_rows)


def _hash_fields(columns: Sequence[pa.Array], num_rows: int) -> np.ndarray:
    hashed = np.zeros(num_rows, dtype=np.uint64)
    for number, column in enumerate(columns):
        column_hash = _hash_column(column)
        hashed = _scramble(hashed ^ (column_hash + np.uint64(number + 1) * _MIX))
    return hashed


def _hash_column(column: pa.Array) -> np.ndarray:
    """Returns a 64-bit hash of each value; lists sum the hashes of elements and places, structs count as rows."""
    if pa.types.is_struct(column.type):
        return _hash_fields([column.is_valid(), *column.flatten()], len(column))
    if not pa.types.is_list(column.type):
        return _hash_values(column)
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    elements = _hash_column(column.flatten())
    rows, place = rows_and_places(lengths)
    summed = np.zeros(len(lengths), dtype=np.uint64)
    np.add.at(
        summed,
        rows,
        _scramble(elements + place.astype(np.uint64) * _MIX),
    )
    return summed + lengths.astype(np.uint64)


def _hash_values(values: pa.Array) -> np.ndarray:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return pd.util.hash_array(values.to_numpy(zero_copy_only=False).astype(object), categorize=True)
    if pa.types.is_date32(values.type):
        values = values.cast(pa.int32())
    plain = values.to_numpy(zero_copy_only=False)  # nulls of numbers become nan
    return pd.util.hash_array(plain.astype(np.float64) if plain.dtype == object else plain)


def _scramble(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(27))
