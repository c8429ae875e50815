"""Statistics of the crowd: visits and transitions of the training period, as two tables with a user column.

Every row keeps its user, so that sums can exclude the requesting user: counts that contain the target would leak it to
the model. Rows after the training period are never counted. This module counts for public protocols; in the pipeline,
Spark computes the tables (`models/copying/crowd_tables.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conf.transitions import STEP_HOURS, STEP_WEIGHTS
from conf.units import HOURS_PER_DAY, MS_PER_HOUR
from models.data.arrays import Float64Array, IntArray
from models.data.requests import local_hours


@dataclass(frozen=True)
class CrowdStatistics:
    """Visits and transitions of all users, with POIs as rows of a catalogue.

    Attributes:
        user_ids: the sorted users; other fields hold positions in this array.
        num_pois: rows of the catalogue.
        transition_users, transition_pois, transition_next_pois: unique, sorted by POI, next POI, user.
        transition_weights: number of times the user went from one POI to the next; later steps weigh less.
        visit_users, visit_pois, visit_hours: unique, sorted by user, POI, local hour of the day.
        visit_counts: number of the user's visits at that hour.
    """

    user_ids: NDArray[np.str_]
    num_pois: int
    transition_users: IntArray
    transition_pois: IntArray
    transition_next_pois: IntArray
    transition_weights: Float64Array
    visit_users: IntArray
    visit_pois: IntArray
    visit_hours: IntArray
    visit_counts: Float64Array

    def find_users(self, user_ids: NDArray[np.str_]) -> IntArray:
        """Returns the position of each user; -1 = the user has no statistics."""
        if not len(self.user_ids):
            return np.full(len(user_ids), -1, np.int64)
        places = np.minimum(np.searchsorted(self.user_ids, user_ids), len(self.user_ids) - 1)
        return np.where(self.user_ids[places] == user_ids, places, -1).astype(np.int64)


def count_others(
    users: NDArray[np.str_],
    pois: IntArray,
    timestamps_ms: IntArray,
    tz_offsets_min: IntArray,
    *,
    num_pois: int,
) -> CrowdStatistics:
    """Counts visits and transitions.

    Args:
        users: user of each training row; rows are sorted by user, then time.
        pois: row of the POI in the catalogue; -1 = not in it, not counted.
        timestamps_ms: epoch milliseconds UTC.
        tz_offsets_min: minutes to add for local time.
        num_pois: rows of the catalogue.
    """
    user_ids, user = np.unique(users, return_inverse=True)
    user = user.astype(np.int64)
    before, after, weights = _list_transitions(user, pois, timestamps_ms)
    keys = (pois[before] * num_pois + pois[after]) * len(user_ids) + user[before]
    transitions, summed = _sum_by_key(keys, weights)
    pairs, transition_users = np.divmod(transitions, max(len(user_ids), 1))
    known = np.flatnonzero(pois >= 0)
    hours = np.floor(local_hours(timestamps_ms, tz_offsets_min)).astype(np.int64) % HOURS_PER_DAY
    visit_keys = (user[known] * num_pois + pois[known]) * HOURS_PER_DAY + hours[known]
    visits, counts = _sum_by_key(visit_keys, np.ones(len(known)))
    visited, visit_hours = np.divmod(visits, HOURS_PER_DAY)
    return CrowdStatistics(
        user_ids=user_ids,
        num_pois=num_pois,
        transition_users=transition_users,
        transition_pois=pairs // num_pois,
        transition_next_pois=pairs % num_pois,
        transition_weights=summed,
        visit_users=visited // num_pois,
        visit_pois=visited % num_pois,
        visit_hours=visit_hours,
        visit_counts=counts,
    )


def _list_transitions(
    user: IntArray, pois: IntArray, timestamps_ms: IntArray
) -> tuple[IntArray, IntArray, Float64Array]:
    """Returns first row, second row and weight of every transition between two different POIs."""
    befores, afters, weights = [], [], []
    for step, (weight, hours) in enumerate(zip(STEP_WEIGHTS, STEP_HOURS, strict=True), start=1):
        before = np.arange(max(len(pois) - step, 0))
        after = before + step
        is_one = (user[before] == user[after]) & (pois[before] >= 0) & (pois[after] >= 0)
        is_one &= pois[before] != pois[after]
        is_one &= timestamps_ms[after] - timestamps_ms[before] <= hours * MS_PER_HOUR
        befores.append(before[is_one])
        afters.append(after[is_one])
        weights.append(np.full(int(is_one.sum()), weight))
    return np.concatenate(befores), np.concatenate(afters), np.concatenate(weights)


def _sum_by_key(keys: IntArray, values: Float64Array) -> tuple[IntArray, Float64Array]:
    unique, place = np.unique(keys, return_inverse=True)
    return unique, np.bincount(place, weights=values, minlength=len(unique)).astype(np.float64)
