"""Baselines that every model is compared with; they need no training (docs/design.md 5).

- popularity: visits of all users to a POI in the training period;
- visit counter: visits of this user to the POI before the request;
- recency-weighted visits: the user's visits weighted by age, clock and previous POI, plus a small weight for
  transitions of all users.

Each scores all POIs of a catalogue for a slice of requests, in float64: float32 would lose the tie-break of
1e-9 x popularity. The baselines of ranking lists are distance only and popularity only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conf.units import HOURS_PER_DAY, MS_PER_HOUR
from models.data.arrays import Float64Array, IntArray
from models.data.catalogue import Catalogue
from models.data.geo import distance_km
from models.data.ragged import rows_and_places
from models.data.requests import Requests, Visits, is_weekend, local_hours

TIE_BREAK = 1e-9
AGE_DAYS = 60.0
AGE_FLOOR = 0.05
CLOCK_HOURS = 1.5
CLOCK_FLOOR = 0.05
SAME_DAY_TYPE_BONUS = 1.5
SAME_PREVIOUS_BONUS = 6.0
TRANSITION_WEIGHT = 0.01
CURRENT_POI_DAMPING = 0.1
NEAR_KM, NEAR_POWER, POPULAR_POWER = 0.1, 1.2, 0.7


@dataclass(frozen=True)
class TrainingCounts:
    """Counts over the training rows of all users, for the baselines.

    Attributes:
        popularity: (POIs,), training visits of each POI.
        next_starts: (POIs + 1,), offset of the followers of each POI in `next_pois`.
        next_pois: POIs that followed, grouped by the previous POI.
        next_probabilities: share of the transitions from the previous POI that lead to this POI.
    """

    popularity: Float64Array
    next_starts: IntArray
    next_pois: IntArray
    next_probabilities: Float64Array


def count_training(visits: Visits, *, num_pois: int) -> TrainingCounts:
    """Counts visits and transitions.

    Args:
        visits: training rows; a transition leads from `previous_pois` to `pois` (-1 on either side is
            skipped).
        num_pois: POIs in the catalogue.
    """
    popularity = np.bincount(visits.pois[visits.pois >= 0], minlength=num_pois).astype(np.float64)
    known = (visits.pois >= 0) & (visits.previous_pois >= 0)
    pairs, counts = np.unique(visits.previous_pois[known] * num_pois + visits.pois[known], return_counts=True)
    before, after = np.divmod(pairs, num_pois)
    leaving = np.bincount(before, weights=counts, minlength=num_pois)
    starts = np.searchsorted(before, np.arange(num_pois + 1))
    return TrainingCounts(popularity, starts.astype(np.int64), after, counts / leaving[before])


def score_popularity(requests: Requests, counts: TrainingCounts) -> Float64Array:
    """Scores every POI by its training visits; (requests, POIs). Ties stay ties."""
    return np.broadcast_to(counts.popularity, (len(requests), len(counts.popularity)))


def score_visits(requests: Requests, counts: TrainingCounts) -> Float64Array:
    """Scores every POI by the user's earlier visits, ties by popularity; (requests, POIs)."""
    rows, past = requests.pairs()
    scores = _sum_by_poi(requests, rows, past, np.ones(len(rows)), num_pois=len(counts.popularity))
    return scores + TIE_BREAK * counts.popularity


def score_kernel(
    requests: Requests, counts: TrainingCounts, *, hide_request_time: bool = False
) -> Float64Array:
    """Scores every POI by the recency-weighted visit baseline (docs/design.md 5); (requests, POIs).

    Clock times are whole local hours. When the action before a visit is compared with the last action, all POIs outside
    the catalogue count as one POI. Both reproduce the published figures.

    Args:
        requests: the rows to score.
        counts: popularity and transitions of the training period.
        hide_request_time: True = hour and day type of the request are unknown, and ages are measured from the last
            action.
    """
    rows, past = requests.pairs()
    current = requests.current_pois()
    weights = _age_weight(requests, rows, past, hide_request_time)
    weights *= CLOCK_FLOOR + 1.0 if hide_request_time else _clock_weight(requests, rows, past)
    previous = requests.visits.previous_pois[past]
    weights *= 1.0 + SAME_PREVIOUS_BONUS * (previous == current[rows])
    scores = _sum_by_poi(requests, rows, past, weights, num_pois=len(counts.popularity))
    _add_transitions(scores, current, counts)
    known = np.flatnonzero(current >= 0)
    scores[known, current[known]] *= CURRENT_POI_DAMPING
    return scores + TIE_BREAK * counts.popularity


def score_by_distance(
    user_lon: NDArray[np.floating], user_lat: NDArray[np.floating], lons: Float64Array, lats: Float64Array
) -> Float64Array:
    """Scores candidates by minus their distance from the user in km; an unknown place makes all equal."""
    distances = distance_km(user_lon, user_lat, lons, lats)
    return -np.nan_to_num(distances, nan=0.0)


def score_near_popular(
    lons: Float64Array, lats: Float64Array, catalogue: Catalogue, popularity: Float64Array
) -> Float64Array:
    """Scores every POI by nearness and popularity, for POIs that are new to the user; (requests, POIs).

    The score is -1.2 ln(0.1 km + distance) + 0.7 ln(visits + 0.3), the best of its kind on public check-ins.

    Args:
        lons: longitudes of the users, (requests,) degrees; unknown places leave popularity alone.
        lats: latitudes of the users.
        catalogue: the POIs.
        popularity: training visits of each POI, (POIs,).
    """
    km = distance_km(lons[:, None], lats[:, None], catalogue.lons, catalogue.lats)
    near = np.nan_to_num(-NEAR_POWER * np.log(NEAR_KM + km), nan=0.0)
    return near + POPULAR_POWER * np.log(popularity + 0.3)


def _age_weight(requests: Requests, rows: IntArray, past: IntArray, hide_request_time: bool) -> Float64Array:
    visits = requests.visits
    now = requests.timestamps_ms
    if hide_request_time and len(visits):
        now = visits.timestamps_ms[np.maximum(requests.stops - 1, 0)]
    age_days = (now[rows] - visits.timestamps_ms[past]) / (MS_PER_HOUR * HOURS_PER_DAY)
    return np.exp(-age_days / AGE_DAYS) + AGE_FLOOR


def _clock_weight(requests: Requests, rows: IntArray, past: IntArray) -> Float64Array:
    now = np.floor(local_hours(requests.timestamps_ms, requests.tz_offsets_min))
    then = np.floor(local_hours(requests.visits.timestamps_ms, requests.visits.tz_offsets_min))
    apart = np.abs(now[rows] - then[past]) % HOURS_PER_DAY
    apart = np.minimum(apart, HOURS_PER_DAY - apart)
    same_day_type = is_weekend(now)[rows] == is_weekend(then)[past]
    return CLOCK_FLOOR + np.exp(-((apart / CLOCK_HOURS) ** 2)) * (1.0 + SAME_DAY_TYPE_BONUS * same_day_type)


def _add_transitions(scores: Float64Array, current: IntArray, counts: TrainingCounts) -> None:
    """Adds the transitions of all users from the current POI to the scores, in place."""
    known = np.flatnonzero(current >= 0)
    starts, stops = counts.next_starts[current[known]], counts.next_starts[current[known] + 1]
    rows, places = rows_and_places(stops - starts)
    entries = starts[rows] + places
    # NumPy adds once per entry here, which is correct: a POI occurs once among the followers of another.
    scores[known[rows], counts.next_pois[entries]] += TRANSITION_WEIGHT * counts.next_probabilities[entries]


def _sum_by_poi(
    requests: Requests, rows: IntArray, past: IntArray, weights: Float64Array, *, num_pois: int
) -> Float64Array:
    """Sums the weights of past visits by (request, POI)."""
    pois = requests.visits.pois[past]
    known = pois >= 0
    flat = np.bincount(
        rows[known] * num_pois + pois[known], weights=weights[known], minlength=len(requests) * num_pois
    )
    return flat.astype(np.float64).reshape(
        len(requests), num_pois
    )  # bincount without visits returns integers
