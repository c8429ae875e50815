"""Lift: what the features of a model give a ranking model, on later days than it was trained on.

The ranking team's model (`models/lift/ranker.py`) is trained four times on the same rows: on such a team's own
features (base), with the vectors, with the click log-odds, and with both. The rows are requests that the decoder was
not trained on, cut by time at UTC days: the ranker trains on the first, stops on the next, and is tested on the last
ones. Differences to the base are paired, with intervals by user. Baselines that need no training are always shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from conf.units import HOURS_PER_DAY, MS_PER_DAY
from models.data.arrays import BoolArray, Float64Array, IntArray
from models.evaluation.metrics import auc, bootstrap_auc_difference, bootstrap_mean, ndcg
from models.lift.ranker import (
    NDCG_K,
    NUM_RESAMPLES,
    Components,
    Ranker,
    RankerConfig,
    Rows,
    embedding_features,
    embedding_names,
    judge,
    train_ranker,
)

TRAIN_SHARE, VAL_SHARE = 0.6, 0.15
"""Shares of the requests that the ranker trains on and stops on, about: the cuts are at UTC days."""
MIN_REQUESTS = 200
"""Fewer requests in a part give no figure."""
FIT_VECTORS = 20_000
"""Vectors that the principal components are fitted on, about."""
BASELINES = {
    "distance": ("distance_km", -1.0),
    "popularity": ("popularity", 1.0),
    "kernel": ("kernel_counter", 1.0),
}
"""Baseline -> base feature that it ranks by, and the sign."""
MIN_SLICE = 500
"""Impressions of a slice below which it has no figure."""


@dataclass(frozen=True)
class LiftFeatures:
    """Features of every shown POI.

    Attributes:
        base: (rows, features), nan = unknown.
        names: names of the base features; the first are `BASE_FEATURES`.
        users: (rows, E), vector of the user at the request; None = the model has no vectors.
        pois: (rows, E), vector of the POI.
        logits: (rows,), log-odds of a click; None = the model has no scores.
    """

    base: Float64Array
    names: tuple[str, ...]
    users: Float64Array | None = None
    pois: Float64Array | None = None
    logits: Float64Array | None = None


@dataclass(frozen=True)
class Cut:
    """Which rows the ranker trains on, stops on and is tested on, (rows,) bool each."""

    train: BoolArray
    val: BoolArray
    test: BoolArray


@dataclass(frozen=True)
class Lift:
    """Figures of a lift, and the predictions of the test rows that they are made of.

    Attributes:
        figures: plain numbers, as stored in JSON.
        predictions: feature set or baseline -> score of every test row.
    """

    figures: dict[str, object]
    predictions: dict[str, Float64Array] = field(repr=False)


def cut_by_time(timestamps_ms: IntArray, requests: IntArray) -> Cut | str:
    """Cuts rows at UTC days; returns the reason if they are too few to be cut.

    Args:
        timestamps_ms: (rows,), time of each row's request.
        requests: (rows,), number of each row's request.
    """
    days = timestamps_ms // MS_PER_DAY
    _, first = np.unique(requests, return_index=True)
    found, counts = np.unique(days[first], return_counts=True)
    if len(found) < 3:
        return f"the held-out requests lie on {len(found)} days, and three are needed to train, stop and test"
    until = np.cumsum(counts) / counts.sum()
    train = int(np.clip(np.searchsorted(until, TRAIN_SHARE), 0, len(found) - 3))
    val = int(np.clip(np.searchsorted(until, TRAIN_SHARE + VAL_SHARE), train + 1, len(found) - 2))
    parts = counts[: train + 1].sum(), counts[train + 1 : val + 1].sum(), counts[val + 1 :].sum()
    if min(parts) < MIN_REQUESTS:
        return (
            f"of {counts.sum()} held-out requests {min(parts)} are left for a part, fewer than {MIN_REQUESTS}"
        )
    return Cut(days <= found[train], (days > found[train]) & (days <= found[val]), days > found[val])


def measure_lift(
    features: LiftFeatures,
    rows: Rows,
    cut: Cut,
    configs: Sequence[RankerConfig],
    *,
    oracle: Float64Array | None = None,
    hours: Float64Array | None = None,
) -> Lift:
    """Trains the ranker on every feature set, and judges all on the test rows.

    Args:
        features: features of every row.
        rows: labels, users and requests; its own features are ignored.
        cut: which rows train, stop and test.
        configs: settings of the trees; those with which the base features do best on the validation rows are taken
            for every set, so that no set gains by settings that do not suit the base.
        oracle: (rows,), the true log-odds of a click where the data are simulated.
        hours: (rows,), local hour of the request, for the slices by hour.
    """
    test = take_rows(rows, cut.test)
    config, base = train_base(features, rows, cut, configs)
    predictions: dict[str, Float64Array] = {}
    sets: dict[str, dict[str, object]] = {}
    parts = fit_components(features, cut, config)
    for label, (values, names) in feature_sets(features, parts, config).items():
        ranker = base if label == "base" else train_on(values, names, rows, cut, config)
        predictions[label] = ranker.predict(values[cut.test])
        judged = judge(predictions[label], test, are_probabilities=True).as_json()
        sets[label] = judged | {"importance": ranker.importance(), "trees": ranker.booster.num_trees()}
    names = features.names
    scores = {
        name: sign * features.base[cut.test, names.index(column)]
        for name, (column, sign) in BASELINES.items()
    }
    scores = {name: np.nan_to_num(own, nan=-1e9) for name, own in scores.items()}
    if oracle is not None:
        scores["oracle"] = oracle[cut.test]
    figures: dict[str, object] = {
        "impressions": {part: int(getattr(cut, part).sum()) for part in ("train", "val", "test")},
        "requests": {
            part: len(np.unique(rows.requests[getattr(cut, part)])) for part in ("train", "val", "test")
        },
        "users": len(np.unique(test.users)),
        "settings": config.model_dump(mode="json"),
        "sets": sets,
        "baselines": {name: judge(own, test).as_json() for name, own in scores.items()},
        "differences": {
            label: compare(predictions[label], predictions["base"], test) for label in sets if label != "base"
        },
    }
    if "both" in predictions:
        figures["slices"] = measure_slices(predictions, features, cut, test, hours)
    return Lift(figures, predictions | scores)


def train_base(
    features: LiftFeatures, rows: Rows, cut: Cut, configs: Sequence[RankerConfig]
) -> tuple[RankerConfig, Ranker]:
    """Trains on the base features with each of the settings; returns those with the lowest validation loss."""
    rankers = [train_on(features.base, features.names, rows, cut, config) for config in configs]
    best = int(np.argmin([ranker.val_loss for ranker in rankers]))
    return configs[best], rankers[best]


def train_on(
    values: Float64Array, names: tuple[str, ...], rows: Rows, cut: Cut, config: RankerConfig
) -> Ranker:
    """Trains the ranker on columns of the training rows."""
    train, val = (
        Rows(values[part], rows.labels[part], rows.users[part], rows.requests[part])
        for part in (cut.train, cut.val)
    )
    return train_ranker(train, val, names, config)


def fit_components(features: LiftFeatures, cut: Cut, config: RankerConfig) -> dict[str, Components]:
    """Fits the principal components of user and POI vectors on the training rows; empty without vectors."""
    if features.users is None or features.pois is None:
        return {}
    trained = np.flatnonzero(cut.train)[:: max(int(cut.train.sum()) // FIT_VECTORS, 1)]
    vectors = {"user": features.users, "poi": features.pois}
    return {what: Components(own[trained], config.num_components) for what, own in vectors.items()}


def feature_sets(
    features: LiftFeatures, parts: Mapping[str, Components], config: RankerConfig
) -> dict[str, tuple[Float64Array, tuple[str, ...]]]:
    """Returns the columns and names of every set that the features allow: base, embedding, scores, both."""
    sets = {"base": (features.base, features.names)}
    added: dict[str, tuple[Float64Array, tuple[str, ...]]] = {}
    if features.users is not None and features.pois is not None:
        columns = embedding_features(features.users, features.pois, parts)
        added["embedding"] = (columns, embedding_names(config.num_components))
    if features.logits is not None:
        added["scores"] = (features.logits[:, None], ("click_logit",))
    for label, (columns, names) in added.items():
        sets[label] = (np.hstack([features.base, columns]), (*features.names, *names))
    if len(added) == 2:
        vectors, scores = added["embedding"], added["scores"]
        sets["both"] = (
            np.hstack([features.base, vectors[0], scores[0]]), (*features.names, *vectors[1], *scores[1])
        )  # fmt: skip
    return sets


def compare(scores: Float64Array, base: Float64Array, rows: Rows) -> dict[str, dict[str, float]]:
    """Returns AUC and NDCG@5 of scores minus those of the base, with paired intervals by user."""
    difference = bootstrap_auc_difference(scores, base, rows.labels, rows.users, num_resamples=NUM_RESAMPLES)
    values = [list_values(own, rows) for own in (scores, base)]
    starts = np.flatnonzero(np.diff(rows.requests, prepend=-1))
    is_defined = ~np.isnan(values[0])
    lists = bootstrap_mean(
        (values[0] - values[1])[is_defined], rows.users[starts][is_defined], num_resamples=NUM_RESAMPLES
    )
    return {
        "auc": {"value": difference.value, "low": difference.low, "high": difference.high},
        "ndcg_at_5": {"value": lists.value, "low": lists.low, "high": lists.high},
    }


def list_values(scores: Float64Array, rows: Rows) -> Float64Array:
    """Returns the NDCG@5 of every request; nan where nothing was clicked."""
    starts = np.flatnonzero(np.diff(rows.requests, prepend=-1))
    lists = zip(np.split(scores, starts[1:]), np.split(rows.labels, starts[1:]), strict=True)
    return np.array([ndcg(own, labels, NDCG_K) for own, labels in lists])


def measure_slices(
    predictions: Mapping[str, Float64Array],
    features: LiftFeatures,
    cut: Cut,
    test: Rows,
    hours: Float64Array | None,
) -> list[dict[str, object]]:
    """Tells where the lift comes from: AUC of base and both on parts of the test rows, and their difference."""
    found: list[dict[str, object]] = []
    for name, part in slice_rows(features, cut, hours).items():
        labels = test.labels[part]
        if part.sum() < MIN_SLICE or len(np.unique(labels)) < 2:
            continue
        base, both = (predictions[label][part] for label in ("base", "both"))
        difference = bootstrap_auc_difference(
            both, base, labels, test.users[part], num_resamples=NUM_RESAMPLES
        )
        found.append({
            "name": name, "impressions": int(part.sum()), "base": auc(base, labels), "both": auc(both, labels),
            "difference": {"value": difference.value, "low": difference.low, "high": difference.high},
        })  # fmt: skip
    return found


def slice_rows(features: LiftFeatures, cut: Cut, hours: Float64Array | None) -> dict[str, BoolArray]:
    """Returns the parts of the test rows: by what is known of user and POI, by distance, by local hour."""
    column = {
        name: features.base[cut.test, features.names.index(name)]
        for name in ("user_actions", "popularity", "user_poi_visits", "distance_km")
    }
    near = column["distance_km"]
    slices = {
        "users with at most 10 actions": column["user_actions"] <= 10,
        "users with more actions": column["user_actions"] > 10,
        "POIs with at most 3 visits": column["popularity"] <= np.log1p(3),
        "POIs with more visits": column["popularity"] > np.log1p(3),
        "POIs that the user visited": column["user_poi_visits"] > 0,
        "POIs new to the user": column["user_poi_visits"] == 0,
        "up to 1 km": near <= 1,
        "1 to 5 km": (near > 1) & (near <= 5),
        "beyond 5 km": near > 5,
    }
    if hours is not None:
        of_day = hours[cut.test] % HOURS_PER_DAY
        slices |= {
            f"{start} to {start + 6} h": (of_day >= start) & (of_day < start + 6) for start in range(0, 24, 6)
        }
    return slices


def take_rows(rows: Rows, part: BoolArray) -> Rows:
    """Returns some rows without features."""
    count = int(part.sum())
    return Rows(np.zeros((count, 0)), rows.labels[part], rows.users[part], rows.requests[part])
