"""Metrics of retrieval and ranking: numpy in, float64 out, unmoved by the order of the rows.

Every metric comes as one value per row (so that it can be averaged over any subset and bootstrapped by user)
or as one figure. Ties are never broken by position: a target that shares its score with others has the mean
rank over all orders of the tied POIs, and hits at k if that expected rank is at most k (the convention of the
published baselines). Means are exact sums (`math.fsum`), so that permuting the rows changes no bit.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.arrays import BoolArray, Float64Array, IntArray
from models.data.ranks import Ranks

NUM_RESAMPLES = 1000
"""Bootstrap resamples behind a 95 % interval."""


@dataclass(frozen=True)
class Interval:
    """A figure with its user-clustered bootstrap interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CalibrationBins:
    """Predicted against observed click rate, by bins of the prediction.

    Attributes:
        predicted: mean predicted probability in each bin.
        observed: share of clicks in each bin.
        counts: rows in each bin.
    """

    predicted: Float64Array
    observed: Float64Array
    counts: IntArray

    @property
    def expected_error(self) -> float:
        """Mean absolute gap between prediction and observation, weighted by rows (ECE)."""
        return exact_mean(np.abs(self.predicted - self.observed), weights=self.counts.astype(np.float64))


def rank_targets(scores: Float64Array, targets: IntArray, live: BoolArray | None = None) -> Ranks:
    """Ranks the target of every row among all live POIs; nan counts as higher than any number.

    Args:
        scores: (rows, POIs), float64; higher is better.
        targets: (rows,), column of the target.
        live: (rows, POIs) or (POIs,), which POIs may be ranked; None = all. The target always counts.
    """
    target_scores = scores[np.arange(len(targets)), targets][:, None]
    higher: BoolArray = ~(scores <= target_scores)  # nan is not
    equal = scores == target_scores
    if live is not None:
        higher, equal = higher & live, equal & live
    equal[np.arange(len(targets)), targets] = True
    return Ranks(higher.sum(axis=1), equal.sum(axis=1))


def hit_values(ranks: Ranks, k: int) -> Float64Array:
    """Returns per row 1.0 if the target's expected rank is at most `k`, else 0.0; the mean is hr@k."""
    return (ranks.expected <= k).astype(np.float64)


def reciprocal_values(ranks: Ranks) -> Float64Array:
    """Returns per row 1 / expected rank; its mean is MRR."""
    return 1.0 / ranks.expected


def ndcg_values(ranks: Ranks, k: int) -> Float64Array:
    """Returns per row the expected NDCG@k of a list with one relevant POI."""
    gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    last = np.minimum(ranks.num_higher + ranks.num_equal, k)
    return (gains[last] - gains[np.minimum(ranks.num_higher, k)]) / ranks.num_equal


def ndcg(scores: Float64Array, labels: IntArray, k: int) -> float:
    """Returns the expected NDCG@k of one list with any number of relevant entries; nan without any."""
    if not labels.any():
        return math.nan
    discounts = np.where(np.arange(len(scores)) < k, 1.0 / np.log2(np.arange(len(scores)) + 2.0), 0.0)
    _, group = np.unique(-scores, return_inverse=True)
    sizes = np.bincount(group)
    stops = np.cumsum(sizes)
    cumulated = np.concatenate([[0.0], np.cumsum(discounts)])
    discount_by_group = (cumulated[stops] - cumulated[stops - sizes]) / sizes
    gained = math.fsum(discount_by_group * np.bincount(group, weights=labels))
    return gained / math.fsum(discounts * np.sort(labels)[::-1])


def auc(scores: Float64Array, labels: IntArray, weights: Float64Array | None = None) -> float:
    """Returns the area under the ROC curve, ties counted half; nan if one class is missing, or any score is nan.

    Args:
        scores: (rows,), higher = more likely clicked.
        labels: (rows,), 1 clicked, 0 shown.
        weights: (rows,), how often each row counts; None = once.
    """
    if np.isnan(scores).any():  # sorted last, it would count as the highest score
        return math.nan
    _, group = np.unique(scores, return_inverse=True)
    return _auc_of_groups(group, labels, np.ones(len(scores)) if weights is None else weights)


def _auc_of_groups(group: IntArray, labels: IntArray, weights: Float64Array) -> float:
    """AUC of rows whose scores are numbered from the lowest; equal scores share a number."""
    num_groups = int(group.max()) + 1 if len(group) else 0
    clicked = np.bincount(group, weights=weights * (labels == 1), minlength=num_groups)
    shown = np.bincount(group, weights=weights * (labels == 0), minlength=num_groups)
    below = np.cumsum(shown) - shown
    pairs = clicked.sum() * shown.sum()
    return float(math.fsum(clicked * (below + shown / 2.0)) / pairs) if pairs > 0 else math.nan


def gauc(scores: Float64Array, labels: IntArray, users: NDArray[np.generic]) -> float:
    """Returns the mean per-user AUC, weighted by impressions; users with one class are left out."""
    values, counts = [], []
    for rows in _rows_by_user(users):
        value = auc(scores[rows], labels[rows])
        if not math.isnan(value):
            values.append(value)
            counts.append(float(len(rows)))
    return exact_mean(np.array(values), weights=np.array(counts)) if values else math.nan


def calibration_bins(probabilities: Float64Array, labels: IntArray, num_bins: int = 10) -> CalibrationBins:
    """Compares predicted and observed click rate in bins of about equally many rows; ties share a bin."""
    edges = np.unique(np.quantile(probabilities, np.linspace(0.0, 1.0, num_bins + 1)[1:-1]))
    bins = np.searchsorted(edges, probabilities, side="right")
    used = np.unique(bins)
    inside = [bins == number for number in used]
    return CalibrationBins(
        predicted=np.array([exact_mean(probabilities[rows]) for rows in inside]),
        observed=np.array([exact_mean(labels[rows].astype(np.float64)) for rows in inside]),
        counts=np.array([int(rows.sum()) for rows in inside], dtype=np.int64),
    )


def exact_mean(values: Float64Array, weights: Float64Array | None = None) -> float:
    """Returns the (weighted) mean of exactly rounded sums: the order of rows cannot matter; nan if empty."""
    total = float(len(values)) if weights is None else math.fsum(weights)
    summed = math.fsum(values if weights is None else values * weights)
    return summed / total if total else math.nan


def bootstrap_mean(
    values: Float64Array, users: NDArray[np.generic], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """Returns the mean with a 95 % interval from resampling whole users.

    For a paired comparison of two models on the same rows, pass the differences of their values.
    """
    groups = _rows_by_user(users)
    sums = np.array([math.fsum(values[rows]) for rows in groups])
    counts = np.array([float(len(rows)) for rows in groups])
    return _interval(
        exact_mean(values), len(groups), lambda w: float(w @ sums / (w @ counts)), seed, num_resamples
    )


def bootstrap_auc(
    scores: Float64Array,
    labels: IntArray,
    users: NDArray[np.generic],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Returns the AUC with a 95 % interval from resampling whole users."""
    _, user_of_row = np.unique(users, return_inverse=True)
    _, group = np.unique(scores, return_inverse=True)
    num_users = int(user_of_row.max()) + 1 if len(user_of_row) else 0
    return _interval(
        auc(scores, labels),
        num_users,
        lambda drawn: _auc_of_groups(group, labels, drawn[user_of_row]),
        seed,
        num_resamples,
    )


def bootstrap_auc_difference(
    scores: Float64Array,
    others: Float64Array,
    labels: IntArray,
    users: NDArray[np.generic],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Returns AUC of `scores` minus that of `others` on the same rows, with a 95 % interval by user."""
    _, user_of_row = np.unique(users, return_inverse=True)
    groups = [np.unique(values, return_inverse=True)[1] for values in (scores, others)]

    def differ(drawn: Float64Array) -> float:
        # Both scores use one draw of users, so that easy and hard users cancel out.
        first, second = (_auc_of_groups(group, labels, drawn[user_of_row]) for group in groups)
        return first - second

    num_users = int(user_of_row.max()) + 1 if len(user_of_row) else 0
    return _interval(auc(scores, labels) - auc(others, labels), num_users, differ, seed, num_resamples)


def digest_rows(row_ids: Iterable[str]) -> str:
    """Returns the first 16 hex digits of the SHA-256 of the sorted row ids joined by newlines."""
    return hashlib.sha256("\n".join(sorted(row_ids)).encode()).hexdigest()[:16]


def _interval(
    value: float, num_users: int, figure: Callable[[Float64Array], float], seed: int, num_resamples: int
) -> Interval:
    """Returns the percentile interval of `figure(number of draws of each user)`."""
    if num_users < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [
        figure(np.bincount(rng.integers(num_users, size=num_users), minlength=num_users).astype(np.float64))
        for _ in range(num_resamples)
    ]
    # A draw of users may hold one class only; its AUC is nan and is ignored.
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _rows_by_user(users: NDArray[np.generic]) -> list[IntArray]:
    """Returns the rows of each user, users in sorted order."""
    if not len(users):
        return []
    _, user_of_row = np.unique(users, return_inverse=True)
    order = np.argsort(user_of_row, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(user_of_row[order])) + 1)
