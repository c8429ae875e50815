"""Places that are new to the user: P(new), their ranking among themselves, and what a shift towards them costs.

All figures are of the same rows. *Among new* ranks a discovery among the live POIs that the user has not been to, so it
does not depend on how often new places are expected. Its baselines need no training: nearness x popularity, and, where
the model copies from the crowd, nearness x (similar users + popularity at the hour), by which the crowd's near list is
made.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conf.units import HOURS_PER_DAY
from models.copying.crowd_candidates import Asked, SlotFinder
from models.data.arrays import BoolArray, Float64Array, IntArray
from models.data.ranks import Ranks
from models.data.requests import local_hours
from models.evaluation.baselines import score_near_popular
from models.evaluation.figures import SCORES_PER_CHUNK, Figures
from models.evaluation.metrics import (
    auc,
    bootstrap_mean,
    calibration_bins,
    exact_mean,
    hit_values,
    rank_targets,
)
from models.evaluation.release_split import EvaluationRows
from models.serving.inference import ShiftedRanks
from models.serving.new_places import SURE, LogitMap

NEW_LOGITS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Shifts of the trade-off curve."""
LIST_LENGTH = 10
FIT_STRENGTH = 1e4
"""Inverse strength of the regularisation: two numbers from a thousand rows need next to none."""
ROWS_PER_BATCH = 2_048

Rank = Callable[[pa.RecordBatch, IntArray], ShiftedRanks]


def rank_rows_shifted(rows: EvaluationRows, rank: Rank) -> ShiftedRanks:
    """Ranks the targets of all rows by a function of requests and targets."""
    num_rows = len(rows.requests)
    p_new = np.zeros(num_rows)
    ranks: dict[float | None, tuple[IntArray, IntArray]] = {}
    for positions, batch in rows.batches(ROWS_PER_BATCH):
        found = rank(batch, rows.requests.targets[positions])
        p_new[positions] = found.p_new
        for key, own in [*found.by_logit.items(), (None, found.among_new)]:
            higher, equal = ranks.setdefault(key, (np.zeros(num_rows, np.int64), np.ones(num_rows, np.int64)))
            higher[positions], equal[positions] = own.num_higher, own.num_equal
    whole = {key: Ranks(*pair) for key, pair in ranks.items()}
    among_new = whole.pop(None)
    return ShiftedRanks({key: own for key, own in whole.items() if key is not None}, among_new, p_new)


def describe_new_places(rows: EvaluationRows, models: Sequence[ShiftedRanks], *, seed: int = 0) -> Figures:
    """Summarises one model, or the mean of several seeds of it, beside the baselines.

    Returns:
        `p_new_auc`, the mean of P(new) and the share of discoveries, their calibration; `among_new`: hr@10 of the model
        and of each baseline on discoveries, with intervals of the differences; `curve`: hr@10 of all rows, discoveries
        and returns for every logit.
    """
    requests = rows.requests
    is_new = ~requests.returns()
    p_new = np.mean([found.p_new for found in models], axis=0)
    discoveries = np.flatnonzero(is_new)
    users = requests.users[discoveries]
    own = _mean_hits([found.among_new.take(discoveries) for found in models])
    baselines = {
        name: hit_values(ranks, LIST_LENGTH)
        for name, ranks in rank_baselines_among_new(rows.take(discoveries)).items()
    }
    among_new: Figures = {"rows": len(discoveries), "hr_at_10": asdict(bootstrap_mean(own, users, seed=seed))}
    among_new["baselines"] = {
        name: {
            "hr_at_10": exact_mean(hits),
            "difference": asdict(bootstrap_mean(own - hits, users, seed=seed)),
        }
        for name, hits in baselines.items()
    }
    return {
        "rows": len(requests),
        "share_new": exact_mean(is_new.astype(np.float64)),
        "mean_p_new": exact_mean(p_new),
        "p_new_auc": exact_mean(np.array([auc(found.p_new, is_new.astype(np.int64)) for found in models])),
        "calibration": _describe_calibration(p_new, is_new),
        "among_new": among_new,
        "curve": [
            {"new_logit": logit, **_describe_hits([found.by_logit[logit] for found in models], is_new)}
            for logit in models[0].by_logit
        ],
    }


def fit_p_new(p_new: Float64Array, is_new: BoolArray) -> LogitMap:
    """Fits the calibration of P(new) by logistic regression on its log-odds; the identity if all rows are of one kind.

    Args:
        p_new: P(new) by the model, (rows,).
        is_new: whether the next POI was new, (rows,).
    """
    from sklearn.linear_model import (
        LogisticRegression,
    )  # takes a second, which commands that fit nothing need not wait

    if is_new.all() or not is_new.any():
        return LogitMap()
    inside = np.clip(p_new, SURE, 1 - SURE)
    log_odds = np.log(inside / (1 - inside))[:, None]
    found = LogisticRegression(C=FIT_STRENGTH).fit(log_odds, is_new)
    scale, offset = float(found.coef_[0, 0]), float(found.intercept_[0])
    # P(new) that orders rows the wrong way round is noise of few rows: only its mean is corrected then.
    return (
        LogitMap(scale, offset)
        if scale > 0
        else LogitMap(0.0, float(np.log(is_new.mean() / (1 - is_new.mean()))))
    )


def rank_baselines_among_new(rows: EvaluationRows) -> dict[str, Ranks]:
    """Ranks each target by the baselines, among the live POIs that the user has not been to."""
    parts: dict[str, list[Ranks]] = {}
    chunk = max(1, SCORES_PER_CHUNK // max(len(rows.catalogue), 1))
    for start in range(0, len(rows.requests), chunk):
        part = rows.take(np.arange(start, min(start + chunk, len(rows.requests))))
        candidates = part.catalogue.live_mask(part.requests.timestamps_ms) & ~_mark_visited(part)
        scores = {
            "near_popular": score_near_popular(
                part.user_lons, part.user_lats, part.catalogue, part.counts.popularity
            )
        }
        if part.finder is not None:
            scores["near_crowd"] = part.finder.score_near(_as_asked(part, part.finder))
        for name, values in scores.items():
            parts.setdefault(name, []).append(rank_targets(values, part.requests.targets, candidates))
    return {name: Ranks.join(ranks) for name, ranks in parts.items()}


def _mark_visited(rows: EvaluationRows) -> BoolArray:
    """Returns which POIs each user has been to, (requests, POIs)."""
    visited = np.zeros((len(rows.requests), len(rows.catalogue)), np.bool_)
    numbers, past = rows.requests.pairs()
    pois = rows.requests.visits.pois[past]
    visited[numbers[pois >= 0], pois[pois >= 0]] = True
    return visited


def _as_asked(rows: EvaluationRows, finder: SlotFinder) -> Asked:
    requests = rows.requests
    numbers, past = requests.pairs()
    hours = np.floor(local_hours(requests.timestamps_ms, requests.tz_offsets_min)).astype(np.int64)
    return Asked(
        users=finder.statistics.find_users(requests.users),
        current=requests.current_pois(),
        lons=rows.user_lons,
        lats=rows.user_lats,
        hours=hours % HOURS_PER_DAY,
        past_requests=numbers,
        past_pois=requests.visits.pois[past],
    )


def _mean_hits(ranks: Sequence[Ranks]) -> Float64Array:
    hits: Float64Array = np.mean([hit_values(own, LIST_LENGTH) for own in ranks], axis=0)
    return hits


def _describe_hits(ranks: Sequence[Ranks], is_new: BoolArray) -> dict[str, float]:
    hits = _mean_hits(ranks)
    groups: dict[str, NDArray[np.bool_]] = {"all": np.ones_like(is_new), "new": is_new, "returns": ~is_new}
    return {name: exact_mean(hits[group]) for name, group in groups.items()}


def _describe_calibration(p_new: Float64Array, is_new: BoolArray) -> Figures:
    bins = calibration_bins(p_new, is_new.astype(np.int64))
    return {
        **{name: values.tolist() for name, values in vars(bins).items()},
        "expected_error": bins.expected_error,
    }
