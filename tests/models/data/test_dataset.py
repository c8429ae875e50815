"""Order of batches: of seed and keys alone, in memory as from disk, resumed as if never stopped."""

from datetime import date

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from conf.errors import MissingInputError, NoTrainingDataError
from models.data.dataset import BatchPlan, SampleBatches, SampleQuery, TableAt

NUM_ROWS = 57
COLUMNS = ("sample_id", "seq_len", "pattern", "block_ids")


def make_rows(order: int = 1) -> pa.Table:
    numbers = list(range(NUM_ROWS))[::order]
    return pa.table(
        {
            "day": [date(2026, 1, 31)] * NUM_ROWS,
            "split": ["train"] * NUM_ROWS,
            "sample_id": [f"s{n}" for n in numbers],
            "seq_len": pa.array([1 + n * 7 % 20 for n in numbers], pa.int32()),
            "pattern": [("local", "mixed", "travel")[n % 3] for n in numbers],
            "block_ids": [[n] * (1 + n * 7 % 20) for n in numbers],
        }
    )


@pytest.fixture
def table(tmp_path) -> TableAt:
    write_deltalake(tmp_path / "pretrain_samples", make_rows(), partition_by=["day", "split"])
    return TableAt(str(tmp_path / "pretrain_samples"), 0)


def open_batches(table: TableAt, tmp_path, *, split: str = "train", **plan: object) -> SampleBatches:
    query = SampleQuery(table, "2026-01-31", split, COLUMNS)
    return SampleBatches(query, BatchPlan(**({"batch_size": 8, "seed": 3} | plan)), tmp_path / "scratch")


def ids(batches) -> list[list[str]]:
    return [rows.column("sample_id").to_pylist() for rows in batches]


def test_every_row_comes_once_per_epoch(table, tmp_path):
    batches = open_batches(table, tmp_path)

    seen = [key for batch in ids(batches.read(0)) for key in batch]

    assert sorted(seen) == sorted(f"s{n}" for n in range(NUM_ROWS))
    assert batches.num_batches == len(list(batches.read(0))) == 8


def test_epochs_and_seeds_have_orders_of_their_own(table, tmp_path):
    batches, other = open_batches(table, tmp_path), open_batches(table, tmp_path, seed=4)

    assert ids(batches.read(0)) == ids(batches.read(0))
    assert ids(batches.read(0)) != ids(batches.read(1))
    assert ids(batches.read(0)) != ids(other.read(0))


def test_the_order_does_not_depend_on_files(table, tmp_path):
    """The same rows, written backwards and in three files."""
    rows = make_rows(-1)
    for first in range(0, NUM_ROWS, 20):
        write_deltalake(
            tmp_path / "other", rows.slice(first, 20), mode="append", partition_by=["day", "split"]
        )

    other = open_batches(TableAt(str(tmp_path / "other")), tmp_path)

    assert ids(other.read(1)) == ids(open_batches(table, tmp_path).read(1))


@pytest.mark.parametrize("curriculum", [False, True])
def test_streaming_gives_the_same_batches_as_memory(table, tmp_path, curriculum):
    plan = {"buffer_rows": 10, "curriculum": curriculum}
    kept = open_batches(table, tmp_path, **plan)
    streamed = open_batches(table, tmp_path, in_memory_rows=0, **plan)

    assert ids(streamed.read(2)) == ids(kept.read(2))
    assert len(list((tmp_path / "scratch").iterdir())) > 5
    streamed.close()
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("in_memory_rows", [0, 1000])
def test_reading_from_a_place_gives_the_rest(table, tmp_path, in_memory_rows):
    batches = open_batches(table, tmp_path, buffer_rows=10, in_memory_rows=in_memory_rows)
    whole = ids(batches.read(1))

    for start in range(len(whole) + 1):
        assert ids(batches.read(1, start)) == whole[start:]


def test_single_pattern_samples_come_before_mixed_ones(table, tmp_path):
    batches = open_batches(table, tmp_path, curriculum=True, buffer_rows=20)

    is_mixed = [
        pattern == "mixed" for rows in batches.read(0) for pattern in rows.column("pattern").to_pylist()
    ]

    assert is_mixed == sorted(is_mixed)
    assert sum(is_mixed) == 19


@pytest.mark.parametrize("in_memory_rows", [0, 1000])
def test_later_epochs_do_not_end_on_mixed_samples(table, tmp_path, in_memory_rows):
    batches = open_batches(
        table, tmp_path, curriculum=True, buffer_rows=NUM_ROWS, in_memory_rows=in_memory_rows
    )

    is_mixed = [rows.column("pattern")[0].as_py() == "mixed" for rows in batches.read(1)]

    keys = {key for batch in ids(batches.read(1)) for key in batch}
    assert is_mixed != sorted(is_mixed)
    assert len(is_mixed) == batches.num_batches
    assert keys == {f"s{n}" for n in range(NUM_ROWS)}
    batches.close()


def test_batches_hold_rows_of_similar_length(table, tmp_path):
    spans = [
        max(lengths) - min(lengths)
        for rows in open_batches(table, tmp_path).read(0)
        if (lengths := rows.column("seq_len").to_pylist())
    ]

    assert max(spans) <= 4  # of 20


def test_validation_has_one_order(table, tmp_path):
    batches = open_batches(table, tmp_path, shuffle=False)

    assert ids(batches.read(0)) == ids(batches.read(5))


def test_rows_of_other_days_splits_and_versions_are_not_read(table, tmp_path):
    late = make_rows().set_column(1, "split", pa.array(["val"] * NUM_ROWS))
    write_deltalake(table.location, late, mode="append")

    assert open_batches(table, tmp_path).num_rows == NUM_ROWS
    with pytest.raises(NoTrainingDataError, match="no val rows as of 2026-01-31"):
        open_batches(table, tmp_path, split="val")  # version 0 has none
    assert open_batches(TableAt(table.location), tmp_path, split="val").num_rows == NUM_ROWS


@pytest.mark.parametrize("version", [None, 9])
def test_a_missing_table_or_version_says_how_to_make_it(table, tmp_path, version):
    location = str(tmp_path / "nowhere") if version is None else table.location

    with pytest.raises(MissingInputError, match="python -m etl"):
        open_batches(TableAt(location, version), tmp_path)
