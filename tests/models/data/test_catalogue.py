"""The catalogue: which slots are live when, and where a slot is found."""

from datetime import date

import numpy as np
import pyarrow as pa

from models.data.catalogue import Catalogue, day_ms

ROWS = [
    ("moved", 1, 0, date(2026, 1, 1), date(2026, 1, 3)),  # lives here until the 2nd
    ("moved", 0, 1, date(2026, 1, 3), None),
    ("always", 0, 0, date(2025, 1, 1), None),
]


def _catalogue() -> Catalogue:
    columns = ("poi_id", "block_id", "inner_id", "valid_from", "valid_to")
    rows = [
        dict(zip(columns, row, strict=True)) | {"poi_lon": 4.9, "poi_lat": 52.3, "category_id": 1}
        for row in ROWS
    ]
    return Catalogue.from_arrow(pa.Table.from_pylist(rows))


def test_rows_are_sorted_by_block_and_inner():
    assert _catalogue().poi_ids.tolist() == ["always", "moved", "moved"]


def test_a_moved_poi_is_live_in_one_slot_at_a_time():
    times = np.array([day_ms(date(2026, 1, 2)), day_ms(date(2026, 1, 3)) - 1, day_ms(date(2026, 1, 3))])
    assert _catalogue().live_mask(times).tolist() == [
        [True, False, True],
        [True, False, True],  # the last millisecond of the 2nd
        [True, True, False],
    ]


def test_days_without_a_change_share_an_epoch():
    times = np.array([day_ms(date(2026, 1, day)) for day in (1, 2, 3, 9)])
    epochs = _catalogue().live_epochs(times)
    assert epochs[0] == epochs[1] != epochs[2] == epochs[3]


def test_live_slots_of_a_model_follow_the_day():
    catalogue = _catalogue()
    before = catalogue.live_slots(day_ms(date(2026, 1, 2)), num_blocks=2, max_inner=2)
    after = catalogue.live_slots(day_ms(date(2026, 1, 3)), num_blocks=2, max_inner=2)
    assert before.mask_blocks().tolist() == [True, True]
    assert after.mask_blocks().tolist() == [True, False]
    assert after is catalogue.live_slots(day_ms(date(2026, 1, 9)), num_blocks=2, max_inner=2)


def test_unknown_slots_have_no_row():
    assert _catalogue().find_rows(np.array([0, 1, 7]), np.array([1, 0, 0])).tolist() == [1, 2, -1]
