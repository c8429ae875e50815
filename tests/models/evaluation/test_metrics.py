"""Metrics against brute force and scikit-learn, and their invariances."""

import hashlib
import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from models.data.ranks import Ranks
from models.evaluation.metrics import (
    auc,
    bootstrap_auc,
    bootstrap_mean,
    calibration_bins,
    digest_rows,
    exact_mean,
    gauc,
    hit_values,
    ndcg,
    ndcg_values,
    rank_targets,
    reciprocal_values,
)

SCORES = st.lists(st.integers(0, 4), min_size=2, max_size=6)  # few values, so that ties are common


def _orders_with_target(scores: list[int]) -> list[int]:
    """Rank of POI 0 in every order of the POIs that respects the scores."""
    respecting = [
        order
        for order in permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    return [order.index(0) + 1 for order in respecting]


def _ranks(scores: list[int]) -> Ranks:
    return rank_targets(np.array([scores], dtype=np.float64), np.array([0]))


@given(SCORES)
def test_rank_under_ties_is_the_mean_over_all_orders(scores):
    assert _ranks(scores).expected[0] == pytest.approx(np.mean(_orders_with_target(scores)))


@given(SCORES, st.integers(1, 6))
def test_a_row_hits_if_its_mean_rank_over_all_orders_is_at_most_k(scores, k):
    assert hit_values(_ranks(scores), k)[0] == (np.mean(_orders_with_target(scores)) <= k)


@given(SCORES, st.integers(1, 6))
def test_ndcg_of_one_target_is_the_mean_over_all_orders(scores, k):
    gains = [1 / np.log2(1 + r) if r <= k else 0.0 for r in _orders_with_target(scores)]
    assert ndcg_values(_ranks(scores), k)[0] == pytest.approx(np.mean(gains))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=2, max_size=8), st.integers(1, 8))
def test_ndcg_of_a_list_equals_scikit_learn(rows, k):
    scores, labels = np.array(rows).T
    if labels.any():
        assert ndcg(scores.astype(float), labels, k) == pytest.approx(ndcg_score([labels], [scores], k=k))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(1, 3)), min_size=2, max_size=30))
def test_auc_equals_scikit_learn_with_and_without_weights(rows):
    scores, labels, weights = (np.array(column) for column in zip(*rows, strict=True))
    if 0 < labels.sum() < len(labels):
        assert auc(scores.astype(float), labels) == pytest.approx(roc_auc_score(labels, scores))
        expected = roc_auc_score(labels, scores, sample_weight=weights)
        assert auc(scores.astype(float), labels, weights.astype(float)) == pytest.approx(expected)


def test_auc_of_one_class_is_not_a_number():
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([1, 1])))


def test_gauc_weights_users_by_impressions_and_skips_users_with_one_class():
    users = np.array(["a", "a", "a", "b", "b", "c"])
    labels = np.array([1, 0, 0, 0, 1, 1])
    scores = np.array([0.9, 0.5, 0.1, 0.8, 0.2, 0.5])
    # a: 1.0 over 3 impressions, b: 0.0 over 2, c has no unclicked impression
    assert gauc(scores, labels, users) == pytest.approx(3 / 5)


def test_reciprocal_of_a_rank_tied_for_first_and_second_is_two_thirds():
    assert reciprocal_values(_ranks([3, 3, 1]))[0] == pytest.approx(1 / 1.5)


def test_pois_that_are_not_live_do_not_count():
    scores = np.array([[1.0, 2.0, 3.0]])
    ranks = rank_targets(scores, np.array([0]), np.array([[True, False, True]]))
    assert ranks.expected.tolist() == [2.0]  # only POI 2 is ahead


def test_joined_ranks_keep_the_order_of_the_parts():
    joined = Ranks.join([_ranks([1, 2]), _ranks([2, 1])])
    assert joined.expected.tolist() == [2.0, 1.0]
    assert joined.take(np.array([1])).expected.tolist() == [1.0]


def test_calibration_bins_hold_every_row_once_and_a_calibrated_score_has_no_error():
    probabilities = np.repeat([0.25, 0.75], 4)
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 0])
    bins = calibration_bins(probabilities, labels, num_bins=2)
    assert bins.counts.tolist() == [4, 4]
    assert bins.expected_error == pytest.approx(0.0)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=30),
    st.randoms(),
)
def test_no_figure_moves_with_the_order_of_the_rows(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    figures = []
    for version in (rows, shuffled):
        values, labels, users = (np.array(column) for column in zip(*version, strict=True))
        bins = calibration_bins(values, labels)
        figures.append(
            [
                exact_mean(values),
                auc(values, labels),
                gauc(values, labels, users),
                *bins.predicted,
                *bins.observed,
                *vars(bootstrap_mean(values, users, num_resamples=20)).values(),
                *vars(bootstrap_auc(values, labels, users, num_resamples=20)).values(),
            ]
        )
    np.testing.assert_array_equal(figures[0], figures[1])


def test_bootstrap_resamples_users_not_rows():
    values = np.array([1.0] * 50 + [0.0] * 50)
    by_row = bootstrap_mean(values, np.arange(100), seed=1)
    by_user = bootstrap_mean(values, np.repeat(np.arange(4), 25), seed=1)
    assert by_user.high - by_user.low > 3 * (by_row.high - by_row.low)  # 4 users say little
    assert by_row.low < by_row.value == 0.5 < by_row.high


def test_interval_is_the_same_for_the_same_seed():
    values, users = np.arange(10.0), np.arange(10) // 2
    assert bootstrap_mean(values, users, seed=3) == bootstrap_mean(values, users, seed=3)


def test_digest_is_of_the_sorted_ids_joined_by_newlines():
    assert digest_rows(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()[:16]


def test_a_score_that_is_not_a_number_is_last_and_has_no_auc():
    scores = np.array([[np.nan, 1.0, 2.0], [3.0, np.nan, 2.0]])

    ranks = rank_targets(scores, np.array([0, 0]))

    assert ranks.expected.tolist() == [4.0, 2.0]
    assert math.isnan(auc(np.array([np.nan, 1.0, 0.0]), np.array([1, 0, 1])))
