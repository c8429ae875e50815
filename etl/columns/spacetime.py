"""Space and time as column expressions for all tables: grid cell, Hilbert number, distance, local hour.

In and out: Spark columns. No Python runs per row. The grid (design section 3): rows are latitude bands of
`cell_km`, stretched by less than half a cell over the whole meridian so that they end exactly at the poles.
Each row is cut into round(circumference at its middle / cell_km) columns, at least one. A point on a border,
or nearer to it than `GRID_BORDER_WIDTH`, belongs to the cell north and east of it. The north pole belongs to the last
row; longitude 180 is longitude -180.
"""

import math
from typing import NamedTuple

from pyspark.sql import Column
from pyspark.sql import functions as F

from conf.units import EARTH_RADIUS_KM, GRID_BORDER_WIDTH, MS_PER_DAY, MS_PER_HOUR

HILBERT_ORDER = 8
"""A cell is cut into 2^8 x 2^8 squares for numbering: 20 m for cells of 5 km."""
WORLD_HILBERT_ORDER = 14
"""The whole earth is cut into 2^14 x 2^14 pieces for numbering cells: half a cell of 5 km."""
LAST_DATED_MS = 253_402_300_799_999
"""The end of the year 9999; later times are no days at all."""
LON_AROUND = 360.0

# Hilbert's curve as a state machine: state * 4 + (east half * 2 + north half) -> digit, next state.
_HILBERT_DIGIT = (0, 1, 3, 2, 0, 3, 1, 2, 2, 1, 3, 0, 2, 3, 1, 0)
_HILBERT_NEXT = (1, 0, 2, 0, 0, 3, 1, 1, 2, 2, 0, 3, 3, 1, 3, 2)


class GridCell(NamedTuple):
    """The cell of a point, and the position of the point in it (0 to 1, eastwards and northwards)."""

    cell_x: Column
    cell_y: Column
    east: Column
    north: Column


def num_rows(cell_km: float) -> int:
    """Returns the number of rows between the poles."""
    return max(1, round(math.pi * EARTH_RADIUS_KM / cell_km))


def grid_cell(lon: Column, lat: Column, *, cell_km: float) -> GridCell:
    """Finds the grid cell of a point.

    Args:
        lon: degrees, -180 to 180.
        lat: degrees, -90 to 90.
        cell_km: side of a cell.
    """
    rows = num_rows(cell_km)
    up = (lat + F.lit(90.0)) * F.lit(rows) / F.lit(180.0)
    cell_y = F.least(F.floor(up + GRID_BORDER_WIDTH), F.lit(rows - 1)).cast("int")
    columns = num_columns(cell_y, cell_km=cell_km)
    along = (lon + F.lit(180.0)) * columns / F.lit(360.0)
    whole = F.floor(along + GRID_BORDER_WIDTH)
    return GridCell(F.pmod(whole, columns).cast("int"), cell_y, along - whole, up - cell_y)


def num_columns(cell_y: Column, *, cell_km: float) -> Column:
    """Returns the number of columns of a row."""
    middle = (cell_y + F.lit(0.5)) * F.lit(180.0 / num_rows(cell_km)) - F.lit(90.0)
    around = F.lit(2 * math.pi * EARTH_RADIUS_KM / cell_km) * F.cos(F.radians(middle))
    return F.greatest(F.floor(around + F.lit(0.5)), F.lit(1)).cast("int")


def cell_center(cell_x: Column, cell_y: Column, *, cell_km: float) -> tuple[Column, Column]:
    """Returns longitude and latitude of a cell's centre, degrees."""
    lon = (cell_x + F.lit(0.5)) * F.lit(360.0) / num_columns(cell_y, cell_km=cell_km) - F.lit(180.0)
    lat = (cell_y + F.lit(0.5)) * F.lit(180.0 / num_rows(cell_km)) - F.lit(90.0)
    return lon, lat


def hilbert_number(east: Column, north: Column, *, order: int = HILBERT_ORDER) -> Column:
    """Returns the number of a place in a square along Hilbert's curve, 0 to 4^order - 1 (bigint).

    Places with near numbers are near; so near POIs get near inner ids.

    Args:
        east: place in the square, 0 to 1 eastwards.
        north: place in the square, 0 to 1 northwards.
        order: the square is cut into 2^order x 2^order small ones.
    """
    side = 2**order
    # At the north pole a part is 1, and at a border it may be slightly below 0: both are kept in the square.
    x, y = (
        F.greatest(F.least(F.floor(part * side), F.lit(side - 1)), F.lit(0)).cast("int")
        for part in (east, north)
    )
    digits, following = (F.array(*map(F.lit, table)) for table in (_HILBERT_DIGIT, _HILBERT_NEXT))

    def descend(state: Column, level: Column) -> Column:
        half = F.pow(F.lit(2.0), level)
        quadrant = F.pmod(F.floor(x / half), F.lit(2)) * 2 + F.pmod(F.floor(y / half), F.lit(2))
        entry = (state["turn"] * 4 + quadrant).cast("int")
        return F.struct(
            (state["number"] * 4 + F.get(digits, entry)).cast("bigint").alias("number"),
            F.get(following, entry).cast("int").alias("turn"),
        )

    start = F.struct(F.lit(0).cast("bigint").alias("number"), F.lit(0).alias("turn"))
    levels = F.array(*(F.lit(level) for level in reversed(range(order))))
    return F.aggregate(levels, start, descend)["number"]


def distance_km(lon_a: Column, lat_a: Column, lon_b: Column, lat_b: Column) -> Column:
    """Returns the great-circle distance of two points in km (haversine); null if a coordinate is null."""
    half_lat = F.sin(F.radians(lat_b - lat_a) / 2)
    half_lon = F.sin(F.radians(lon_b - lon_a) / 2)
    chord = half_lat * half_lat + F.cos(F.radians(lat_a)) * F.cos(F.radians(lat_b)) * half_lon * half_lon
    # Rounding may lift the chord of opposite points above 1, where asin is NaN. `least` would turn null into 1.
    return F.lit(2 * EARTH_RADIUS_KM) * F.nanvl(F.asin(F.sqrt(chord)), F.lit(math.pi / 2))


def is_on_earth(lon: Column, lat: Column) -> Column:
    """Tells whether both coordinates are in range; false for null and NaN."""
    inside = lon.between(-180.0, 180.0) & lat.between(-90.0, 90.0)
    return F.coalesce(inside & ~F.isnan(lon) & ~F.isnan(lat), F.lit(False))


def wrap_lon(lon: Column) -> Column:
    """Returns a longitude, which may exceed -180 or 180 by less than a turn, as one between -180 and 180."""
    return F.when(lon > 180, lon - LON_AROUND).when(lon < -180, lon + LON_AROUND).otherwise(lon)


def lon_in_cell(lon: Column, cell_x: Column) -> Column:
    """Returns a longitude that can be compared with others of its grid cell; `wrap_lon` turns the result back.

    The first cell of a row begins at -180, and a point at 180 belongs to it (see above). As a number, 180 is a full
    turn away from its neighbours, so their mean or median would lie on the other side of the earth.
    """
    return F.when((cell_x == 0) & (lon > 0), lon - LON_AROUND).otherwise(lon)


def median_lon(lon: Column) -> Column:
    """Aggregates longitudes to their median, on the date line too; nulls are left out.

    Longitudes more than half a turn apart lie on both sides of the date line, as no set of points with a middle spans
    more than half of the earth. They are counted eastwards from 0 to 360, so that the middle of 179 and -179 is 180
    and not 0.
    """
    is_across = F.max(lon) - F.min(lon) > LON_AROUND / 2
    eastwards = wrap_lon(F.percentile(F.pmod(lon, F.lit(LON_AROUND)), 0.5))
    return F.when(is_across, eastwards).otherwise(F.percentile(lon, 0.5))


def tz_offset_from_longitude(lon: Column) -> Column:
    """Returns the nautical time zone of a longitude, minutes to add to UTC; for sources without time zones.

    The result is null for an invalid longitude.
    """
    known = F.when(lon.between(-180.0, 180.0), lon)
    return (F.floor(known / 15 + F.lit(0.5)) * 60).cast("int")


def event_date(ts_ms: Column) -> Column:
    """Returns the UTC day of a time; null outside the years 1970 to 9999, so that no value overflows."""
    return F.date_from_unix_date(F.floor(_dated(ts_ms) / MS_PER_DAY).cast("int"))


def local_date(ts_ms: Column, tz_offset_min: Column) -> Column:
    """Returns the local day of a time; null as for `event_date`."""
    return event_date(_local_ms(ts_ms, tz_offset_min))


def local_hour(ts_ms: Column, tz_offset_min: Column) -> Column:
    """Returns the local hour of the day, 0 to 23; null as for `event_date`."""
    return F.pmod(F.floor(_local_ms(ts_ms, tz_offset_min) / MS_PER_HOUR), F.lit(24)).cast("int")


def local_weekday(ts_ms: Column, tz_offset_min: Column) -> Column:
    """Returns the local day of the week, 0 = Monday to 6 = Sunday (1970-01-01 was a Thursday)."""
    return F.pmod(F.floor(_local_ms(ts_ms, tz_offset_min) / MS_PER_DAY) + 3, F.lit(7)).cast("int")


def _dated(ts_ms: Column) -> Column:
    return F.when(ts_ms.between(0, LAST_DATED_MS), ts_ms)


def _local_ms(ts_ms: Column, tz_offset_min: Column) -> Column:
    return _dated(ts_ms) + tz_offset_min.cast("bigint") * 60_000
