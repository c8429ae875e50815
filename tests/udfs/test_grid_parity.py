"""The grid in its two languages: `etl.columns.spacetime` as Spark columns, `models.protocols.place_index` in NumPy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark.sql import functions as F

from etl.columns import spacetime
from models.protocols import place_index

pytestmark = pytest.mark.spark

ORDER = 10


@pytest.fixture(scope="module")
def places() -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes: random ones, borders of cells, the poles and the date line."""
    rng = np.random.default_rng(5)
    lons, lats = rng.uniform(-180, 180, 2_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 2_000)))
    rows = spacetime.num_rows(place_index.CELL_KM)
    on_border = np.arange(1, rows, 97) * 180.0 / rows - 90.0
    lons = np.concatenate([lons, np.zeros(len(on_border)), [-180.0, 180.0, 180.0, 0.0, 0.0]])
    lats = np.concatenate([lats, on_border, [10.0, 10.0, -10.0, 90.0, -90.0]])
    return lons, lats


def test_cells_and_numbers_along_the_curve_are_the_same_in_both_languages(spark, places):
    lons, lats = places
    cell = spacetime.grid_cell(F.col("lon"), F.col("lat"), cell_km=place_index.CELL_KM)
    number = spacetime.hilbert_number(F.col("east"), F.col("north"), order=ORDER)
    frame = spark.createDataFrame(
        [(n, float(lon), float(lat)) for n, (lon, lat) in enumerate(zip(lons, lats, strict=True))],
        "n int, lon double, lat double",
    )
    placed = frame.withColumns({"x": cell.cell_x, "y": cell.cell_y, "east": cell.east, "north": cell.north})
    columns = placed.withColumn("number", number).orderBy("n").toPandas()

    rows, cells, east, north = place_index.find_cells(lons, lats)
    numbers = place_index.hilbert_numbers(east, north, order=ORDER)

    assert_array_equal(columns["y"], rows)
    assert_array_equal(columns["x"], cells)
    assert_allclose(columns["east"], east, atol=1e-8)
    assert_allclose(columns["north"], north, atol=1e-8)
    assert_array_equal(columns["number"], numbers)
