"""Requests for evaluation: user and time, the history before the request, and the POI visited next.

Histories are slices of flat arrays (one slice per user or per sample), so that ten thousand requests of the same users
do not copy their pasts. POIs are rows of a catalogue; -1 is a POI that is not in the catalogue.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from conf.units import HOURS_PER_DAY, MS_PER_HOUR, MS_PER_MINUTE
from models.data.arrays import BoolArray, Float64Array, IntArray
from models.data.ragged import rows_and_places

DAYS_PER_WEEK = 7
EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""


@dataclass(frozen=True)
class Visits:
    """Actions as flat arrays; the actions of one user are contiguous, oldest first.

    Attributes:
        pois: row of the POI in the catalogue; -1 = not in it.
        previous_pois: POI of the same user's previous action; -1 = none.
        timestamps_ms: epoch milliseconds UTC.
        tz_offsets_min: minutes to add to UTC for local time.
    """

    pois: IntArray
    previous_pois: IntArray
    timestamps_ms: IntArray
    tz_offsets_min: IntArray

    def __len__(self) -> int:
        return len(self.pois)


@dataclass(frozen=True)
class Requests:
    """Requests with targets and histories: rows `starts` to `stops` of `visits`, strictly before the request.

    Attributes:
        row_ids: unique name of each row; their digest identifies the scored rows.
        users: user of each row.
        timestamps_ms: time of the request.
        tz_offsets_min: minutes to add to UTC for local time.
        targets: row of the target in the catalogue.
        starts: first action of the history.
        stops: one past the last action of the history.
        visits: the actions of all histories.
    """

    row_ids: NDArray[np.str_]
    users: NDArray[np.str_]
    timestamps_ms: IntArray
    tz_offsets_min: IntArray
    targets: IntArray
    starts: IntArray
    stops: IntArray
    visits: Visits

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: IntArray | BoolArray) -> "Requests":
        """Returns some of the rows; the visits are shared."""
        per_row = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "visits"}
        return replace(self, **per_row)

    def pairs(self) -> tuple[IntArray, IntArray]:
        """Returns (row of the request, row of the visit) for every past action of every request."""
        lengths = self.stops - self.starts
        rows, places = rows_and_places(lengths)
        return rows, places + self.starts[rows]

    def current_pois(self) -> IntArray:
        """Returns the POI of the last action before each request; -1 = no history."""
        has_history = self.stops > self.starts
        current = np.full(len(self), -1, dtype=np.int64)
        current[has_history] = self.visits.pois[self.stops[has_history] - 1]
        return current

    def returns(self) -> BoolArray:
        """Returns which targets the user had visited before; the rest are discoveries."""
        rows, past = self.pairs()
        visited = np.zeros(len(self), dtype=np.bool_)
        visited[rows[self.visits.pois[past] == self.targets[rows]]] = True
        return visited


def local_hours(timestamps_ms: IntArray, tz_offsets_min: IntArray) -> Float64Array:
    """Returns local hours since the epoch, with fraction."""
    return (timestamps_ms + tz_offsets_min * MS_PER_MINUTE) / MS_PER_HOUR


def is_weekend(hours: Float64Array) -> BoolArray:
    """Returns which local hours since the epoch fall on a Saturday or Sunday."""
    return (np.floor(hours / HOURS_PER_DAY).astype(np.int64) + EPOCH_WEEKDAY) % DAYS_PER_WEEK >= 5


def previous_within(pois: IntArray, groups: NDArray[np.generic]) -> IntArray:
    """Returns the POI of the previous row, -1 at the first row of each group (groups are contiguous)."""
    previous = np.full(len(pois), -1, dtype=np.int64)
    if len(pois) > 1:
        same = groups[1:] == groups[:-1]
        previous[1:][same] = pois[:-1][same]
    return previous
