"""Crowd candidates: POIs that a request may copy from the training rows of *other* users.

Each request has two lists (statistics in `models.copying.crowd_statistics`):

- followers: the POIs that other users went to most often from the user's current POI;
- near: POIs near the user's place that users with a similar past visited or that are popular at that hour, without
  those of the first list and those that the user has visited.

The result is plain arrays, one row per request.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.copying.crowd_statistics import CrowdStatistics
from models.copying.crowd_visits import CategoryHours, CrowdVisits, SimilarUsers, expand
from models.data.arrays import BoolArray, Float32Array, Float64Array, IntArray
from models.data.catalogue import Catalogue
from models.data.geo import distance_km

NEAR_KM, NEAR_POWER = 0.1, 1.2
"""A POI's weight is (0.1 km + distance)^-1.2; it was compared with exponentials on validation rows."""
POPULARITY_SHARE = 0.1
"""Weight of the popularity at the hour relative to the score of similar users, both over their means."""
MAX_NEIGHBOURS = 1024
"""POIs kept per place before user and hour are considered."""
MAX_PLACES = 4096
"""Places whose neighbours are cached, 16 KB each; moving users keep sending requests from new places."""
NUM_BUCKETS = 12
NUM_AMOUNTS = 6
FOLLOWERS, NEAR = range(2)
NUM_LISTS = 2


@dataclass(frozen=True)
class SlotLists:
    """Crowd candidates of requests, all (requests, candidates) int64.

    Attributes:
        pois: row of the POI in the catalogue; -1 = padding.
        count: bucket of the transitions from the current POI.
        share: bucket of their share of all transitions from the current POI.
        lift: bucket of the POI's popularity at this hour over its popularity at any hour.
        popularity: bucket of the POI's visits by other users.
        similarity: bucket of the visits by users with a similar past, over the mean of all POIs.
        amounts: the numbers behind the buckets, (requests, candidates, `NUM_AMOUNTS`) float32: logarithms of count,
            share, popularity at the hour and at any hour, similarity, and lift of the POI's category at the hour, all
            within a few units of 0.
    """

    pois: IntArray
    count: IntArray
    share: IntArray
    lift: IntArray
    popularity: IntArray
    similarity: IntArray
    amounts: Float32Array


@dataclass(frozen=True)
class Asked:
    """User, place, time and past of requests.

    Attributes:
        users: position in the statistics; -1 = unknown user without rows in the counts.
        current: row of the last action's POI; -1 = none, or not in the catalogue.
        lons: longitude of the user; nan = unknown.
        lats: latitude of the user.
        hours: local hour of the day.
        past_requests: request of each past action.
        past_pois: row of the past action's POI; -1 = not in the catalogue.
    """

    users: IntArray
    current: IntArray
    lons: Float64Array
    lats: Float64Array
    hours: IntArray
    past_requests: IntArray
    past_pois: IntArray

    def distinct_past(self, num_pois: int) -> tuple[IntArray, IntArray]:
        """Returns (request, POI) of every distinct POI in every past, in rising order."""
        known = self.past_pois >= 0
        keys = np.unique(self.past_requests[known] * num_pois + self.past_pois[known])
        return keys // max(num_pois, 1), keys % max(num_pois, 1)


class SlotFinder:
    """Finds the crowd candidates of requests, for any model of the catalogue's index."""

    def __init__(self, statistics: CrowdStatistics, catalogue: Catalogue) -> None:
        self.statistics, self.catalogue = statistics, catalogue
        self._transitions = _Transitions(statistics)
        self._visits = CrowdVisits(statistics)
        self._similar = SimilarUsers(statistics)
        self._categories = CategoryHours(statistics, self._visits, catalogue.category_ids)
        self._neighbours: dict[tuple[float, float], tuple[IntArray, Float64Array]] = {}

    def find(self, asked: Asked, *, num_followers: int, num_near: int) -> SlotLists:
        """Returns the crowd candidates of every request: followers, then near POIs, best first in each list."""
        followers, weights, leaving = self._transitions.follow(asked, num_followers, self._visits)
        past = asked.distinct_past(self.statistics.num_pois)
        similarity = self._similar.score_pois(asked.users, *past)
        near = self._find_near(asked, past, followers, similarity, num_near)
        pois = np.concatenate([followers, near], axis=1)
        counts = np.concatenate([weights, np.zeros(near.shape)], axis=1)
        at_hour, at_all = self._visits.popularity(asked.users, pois, asked.hours)
        # One visit is added on both sides: few visits would give an extreme lift, and none 0 / 0.
        lift = np.log2((at_hour + 1.0) / (at_all * self._visits.mean_kernel + 1.0))
        poi_similarity = np.take_along_axis(similarity, np.maximum(pois, 0), axis=1) if pois.size else counts
        shares = counts / np.maximum(leaving[:, None], 0.25)
        amounts = (
            np.log1p(4 * counts),
            np.log(shares + 0.01),
            np.log(at_hour + 0.1),
            np.log(at_all + 0.3),
            np.log(poi_similarity + 2.0**-4),
            self._categories.lift(asked.users, pois, asked.hours),
        )
        return SlotLists(
            pois=pois,
            count=_bucket_log(counts * 4),
            share=np.where(counts > 0, 1 + _bucket_log(leaving[:, None] / np.maximum(counts, 0.25), 10), 0),
            lift=np.clip(np.round(2 * lift) + NUM_BUCKETS // 2, 0, NUM_BUCKETS - 1).astype(np.int64),
            popularity=_bucket_log(at_all),
            similarity=np.clip(np.floor(np.log2(poi_similarity + 2.0**-4)) + 4, 0, NUM_BUCKETS - 1).astype(
                np.int64
            ),
            amounts=np.stack(amounts, axis=-1).astype(np.float32),
        )

    def score_near(self, asked: Asked) -> Float64Array:
        """Scores every POI by nearness and fit, (requests, POIs): what the near list is made by; 0 = too far."""
        past = asked.distinct_past(self.statistics.num_pois)
        pois, scores = self._score_neighbours(asked, self._similar.score_pois(asked.users, *past))
        whole = np.zeros((len(pois), self.statistics.num_pois))
        rows, columns = np.nonzero(pois >= 0)
        whole[rows, pois[rows, columns]] = scores[rows, columns]
        return whole

    def _score_neighbours(self, asked: Asked, similarity: Float64Array) -> tuple[IntArray, Float64Array]:
        """Returns the POIs around each request in rising order, -1 first, and the product of nearness and fit."""
        pois, nearness = self._gather_neighbours(asked)
        at_hour = self._visits.popularity_at(asked.users, pois, asked.hours) / self._visits.mean_at_hour
        fit = POPULARITY_SHARE * at_hour
        if pois.size:
            fit += np.take_along_axis(similarity, np.maximum(pois, 0), axis=1)
        return pois, np.where(pois >= 0, nearness * fit, 0.0)

    def _find_near(
        self,
        asked: Asked,
        past: tuple[IntArray, IntArray],
        excluded: IntArray,
        similarity: Float64Array,
        size: int,
    ) -> IntArray:
        """Returns the POIs with the largest product of nearness and fit."""
        pois, scores = self._score_neighbours(asked, similarity)
        scores[pois == asked.current[:, None]] = 0.0
        rows, columns = np.nonzero(excluded >= 0)
        scores[_is_among(pois, rows, excluded[rows, columns])] = 0.0
        scores[_is_among(pois, *past)] = 0.0
        return _take_best(pois, scores, size)

    def _gather_neighbours(self, asked: Asked) -> tuple[IntArray, Float64Array]:
        """Returns the POIs around each request in rising order, -1 first, and their nearness."""
        places, of_place = np.unique(np.stack([asked.lons, asked.lats], axis=1), axis=0, return_inverse=True)
        of_place = of_place.reshape(-1)
        neighbours = [self._find_neighbours(lon, lat) for lon, lat in places]
        if not neighbours:
            return np.zeros((0, 1), np.int64), np.zeros((0, 1))
        pois, nearness = (np.stack(parts)[of_place] for parts in zip(*neighbours, strict=True))
        return pois, nearness

    def _find_neighbours(self, lon: float, lat: float) -> tuple[IntArray, Float64Array]:
        """Returns the nearest POIs of a place, in rising order, and their nearness; cached."""
        key = (float(lon), float(lat))
        if key not in self._neighbours:
            size = min(MAX_NEIGHBOURS, max(len(self.catalogue), 1))
            # Not cached: a nan never equals itself, so as a key it would only fill the cache.
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
    """Followers of every POI, and every user's part of them."""

    def __init__(self, statistics: CrowdStatistics) -> None:
        self.num_pois = statistics.num_pois
        keys = statistics.transition_pois * self.num_pois + statistics.transition_next_pois
        self.keys, place = np.unique(keys, return_inverse=True)
        self.weights = np.bincount(place, weights=statistics.transition_weights, minlength=len(self.keys))
        pois, self.next_pois = np.divmod(self.keys, max(self.num_pois, 1))
        self.starts = np.searchsorted(pois, np.arange(self.num_pois + 1))
        user_keys = statistics.transition_users * self.num_pois + statistics.transition_pois
        order = np.argsort(user_keys, kind="stable")
        self.own_keys, self.own_places = user_keys[order], place[order]
        self.own_weights = statistics.transition_weights[order]

    def follow(
        self, asked: Asked, size: int, visits: CrowdVisits
    ) -> tuple[IntArray, Float64Array, Float64Array]:
        """Returns the best followers of each current POI, their weights, and the total weight of all followers."""
        rows, places, firsts, weights = self._list_followers(asked)
        leaving = np.bincount(rows, weights=weights, minlength=len(firsts)).astype(np.float64)
        pois = self.next_pois[places]
        popularity = visits.total_of_others(asked.users[rows], pois)
        # Equal weights are common; popularity, then the row, breaks the ties.
        order = np.lexsort((pois, -popularity, -weights, rows))
        rank = np.arange(len(order)) - firsts[rows[order]]
        # Where only the requesting user went, the weight is exactly 0, since the sums are exact.
        is_chosen = (rank < size) & (weights[order] > 0)
        chosen, column = order[is_chosen], rank[is_chosen]
        followers = np.full((len(firsts), size), -1, np.int64)
        amounts = np.zeros((len(firsts), size))
        followers[rows[chosen], column], amounts[rows[chosen], column] = pois[chosen], weights[chosen]
        return followers, amounts, leaving

    def _list_followers(self, asked: Asked) -> tuple[IntArray, IntArray, IntArray, Float64Array]:
        """Returns request, place in the keys and weight of all followers; third, the offset of each request."""
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
        # A user has one row per pair of POIs, so offsets are distinct and a plain -= is safe.
        weights[offset] -= self.own_weights[own_entries]
        return rows, places, firsts, weights


def _is_among(pois: IntArray, rows: IntArray, listed: IntArray) -> BoolArray:
    """Returns which POIs are listed as (row, POI), in the shape of `pois`, whose rows are in rising order."""
    width = int(max(pois.max(initial=0), listed.max(initial=0))) + 2
    # Shifted by 1, so that padding (-1) has a distinct number in its row.
    flat = (np.arange(len(pois))[:, None] * width + pois + 1).ravel()
    is_listed = np.zeros(pois.size, np.bool_)
    if pois.size:
        wanted = rows * width + listed + 1
        place = np.minimum(np.searchsorted(flat, wanted), len(flat) - 1)
        is_listed[place[flat[place] == wanted]] = True
    return is_listed.reshape(pois.shape)


def _take_best(pois: IntArray, scores: Float64Array, size: int) -> IntArray:
    """Returns the POIs with the highest scores, best first, ties by row; -1 where none is above 0."""
    count = min(size, scores.shape[1])
    least = -np.partition(-scores, count - 1, axis=1)[:, count - 1 : count] if count else scores[:, :0]
    # Only contenders for the best are sorted; POIs below the last place go to the end.
    contenders = np.where(scores >= least, scores, -1.0) if count else scores
    order = np.argsort(-contenders, axis=1, kind="stable")[:, :count]
    best = np.where(
        np.take_along_axis(scores, order, axis=1) > 0, np.take_along_axis(pois, order, axis=1), -1
    )
    return np.pad(best, ((0, 0), (0, size - count)), constant_values=-1)


def _bucket_log(values: NDArray[np.floating], most: int = NUM_BUCKETS - 1) -> IntArray:
    """Returns floor(log2(1 + value)), at most `most`."""
    return np.minimum(np.floor(np.log2(1.0 + np.maximum(values, 0.0))), most).astype(np.int64)
