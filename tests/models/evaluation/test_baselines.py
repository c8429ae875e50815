"""The baselines against the formula written out in plain Python, on a handful of visits."""

import math

import numpy as np
import pytest

from models.data.geo import distance_km
from models.data.requests import Requests, Visits, previous_within
from models.evaluation.baselines import (
    count_training,
    score_by_distance,
    score_kernel,
    score_popularity,
    score_visits,
)

HOUR_MS = 3_600_000
MONDAY_8H = 4 * 24 * HOUR_MS + 8 * HOUR_MS  # 1970-01-05, 08:00 UTC
NUM_POIS = 4

# user a: POIs 0, 1, 0, 2 at 8 h, 12 h, 8 h next day, 12 h next day; user b: POIs 0, 1, 3
POIS = np.array([0, 1, 0, 2, 0, 1, 3])
USERS = np.array(["a"] * 4 + ["b"] * 3)
TIMES = MONDAY_8H + HOUR_MS * np.array([0, 4, 24, 28, 1, 2, 3])


def _visits() -> Visits:
    return Visits(POIS, previous_within(POIS, USERS), TIMES, np.zeros(7, np.int64))


def _request(*, hours_after: float, stop: int = 4, tz_offset_min: int = 0) -> Requests:
    return Requests(
        row_ids=np.array(["r"]),
        users=np.array(["a"]),
        timestamps_ms=np.array([MONDAY_8H + int(hours_after * HOUR_MS)]),
        tz_offsets_min=np.array([tz_offset_min]),
        targets=np.array([0]),
        starts=np.array([0]),
        stops=np.array([stop]),
        visits=_visits(),
    )


def _counts():
    return count_training(_visits(), num_pois=NUM_POIS)


def test_popularity_counts_the_training_visits_of_all_users():
    assert score_popularity(_request(hours_after=48), _counts()).tolist() == [[3, 2, 1, 1]]


def test_transitions_do_not_cross_users():
    counts = _counts()
    followers_of_2 = counts.next_pois[counts.next_starts[2] : counts.next_starts[3]]
    assert followers_of_2.tolist() == []  # the next row belongs to user b
    followers_of_0 = slice(counts.next_starts[0], counts.next_starts[1])
    assert counts.next_pois[followers_of_0].tolist() == [1, 2]
    assert counts.next_probabilities[followers_of_0].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_visit_counter_counts_only_the_history_and_breaks_ties_by_popularity():
    scores = score_visits(_request(hours_after=30, stop=3), _counts())[0]
    assert scores.tolist() == pytest.approx([2 + 3e-9, 1 + 2e-9, 1e-9, 1e-9], abs=1e-12)


def test_kernel_counter_equals_the_formula_written_out():
    request = _request(hours_after=49, stop=3)  # Wednesday 9 h; last action at POI 0
    expected = np.zeros(NUM_POIS)
    for poi, previous, hours_ago, hour in ((0, None, 49, 8), (1, 0, 45, 12), (0, 1, 25, 8)):
        age = math.exp(-hours_ago / 24 / 60) + 0.05
        clock = 0.05 + math.exp(-(((9 - hour) / 1.5) ** 2)) * (1 + 1.5)  # all on workdays
        expected[poi] += age * clock * (1 + 6 * (previous == 0))
    expected[1] += 0.01 * 2 / 3
    expected[2] += 0.01 * 1 / 3
    expected[0] *= 0.1
    expected += 1e-9 * np.array([3, 2, 1, 1])
    np.testing.assert_allclose(score_kernel(request, _counts())[0], expected, rtol=1e-12)


def test_clock_is_circular_and_local():
    at_23h = _request(hours_after=15, stop=1)  # visit at 8 h, request at 23 h: 9 hours apart round midnight
    late = score_kernel(at_23h, _counts())[0][0]
    shifted = Requests(**{**vars(at_23h), "tz_offsets_min": np.array([-14 * 60])})  # 9 h local: 1 hour apart
    assert score_kernel(shifted, _counts())[0][0] > 10 * late


def test_visits_on_the_same_day_type_count_more():
    monday = score_kernel(_request(hours_after=24, stop=2), _counts())[0][0]
    saturday = score_kernel(_request(hours_after=5 * 24, stop=2), _counts())[0][0]
    assert monday > 2 * saturday


def test_hidden_request_time_scores_all_hours_alike():
    scores = [score_kernel(_request(hours_after=h), _counts(), hide_request_time=True) for h in (30, 41)]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_a_request_without_history_falls_back_on_popularity():
    scores = score_kernel(_request(hours_after=1, stop=0), _counts())[0]
    assert scores.argmax() == 0
    assert scores.tolist() == pytest.approx([3e-9, 2e-9, 1e-9, 1e-9])


def test_requests_score_the_same_alone_and_together():
    two = _request(hours_after=49, stop=3)
    both = Requests(
        **{
            name: np.concatenate([value, value]) if name != "visits" else value
            for name, value in vars(two).items()
        }
    )
    np.testing.assert_array_equal(score_kernel(both, _counts())[1], score_kernel(two, _counts())[0])


def test_returns_are_targets_seen_in_the_history():
    assert _request(hours_after=49, stop=1).returns().tolist() == [True]
    assert _request(hours_after=49, stop=0).returns().tolist() == [False]


def test_one_degree_of_latitude_is_111_km_and_the_nearer_candidate_wins():
    assert distance_km(np.array(0.0), np.array(0.0), np.array(0.0), np.array(1.0)) == pytest.approx(
        111.195, abs=1e-2
    )
    scores = score_by_distance(np.array(4.9), np.array(52.4), np.array([4.9, 5.3]), np.array([52.4, 52.4]))
    assert scores[0] > scores[1]


def test_an_unknown_place_makes_all_candidates_equal():
    scores = score_by_distance(
        np.array(np.nan), np.array(np.nan), np.array([4.9, 5.3]), np.array([52.4, 52.4])
    )
    assert scores.tolist() == [0.0, 0.0]
