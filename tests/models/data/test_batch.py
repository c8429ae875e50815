"""Arrow rows -> tensors: unequal lengths, empty lists, slices, nulls."""

import pyarrow as pa
import pytest
import torch

from models.data.batch import collate_candidates, collate_history, collate_requests, list_lengths, pad_lists

HISTORY = {
    "timestamps_ms": [[10, 20, 30], [], [40]],
    "tz_offsets_min": [[0, 60, 0], [], [-300]],
    "user_lons": [[float("nan"), 1.5, 2.5], [], [3.5]],
    "user_lats": [[float("nan"), 51.0, 52.0], [], [53.0]],
    "action_type_ids": [[0, 1, 2], [], [3]],
    "block_ids": [[5, 6, 7], [], [8]],
    "inner_ids": [[1, 2, 3], [], [4]],
    "poi_lons": [[1.0, 2.0, 3.0], [], [4.0]],
    "poi_lats": [[5.0, 6.0, 7.0], [], [8.0]],
    "category_ids": [[1, 1, 2], [], [0]],
}


def test_rows_are_padded_on_the_right_with_zero_ids_and_unknown_places():
    batch = collate_history(pa.table(HISTORY))

    assert batch.lengths_B.tolist() == [3, 0, 1]
    assert batch.timestamps_BL.tolist() == [[10, 20, 30], [0, 0, 0], [40, 0, 0]]
    assert batch.blocks_BL.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert batch.user_lonlat_BL2[2, 0].tolist() == [3.5, 53.0]
    assert batch.poi_lonlat_BL2.isnan()[..., 0].tolist() == [[False] * 3, [True] * 3, [False, True, True]]
    assert batch.blocks_BL.dtype == torch.int64


def test_columns_that_only_training_has_may_be_absent():
    batch = collate_history(pa.table(HISTORY))

    assert batch.num_context_B.tolist() == [0, 0, 0]
    assert not batch.is_targets_BL.any()
    assert batch.profile_ids_BP.shape == (3, 0)


def test_a_slice_gives_its_own_rows():
    sliced = pa.table(HISTORY | {"profile_ids": [[1], [2, 3], [4, 5]]}).slice(1, 2)

    batch = collate_history(sliced)

    assert batch.lengths_B.tolist() == [0, 1]
    assert batch.blocks_BL.tolist() == [[0], [8]]
    assert batch.profile_ids_BP.tolist() == [[2, 3], [4, 5]]


def test_record_batches_and_chunked_tables_are_the_same():
    table = pa.table(HISTORY)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])

    (batch,) = table.to_batches()

    for one, other in zip(collate_history(chunked), collate_history(batch), strict=True):
        assert one is other is None or torch.equal(one.nan_to_num(), other.nan_to_num())


def test_a_table_without_rows_is_an_empty_batch():
    batch = collate_history(pa.table(HISTORY).slice(0, 0))

    assert batch.blocks_BL.shape == (0, 0)


def test_large_lists_work_too():
    column = pa.array([[1, 2], [3]], type=pa.large_list(pa.int32()))
    rows = pa.table({"ids": column})

    assert pad_lists(rows, "ids", torch.int64).tolist() == [[1, 2], [3, 0]]
    assert list_lengths(rows, "ids").tolist() == [2, 1]


def test_null_lists_are_refused_by_name():
    rows = pa.table({"ids": pa.array([[1], None])})

    with pytest.raises(ValueError, match="ids has 1 null"):
        pad_lists(rows, "ids", torch.int64)


def test_requests_without_a_place_have_an_unknown_one():
    rows = pa.table(
        {
            "request_ts_ms": [1_000, 2_000],
            "tz_offset_min": pa.array([60, 0], pa.int32()),
            "user_lon": [4.5, None],
            "user_lat": [52.5, None],
            "action_type_id": pa.array([0, 2], pa.int32()),
        }
    )

    requests = collate_requests(rows)

    assert requests.user_lonlat_B2[0].tolist() == [4.5, 52.5]
    assert requests.user_lonlat_B2[1].isnan().all()
    assert requests.action_types_B.tolist() == [0, 2]
    assert not requests.is_neutral_B.any()


def test_candidates_are_read_by_prefix():
    columns = {"block_ids": [[1, 2], [3]], "inner_ids": [[4, 5], [6]], "lons": [[1.0, 2.0], [3.0]],
               "lats": [[4.0, 5.0], [6.0]], "category_ids": [[0, 1], [2]]}  # fmt: skip
    rows = pa.table({f"rejected_{name}": values for name, values in columns.items()})

    candidates = collate_candidates(rows, "rejected")

    assert candidates.lengths_B.tolist() == [2, 1]
    assert candidates.blocks_BC.tolist() == [[1, 2], [3, 0]]
    assert candidates.lonlat_BC2[1, 0].tolist() == [3.0, 6.0]


def test_a_batch_moves_to_a_device_whole():
    batch = collate_history(pa.table(HISTORY)).to("meta")

    assert type(batch).__name__ == "HistoryBatch"
    assert {field.device.type for field in batch if field is not None} == {"meta"}
