"""What other users do: visits and transitions of the training period, as two plain tables with a user column.

Every row keeps its user, so that a request's own user can be taken out of any sum: a model that is trained on
counts which contain its target would learn to read the answer from them. Rows after the training period are
never counted. For a public protocol they are counted here; the pipeline's are tables that Spark makes
(`models/copying/crowd_tables.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conf.transitions import STEP_HOURS, STEP_WEIGHTS
from conf.units import HOURS_PER_DAY, MS_PER_HOUR
from models.data.requests import FloatArray, IntArray, local_hours


@dataclass(frozen=True)
class CrowdStatistics:
    """Visits and transitions of all users, POIs being rows of a catalogue.

    Attributes:
        user_ids: the users, sorted; other fields hold positions in this array.
        num_pois: rows of the catalogue.
        transition_users, transition_pois, transition_next_pois: unique, sorted by POI, next POI, user.
        transition_weights: how often the user went from the one to the other, later steps for less.
        visit_users, visit_pois, visit_hours: unique, sorted by user, POI, local hour of the day.
        visit_counts: how often the user was there at that hour.
    """

    user_ids: NDArray[np.str_]
    num_pois: int
    transition_users: IntArray
    transition_pois: IntArray
    transition_next_pois: IntArray
    transition_weights: FloatArray
    visit_users: IntArray
    visit_pois: IntArray
    visit_hours: IntArray
    visit_counts: FloatArray

    def find_users(self, user_ids: NDArray[np.str_]) -> IntArray:
        """Returns the position of each user; -1 = nothing is known of the user."""
        if not len(self.user_ids):
            return np.full(len(user_ids), -1, np.int64)
        found = np.minimum(np.searchsorted(self.user_ids, user_ids), len(self.user_ids) - 1)
        return np.where(self.user_ids[found] == user_ids, found, -1).astype(np.int64)


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
        users: user of each training row; rows lie by user, then time.
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
) -> tuple[IntArray, IntArray, FloatArray]:
    """Returns rows before and after, and the weight, of every transition between two different POIs."""
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


def _sum_by_key(keys: IntArray, values: FloatArray) -> tuple[IntArray, FloatArray]:
    unique, place = np.unique(keys, return_inverse=True)
    return unique, np.bincount(place, weights=values, minlength=len(unique)).astype(np.float64)
