"""The ranking team's model: gradient-boosted trees on such a team's features, with and without ours.

LightGBM, pointwise click probability. Feature sets: base; base + embedding features (dot product of the request's user
vector and the POI vector, and a few principal components of both); base + ranking score; all. Every set is trained with
the same settings on the same rows, stopped on the same validation rows, and judged on the same test rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightgbm
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from conf.settings import Section
from models.data.arrays import Float64Array, IntArray
from models.evaluation.metrics import (
    CalibrationBins,
    Interval,
    bootstrap_auc,
    bootstrap_mean,
    calibration_bins,
    gauc,
    ndcg,
)

CATEGORICAL = "category_id"
NDCG_K = 5
NUM_RESAMPLES = 200


class RankerConfig(Section):
    """Settings of the trees; the same for every feature set."""

    num_leaves: int = Field(31, ge=2)
    learning_rate: float = Field(0.08, gt=0)
    max_trees: int = Field(400, ge=1, description="at most; validation stops earlier")
    patience: int = Field(40, ge=1, description="trees without a better validation loss")
    min_rows_per_leaf: int = Field(100, ge=1)
    feature_fraction: float = Field(0.7, gt=0, le=1)
    bagging_fraction: float = Field(0.8, gt=0, le=1)
    l2: float = Field(5.0, ge=0)
    num_components: int = Field(8, ge=0, description="principal components of user and POI vectors, each")
    seed: int = 1
    threads: int = Field(2, ge=1)


def candidate_configs() -> tuple[RankerConfig, RankerConfig]:
    """Returns settings for many and for few impressions; the base features' validation loss chooses.

    Large trees overfit a few thousand requests so far that noise columns, which dampen them, would pass for a lift.
    """
    return RankerConfig(), RankerConfig(num_leaves=6, min_rows_per_leaf=300, feature_fraction=1.0)


@dataclass(frozen=True)
class Rows:
    """Exposures with their features.

    Attributes:
        features: (rows, features).
        labels: 1 clicked, 0 shown.
        users: user of each row.
        requests: request of each row; rows of one request are contiguous.
    """

    features: Float64Array
    labels: IntArray
    users: NDArray[np.str_]
    requests: IntArray

    def with_columns(self, features: Float64Array) -> "Rows":
        """Returns the rows with further feature columns."""
        return Rows(np.hstack([self.features, features]), self.labels, self.users, self.requests)


class Components:
    """Principal components, fitted on some vectors and applied to any."""

    def __init__(self, vectors: Float64Array, num: int) -> None:
        self.mean = vectors.mean(axis=0)
        _, _, axes = np.linalg.svd(vectors - self.mean, full_matrices=False)
        self.axes = axes[:num]

    def __call__(self, vectors: Float64Array) -> Float64Array:
        """Returns (rows, components)."""
        projected: Float64Array = (vectors - self.mean) @ self.axes.T
        return projected


@dataclass(frozen=True)
class Judged:
    """Metrics of scores on some rows; AUC and NDCG@5 with intervals by user."""

    auc: Interval
    gauc: float
    ndcg: Interval
    calibration: CalibrationBins | None

    def as_json(self) -> dict[str, object]:
        """Returns plain numbers."""
        found: dict[str, object] = {
            "auc": self.auc.value, "auc_interval": [self.auc.low, self.auc.high], "gauc": self.gauc,
            "ndcg_at_5": self.ndcg.value, "ndcg_interval": [self.ndcg.low, self.ndcg.high],
        }  # fmt: skip
        if self.calibration is not None:
            found["calibration_error"] = self.calibration.expected_error
        return found


@dataclass(frozen=True)
class Ranker:
    """A trained ranker.

    Attributes:
        booster: the trees.
        names: its features.
    """

    booster: lightgbm.Booster
    names: tuple[str, ...]

    @property
    def val_loss(self) -> float:
        """Log loss on the rows that stopped the training, nats."""
        return float(self.booster.best_score["valid_0"]["binary_logloss"])

    def predict(self, features: Float64Array) -> Float64Array:
        """Returns click probabilities."""
        return np.asarray(self.booster.predict(features), dtype=np.float64)

    def importance(self) -> dict[str, float]:
        """Returns each feature's share of the gain, largest first."""
        gains = self.booster.feature_importance("gain")
        shares = gains / max(gains.sum(), 1e-12)
        order = np.argsort(-shares, kind="stable")
        return {self.names[number]: round(float(shares[number]), 4) for number in order}


def train_ranker(train: Rows, val: Rows, names: Sequence[str], config: RankerConfig) -> Ranker:
    """Trains the trees; stops where the loss on `val` no longer falls."""
    parameters = {
        "objective": "binary", "num_leaves": config.num_leaves, "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_rows_per_leaf, "feature_fraction": config.feature_fraction,
        "bagging_fraction": config.bagging_fraction, "bagging_freq": 1, "lambda_l2": config.l2,
        "seed": config.seed, "num_threads": config.threads, "deterministic": True, "force_row_wise": True,
        "verbosity": -1,
    }  # fmt: skip
    categorical = [CATEGORICAL] if CATEGORICAL in names else []
    data = lightgbm.Dataset(
        train.features, train.labels, feature_name=list(names), categorical_feature=categorical
    )
    held_out = lightgbm.Dataset(val.features, val.labels, reference=data)
    booster = lightgbm.train(
        parameters,
        data,
        num_boost_round=config.max_trees,
        valid_sets=[held_out],
        callbacks=[lightgbm.early_stopping(config.patience, verbose=False)],
    )
    return Ranker(booster, tuple(names))


def judge(scores: Float64Array, rows: Rows, *, are_probabilities: bool = False) -> Judged:
    """Judges scores of all rows."""
    starts = np.flatnonzero(np.diff(rows.requests, prepend=-1))
    lists = zip(np.split(scores, starts[1:]), np.split(rows.labels, starts[1:]), strict=True)
    values = np.array([ndcg(own, labels, NDCG_K) for own, labels in lists])
    is_defined = ~np.isnan(values)
    return Judged(
        auc=bootstrap_auc(scores, rows.labels, rows.users, num_resamples=NUM_RESAMPLES),
        gauc=gauc(scores, rows.labels, rows.users),
        ndcg=bootstrap_mean(values[is_defined], rows.users[starts][is_defined], num_resamples=NUM_RESAMPLES),
        calibration=calibration_bins(scores, rows.labels) if are_probabilities else None,
    )


def embedding_features(
    users: Float64Array, pois: Float64Array, parts: Mapping[str, Components]
) -> Float64Array:
    """Returns dot product and components of the vectors of every row, (rows, 1 + components of both)."""
    dot = (users * pois).sum(axis=1, keepdims=True)
    return np.hstack([dot, parts["user"](users), parts["poi"](pois)])


def embedding_names(num_components: int) -> tuple[str, ...]:
    """Returns the names of `embedding_features`."""
    return ("dot_product", *(f"{what}_{n}" for what in ("user", "poi") for n in range(num_components)))
