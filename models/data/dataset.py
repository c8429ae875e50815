"""Sample tables -> batches: pinned Delta versions as Arrow, in an order that depends on seed and keys alone.

A hash of the key assigns rows to shards, so that a shard has about `buffer_rows` rows at any table size.
Small tables stay in memory. Larger ones are spilled once, shard by shard, to Arrow files in a scratch folder, and
memory holds one shard at a time. Within a shard, batches have rows of similar length.
"""

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from conf.errors import MissingInputError, NoTrainingDataError
from models.data.parallel import process_rank

LOGGER = logging.getLogger(__name__)
SINGLE_PATTERNS = ("local", "travel")
Group = tuple[int, int, int]
"""Phase of the curriculum, shard, rows."""


@dataclass(frozen=True)
class TableAt:
    """A Delta table at a version.

    Attributes:
        location: folder or URI.
        version: Delta version; None = the newest.
    """

    location: str
    version: int | None = None


@dataclass(frozen=True)
class SampleQuery:
    """A selection of rows of a sample table, and the columns that identify them.

    Attributes:
        table: the sample table.
        day: day as of which the samples were made, YYYY-MM-DD.
        split: train, val or test.
        columns: columns that the stage needs, including the key and the length.
        key: column that names a row; the order depends on it.
        length: column by which batches are bucketed.
    """

    table: TableAt
    day: str
    split: str
    columns: tuple[str, ...]
    key: str = "sample_id"
    length: str = "seq_len"


@dataclass(frozen=True)
class BatchPlan:
    """Settings that turn rows into batches.

    Attributes:
        batch_size: rows per batch; the last one of a shard may be smaller.
        seed: seed of the order.
        buffer_rows: approximate number of rows of a shard.
        in_memory_rows: tables up to this size are kept in memory.
        curriculum: in the first epoch, rows with pattern local or travel come before mixed rows. Later epochs have no
            such order, since it would end each of them on mixed rows alone.
        shuffle: another order every epoch; False = one order, for validation.
    """

    batch_size: int
    seed: int = 0
    buffer_rows: int = 8192
    in_memory_rows: int = 200_000
    curriculum: bool = False
    shuffle: bool = True


def open_table(table: TableAt, *, needed_by: str, remedy: str) -> DeltaTable:
    """Opens a Delta table; raises MissingInputError if the table or the version does not exist."""
    try:
        return DeltaTable(table.location, version=table.version)
    except (TableNotFoundError, DeltaError) as error:
        where = table.location if table.version is None else f"{table.location} at version {table.version}"
        raise MissingInputError(
            what="the Delta table", where=where, needed_by=needed_by, remedy=remedy
        ) from error


def read_table(table: TableAt, columns: Sequence[str], condition: pds.Expression | None = None) -> pa.Table:
    """Reads some columns of a table that fits in memory."""
    opened = open_table(table, needed_by="A model stage", remedy="Run the ETL jobs of the day first.")
    return opened.to_pyarrow_dataset().to_table(columns=list(columns), filter=condition)


class SampleBatches:
    """The batches of one split: equal rows, plan and epoch give equal batches, whichever files hold the rows."""

    def __init__(self, query: SampleQuery, plan: BatchPlan, scratch: Path) -> None:
        """Counts the rows, and reads or spills them.

        Args:
            query: selection of rows.
            plan: settings of the batches.
            scratch: folder for spilled shards, used by this object alone; removed by `close`.

        Raises:
            MissingInputError: there is no such table.
            NoTrainingDataError: the split has no row.
        """
        self.query, self.plan = query, plan
        # Each process of a data-parallel training spills to a separate folder.
        self.scratch = scratch.with_name(f"{scratch.name}-{process_rank()}") if process_rank() else scratch
        name = Path(query.table.location).name
        opened = open_table(
            query.table, needed_by="The training", remedy=f"Run: python -m etl {name} --day {query.day}."
        )
        dataset = opened.to_pyarrow_dataset()
        wanted = _equals(dataset, "day", query.day) & _equals(dataset, "split", query.split)
        self.num_rows = dataset.count_rows(filter=wanted)
        if self.num_rows == 0:
            raise NoTrainingDataError(
                table=name,
                split=query.split,
                day=query.day,
                remedy=_describe_remedy(name, query),
            )
        self.num_shards = math.ceil(self.num_rows / plan.buffer_rows)
        scanner = dataset.scanner(columns=list(query.columns), filter=wanted)
        self._rows: pa.Table | None = None
        if self.num_rows <= plan.in_memory_rows:
            self._rows = scanner.to_table()
            sizes = self._count_groups(self._rows)
        else:
            sizes = self._spill(scanner)
        self._groups = [(phase, shard, size) for (phase, shard), size in sorted(sizes.items())]

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return sum(self._num_batches(size) for _, _, size in self._groups)

    def read(self, epoch: int = 0, start: int = 0) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on; shards before it are not read."""
        epoch = epoch if self.plan.shuffle else 0
        passed = 0
        for groups in self._order_groups(epoch):
            num_batches = sum(self._num_batches(size) for _, _, size in groups)
            if passed + num_batches > start:
                for rows, index in self._plan_batches(groups, epoch)[max(start - passed, 0) :]:
                    yield rows.take(index)
            passed += num_batches

    def close(self) -> None:
        """Removes spilled shards."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _num_batches(self, size: int) -> int:
        return math.ceil(size / self.plan.batch_size)

    def _order_groups(self, epoch: int) -> list[list[Group]]:
        """Returns lists of groups whose batches are shuffled together, by curriculum, then by a hash of the shard."""
        by_shard: dict[tuple[int, int], list[Group]] = {}
        for phase, shard, size in self._groups:
            by_shard.setdefault((phase if epoch == 0 else 0, shard), []).append((phase, shard, size))

        def place(key: tuple[int, int]) -> tuple[int, int, int]:
            phase, shard = key
            return phase, int(_mix(np.array([shard]), self.plan.seed, epoch)[0]), shard

        return [by_shard[key] for key in sorted(by_shard, key=place)]

    def _plan_batches(self, groups: list[Group], epoch: int) -> list[tuple[pa.Table, np.ndarray]]:
        """Returns the table and the row numbers of each batch: rows of similar length, batches in random order."""
        batches = []
        for phase, shard, _ in groups:
            rows = self._load(phase, shard)
            keys = _hash_keys(rows, self.query.key)
            random = _mix(keys, self.plan.seed, epoch)
            lengths = rows.column(self.query.length).to_numpy()
            # The order of rows in files must not decide ties of the random order.
            order = np.lexsort((keys, random, lengths))
            size = self.plan.batch_size
            batches += [(rows, order[first : first + size]) for first in range(0, len(order), size)]
        if self.plan.shuffle:
            places = _mix(np.arange(len(batches)), self.plan.seed + 1, epoch)
            batches = [batches[place] for place in np.argsort(places, kind="stable")]
        return batches

    def _load(self, phase: int, shard: int) -> pa.Table:
        if self._rows is not None:
            phases, shards = self._deal(self._rows)
            return self._rows.filter(pa.array((phases == phase) & (shards == shard)))
        with pa.OSFile(str(self._shard_file(phase, shard))) as source, pa.ipc.open_stream(source) as reader:
            return reader.read_all()

    def _deal(self, rows: pa.Table | pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns phase of the curriculum and shard of each row."""
        shards = (_hash_keys(rows, self.query.key) % np.uint64(self.num_shards)).astype(np.int64)
        if not self.plan.curriculum:
            return np.zeros(len(shards), dtype=np.int64), shards
        is_single = pc.is_in(rows.column("pattern"), value_set=pa.array(SINGLE_PATTERNS))
        return 1 - np.asarray(is_single.to_numpy(zero_copy_only=False)).astype(np.int64), shards

    def _count_groups(self, rows: pa.Table) -> dict[tuple[int, int], int]:
        groups, sizes = np.unique(np.stack(self._deal(rows)), axis=1, return_counts=True)
        return {(int(p), int(s)): int(n) for p, s, n in zip(*groups, sizes, strict=True)}

    def _spill(self, scanner: pds.Scanner) -> dict[tuple[int, int], int]:
        """Writes the rows of each shard to a separate file, in one pass."""
        LOGGER.info("spilling %d rows in %d shards to %s", self.num_rows, self.num_shards, self.scratch)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        writers: dict[tuple[int, int], pa.ipc.RecordBatchStreamWriter] = {}
        sizes: dict[tuple[int, int], int] = {}
        try:
            for batch in scanner.to_batches():
                phases, shards = self._deal(batch)
                for phase, shard in {*zip(phases.tolist(), shards.tolist(), strict=True)}:
                    part = batch.filter(pa.array((phases == phase) & (shards == shard)))
                    if (phase, shard) not in writers:
                        path = str(self._shard_file(phase, shard))
                        writers[phase, shard] = pa.ipc.new_stream(path, part.schema)
                    writers[phase, shard].write_batch(part)
                    sizes[phase, shard] = sizes.get((phase, shard), 0) + len(part)
        finally:
            for writer in writers.values():
                writer.close()
        return sizes

    def _shard_file(self, phase: int, shard: int) -> Path:
        return self.scratch / f"phase{phase}-shard{shard:05d}.arrow"


def open_validation(
    query: SampleQuery, plan: BatchPlan, scratch: Path, *, is_needed: bool
) -> SampleBatches | None:
    """Opens a held-out split; returns None if it has no rows and training does not need it.

    Raises:
        MissingInputError: there is no such table.
        NoTrainingDataError: the split has no row, and is needed.
    """
    try:
        return SampleBatches(query, plan, scratch)
    except NoTrainingDataError as error:
        if is_needed:
            raise
        LOGGER.warning("training is not validated: %s", error)
        return None


def _equals(dataset: pds.Dataset, column: str, value: str) -> pds.Expression:
    return pds.field(column) == pa.scalar(value).cast(dataset.schema.field(column).type)


def _describe_remedy(table: str, query: SampleQuery) -> str:
    """Returns a text on the settings that leave a split without rows."""
    if query.split != "train":
        return (
            f"Raise samples.{query.split}_days or deliver more days; or, if the model need not be judged, train with "
            "--allow-unvalidated."
        )
    if table != "pretrain_samples":
        return (
            "They are made of raw_impressions: deliver requests, with the POIs shown and clicked, of days before "
            f"samples.val_days and samples.test_days; then run: python -m etl samples --day {query.day}."
        )
    return (
        "Lower samples.val_days and samples.test_days, which take the last days, samples.min_richness, below which "
        f"users are left out, or switch samples.interest_only off; then run: python -m etl samples --day {query.day}."
    )


def _hash_keys(rows: pa.Table | pa.RecordBatch, key: str) -> np.ndarray:
    """Returns a 64-bit hash of each key (SipHash with a fixed key, so it is the same in every process)."""
    return pd.util.hash_array(rows.column(key).to_pandas().to_numpy(dtype=object), categorize=False)


def _mix(keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns pseudo-random 64-bit numbers from keys, seed and epoch (SplitMix64)."""
    with np.errstate(over="ignore"):
        salt = np.uint64((seed * 1_000_003 + epoch) % 2**63) * np.uint64(0x9E3779B97F4A7C15)
        mixed = keys.astype(np.uint64) + salt
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
