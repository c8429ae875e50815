"""An index from places alone: block = grid cell, inner = number along Hilbert's curve.

It serves catalogues that are a list of POIs with coordinates, without an index table (public check-ins). Cells are 5 km
wide, as in the index job (rows are bands of latitude; a row's cells are as wide as high). Blocks are numbered by row
and column, POIs of a block along the curve, ties by POI id. The index depends on the list alone. The hashed index, an
ablation of the paper, has the same number of blocks, which have no meaning.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from conf.units import EARTH_RADIUS_KM, GRID_BORDER_WIDTH
from models.data.arrays import Float64Array, IntArray
from models.data.catalogue import Catalogue

CELL_KM = 5.0
HILBERT_ORDER = 10
INDEX_VERSION = 1
FIRST_DAY = np.datetime64("1970-01-01", "D")
UNKNOWN_BLOCK = 1 << 20
"""Block of a place in a cell that the index does not have: beyond every capacity."""


@dataclass(frozen=True)
class PlaceIndex:
    """An index from places.

    Attributes:
        slots: rows of `poi_index`, one per POI.
        blocks: rows of `blocks`.
        categories: category names; the id is the position + 1, 0 = unknown.
        is_hashed: True = blocks are hash buckets of POI ids, without a place.
    """

    slots: pa.Table
    blocks: pa.Table
    categories: tuple[str, ...]
    is_hashed: bool = False

    @property
    def catalogue(self) -> Catalogue:
        """The slots as a catalogue."""
        return Catalogue.from_arrow(self.slots)

    def find_blocks(self, poi_ids: NDArray[np.object_], lons: Float64Array, lats: Float64Array) -> IntArray:
        """Returns the blocks of POIs outside the index; `UNKNOWN_BLOCK` where the cell has no block."""
        if self.is_hashed:
            return (_hash_ids(poi_ids) % np.uint64(self.blocks.num_rows)).astype(np.int64)
        known_lons, known_lats = (self.blocks[f"center_{axis}"].to_numpy() for axis in ("lon", "lat"))
        known_rows, known_columns, *_ = find_cells(known_lons, known_lats)
        blocks = {cell: block for block, cell in enumerate(zip(known_rows, known_columns, strict=True))}
        rows, columns, *_ = find_cells(lons, lats)
        block_ids = [blocks.get(cell, UNKNOWN_BLOCK) for cell in zip(rows, columns, strict=True)]
        return np.array(block_ids, np.int64)


def build_index(pois: pd.DataFrame, *, is_hashed: bool = False) -> PlaceIndex:
    """Numbers POIs by their places.

    Args:
        pois: `poi_id`, `longitude`, `latitude`, `category` (may be null).
        is_hashed: True = the paper's ablation: as many blocks, assigned by a hash of the POI ids.
    """
    pois = pois.sort_values("poi_id", kind="stable").reset_index(drop=True)
    lons, lats = pois["longitude"].to_numpy(np.float64), pois["latitude"].to_numpy(np.float64)
    rows, columns, east, north = find_cells(lons, lats)
    cells, blocks = np.unique(np.stack([rows, columns], axis=1), axis=0, return_inverse=True)
    blocks = blocks.reshape(-1)
    curve = hilbert_numbers(east, north, order=HILBERT_ORDER)
    if is_hashed:
        hashes = _hash_ids(pois["poi_id"].to_numpy(dtype=object))
        blocks, curve = (
            (hashes % np.uint64(len(cells))).astype(np.int64),
            (hashes >> np.uint64(1)).astype(np.int64),
        )
    order = np.lexsort((np.arange(len(pois)), curve, blocks))
    first = np.searchsorted(blocks[order], np.arange(len(cells)))
    inners = np.empty(len(pois), np.int64)
    inners[order] = np.arange(len(pois)) - first[blocks[order]]
    names = tuple(sorted(set(pois["category"].dropna())))
    slots = pa.table(
        {
            "index_version": np.full(len(pois), INDEX_VERSION, np.int32),
            "poi_id": pa.array(pois["poi_id"].astype(str)),
            "block_id": blocks.astype(np.int32),
            "inner_id": inners.astype(np.int32),
            "poi_lon": lons,
            "poi_lat": lats,
            "category_id": number_categories(pois["category"], names).astype(np.int32),
            "valid_from": np.full(len(pois), FIRST_DAY),
            "valid_to": pa.nulls(len(pois), pa.date32()),
        }
    )
    center_lons, center_lats = _cell_centers(cells[:, 0], cells[:, 1])
    if is_hashed:  # a bucket has no place
        center_lons, center_lats = np.full(len(cells), np.nan), np.full(len(cells), np.nan)
    centers = pa.table(
        {
            "index_version": np.full(len(cells), INDEX_VERSION, np.int32),
            "block_id": np.arange(len(cells), dtype=np.int32),
            "center_lon": center_lons,
            "center_lat": center_lats,
        }
    )
    return PlaceIndex(slots, centers, names, is_hashed)


def number_categories(categories: pd.Series, names: tuple[str, ...]) -> IntArray:
    """Returns 1 + the position of each category among the names; 0 = null or not among them."""
    number = {name: position + 1 for position, name in enumerate(names)}
    return np.array([number.get(name, 0) if isinstance(name, str) else 0 for name in categories], np.int64)


def find_cells(
    lons: Float64Array, lats: Float64Array
) -> tuple[IntArray, IntArray, Float64Array, Float64Array]:
    """Returns row and column of each place's cell, and the place's offset east and north in it (0 to 1)."""
    row_place = (lats + 90.0) / 180.0 * _num_rows()
    rows = np.minimum(np.floor(row_place + GRID_BORDER_WIDTH), _num_rows() - 1).astype(np.int64)
    num_columns = _num_columns(rows)
    column_place = (lons + 180.0) / 360.0 * num_columns
    whole = np.floor(column_place + GRID_BORDER_WIDTH)
    north: Float64Array = np.minimum(row_place - rows, 1.0).astype(np.float64)
    return rows, whole.astype(np.int64) % num_columns, column_place - whole, north


def hilbert_numbers(east: Float64Array, north: Float64Array, *, order: int) -> IntArray:
    """Returns the numbers of places in a unit square along Hilbert's curve, 0 to 4^order - 1."""
    side = 2**order
    x, y = (np.clip((part * side).astype(np.int64), 0, side - 1) for part in (east, north))
    number = np.zeros(len(x), np.int64)
    half = side // 2
    while half:
        right, upper = (x & half) > 0, (y & half) > 0
        number += half * half * ((3 * right) ^ upper)
        # The curve is turned in the quadrants of the lower half: mirror, then swap the axes.
        mirrored = ~upper & right
        x, y = np.where(mirrored, side - 1 - x, x), np.where(mirrored, side - 1 - y, y)
        x, y = np.where(upper, x, y), np.where(upper, y, x)
        half //= 2
    return number


def _hash_ids(poi_ids: NDArray[np.object_]) -> NDArray[np.uint64]:
    """Returns 64-bit hashes, the same in every process."""
    return pd.util.hash_array(poi_ids.astype(object), categorize=False)


def _num_rows() -> int:
    return round(np.pi * EARTH_RADIUS_KM / CELL_KM)


def _num_columns(rows: IntArray) -> IntArray:
    middle = (rows + 0.5) * (180.0 / _num_rows()) - 90.0
    around = 2 * np.pi * EARTH_RADIUS_KM / CELL_KM * np.cos(np.radians(middle))
    return np.maximum(np.floor(around + 0.5), 1).astype(np.int64)


def _cell_centers(rows: IntArray, columns: IntArray) -> tuple[Float64Array, Float64Array]:
    lons = (columns + 0.5) * 360.0 / _num_columns(rows) - 180.0
    lats: Float64Array = ((rows + 0.5) * (180.0 / _num_rows()) - 90.0).astype(np.float64)
    return lons, lats
