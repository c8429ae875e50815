"""Impressions whose clicks follow what a base feature, the vectors or the scores say, in known strength."""

import numpy as np

from models.lift.features import BASE_FEATURES
from models.lift.measure import LiftFeatures
from models.lift.ranker import RankerConfig, Rows

CONFIG = RankerConfig(
    max_trees=80,
    patience=15,
    min_rows_per_leaf=300,
    num_leaves=5,
    feature_fraction=1,
    threads=1,
    num_components=2,
)
NUM_REQUESTS, LIST, DAYS = 3_000, 5, 20
DAY_MS = 86_400_000


def make_impressions(
    seed: int = 0, *, by_vectors: float = 0.0, by_logit: float = 0.0, skill: float = 1.0
) -> tuple[LiftFeatures, Rows, np.ndarray, np.ndarray]:
    """Returns features, rows, times and the true log-odds.

    Clicks follow distance, and as strongly as asked the dot product of hidden vectors and a hidden liking. `skill` is
    how much of the hidden parts the features show; 0 = noise.
    """
    dice = np.random.default_rng(seed)
    count = NUM_REQUESTS * LIST
    requests = np.repeat(np.arange(NUM_REQUESTS), LIST)
    users = np.array([f"u{n}" for n in dice.integers(0, 300, NUM_REQUESTS)])[requests]
    days = np.sort(dice.integers(0, DAYS, NUM_REQUESTS))
    times = (days * DAY_MS + dice.integers(0, DAY_MS, NUM_REQUESTS))[requests]
    base = np.zeros((count, len(BASE_FEATURES)))
    base[:, 0] = dice.exponential(3.0, count)
    base[:, BASE_FEATURES.index("user_actions")] = dice.integers(0, 40, NUM_REQUESTS)[requests]
    base[:, BASE_FEATURES.index("popularity")] = np.log1p(dice.integers(0, 30, count))
    hidden, pois = dice.normal(size=(NUM_REQUESTS, 4))[requests], dice.normal(size=(count, 4))
    liking = dice.normal(size=count)
    logit = -1.5 - 0.2 * base[:, 0] + by_vectors * (hidden * pois).sum(axis=1) + by_logit * liking
    labels = (dice.random(count) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    shown = skill * hidden + (1 - skill) * dice.normal(size=hidden.shape)
    # Long POI vectors are clicked more often, whoever the user is, so noise must not show their length.
    vectors = pois if skill else dice.normal(size=pois.shape)
    scores = skill * liking + (1 - skill) * dice.normal(size=count)
    features = LiftFeatures(base, BASE_FEATURES, shown, vectors, scores)
    return features, Rows(np.zeros((count, 0)), labels, users, requests), times, logit
