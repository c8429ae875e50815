"""Which POIs a request may copy from the crowd: those that follow the current POI, and those near and fitting.

Two lists per request, both from training rows of *other* users (`models.copying.crowd_statistics`):

- followers: the POIs to which others went most from the user's current POI;
- near: near the user's place, and visited by users with a similar past or popular at that hour; those of the
  first list, and those the user has been to, left out.

The result is plain arrays, one row per request.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.copying.crowd_statistics import CrowdStatistics
from models.copying.crowd_visits import CrowdVisits, SimilarUsers, expand
from models.data.catalogue import Catalogue
from models.data.geo import distance_km
from models.data.requests import BoolArray, FloatArray, IntArray

NEAR_KM, NEAR_POWER = 0.1, 1.2
"""A POI counts as (0.1 km + distance)^-1.2: measured on validation rows against exponentials."""
POPULARITY_SHARE = 0.1
"""Weight of the popularity at the hour beside that of similar users, both over their means."""
MAX_NEIGHBOURS = 1024
"""POIs kept per place before user and hour are looked at."""
MAX_PLACES = 4096
"""Places whose neighbours are kept, 16 KB each; users who are tracked ask from ever new ones."""
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
        similarity: bucket of the visits by users with a similar past, over the mean of all POIs.
    """

    pois: IntArray
    count: IntArray
    share: IntArray
    lift: IntArray
    popularity: IntArray
    similarity: IntArray


@dataclass(frozen=True)
class Asked:
    """Who asks where and when.

    Attributes:
        users: position in the statistics; -1 = unknown user, whose rows are in no count.
        current: row of the last action's POI; -1 = none, or not in the catalogue.
        lons: longitude of the user; nan = unknown.
        lats: latitude of the user.
        hours: local hour of the day.
        past_requests: request of each past action.
        past_pois: row of its POI; -1 = not in the catalogue.
    """

    users: IntArray
    current: IntArray
    lons: FloatArray
    lats: FloatArray
    hours: IntArray
    past_requests: IntArray
    past_pois: IntArray

    def distinct_past(self, num_pois: int) -> tuple[IntArray, IntArray]:
        """Returns (request, POI) of every POI in every past, once each, in rising order."""
        known = self.past_pois >= 0
        keys = np.unique(self.past_requests[known] * num_pois + self.past_pois[known])
        return keys // max(num_pois, 1), keys % max(num_pois, 1)


class SlotFinder:
    """Finds the slots of requests in the statistics of the crowd; for any model of the catalogue's index."""

    def __init__(self, statistics: CrowdStatistics, catalogue: Catalogue) -> None:
        self.statistics, self.catalogue = statistics, catalogue
        self._transitions = _Transitions(statistics)
        self._visits = CrowdVisits(statistics)
        self._similar = SimilarUsers(statistics)
        self._neighbours: dict[tuple[float, float], tuple[IntArray, FloatArray]] = {}

    def find(self, asked: Asked, *, num_followers: int, num_near: int) -> SlotLists:
        """Returns the slots of every request, followers first, best first in each list."""
        followers, weights, leaving = self._transitions.follow(asked, num_followers, self._visits)
        past = asked.distinct_past(self.statistics.num_pois)
        similarity = self._similar.score_pois(asked.users, *past)
        near = self._find_near(asked, past, followers, similarity, num_near)
        pois = np.concatenate([followers, near], axis=1)
        counts = np.concatenate([weights, np.zeros(near.shape)], axis=1)
        at_hour, at_all = self._visits.popularity(asked.users, pois, asked.hours)
        # One visit more on both sides: a POI with hardly any would have an extreme lift, or one of 0 / 0.
        lift = np.log2((at_hour + 1.0) / (at_all * self._visits.mean_kernel + 1.0))
        own = np.take_along_axis(similarity, np.maximum(pois, 0), axis=1) if pois.size else counts
        return SlotLists(
            pois=pois,
            count=_bucket_log(counts * 4),
            share=np.where(counts > 0, 1 + _bucket_log(leaving[:, None] / np.maximum(counts, 0.25), 10), 0),
            lift=np.clip(np.round(2 * lift) + NUM_BUCKETS // 2, 0, NUM_BUCKETS - 1).astype(np.int64),
            popularity=_bucket_log(at_all),
            similarity=np.clip(np.floor(np.log2(own + 2.0**-4)) + 4, 0, NUM_BUCKETS - 1).astype(np.int64),
        )

    def _find_near(
        self,
        asked: Asked,
        past: tuple[IntArray, IntArray],
        taken: IntArray,
        similarity: FloatArray,
        size: int,
    ) -> IntArray:
        """Returns the POIs with the largest product of nearness and fit."""
        pois, nearness = self._gather_neighbours(asked)
        at_hour = self._visits.popularity_at(asked.users, pois, asked.hours) / self._visits.mean_at_hour
        fit = POPULARITY_SHARE * at_hour
        if pois.size:
            fit += np.take_along_axis(similarity, np.maximum(pois, 0), axis=1)
        scores = np.where(pois >= 0, nearness * fit, 0.0)
        scores[pois == asked.current[:, None]] = 0.0
        rows, columns = np.nonzero(taken >= 0)
        scores[_is_among(pois, rows, taken[rows, columns])] = 0.0
        scores[_is_among(pois, *past)] = 0.0
        return _take_best(pois, scores, size)

    def _gather_neighbours(self, asked: Asked) -> tuple[IntArray, FloatArray]:
        """Returns the POIs around each request in rising order, -1 first, and how near they are."""
        places, of_place = np.unique(np.stack([asked.lons, asked.lats], axis=1), axis=0, return_inverse=True)
        of_place = of_place.reshape(-1)
        found = [self._find_neighbours(lon, lat) for lon, lat in places]
        if not found:
            return np.zeros((0, 1), np.int64), np.zeros((0, 1))
        pois, nearness = (np.stack(parts)[of_place] for parts in zip(*found, strict=True))
        return pois, nearness

    def _find_neighbours(self, lon: float, lat: float) -> tuple[IntArray, FloatArray]:
        """Returns the POIs worth looking at from a place, in rising order, and their nearness; cached."""
        key = (float(lon), float(lat))
        if key not in self._neighbours:
            size = min(MAX_NEIGHBOURS, max(len(self.catalogue), 1))
            # Not kept: a nan never equals itself, so as a key it would only fill the cache.
            if not len(self.catalogue) or np.isnan(lon):
                return np.full(size, -1, np.int64), np.zeros(size)
            km = distance_km(np.array(lon), np.array(lat), self.catalogue.lons, self.catalogue.lats)
            # In rising order, since `_is_among` and `popularity_at` search them by bisection.
            rows = np.sort(np.argsort(km, kind="stable")[:size])
            if len(self._neighbours) >= MAX_PLACES:
                self._neighbours.clear()
            self._neighbours[key] = rows, (NEAR_KM + km[rows]) ** -NEAR_POWER
        return self._neighbours[key]


class _Transitions:
    """Followers of every POI, and of every user's own."""

    def __init__(self, statistics: CrowdStatistics) -> None:
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

    def follow(self, asked: Asked, size: int, visits: CrowdVisits) -> tuple[IntArray, FloatArray, FloatArray]:
        """Returns the best followers of each current POI, their weights, and the weight of all of them."""
        rows, places, firsts, weights = self._list_followers(asked)
        leaving = np.bincount(rows, weights=weights, minlength=len(firsts)).astype(np.float64)
        pois = self.next_pois[places]
        popularity = visits.total_of_others(asked.users[rows], pois)
        # Equal weights (most are small) by popularity, then by row.
        order = np.lexsort((pois, -popularity, -weights, rows))
        rank = np.arange(len(order)) - firsts[rows[order]]
        # A weight of 0 is left where only the asking user went: its sum is exact, so nothing of it remains.
        is_kept = (rank < size) & (weights[order] > 0)
        kept, column = order[is_kept], rank[is_kept]
        found = np.full((len(firsts), size), -1, np.int64)
        amounts = np.zeros((len(firsts), size))
        found[rows[kept], column], amounts[rows[kept], column] = pois[kept], weights[kept]
        return found, amounts, leaving

    def _list_followers(self, asked: Asked) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
        """Returns (request, place in the keys) of all followers, where each request's begin, and weights."""
        current, is_known = np.maximum(asked.current, 0), asked.current >= 0
        starts = self.starts[current]
        rows, places, firsts = expand(starts, np.where(is_known, self.starts[current + 1] - starts, 0))
        weights = self.weights[places].astype(np.float64)
        own_key = asked.users * self.num_pois + current
        own_starts = np.searchsorted(self.own_keys, own_key, side="left")
        own_stops = np.searchsorted(self.own_keys, own_key, side="right")
        own_lengths = np.where(is_known & (asked.users >= 0), own_stops - own_starts, 0)
        own_rows, own_entries, _ = expand(own_starts, own_lengths)
        offset = firsts[own_rows] + self.own_places[own_entries] - starts[own_rows]
        # A user has one row per pair of POIs, so no offset comes twice and a plain -= loses nothing.
        weights[offset] -= self.own_weights[own_entries]
        return rows, places, firsts, weights


def _is_among(pois: IntArray, rows: IntArray, taken: IntArray) -> BoolArray:
    """Tells which POIs of each row are listed as (row, POI); rows of `pois` rise."""
    width = int(max(pois.max(initial=0), taken.max(initial=0))) + 2
    # Shifted by 1, so that an empty place (-1) has a number of its own in its row.
    flat = (np.arange(len(pois))[:, None] * width + pois + 1).ravel()
    is_taken = np.zeros(pois.size, np.bool_)
    if pois.size:
        wanted = rows * width + taken + 1
        place = np.minimum(np.searchsorted(flat, wanted), len(flat) - 1)
        is_taken[place[flat[place] == wanted]] = True
    return is_taken.reshape(pois.shape)


def _take_best(pois: IntArray, scores: FloatArray, size: int) -> IntArray:
    """Returns the POIs with the highest scores, best first, ties by row; -1 where none is above 0."""
    kept = min(size, scores.shape[1])
    least = -np.partition(-scores, kept - 1, axis=1)[:, kept - 1 : kept] if kept else scores[:, :0]
    # Only what can be among the best is sorted; those below the last place go to the end.
    contenders = np.where(scores >= least, scores, -1.0) if kept else scores
    order = np.argsort(-contenders, axis=1, kind="stable")[:, :kept]
    best = np.where(
        np.take_along_axis(scores, order, axis=1) > 0, np.take_along_axis(pois, order, axis=1), -1
    )
    return np.pad(best, ((0, 0), (0, size - kept)), constant_values=-1)


def _bucket_log(values: NDArray[np.floating], most: int = NUM_BUCKETS - 1) -> IntArray:
    """Returns floor(log2(1 + value)), at most `most`."""
    return np.minimum(np.floor(np.log2(1.0 + np.maximum(values, 0.0))), most).astype(np.int64)
