"""Features that a ranking team has without this model, per shown POI, as of the request (position-free).

Distance, popularity (overall, at this hour, of the category at this hour, clicks per exposure) as of the start of the
request's UTC day; visits of the user to the POI and the category, by age and by hour, strictly before the request; the
recency-weighted visit baseline. Positions are never a feature: a ranker does not have them when it scores.
"""

# Shape letters: R = requests of a chunk, C = candidates, H = past actions; flat arrays have one row per candidate.

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conf.units import HOURS_PER_DAY, MS_PER_DAY
from models.data.arrays import Float64Array, IntArray
from models.data.catalogue import Catalogue
from models.data.geo import distance_km
from models.data.ragged import rows_and_places
from models.data.requests import Requests, Visits, is_weekend, local_hours, previous_within
from models.evaluation.baselines import CLOCK_HOURS, TrainingCounts, score_kernel

CHUNK = 1_000
CLICK_PRIOR = 20.0
"""Prior exposures of every POI at the mean click rate."""
BASE_FEATURES = (
    "distance_km", "hour", "is_weekend", "category_id", "popularity", "popularity_at_hour", "category_at_hour",
    "click_rate", "user_poi_visits", "user_poi_age_days", "user_poi_at_hour", "user_category_visits",
    "user_category_age_days", "user_category_at_hour", "user_actions", "kernel_counter", "km_from_last_poi",
    "hours_since_last",
)  # fmt: skip


class EventLog:
    """Counts events by an integer key strictly before any time."""

    def __init__(self, keys: IntArray, times_ms: IntArray) -> None:
        order = np.lexsort((times_ms, keys))
        self.keys, self.times = keys[order], times_ms[order]
        self.first = int(self.times.min()) if len(keys) else 0
        self.span = int(self.times.max()) - self.first + 2 if len(keys) else 1
        self.sorted = self.keys * self.span + (self.times - self.first)

    def count(self, keys: IntArray, before_ms: IntArray) -> Float64Array:
        """Returns the number of events of each key before each time."""
        when = np.clip(before_ms - self.first, 0, self.span - 1)
        stops = np.searchsorted(self.sorted, keys * self.span + when)
        return (stops - np.searchsorted(self.keys, keys)).astype(np.float64)


@dataclass(frozen=True)
class History:
    """Actions and exposures of all users, for counts as of a day.

    Attributes:
        visit_rows, visit_times, visit_hours: catalogue row, time and local hour of day of every action.
        shown_rows, shown_times, shown_labels: the same of every exposure.
        counts: popularity and transitions as of a day before all requests, for the recency-weighted visit baseline.
    """

    visit_rows: IntArray
    visit_times: IntArray
    visit_hours: IntArray
    shown_rows: IntArray
    shown_times: IntArray
    shown_labels: IntArray
    counts: TrainingCounts


@dataclass(frozen=True)
class Exposures:
    """Ranking samples, flat: one row per shown POI.

    Attributes:
        samples: the requests.
        requests: number of the request of each row.
        rows: catalogue row of each POI.
        labels: 1 clicked, 0 shown.
        users: user of each row.
    """

    samples: pa.Table
    requests: IntArray
    rows: IntArray
    labels: IntArray
    users: NDArray[np.str_]

    @classmethod
    def from_samples(cls, samples: pa.Table, catalogue: Catalogue) -> "Exposures":
        """Flattens rows of `ranking_samples`."""
        blocks, lengths = _flatten(samples, "candidate_block_ids")
        inners, _ = _flatten(samples, "candidate_inner_ids")
        requests = np.repeat(np.arange(samples.num_rows), lengths)
        users = samples["user_id"].to_numpy(zero_copy_only=False).astype(str)
        rows = catalogue.find_rows(blocks.astype(np.int64), inners.astype(np.int64))
        return cls(samples, requests, rows, _flatten(samples, "labels")[0].astype(np.int64), users[requests])

    def __len__(self) -> int:
        return len(self.labels)


def build_base_features(exposures: Exposures, catalogue: Catalogue, history: History) -> Float64Array:
    """Returns the columns of `BASE_FEATURES`, (exposures, features); nan = unknown."""
    samples, of = exposures.samples, exposures.requests
    times = samples["request_ts_ms"].to_numpy().astype(np.int64)
    hours = local_hours(times, samples["tz_offset_min"].to_numpy().astype(np.int64))
    hour = np.floor(hours).astype(np.int64) % HOURS_PER_DAY
    rows, day_start = exposures.rows, (times // MS_PER_DAY * MS_PER_DAY)[of]
    user_lon, user_lat = (
        samples[name].to_numpy(zero_copy_only=False).astype(np.float64)[of]
        for name in ("user_lon", "user_lat")
    )
    lons, lats = catalogue.lons[rows], catalogue.lats[rows]
    columns = {
        "distance_km": distance_km(user_lon, user_lat, lons, lats),
        "hour": (hours % HOURS_PER_DAY)[of],
        "is_weekend": is_weekend(hours)[of].astype(np.float64),
        "category_id": catalogue.category_ids[rows].astype(np.float64),
        **_count_others(history, catalogue, rows, hour[of], day_start),
        **_count_own(exposures, catalogue, history.counts),
    }
    return np.stack([columns[name] for name in BASE_FEATURES], axis=1)


def _count_others(
    history: History, catalogue: Catalogue, rows: IntArray, hour: IntArray, day_start: IntArray
) -> dict[str, Float64Array]:
    """Returns counts of all users as of the start of the day."""
    visits = EventLog(history.visit_rows, history.visit_times)
    at_hour = EventLog(history.visit_rows * HOURS_PER_DAY + history.visit_hours, history.visit_times)
    categories = catalogue.category_ids[history.visit_rows]
    category_hour = EventLog(categories * HOURS_PER_DAY + history.visit_hours, history.visit_times)
    any_hour = EventLog(history.visit_hours, history.visit_times)
    own_category = catalogue.category_ids[rows]
    near_hours = [(hour + step) % HOURS_PER_DAY for step in (-1, 0, 1)]
    popular = sum(at_hour.count(rows * HOURS_PER_DAY + near, day_start) for near in near_hours)
    in_category = sum(
        category_hour.count(own_category * HOURS_PER_DAY + near, day_start) for near in near_hours
    )
    in_hour = sum(any_hour.count(near, day_start) for near in near_hours)
    shown = EventLog(history.shown_rows, history.shown_times).count(rows, day_start)
    is_click = history.shown_labels == 1
    clicked = EventLog(history.shown_rows[is_click], history.shown_times[is_click]).count(rows, day_start)
    mean_rate = is_click.mean() if len(is_click) else 0.0
    return {
        "popularity": np.log1p(visits.count(rows, day_start)),
        "popularity_at_hour": np.log1p(popular),
        "category_at_hour": in_category / np.maximum(in_hour, 1.0),
        "click_rate": (clicked + CLICK_PRIOR * mean_rate) / (shown + CLICK_PRIOR),
    }


def _count_own(exposures: Exposures, catalogue: Catalogue, counts: TrainingCounts) -> dict[str, Float64Array]:
    """Returns counts of the user's history, strictly before the request."""
    names = [name for name in BASE_FEATURES if name.startswith("user_")]
    names += ["kernel_counter", "km_from_last_poi", "hours_since_last"]
    features = {name: np.full(len(exposures), np.nan) for name in names}
    starts = np.searchsorted(exposures.requests, np.arange(exposures.samples.num_rows + 1))
    for first in range(0, exposures.samples.num_rows, CHUNK):
        part = exposures.samples.slice(first, CHUNK)
        inside = slice(starts[first], starts[first + part.num_rows])
        chunk_features = _count_chunk(
            part, exposures.requests[inside] - first, exposures.rows[inside], catalogue, counts
        )
        for name, values in chunk_features.items():
            features[name][inside] = values
    return features


def _count_chunk(
    samples: pa.Table, of: IntArray, rows: IntArray, catalogue: Catalogue, counts: TrainingCounts
) -> dict[str, Float64Array]:
    requests = _as_requests(samples, catalogue)
    visits, starts, stops = requests.visits, requests.starts, requests.stops
    # One row per (candidate, past action).
    lengths = (stops - starts)[of]
    pair, places = rows_and_places(lengths)
    past = places + starts[of][pair]
    then, now = visits.timestamps_ms[past], requests.timestamps_ms[of][pair]
    age_days = (now - then) / MS_PER_DAY
    apart = np.abs(
        local_hours(now, requests.tz_offsets_min[of][pair]) - local_hours(then, visits.tz_offsets_min[past])
    )
    apart = np.minimum(apart % HOURS_PER_DAY, HOURS_PER_DAY - apart % HOURS_PER_DAY)
    near_hour = np.exp(-((apart / CLOCK_HOURS) ** 2))
    category = np.append(catalogue.category_ids, -1)
    features: dict[str, Float64Array] = {"user_actions": lengths.astype(np.float64)}
    same = {
        "poi": visits.pois[past] == rows[pair],
        "category": category[visits.pois[past]] == category[rows[pair]],
    }
    for what, is_same in same.items():
        hit = np.flatnonzero(is_same)
        total = np.bincount(pair[hit], minlength=len(of)).astype(np.float64)
        latest = np.full(len(of), np.inf)
        np.minimum.at(latest, pair[hit], age_days[hit])
        features[f"user_{what}_visits"] = total if what == "poi" else total / np.maximum(lengths, 1)
        features[f"user_{what}_age_days"] = np.where(np.isinf(latest), np.nan, latest)
        at_hour = np.bincount(pair[hit], weights=near_hour[hit], minlength=len(of))
        features[f"user_{what}_at_hour"] = at_hour.astype(
            np.float64
        )  # bincount without hits returns integers
    features["kernel_counter"] = score_kernel(requests, counts)[of, rows]
    has_past, last = stops[of] > starts[of], np.maximum(stops[of] - 1, 0)
    last_poi = np.where(has_past, visits.pois[last] if len(visits) else -1, -1)
    away = distance_km(
        catalogue.lons[last_poi], catalogue.lats[last_poi], catalogue.lons[rows], catalogue.lats[rows]
    )
    features["km_from_last_poi"] = np.where(last_poi >= 0, away, np.nan)
    since = (requests.timestamps_ms[of] - (visits.timestamps_ms[last] if len(visits) else 0)) / (
        MS_PER_DAY / HOURS_PER_DAY
    )
    features["hours_since_last"] = np.where(has_past, since, np.nan)
    return features


def _as_requests(samples: pa.Table, catalogue: Catalogue) -> Requests:
    """Returns the samples as requests without target, for the baselines."""
    blocks, lengths = _flatten(samples, "block_ids")
    inners, _ = _flatten(samples, "inner_ids")
    pois = catalogue.find_rows(blocks.astype(np.int64), inners.astype(np.int64))
    owner = np.repeat(np.arange(samples.num_rows), lengths)
    stops = np.cumsum(lengths)
    visits = Visits(
        pois,
        previous_within(pois, owner),
        _flatten(samples, "timestamps_ms")[0].astype(np.int64),
        _flatten(samples, "tz_offsets_min")[0].astype(np.int64),
    )
    return Requests(
        row_ids=samples["request_id"].to_numpy(zero_copy_only=False).astype(str),
        users=samples["user_id"].to_numpy(zero_copy_only=False).astype(str),
        timestamps_ms=samples["request_ts_ms"].to_numpy().astype(np.int64),
        tz_offsets_min=samples["tz_offset_min"].to_numpy().astype(np.int64),
        targets=np.zeros(samples.num_rows, np.int64),
        starts=(stops - lengths).astype(np.int64),
        stops=stops.astype(np.int64),
        visits=visits,
    )


def _flatten(samples: pa.Table, column: str) -> tuple[np.ndarray, IntArray]:
    """Returns the values of a list column, and the length of each list."""
    lists = samples[column].combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    lengths = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False), lengths
