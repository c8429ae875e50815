"""Figures of several methods on the same rows, baselines first, as JSON-serialisable dictionaries.

Next-POI figures are computed for all rows, for returns (POIs the user had visited) and for discoveries; ranking figures
for all impressions. The digest of the row ids identifies the scored rows: two results are comparable only if their
digests are equal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from models.data.arrays import BoolArray, Float64Array, IntArray
from models.data.catalogue import Catalogue
from models.data.ranks import Ranks
from models.data.requests import Requests
from models.evaluation.baselines import TrainingCounts, score_kernel, score_popularity, score_visits
from models.evaluation.metrics import (
    bootstrap_auc,
    bootstrap_mean,
    calibration_bins,
    digest_rows,
    exact_mean,
    gauc,
    hit_values,
    ndcg_values,
    rank_targets,
    reciprocal_values,
)

HIT_KS = (1, 5, 10, 20, 100)
NDCG_K = 10
SCORES_PER_CHUNK = 4_000_000
"""Scores of a baseline in memory at a time (32 MB)."""

Figures = dict[str, object]


def rank_baselines(
    requests: Requests,
    counts: TrainingCounts,
    *,
    catalogue: Catalogue | None = None,
    hide_request_time: bool = False,
) -> dict[str, Ranks]:
    """Ranks every target by every baseline, among the POIs live on the day of the request.

    Args:
        requests: the rows to score.
        counts: popularity and transitions of the training period.
        catalogue: live days of the POIs; None = all POIs are always live.
        hide_request_time: True = hide the request's clock from the recency-weighted visit baseline.
    """

    def kernel(part: Requests, known: TrainingCounts) -> Float64Array:
        return score_kernel(part, known, hide_request_time=hide_request_time)

    baselines: dict[str, Callable[[Requests, TrainingCounts], Float64Array]] = {
        "popularity": score_popularity,
        "visit_counter": score_visits,
        "kernel_counter": kernel,
    }
    parts: dict[str, list[Ranks]] = {name: [] for name in baselines}
    chunk = max(1, SCORES_PER_CHUNK // max(len(counts.popularity), 1))
    for start in range(0, len(requests), chunk):
        part = requests.take(np.arange(start, min(start + chunk, len(requests))))
        live = None if catalogue is None else catalogue.live_mask(part.timestamps_ms)
        for name, score in baselines.items():
            parts[name].append(rank_targets(score(part, counts), part.targets, live))
    return {name: Ranks.join(ranks) for name, ranks in parts.items()}


def describe_next_poi(requests: Requests, ranks: Mapping[str, Ranks], *, seed: int = 0) -> Figures:
    """Summarises the ranks of several methods on the same requests."""
    is_return = requests.returns()
    groups = {"all": np.ones(len(requests), np.bool_), "returns": is_return, "discoveries": ~is_return}
    return {
        "rows": len(requests),
        "users": len(np.unique(requests.users)),
        "digest": digest_rows(requests.row_ids.tolist()),
        "rows_by_group": {group: int(rows.sum()) for group, rows in groups.items()},
        "methods": {
            method: {
                group: _describe_ranks(method_ranks, rows, requests.users, seed)
                for group, rows in groups.items()
            }
            for method, method_ranks in ranks.items()
        },
    }


def average_methods(figures: Figures, methods: Sequence[str], name: str) -> None:
    """Adds the mean of some methods to the figures under a name, by group and without intervals."""
    described = figures["methods"]
    assert isinstance(described, dict)
    groups = described[methods[0]]
    described[name] = {
        group: {
            figure: exact_mean(np.array([described[method][group][figure] for method in methods]))
            for figure, value in metrics.items()
            if isinstance(value, float)
        }
        for group, metrics in groups.items()
    }


def compare_next_poi(
    requests: Requests, ranks: Ranks | Sequence[Ranks], other: Ranks, *, seed: int = 0
) -> Figures:
    """Returns the paired differences of hr@1, hr@10 and MRR (first minus second) with intervals.

    Several ranks in the first argument (seeds of one model) are averaged by row.
    """
    models = [ranks] if isinstance(ranks, Ranks) else list(ranks)
    values = {
        "hr_at_1": _mean_values(models, lambda model_ranks: hit_values(model_ranks, 1))
        - hit_values(other, 1),
        "hr_at_10": _mean_values(models, lambda model_ranks: hit_values(model_ranks, 10))
        - hit_values(other, 10),
        "mrr": _mean_values(models, reciprocal_values) - reciprocal_values(other),
    }
    return {name: asdict(bootstrap_mean(value, requests.users, seed=seed)) for name, value in values.items()}


def describe_ranking(
    row_ids: list[str],
    users: NDArray[np.generic],
    labels: IntArray,
    scores: Mapping[str, Float64Array],
    *,
    probabilities: Float64Array | None = None,
    seed: int = 0,
) -> Figures:
    """Summarises click scores of several methods on the same impressions.

    Args:
        row_ids: request and POI of each impression.
        users: user of each impression.
        labels: 1 clicked, 0 shown.
        scores: scores by method, higher = more likely clicked.
        probabilities: click probabilities for calibration; None = no method has them.
        seed: seed of the bootstrap.
    """
    figures: Figures = {
        "rows": len(row_ids),
        "users": len(np.unique(users)),
        "click_rate": exact_mean(labels.astype(np.float64)),
        "digest": digest_rows(row_ids),
        "methods": {
            method: {
                "auc": asdict(
                    bootstrap_auc(values, labels, users, seed=seed, num_resamples=_resamples(len(labels)))
                ),
                "gauc": gauc(values, labels, users),
            }
            for method, values in scores.items()
        },
    }
    if probabilities is not None and len(labels):
        bins = calibration_bins(probabilities, labels)
        columns = {name: values.tolist() for name, values in vars(bins).items()}
        figures["calibration"] = {**columns, "expected_error": bins.expected_error}
    return figures


def without_nan(figures: object) -> object:
    """Replaces nan by None, since JSON has no nan."""
    if isinstance(figures, Mapping):
        return {name: without_nan(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [without_nan(value) for value in figures]
    return None if isinstance(figures, float) and math.isnan(figures) else figures


def _describe_ranks(ranks: Ranks, rows: BoolArray, users: NDArray[np.generic], seed: int) -> Figures:
    group_ranks, group_users = ranks.take(rows), users[rows]
    figures: Figures = {f"hr_at_{k}": exact_mean(hit_values(group_ranks, k)) for k in HIT_KS}
    figures["mrr"] = exact_mean(reciprocal_values(group_ranks))
    figures[f"ndcg_at_{NDCG_K}"] = exact_mean(ndcg_values(group_ranks, NDCG_K))
    figures["hr_at_1_interval"] = asdict(bootstrap_mean(hit_values(group_ranks, 1), group_users, seed=seed))
    return figures


def _mean_values(models: Sequence[Ranks], value: Callable[[Ranks], Float64Array]) -> Float64Array:
    return np.mean([value(ranks) for ranks in models], axis=0)


def _resamples(num_rows: int) -> int:
    """Returns the number of resamples; fewer for many rows, since each costs a pass over them."""
    return 1000 if num_rows < 20_000 else 200
