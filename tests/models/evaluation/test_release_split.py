"""Requests of the release split: histories strictly before, one action type asked for, targets live."""

import numpy as np
import pyarrow as pa

from models.data.catalogue import Catalogue
from models.evaluation.release_split import MODEL_COLUMNS, build_rows, most_common_action_type


def _split(city_tables: dict[str, pa.Table], split: str) -> pa.Table:
    samples = city_tables["pretrain_samples"]
    return samples.filter(pa.array([value == split for value in samples["split"].to_pylist()]))


def _rows(city_tables: dict[str, pa.Table], held_out: pa.Table | None = None):
    catalogue = Catalogue.from_arrow(city_tables["poi_index"])
    return build_rows(_split(city_tables, "train"), held_out or _split(city_tables, "test"), catalogue)


def _with(table: pa.Table, name: str, values: list) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(
        index, table.schema.field(name), pa.array(values, type=table.schema.field(name).type)
    )


def test_every_target_is_a_request_with_all_earlier_actions_of_its_sample(city_tables):
    rows = _rows(city_tables)
    assert len(rows.requests) == 120
    assert (rows.requests.stops - rows.requests.starts).tolist() == [*range(50, 60)] * 12
    first = rows.requests
    assert first.row_ids[0] == f"u0|{first.timestamps_ms[0]}|{rows.catalogue.poi_ids[first.targets[0]]}"


def test_actions_at_the_time_of_the_request_are_not_history(city_tables):
    test = _split(city_tables, "test")
    times = test["timestamps_ms"].to_pylist()
    times[0][59] = times[0][58]  # the last two actions of user 0 in one millisecond
    rows = _rows(city_tables, _with(test, "timestamps_ms", times))
    assert rows.requests.stops[9] - rows.requests.starts[9] == 58


def test_counts_are_of_training_windows_only(city_tables):
    rows = _rows(city_tables)
    assert rows.counts.popularity.sum() == 12 * 40


def test_a_target_that_is_not_live_on_its_day_is_counted_apart(city_tables):
    index = city_tables["poi_index"]
    closed = _with(index, "valid_to", [index["valid_from"][0].as_py()] * index.num_rows)
    rows = build_rows(_split(city_tables, "train"), _split(city_tables, "test"), Catalogue.from_arrow(closed))
    assert len(rows.requests) == 0
    assert rows.num_not_live == 120


def test_the_action_type_asked_for_is_the_most_common_one_of_training_never_the_targets_own(city_tables):
    train = _split(city_tables, "train")
    mixed = _with(train, "action_type_ids", [[3] * 30 + [1] * 10 for _ in range(train.num_rows)])
    assert most_common_action_type(mixed) == 3
    test = _split(city_tables, "test")
    other = _with(test, "action_type_ids", [[5] * 60 for _ in range(test.num_rows)])
    assert {batch["action_type_id"][0].as_py() for _, batch in _rows(city_tables, other).batches(7)} == {0}


def test_batches_hold_every_request_once_with_its_own_history(city_tables):
    rows = _rows(city_tables)
    seen = []
    for own, batch in rows.batches(32):
        seen += own.tolist()
        for row, times in zip(own, batch["timestamps_ms"].to_pylist(), strict=True):
            start, stop = rows.requests.starts[row], rows.requests.stops[row]
            assert times == rows.requests.visits.timestamps_ms[start:stop].tolist()
            assert max(times) < rows.requests.timestamps_ms[row]
        assert set(MODEL_COLUMNS) < set(batch.schema.names)
    assert sorted(seen) == list(range(120))


def test_the_user_place_of_a_request_is_known_and_not_the_targets(city_tables):
    rows = _rows(city_tables)
    before = rows.requests.visits.pois[rows.requests.stops - 1]
    np.testing.assert_allclose(rows.user_lons, rows.catalogue.lons[before], atol=1e-5)


def test_taking_rows_keeps_their_request(city_tables):
    rows = _rows(city_tables)
    some = rows.take(np.array([5, 70]))
    assert some.requests.row_ids.tolist() == rows.requests.row_ids[[5, 70]].tolist()
    ((own, batch),) = some.batches(8)
    assert batch["user_lon"].to_numpy().tolist() == some.user_lons[own].tolist()


def test_drawn_rows_are_evenly_spaced_the_same_ones_every_time_and_all_where_there_are_few(city_tables):
    rows = _rows(city_tables)

    drawn = rows.draw(24)

    assert drawn.requests.row_ids.tolist() == rows.requests.row_ids[::5].tolist()
    assert len(set(drawn.requests.users.tolist())) == 12
    assert rows.draw(120) is rows
