"""Visits of other users as seen by a request: popularity by hour, and users with a similar past.

Every figure excludes the requesting user's training rows.
"""

import numpy as np
import torch
from torch.nn import functional as F

from conf.units import HOURS_PER_DAY
from models.copying.crowd_statistics import CrowdStatistics
from models.data.arrays import BoolArray, Float64Array, IntArray
from models.data.ragged import rows_and_places

HOUR_KERNEL = {0: 10, 1: 6, 2: 3, 3: 1}
"""Weight of a visit in the popularity at an hour, by their distance on the clock in hours, in tenths. Whole numbers
keep the sum of all visits minus the user's visits exact."""
ANY_HOUR = 1
"""Weight of a visit at any other hour, in tenths."""
TENTHS = 10
WEIGHT_UNIT = 2.0**-12
"""Weights are multiples of this, so that sums are exact and their order cannot change a list."""


class CrowdVisits:
    """Popularity of POIs by hour, and every user's part of it."""

    def __init__(self, statistics: CrowdStatistics) -> None:
        self.num_pois, self.kernel = statistics.num_pois, _hour_kernel()
        by_hour = np.zeros((self.num_pois, HOURS_PER_DAY))
        np.add.at(by_hour, (statistics.visit_pois, statistics.visit_hours), statistics.visit_counts)
        self.mean_kernel = self.kernel[0].mean() / TENTHS
        self.at_hour, self.totals = by_hour @ self.kernel, by_hour.sum(axis=1)
        self.mean_at_hour = max(float(self.at_hour.mean()) / TENTHS, 1e-9) if self.num_pois else 1.0
        self.visit_hours, self.visit_counts = statistics.visit_hours, statistics.visit_counts
        keys = statistics.visit_users * self.num_pois + statistics.visit_pois
        # Visits are sorted by user, POI and hour, so those of one user to one POI are contiguous.
        self.own_keys, firsts = np.unique(keys, return_index=True)
        self.visit_starts = np.append(firsts, len(keys)).astype(np.int64)
        owners = self.own_keys // max(self.num_pois, 1)
        self.own_pois = self.own_keys % max(self.num_pois, 1)
        self.own_starts = np.searchsorted(owners, np.arange(max(len(statistics.user_ids), 1) + 1))

    def total_of_others(self, users: IntArray, pois: IntArray) -> Float64Array:
        """Returns the number of visits by other users, elementwise."""
        return self.totals[pois] - self._sum_own(*self._find_own(users, pois))

    def popularity(
        self, users: IntArray, pois: IntArray, hours: IntArray
    ) -> tuple[Float64Array, Float64Array]:
        """Returns the popularity among other users at the hour and at any hour, (requests, candidates); 0 = padding."""
        rows, columns = np.nonzero(pois >= 0)
        wanted, hour = pois[rows, columns], hours[rows]
        place, is_own = self._find_own(users[rows], wanted)
        at_hour, at_all = np.zeros(pois.shape), np.zeros(pois.shape)
        at_hour[rows, columns] = (self.at_hour[wanted, hour] - self._sum_own(place, is_own, hour)) / TENTHS
        at_all[rows, columns] = self.totals[wanted] - self._sum_own(place, is_own)
        return at_hour, at_all

    def popularity_at(self, users: IntArray, pois: IntArray, hours: IntArray) -> Float64Array:
        """Returns `popularity` at the hour for many POIs per request, in rising order within each request."""
        amounts = np.where(pois >= 0, self.at_hour[np.maximum(pois, 0), hours[:, None]], 0.0)
        if not pois.size:
            return amounts
        known = np.maximum(users, 0)
        lengths = np.where(users >= 0, self.own_starts[known + 1] - self.own_starts[known], 0)
        rows, entries, _ = expand(self.own_starts[known], lengths)
        flat = (np.arange(len(pois))[:, None] * (self.num_pois + 1) + pois + 1).ravel()
        wanted = rows * (self.num_pois + 1) + self.own_pois[entries] + 1
        place = np.minimum(np.searchsorted(flat, wanted), len(flat) - 1)
        hit = flat[place] == wanted
        amounts.ravel()[place[hit]] -= self._sum_own(entries[hit], hours=hours[rows[hit]])
        return amounts / TENTHS

    def _find_own(self, users: IntArray, pois: IntArray) -> tuple[IntArray, BoolArray]:
        """Returns the place of each user's visits to each POI in `own_keys`, and whether there are any."""
        if not len(self.own_keys):
            return np.zeros(len(pois), np.int64), np.zeros(len(pois), np.bool_)
        keys = users * self.num_pois + pois
        place = np.minimum(np.searchsorted(self.own_keys, keys), len(self.own_keys) - 1)
        return place, (self.own_keys[place] == keys) & (users >= 0)

    def _sum_own(
        self, place: IntArray, is_own: BoolArray | None = None, hours: IntArray | None = None
    ) -> Float64Array:
        """Returns the user's visits at the places of `_find_own`; with hours, their weight at these hours in tenths."""
        if not len(self.own_keys):
            return np.zeros(len(place))
        lengths = self.visit_starts[place + 1] - self.visit_starts[place]
        rows, entries, _ = expand(self.visit_starts[place], lengths if is_own is None else lengths * is_own)
        amounts = self.visit_counts[entries]
        if hours is not None:
            amounts = amounts * self.kernel[self.visit_hours[entries], hours[rows]]
        return np.bincount(rows, weights=amounts, minlength=len(place)).astype(np.float64)


class CategoryHours:
    """How much likelier a category is at an hour than at any hour, among other users."""

    def __init__(self, statistics: CrowdStatistics, visits: CrowdVisits, category_ids: IntArray) -> None:
        self.visits, self.category_ids = visits, category_ids
        self.num_categories = int(category_ids.max(initial=0)) + 1
        self.visit_categories = category_ids[statistics.visit_pois]
        by_hour = np.zeros((self.num_categories, HOURS_PER_DAY))
        np.add.at(by_hour, (self.visit_categories, statistics.visit_hours), statistics.visit_counts)
        self.at_hour, self.totals = by_hour @ visits.kernel, by_hour.sum(axis=1)

    def lift(self, users: IntArray, pois: IntArray, hours: IntArray) -> Float64Array:
        """Returns the log of the lift of each POI's category at the hour of its request; 0 = padding.

        Args:
            users: the requesting users, (requests,); their rows do not count.
            pois: rows of the catalogue, (requests, candidates); -1 = padding.
            hours: local hours, (requests,).
        """
        if not len(self.visits.visit_hours):
            return np.zeros(pois.shape)
        own_at_hour, own_totals = self._sum_own(users, hours)
        categories = self.category_ids[np.maximum(pois, 0)]
        at_hour = self.at_hour[categories, hours[:, None]] - np.take_along_axis(
            own_at_hour, categories, axis=1
        )
        totals = self.totals[categories] - np.take_along_axis(own_totals, categories, axis=1)
        # One visit is added on both sides, as in the lift of a POI.
        lift: Float64Array = np.log((at_hour / TENTHS + 1.0) / (totals * self.visits.mean_kernel + 1.0)) * (
            pois >= 0
        )
        return lift

    def _sum_own(self, users: IntArray, hours: IntArray) -> tuple[Float64Array, Float64Array]:
        """Returns the users' own visits by category, at their hour in tenths and at any, (requests, categories)."""
        visits, known = self.visits, np.maximum(users, 0)
        first, stop = (visits.visit_starts[visits.own_starts[known + more]] for more in (0, 1))
        rows, entries, _ = expand(first, np.where(users >= 0, stop - first, 0))
        keys = rows * self.num_categories + self.visit_categories[entries]
        counts = visits.visit_counts[entries]
        weights = counts * visits.kernel[visits.visit_hours[entries], hours[rows]]
        shape = (len(users), self.num_categories)
        at_hour, totals = (
            np.bincount(keys, weights=values, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
            for values in (weights, counts)
        )
        return at_hour, totals


class SimilarUsers:
    """Scores POIs by the visits of users who share POIs with a past; rare POIs count more, busy users less."""

    def __init__(self, statistics: CrowdStatistics) -> None:
        num_users, self.num_pois = len(statistics.user_ids), statistics.num_pois
        keys = np.unique(statistics.visit_pois * max(num_users, 1) + statistics.visit_users)
        pois, self.users = np.divmod(keys, max(num_users, 1))
        self.starts = np.searchsorted(pois, np.arange(self.num_pois + 1))
        visitors = np.maximum(np.diff(self.starts), 1)
        self.poi_weights = _round(np.log(max(num_users, 1) / visitors))
        visited = np.maximum(np.bincount(self.users, minlength=num_users), 1)
        self.user_weights = _round(visited**-0.5)

    def score_pois(self, users: IntArray, past_requests: IntArray, past_pois: IntArray) -> Float64Array:
        """Returns visits by similar users over the mean of the request's row, (requests, POIs).

        Args:
            users: the requesting users; their rows do not count.
            past_requests: request of each distinct POI of a past.
            past_pois: that POI.
        """
        num_users = len(self.user_weights)
        if not num_users or not len(users) or not self.num_pois:
            return np.zeros((len(users), self.num_pois))
        lengths = self.starts[past_pois + 1] - self.starts[past_pois]
        rows, entries, _ = expand(self.starts[past_pois], lengths)
        flat = np.bincount(
            self.users[entries] * len(users) + past_requests[rows],
            weights=self.poi_weights[past_pois[rows]],
            minlength=num_users * len(users),
        ).astype(np.float64)  # bincount without entries returns integers
        affinity_US = flat.reshape(num_users, len(users)) * self.user_weights[:, None]
        # The requesting user's training rows may hold the target, and would leak it into the score.
        known = np.flatnonzero(users >= 0)
        affinity_US[users[known], known] = 0.0
        # A sparse product sums the affinities of each POI's visitors without a matrix of POIs x users.
        scores_NS = F.embedding_bag(
            torch.from_numpy(self.users),
            torch.from_numpy(affinity_US),
            torch.from_numpy(self.starts[:-1].astype(np.int64)),
            mode="sum",
        ).numpy()
        scores = np.ascontiguousarray(scores_NS.T)
        means = scores.mean(axis=1, keepdims=True)
        return scores / np.where(means > 0, means, 1.0)


def _round(values: Float64Array) -> Float64Array:
    rounded: Float64Array = np.round(values / WEIGHT_UNIT) * WEIGHT_UNIT
    return rounded


def _hour_kernel() -> Float64Array:
    """Returns the weight of a visit at one hour for another hour, in tenths, (24, 24)."""
    apart = np.abs(np.subtract.outer(np.arange(HOURS_PER_DAY), np.arange(HOURS_PER_DAY)))
    apart = np.minimum(apart, HOURS_PER_DAY - apart)
    return np.vectorize(lambda hours: HOUR_KERNEL.get(int(hours), ANY_HOUR))(apart).astype(np.float64)


def expand(starts: IntArray, lengths: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Returns (row, entry) of every entry of every row's range, and the offset at which each row's range begins."""
    rows, places = rows_and_places(lengths)
    return rows, places + starts[rows], np.cumsum(lengths) - lengths
