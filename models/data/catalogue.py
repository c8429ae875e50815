"""The POIs that can be ranked or generated: slots of the index and the days on which they are live."""

from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from conf.units import MS_PER_DAY
from models.data.arrays import IntArray
from models.data.slots import AboutSlots, LiveSlots, pack_slots

FOR_EVER = np.iinfo(np.int64).max
CATALOGUE_COLUMNS = (
    "poi_id", "block_id", "inner_id", "poi_lon", "poi_lat", "category_id", "valid_from", "valid_to",
)  # fmt: skip
"""Columns of `poi_index` that `Catalogue.from_arrow` reads."""


@dataclass(frozen=True)
class Catalogue:
    """Slots of one index version, sorted by (block, inner); a row is a position in these arrays.

    Attributes:
        poi_ids: catalogue id of each slot.
        block_ids: block of each slot.
        inner_ids: inner id of each slot.
        lons: longitude of each slot.
        lats: latitude of each slot.
        category_ids: leaf category of each slot.
        first_days: first live day, in days since 1970.
        last_days: first day on which the slot is no longer live; `FOR_EVER` = still live.
    """

    poi_ids: NDArray[np.object_]
    block_ids: IntArray
    inner_ids: IntArray
    lons: NDArray[np.float64]
    lats: NDArray[np.float64]
    category_ids: IntArray
    first_days: IntArray
    last_days: IntArray
    _keys: IntArray = field(repr=False)
    _change_days: IntArray = field(repr=False)
    _slots: dict[tuple[int, int, int], LiveSlots] = field(default_factory=dict, repr=False)

    @classmethod
    def from_arrow(cls, slots: pa.Table | pa.RecordBatch) -> "Catalogue":
        """Builds a catalogue from rows of `poi_index`.

        Args:
            slots: `poi_id`, `block_id`, `inner_id`, `poi_lon`, `poi_lat`, `category_id`, `valid_from`,
                `valid_to`.
        """
        table = slots if isinstance(slots, pa.Table) else pa.Table.from_batches([slots])
        table = table.sort_by([("block_id", "ascending"), ("inner_id", "ascending")])
        ids = {
            name: table[name].to_numpy().astype(np.int64) for name in ("block_id", "inner_id", "category_id")
        }
        first_days = _to_days(table["valid_from"])
        last_days = _to_days(table["valid_to"])
        return cls(
            poi_ids=table["poi_id"].to_numpy(),
            block_ids=ids["block_id"],
            inner_ids=ids["inner_id"],
            lons=table["poi_lon"].to_numpy().astype(np.float64),
            lats=table["poi_lat"].to_numpy().astype(np.float64),
            category_ids=ids["category_id"],
            first_days=first_days,
            last_days=last_days,
            _keys=pack_slots(ids["block_id"], ids["inner_id"]),
            _change_days=np.unique(np.concatenate([first_days, last_days])),
        )

    def __len__(self) -> int:
        return len(self.block_ids)

    def take(self, rows: IntArray) -> pa.RecordBatch:
        """Returns slots as the POI tower reads them, with the columns of `poi_index`."""
        return pa.record_batch(
            {
                "block_id": self.block_ids[rows], "inner_id": self.inner_ids[rows], "poi_lon": self.lons[rows],
                "poi_lat": self.lats[rows], "category_id": self.category_ids[rows],
            }
        )  # fmt: skip

    def find_rows(self, block_ids: IntArray, inner_ids: IntArray) -> IntArray:
        """Returns the row of each slot; -1 = not in the catalogue."""
        keys = pack_slots(np.asarray(block_ids, np.int64), np.asarray(inner_ids, np.int64))
        if not len(self):
            return np.full(keys.shape, -1, dtype=np.int64)
        rows = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        return np.where(self._keys[rows] == keys, rows, -1)

    def live_epochs(self, timestamps_ms: IntArray) -> IntArray:
        """Numbers the periods between changes of the live set; requests of one period see the same live set."""
        # From the right: a day on which slots begin or end belongs to the period that it opens.
        return np.searchsorted(self._change_days, timestamps_ms // MS_PER_DAY, side="right")

    def live_mask(self, timestamps_ms: IntArray) -> NDArray[np.bool_]:
        """Returns which slots are live on the UTC day of each time, (times, slots) bool."""
        days = (np.asarray(timestamps_ms) // MS_PER_DAY)[:, None]
        return (self.first_days <= days) & (days < self.last_days)

    def live_slots(self, timestamp_ms: int, *, num_blocks: int, max_inner: int) -> LiveSlots:
        """Returns the live slots at a time for a model with these capacities; cached by epoch."""
        key = (int(self.live_epochs(np.array([timestamp_ms]))[0]), num_blocks, max_inner)
        if key not in self._slots:
            live = self.live_mask(np.array([timestamp_ms]))[0]
            blocks, inners, categories, lons, lats = (
                torch.from_numpy(values[live])
                for values in (self.block_ids, self.inner_ids, self.category_ids, self.lons, self.lats)
            )
            about = AboutSlots(categories, torch.stack([lons, lats], dim=-1).float())
            self._slots[key] = LiveSlots(
                blocks, inners, num_blocks=num_blocks, max_inner=max_inner, about=about
            )
        return self._slots[key]


def day_ms(day: date) -> int:
    """Returns the first millisecond of a UTC day."""
    return (day - date(1970, 1, 1)).days * MS_PER_DAY


def _to_days(column: pa.ChunkedArray) -> IntArray:
    """Returns days since 1970; null becomes `FOR_EVER`."""
    days = column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    return days.fill_null(pa.scalar(FOR_EVER, pa.int64())).to_numpy().astype(np.int64)
