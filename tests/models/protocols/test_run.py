"""Protocols as tables, and the whole way from a check-in folder to a model's figures, on a tiny city."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.data.dataset import read_table
from models.protocols.run import MEAN, build_finder, evaluate_protocol, fit_recipe
from models.protocols.splits import PROTOCOLS, build_rows
from models.protocols.tables import (
    UNKNOWN_INNER,
    build_evaluation_rows,
    build_tables,
    count_training_crowd,
    keep_memory,
    name_patterns,
    write_samples,
)
from tests.models.protocols.tiny_checkins import RECIPE, WINDOW, write_checkins


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkins(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def tables(folder):
    return build_tables(build_rows(PROTOCOLS["calgary"], folder), folder)


def test_the_catalogue_is_the_pois_of_the_training_rows(tables):
    assert sorted(tables.index.slots["poi_id"].to_pylist()) == tables.rows.poi_ids
    assert "p12" not in tables.rows.poi_ids
    assert tables.index.categories == ("Bar", "Cafe")  # a gym is not known from training


def test_a_poi_outside_the_catalogue_has_an_inner_id_beyond_every_capacity(tables):
    late = tables.rows.visit_poi_ids == "p12"
    inners = tables.visit_columns["inner_ids"].to_numpy()

    assert (inners[late] >= UNKNOWN_INNER).all()
    assert (inners[~late] < UNKNOWN_INNER).all()
    assert (tables.poi_rows[late] == -1).all()


def test_the_user_is_where_the_action_before_was(tables):
    lons = tables.visit_columns["poi_lons"].to_numpy()
    user_lons = tables.visit_columns["user_lons"].to_numpy()
    is_first = np.concatenate([[True], tables.rows.users[1:] != tables.rows.users[:-1]])

    assert np.isnan(user_lons[is_first]).all()
    np.testing.assert_array_equal(user_lons[1:][~is_first[1:]], lons[:-1][~is_first[1:]])


def test_every_training_row_is_a_target_once_and_context_lies_before(tables, tmp_path):
    samples = read_table(write_samples(tables, tmp_path, window_actions=WINDOW).samples, ())
    frame = read_table(
        write_samples(tables, tmp_path, window_actions=WINDOW).samples,
        ("split", "user_id", "num_context", "is_targets", "timestamps_ms"),
    ).to_pandas()

    assert samples.num_rows == len(frame)
    found = []
    for row in frame[frame["split"] == "train"].itertuples():
        times = np.array(row.timestamps_ms)
        assert (np.diff(times) > 0).all()
        assert len(times) - row.num_context <= WINDOW
        assert not np.array(row.is_targets)[: row.num_context].any()
        found += [(row.user_id, int(time)) for time in times[np.array(row.is_targets)]]
    training = tables.rows.is_training
    expected = zip(tables.rows.users[training], tables.rows.visits.timestamps_ms[training], strict=True)
    assert sorted(found) == sorted((str(user), int(time)) for user, time in expected)
    val = frame[frame["split"] == "val"]
    assert sum(np.sum(targets) for targets in val["is_targets"]) == len(tables.rows.selection_rows)


def test_validation_and_test_rows_are_in_no_count_of_others(folder, tables):
    before = count_training_crowd(tables)
    shuffled = tables.poi_rows.copy()
    held_out = ~tables.rows.is_training
    shuffled[held_out] = 0

    after = count_training_crowd(type(tables)(tables.rows, tables.index, tables.visit_columns, shuffled))

    for name, values in vars(before).items():
        np.testing.assert_array_equal(values, getattr(after, name), err_msg=name)


def test_requests_of_the_catalogue_are_those_of_the_protocol(tables):
    rows = build_evaluation_rows(tables, "test")
    old = tables.rows.requests["test"]

    names = rows.catalogue.poi_ids[rows.requests.targets]
    assert names.tolist() == [tables.rows.poi_ids[target] for target in old.targets]
    assert rows.requests.row_ids.tolist() == old.row_ids.tolist()
    np.testing.assert_array_equal(rows.requests.returns(), old.returns())


def test_what_the_model_reads_is_cut_but_returns_are_not(tables, monkeypatch):
    monkeypatch.setattr("models.protocols.tables.MEMORY_ACTIONS", 3)
    rows = build_evaluation_rows(tables, "test")

    kept = keep_memory(rows, window_actions=2)

    assert (kept.requests.stops - kept.requests.starts).max() == 5
    assert (rows.requests.stops - rows.requests.starts).max() > 5


@pytest.mark.parametrize("hides_time", [False, True])
def test_a_protocol_trains_once_and_is_scored_beside_its_baselines(folder, tmp_path, monkeypatch, hides_time):
    protocol = PROTOCOLS["calgary"]
    monkeypatch.setitem(PROTOCOLS, "city", type(protocol)(protocol.prepare, hides_request_time=hides_time))
    ask = {"recipe": RECIPE, "seeds": (0, 1), "work": tmp_path}

    first = evaluate_protocol("city", folder, **ask)
    monkeypatch.setattr("models.protocols.run.run_pretrain", None)  # a second training would fail
    second = evaluate_protocol("city", folder, **ask)

    assert json.dumps(first) == json.dumps(second)  # there is no discovery, so some figures are nan
    methods = first["methods"]
    assert {"popularity", "kernel_counter", "model_seed_0", "model_seed_1", MEAN} <= set(methods)
    one, two = (methods[f"model_seed_{seed}"]["all"]["mrr"] for seed in (0, 1))
    assert methods[MEAN]["all"]["mrr"] == pytest.approx((one + two) / 2)
    difference = first["minus_kernel_counter"][MEAN]["mrr"]["value"]
    assert difference == pytest.approx(methods[MEAN]["all"]["mrr"] - methods["kernel_counter"]["all"]["mrr"])


def test_a_recipe_without_others_needs_no_statistics(tables):
    alone = RECIPE.decoder.model_copy(
        update={"crowd": RECIPE.decoder.crowd.model_copy(update={"enabled": False})}
    )
    recipe = fit_recipe(RECIPE.model_copy(update={"decoder": alone}), PROTOCOLS["nyc-table6-notime"])

    assert build_finder(tables, recipe) is None
    assert recipe.decoder.hide_request_time


def test_windows_are_local_travel_or_mixed_by_their_share_of_travel():
    is_travel = np.array([0, 0, 1, 1, 0, 1], np.bool_)

    patterns = name_patterns(is_travel, np.array([0, 2, 1]), np.array([2, 4, 6]))

    assert patterns.to_pylist() == ["local", "travel", "mixed"]


def test_travel_is_far_from_the_most_visited_training_poi(tables):
    far = tables.poi_rows.copy()
    columns = dict(tables.visit_columns)
    lons = columns["poi_lons"].to_numpy().copy()
    place = np.flatnonzero(tables.rows.users == "u3")[-1]
    lons[place] += 0.5  # 42 km to the east
    columns["poi_lons"] = pa.array(lons)

    found = type(tables)(tables.rows, tables.index, columns, far).is_travel()

    assert np.flatnonzero(found & (tables.rows.users == "u3")).tolist() == [place]
