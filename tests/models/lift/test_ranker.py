"""The ranking team's model and its features, on rows that can be checked by hand."""

import numpy as np
import pyarrow as pa
import pytest

from models.data.catalogue import Catalogue
from models.data.requests import Visits
from models.evaluation.baselines import count_training
from models.lift.features import BASE_FEATURES, EventLog, Exposures, History, build_base_features
from models.lift.ranker import Components, RankerConfig, Rows, embedding_features, judge, train_ranker
from tests.models.planted_city import FIRST_MS, HOUR_MS, poi_rows, request_rows

DAY_MS = 24 * HOUR_MS
NOON = FIRST_MS + 40 * DAY_MS + 12 * HOUR_MS
NO_ROWS = np.zeros(0, np.int64)


def sample(**changes: object) -> dict:
    """One request at 13 h local time: p0-0, visited twice, and p0-3 of the same category, never visited."""
    row = request_rows(2)[1]
    shown = [poi_rows()[0], poi_rows()[3]]
    visited = {"block_ids": [0, 0, 0], "inner_ids": [0, 0, 1], "poi_ids": ["p0-0", "p0-0", "p0-1"]}
    visited |= {"timestamps_ms": [NOON - 10 * DAY_MS, NOON - 2 * DAY_MS, NOON - 6 * HOUR_MS]}
    visited |= {"tz_offsets_min": [60] * 3, "category_ids": [1, 1, 2]}
    candidates = {
        f"candidate_{name}s": [poi[name] for poi in shown] for name in ("poi_id", "block_id", "inner_id")
    }
    return {**row, "request_ts_ms": NOON, "labels": [1, 0], **visited, **candidates, **changes}


def features(*samples: dict, **log: np.ndarray) -> dict[str, np.ndarray]:
    catalogue = Catalogue.from_arrow(pa.Table.from_pylist(poi_rows()))
    nothing = Visits(NO_ROWS, NO_ROWS, NO_ROWS, NO_ROWS)
    empty = dict.fromkeys(
        ("visit_rows", "visit_times", "visit_hours", "shown_rows", "shown_times", "shown_labels"), NO_ROWS
    )
    history = History(**{**empty, **log}, counts=count_training(nothing, num_pois=len(catalogue)))
    exposures = Exposures.from_samples(pa.Table.from_pylist(list(samples)), catalogue)
    built = build_base_features(exposures, catalogue, history)
    return dict(zip(BASE_FEATURES, built.T, strict=True))


def test_the_log_counts_what_happened_strictly_before():
    log = EventLog(np.array([7, 3, 7, 7]), np.array([30, 10, 10, 20]))
    assert log.count(np.array([7, 7, 7, 3, 5]), np.array([20, 31, 0, 99, 99])).tolist() == [1, 3, 0, 1, 0]
    assert EventLog(NO_ROWS, NO_ROWS).count(np.array([1]), np.array([5])).tolist() == [0]


def test_own_history_counts_by_poi_category_age_and_hour():
    found = features(sample())
    assert found["user_poi_visits"].tolist() == [2, 0]
    assert found["user_poi_age_days"][0] == 2
    assert np.isnan(found["user_poi_age_days"][1])
    # p0-0 and p0-3 share category 1, the visit six hours ago was to another one.
    assert found["user_category_visits"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert found["user_poi_at_hour"].tolist() == pytest.approx([2.0, 0.0])
    assert found["hour"].tolist() == [13.0, 13.0]
    assert found["hours_since_last"].tolist() == [6.0, 6.0]


def test_popularity_knows_nothing_of_the_day_of_the_request_or_later():
    times = np.array([NOON - DAY_MS, NOON - HOUR_MS, NOON + HOUR_MS])
    found = features(
        sample(), visit_rows=np.array([0, 0, 0]), visit_times=times, visit_hours=np.array([13, 13, 13]),
        shown_rows=np.array([3, 3]), shown_times=times[:2], shown_labels=np.array([1, 1]),
    )  # fmt: skip
    assert found["popularity"].tolist() == pytest.approx([np.log(2), 0])
    assert found["popularity_at_hour"].tolist() == pytest.approx([np.log(2), 0])
    # One of the two exposures of p0-3 is of an earlier day: (1 + 20 * 1) / (1 + 20).
    assert found["click_rate"].tolist() == pytest.approx([1.0, 1.0])


def test_labels_and_positions_are_no_feature():
    turned = sample(labels=[0, 1], candidate_positions=[2, 1])
    for name, values in features(sample()).items():
        np.testing.assert_array_equal(values, features(turned)[name], err_msg=name)


def test_a_user_without_history_has_features():
    nobody = sample(**{name: [] for name in ("block_ids", "inner_ids", "timestamps_ms", "tz_offsets_min")})
    found = features(nobody, sample())
    assert found["user_actions"].tolist() == [0, 0, 3, 3]
    assert np.isnan(found["hours_since_last"][:2]).all()
    assert found["user_poi_visits"].tolist() == [0, 0, 2, 0]


def test_the_ranker_finds_the_feature_that_tells_clicks_and_is_judged_on_it():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4_000, 3))
    labels = (rng.random(4_000) < 1 / (1 + np.exp(-3 * values[:, 1]))).astype(np.int64)
    users = np.repeat([f"u{n}" for n in range(40)], 100)
    rows = Rows(values, labels, users, np.repeat(np.arange(400), 10))
    config = RankerConfig(max_trees=60, num_leaves=7, threads=1)
    ranker = train_ranker(rows, rows, ("noise", "signal", "more_noise"), config)
    judged = judge(ranker.predict(values), rows, are_probabilities=True)
    assert next(iter(ranker.importance())) == "signal"
    assert judged.auc.low < judged.auc.value < judged.auc.high
    assert judged.auc.value > 0.9
    assert judged.calibration is not None
    assert judged.calibration.expected_error < 0.05


def test_embedding_features_are_the_dot_product_and_components_fitted_elsewhere():
    rng = np.random.default_rng(0)
    users, pois = rng.normal(size=(50, 6)), rng.normal(size=(50, 6))
    parts = {"user": Components(users, 2), "poi": Components(pois, 2)}
    found = embedding_features(users[:3], pois[:3], parts)
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found[:, 0], (users[:3] * pois[:3]).sum(axis=1))
    np.testing.assert_allclose(found[:, 1:3], parts["user"](users)[:3])
