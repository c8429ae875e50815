"""Distances on the globe for NumPy arrays; `etl` has the same for Spark columns, and a test compares them."""

import numpy as np
from numpy.typing import NDArray

from conf.units import EARTH_RADIUS_KM
from models.data.arrays import Float64Array


def distance_km(
    lon: NDArray[np.floating], lat: NDArray[np.floating], other_lon: Float64Array, other_lat: Float64Array
) -> Float64Array:
    """Returns great-circle distances (haversine) in km; nan where a place is unknown."""
    lon, lat, other_lon, other_lat = (
        np.radians(np.asarray(value, np.float64)) for value in (lon, lat, other_lon, other_lat)
    )
    square = (
        np.sin((other_lat - lat) / 2) ** 2
        + np.cos(lat) * np.cos(other_lat) * np.sin((other_lon - lon) / 2) ** 2
    )
    # Rounding can lift the square of antipodes above 1, where arcsin is nan.
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(square, 1.0)))
