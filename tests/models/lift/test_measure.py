"""The lift finds what was planted, and nothing where nothing was."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import MissingInputError, SchemaError
from models.data.catalogue import Catalogue
from models.lift.features import Exposures
from models.lift.held_out import read_own_columns
from models.lift.measure import Cut, LiftFeatures, cut_by_time, measure_lift
from models.lift.show import best_set, describe_lift, headline
from tests.models.lift.planted import CONFIG, DAY_MS, make_impressions
from tests.models.planted_city import poi_rows, request_rows


@pytest.fixture(scope="module")
def planted():
    features, rows, times, logit = make_impressions(by_vectors=0.6, by_logit=0.8)
    cut = cut_by_time(times, rows.requests)
    return measure_lift(features, rows, cut, [CONFIG], oracle=logit, hours=times / 3_600_000).figures


def test_each_feature_set_lifts_by_what_was_planted_in_it(planted):
    auc = {name: own["auc"] for name, own in planted["sets"].items()}
    assert auc["base"] + 0.02 < auc["embedding"] < auc["both"] < planted["baselines"]["oracle"]["auc"]
    assert auc["base"] + 0.02 < auc["scores"] < auc["both"]
    difference = planted["differences"]["both"]["auc"]
    assert difference["value"] == pytest.approx(auc["both"] - auc["base"])
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert next(iter(planted["sets"]["scores"]["importance"])) == "click_logit"
    assert planted["baselines"]["distance"]["auc"] > 0.55 > planted["baselines"]["popularity"]["auc"]
    slices = {own["name"]: own for own in planted["slices"]}
    assert slices["users with more actions"]["difference"]["value"] > 0.02
    assert (
        sum(own["impressions"] for name, own in slices.items() if name.endswith(" h"))
        == (planted["impressions"]["test"])
    )
    assert headline(planted)["lift_points"] == round(100 * difference["value"], 2)
    assert "points" in describe_lift(planted)


def test_noise_lifts_by_nothing():
    features, rows, times, _ = make_impressions(by_vectors=0.6, by_logit=0.8, skill=0.0)
    found = measure_lift(features, rows, cut_by_time(times, rows.requests), [CONFIG]).figures
    difference = found["differences"]["both"]["auc"]
    assert difference["low"] < 0.005
    assert abs(difference["value"]) < 0.01


def test_a_model_without_a_stage_has_the_sets_that_are_left():
    features, rows, times, _ = make_impressions(by_logit=0.8)
    cut = cut_by_time(times, rows.requests)
    scores = measure_lift(
        LiftFeatures(features.base, features.names, logits=features.logits), rows, cut, [CONFIG]
    )
    assert list(scores.figures["sets"]) == ["base", "scores"]
    nothing = measure_lift(LiftFeatures(features.base, features.names), rows, cut, [CONFIG]).figures
    assert best_set(nothing) == "base"
    assert "no features" in describe_lift(nothing)


def test_the_cut_is_at_days_and_keeps_the_order_of_time():
    _, rows, times, _ = make_impressions()
    cut = cut_by_time(times, rows.requests)
    assert isinstance(cut, Cut)
    parts = [times[part] // DAY_MS for part in (cut.train, cut.val, cut.test)]
    assert parts[0].max() < parts[1].min()
    assert parts[1].max() < parts[2].min()
    assert sum(map(len, parts)) == len(times)
    assert 0.5 < len(parts[0]) / len(times) < 0.7


@pytest.mark.parametrize(("days", "per_day", "reason"), [(2, 900, "on 2 days"), (3, 10, "fewer than 200")])
def test_too_few_requests_give_a_reason(days, per_day, reason):
    times = np.repeat(np.arange(days) * DAY_MS, per_day)
    assert reason in cut_by_time(times, np.arange(len(times)))


def test_own_columns_join_by_request_and_poi(tmp_path):
    samples = pa.Table.from_pylist(request_rows(3))
    exposures = Exposures.from_samples(samples, Catalogue.from_arrow(pa.Table.from_pylist(poi_rows())))
    first = samples.slice(0, 1).to_pylist()[0]
    path = tmp_path / "own.parquet"
    known = {"request_id": [first["request_id"]], "poi_id": [first["candidate_poi_ids"][1]], "price": [3]}
    pq.write_table(pa.table(known), path)

    columns, names = read_own_columns(path, exposures)

    assert names == ("price",)
    assert columns.shape == (len(exposures), 1)
    assert np.flatnonzero(~np.isnan(columns[:, 0])).tolist() == [1]
    pq.write_table(pa.table({**known, "price": ["dear"]}), path)
    with pytest.raises(SchemaError, match="'price'"):
        read_own_columns(path, exposures)
    with pytest.raises(MissingInputError):
        read_own_columns(tmp_path / "none.parquet", exposures)


def test_settings_that_suit_the_base_are_taken_for_every_set():
    """Trees that overfit the base would let noise pass for a lift."""
    features, rows, times, _ = make_impressions(by_vectors=0.6, by_logit=0.8, skill=0.0)
    wild = CONFIG.model_copy(update={"num_leaves": 60, "min_rows_per_leaf": 5, "learning_rate": 0.5})
    found = measure_lift(features, rows, cut_by_time(times, rows.requests), [wild, CONFIG]).figures
    assert found["settings"] == CONFIG.model_dump(mode="json")
