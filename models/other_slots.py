"""Which POIs a request may copy from others: those that follow the current POI, and those near and popular.

Two lists per request, both from training rows of *other* users (`models.others`):

- followers: the POIs to which others went most from the user's current POI;
- near: near the user's place and popular at that hour, those of the first list left out.

Numpy only; the result is plain arrays, one row per request.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import distance_km
from models.catalogue import Catalogue
from models.others import OtherStatistics
from models.requests import HOURS_PER_DAY, BoolArray, FloatArray, IntArray

NEAR_KM, FAR_KM, FAR_SHARE = 0.7, 5.0, 0.02
HOUR_KERNEL = {0: 1.0, 1: 0.6, 2: 0.3, 3: 0.1}
"""How much a visit so many hours apart on the clock counts as popularity at an hour."""
ANY_HOUR = 0.1
"""The same for a visit at any other hour."""
MAX_NEIGHBOURS = 512
"""POIs kept per place before the hour is looked at."""
NUM_BUCKETS = 12
FOLLOWERS, NEAR = range(2)
NUM_LISTS = 2


@dataclass(frozen=True)
class SlotLists:
    """Slots of requests, all (requests, slots) int64.

    Attributes:
        pois: row of the POI in the catalogue; -1 = the slot is empty.
        count: bucket of the transitions from the current POI.
        share: bucket of their share of all that leave the current POI.
        lift: bucket of the POI's popularity at this hour over that at any hour.
        popularity: bucket of the POI's visits by others.
    """

    pois: IntArray
    count: IntArray
    share: IntArray
    lift: IntArray
    popularity: IntArray


@dataclass(frozen=True)
class Asked:
    """Who asks where and when.

    Attributes:
        users: position in the statistics; -1 = unknown user, whose rows are in no count.
        current: row of the last action's POI; -1 = none, or not in the catalogue.
        lons: longitude of the user; nan = unknown.
        lats: latitude of the user.
        hours: local hour of the day.
    """

    users: IntArray
    current: IntArray
    lons: FloatArray
    lats: FloatArray
    hours: IntArray


class SlotFinder:
    """Finds the slots of requests in the statistics of others."""

    def __init__(
        self, statistics: OtherStatistics, catalogue: Catalogue, *, num_followers: int, num_near: int
    ) -> None:
        self.statistics, self.catalogue = statistics, catalogue
        self.num_followers, self.num_near = num_followers, num_near
        self._transitions = _Transitions(statistics)
        self._visits = _Visits(statistics)
        self._neighbours: dict[tuple[float, float], tuple[IntArray, FloatArray]] = {}

    def find(self, asked: Asked) -> SlotLists:
        """Returns the slots of every request, followers first, best first in each list."""
        followers, weights, leaving = self._transitions.follow(asked, self.num_followers, self._visits)
        near = self._find_near(asked, followers)
        pois = np.concatenate([followers, near], axis=1)
        counts = np.concatenate([weights, np.zeros(near.shape)], axis=1)
        at_hour, at_all = self._visits.popularity(asked.users, pois, asked.hours)
        lift = np.log2((at_hour + 1.0) / (at_all * self._visits.mean_kernel + 1.0))
        return SlotLists(
            pois=pois,
            count=_bucket_log(counts * 4),
            share=np.where(counts > 0, 1 + _bucket_log(leaving[:, None] / np.maximum(counts, 0.25), 10), 0),
            lift=np.clip(np.round(2 * lift) + NUM_BUCKETS // 2, 0, NUM_BUCKETS - 1).astype(np.int64),
            popularity=_bucket_log(at_all),
        )

    def _find_near(self, asked: Asked, taken: IntArray) -> IntArray:
        """Returns the POIs with the largest product of nearness and popularity at the hour."""
        places, of_place = np.unique(np.stack([asked.lons, asked.lats], axis=1), axis=0, return_inverse=True)
        of_place = of_place.reshape(-1)
        found = [self._find_neighbours(lon, lat) for lon, lat in places]
        pois = np.stack([own for own, _ in found])[of_place] if found else np.zeros((0, 1), np.int64)
        nearness = np.stack([own for _, own in found])[of_place] if found else np.zeros((0, 1))
        at_hour = self._visits.popularity_at(asked.users, pois, asked.hours)
        scores = np.where(pois >= 0, nearness * at_hour, 0.0)
        scores[pois == asked.current[:, None]] = 0.0
        scores[_is_among(pois, taken)] = 0.0
        return _take_best(pois, scores, self.num_near)

    def _find_neighbours(self, lon: float, lat: float) -> tuple[IntArray, FloatArray]:
        """Returns the POIs worth looking at from a place, by row, and how near they are; cached by place."""
        key = (float(lon), float(lat))
        if key not in self._neighbours:
            size = min(MAX_NEIGHBOURS, max(len(self.catalogue), 1))
            if not len(self.catalogue) or np.isnan(lon):
                return np.full(size, -1, np.int64), np.zeros(size)
            km = distance_km(np.array(lon), np.array(lat), self.catalogue.lons, self.catalogue.lats)
            nearness = np.exp(-km / NEAR_KM) + FAR_SHARE * np.exp(-km / FAR_KM)
            # A few more than needed, so that a user's own visits decide nothing here that others can see.
            best = np.argsort(-nearness * (1.0 + self._visits.totals), kind="stable")[:size]
            rows = np.sort(best)
            self._neighbours[key] = rows, nearness[rows]
        return self._neighbours[key]


class _Transitions:
    """Followers of every POI, and of every user's own."""

    def __init__(self, statistics: OtherStatistics) -> None:
        self.num_pois = statistics.num_pois
        keys = statistics.transition_pois * self.num_pois + statistics.transition_next_pois
        self.keys, place = np.unique(keys, return_inverse=True)
        self.weights = np.bincount(place, weights=statistics.transition_weights, minlength=len(self.keys))
        pois, self.next_pois = np.divmod(self.keys, max(self.num_pois, 1))
        self.starts = np.searchsorted(pois, np.arange(self.num_pois + 1))
        own = statistics.transition_users * self.num_pois + statistics.transition_pois
        order = np.argsort(own, kind="stable")
        self.own_keys, self.own_places = own[order], place[order]
        self.own_weights = statistics.transition_weights[order]

    def follow(self, asked: Asked, size: int, visits: "_Visits") -> tuple[IntArray, FloatArray, FloatArray]:
        """Returns the best followers of each current POI, their weights, and the weight of all of them."""
        current = np.maximum(asked.current, 0)
        is_known = asked.current >= 0
        starts = self.starts[current]
        lengths = np.where(is_known, self.starts[current + 1] - starts, 0) if self.num_pois else 0 * current
        rows, places, firsts = _expand(starts, lengths)
        weights = self.weights[places].copy()
        own_key = asked.users * self.num_pois + current
        own_starts = np.searchsorted(self.own_keys, own_key, side="left")
        own_stops = np.searchsorted(self.own_keys, own_key, side="right")
        own_lengths = np.where(is_known & (asked.users >= 0), own_stops - own_starts, 0)
        own_rows, own_entries, _ = _expand(own_starts, own_lengths)
        offset = firsts[own_rows] + self.own_places[own_entries] - starts[own_rows]
        weights[offset] -= self.own_weights[own_entries]
        leaving = np.bincount(rows, weights=weights, minlength=len(current)).astype(np.float64)
        pois = self.next_pois[places]
        popularity = visits.total_of_others(asked.users[rows], pois)
        # Equal weights (most are small) by popularity, then by row.
        order = np.lexsort((pois, -popularity, -weights, rows))
        rank = np.arange(len(order)) - firsts[rows[order]]
        kept = order[(rank < size) & (weights[order] > 0)]
        found = np.full((len(current), size), -1, np.int64)
        amounts = np.zeros((len(current), size))
        columns = rank[(rank < size) & (weights[order] > 0)]
        found[rows[kept], columns], amounts[rows[kept], columns] = pois[kept], weights[kept]
        return found, amounts, leaving


class _Visits:
    """Popularity of POIs by hour, and every user's own part of it."""

    def __init__(self, statistics: OtherStatistics) -> None:
        self.num_pois = statistics.num_pois
        by_hour = np.zeros((self.num_pois, HOURS_PER_DAY))
        np.add.at(by_hour, (statistics.visit_pois, statistics.visit_hours), statistics.visit_counts)
        kernel = _hour_kernel()
        self.mean_kernel = kernel[0].mean()
        self.at_hour, self.totals = by_hour @ kernel, by_hour.sum(axis=1)
        keys = statistics.visit_users * self.num_pois + statistics.visit_pois
        self.own_keys, place = np.unique(keys, return_inverse=True)
        own = np.zeros((len(self.own_keys), HOURS_PER_DAY))
        np.add.at(own, (place, statistics.visit_hours), statistics.visit_counts)
        self.own_at_hour, self.own_totals = own @ kernel, own.sum(axis=1)
        owners = self.own_keys // max(self.num_pois, 1)
        self.own_pois = self.own_keys % max(self.num_pois, 1)
        self.own_starts = np.searchsorted(owners, np.arange(len(statistics.user_ids) + 1))

    def total_of_others(self, users: IntArray, pois: IntArray) -> FloatArray:
        """Returns the visits of others, elementwise."""
        place, is_own = self._find_own(users, pois)
        return self.totals[pois] - np.where(is_own, self.own_totals[place], 0.0)

    def popularity(self, users: IntArray, pois: IntArray, hours: IntArray) -> tuple[FloatArray, FloatArray]:
        """Returns the popularity among others at the hour and at any hour, (requests, slots); 0 if empty."""
        rows, columns = np.nonzero(pois >= 0)
        own, hour = pois[rows, columns], hours[rows]
        place, is_own = self._find_own(users[rows], own)
        at_hour, at_all = np.zeros(pois.shape), np.zeros(pois.shape)
        at_hour[rows, columns] = self.at_hour[own, hour] - np.where(
            is_own, self.own_at_hour[place, hour], 0.0
        )
        at_all[rows, columns] = self.totals[own] - np.where(is_own, self.own_totals[place], 0.0)
        return np.maximum(at_hour, 0.0), at_all

    def popularity_at(self, users: IntArray, pois: IntArray, hours: IntArray) -> FloatArray:
        """Returns `popularity` at the hour for many POIs per request, whose rows lie in rising order."""
        amounts = np.where(pois >= 0, self.at_hour[np.maximum(pois, 0), hours[:, None]], 0.0)
        if not pois.size:
            return amounts
        known = np.maximum(users, 0)
        lengths = np.where(users >= 0, self.own_starts[known + 1] - self.own_starts[known], 0)
        rows, entries, _ = _expand(self.own_starts[known], lengths)
        flat = (np.arange(len(pois))[:, None] * (self.num_pois + 1) + pois + 1).ravel()
        wanted = rows * (self.num_pois + 1) + self.own_pois[entries] + 1
        place = np.minimum(np.searchsorted(flat, wanted), len(flat) - 1)
        hit = flat[place] == wanted
        own = self.own_at_hour[entries[hit], hours[rows[hit]]]
        amounts.ravel()[place[hit]] -= own
        return np.maximum(amounts, 0.0)

    def _find_own(self, users: IntArray, pois: IntArray) -> tuple[IntArray, BoolArray]:
        if not len(self.own_keys):
            return np.zeros(len(pois), np.int64), np.zeros(len(pois), np.bool_)
        keys = users * self.num_pois + pois
        place = np.minimum(np.searchsorted(self.own_keys, keys), len(self.own_keys) - 1)
        return place, (self.own_keys[place] == keys) & (users >= 0)


def _hour_kernel() -> FloatArray:
    """Returns how much a visit at one hour counts at another, (24, 24)."""
    apart = np.abs(np.subtract.outer(np.arange(HOURS_PER_DAY), np.arange(HOURS_PER_DAY)))
    apart = np.minimum(apart, HOURS_PER_DAY - apart)
    return np.vectorize(lambda hours: HOUR_KERNEL.get(int(hours), ANY_HOUR))(apart).astype(np.float64)


def _expand(starts: IntArray, lengths: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Returns (row, entry) of every entry of every row's stretch, and where each row's stretch begins."""
    firsts = np.cumsum(lengths) - lengths
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(firsts - starts, lengths), firsts


def _is_among(pois: IntArray, taken: IntArray) -> BoolArray:
    """Tells which POIs of each row are in that row of `taken`; rows of `pois` rise."""
    width = int(max(pois.max(initial=0), taken.max(initial=0))) + 2
    flat = (np.arange(len(pois))[:, None] * width + pois + 1).ravel()
    is_taken = np.zeros(pois.size, np.bool_)
    rows, columns = np.nonzero(taken >= 0)
    if pois.size:
        wanted = rows * width + taken[rows, columns] + 1
        place = np.minimum(np.searchsorted(flat, wanted), len(flat) - 1)
        is_taken[place[flat[place] == wanted]] = True
    return is_taken.reshape(pois.shape)


def _take_best(pois: IntArray, scores: FloatArray, size: int) -> IntArray:
    """Returns the POIs with the highest scores, best first, ties by row; -1 where none is above 0."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :size]
    best = np.where(
        np.take_along_axis(scores, order, axis=1) > 0, np.take_along_axis(pois, order, axis=1), -1
    )
    return np.pad(best, ((0, 0), (0, size - best.shape[1])), constant_values=-1)


def _bucket_log(values: NDArray[np.floating], most: int = NUM_BUCKETS - 1) -> IntArray:
    """Returns floor(log2(1 + value)), at most `most`."""
    return np.minimum(np.floor(np.log2(1.0 + np.maximum(values, 0.0))), most).astype(np.int64)
