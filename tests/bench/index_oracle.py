"""Finds the grid cell of a million points in Spark and by an oracle of another kind, and counts where they differ.

    python -m tests.bench.index_oracle

The oracle bisects among the borders of the rows, and of the columns of each row, in 80 bits; the pipeline divides in
64. Points: uniform on the sphere, and on purpose at the poles, at 180 degrees, on and beside borders and corners. A
point nearer to a border than a billionth of a cell is on it, by definition.
"""

import argparse
import sys

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.results import record
from conf.settings import Settings, SparkSettings
from etl.columns import spacetime
from etl.spark.session import open_session

CELL_KM = 5.0
NUM_POINTS = 1_000_000
NUM_BORDER_POINTS = 100_000
EARTH_RADIUS_KM, PI = np.longdouble("6371.0088"), np.longdouble("3.14159265358979323846")
ON_BORDER = 1e-9
"""Cells."""
BESIDE = (0.0, 3e-9, -3e-9, 1e-6, -1e-6)
"""Cells from a border at which points are planted; half a metre at most."""


def make_points(rng: np.random.Generator, num_points: int) -> np.ndarray:
    """Returns longitude and latitude, (n, 2), float64, degrees; the first ones are planted."""
    rows, columns = grid_shape()
    y = rng.integers(0, rows, NUM_BORDER_POINTS)
    x = (rng.random(NUM_BORDER_POINTS) * columns[y]).astype(int)
    across, along = (rng.choice(BESIDE, NUM_BORDER_POINTS) for _ in range(2))
    is_corner = rng.random(NUM_BORDER_POINTS) < 0.5
    on_border = np.stack(
        [
            (x + np.where(is_corner, across, rng.random(NUM_BORDER_POINTS))) / columns[y] * 360 - 180,
            (y + along) / rows * 180 - 90,
        ],
        axis=1,
    )
    lons = [-180.0, np.nextafter(-180, 0), -90.0, -0.0, 0.0, 60.0, 90.0, 120.0, np.nextafter(180, 0), 180.0]
    lats = [-90.0, np.nextafter(-90, 0), -45.0, -0.0, 0.0, 30.0, 45.0, 60.0, np.nextafter(90, 0), 90.0]
    special = np.array([(lon, lat) for lon in lons for lat in lats])
    num_random = num_points - len(special) - NUM_BORDER_POINTS
    uniform = np.stack(
        [rng.uniform(-180, 180, num_random), np.degrees(np.arcsin(rng.uniform(-1, 1, num_random)))], axis=1
    )
    points = np.concatenate([special, on_border, uniform])
    return np.clip(points, (-180.0, -90.0), (180.0, 90.0))


def grid_shape() -> tuple[int, np.ndarray]:
    """Returns the number of rows, and of the columns of each, by the definition of the grid, in 80 bits."""
    around = 2 * PI * EARTH_RADIUS_KM / CELL_KM
    rows = int(np.rint(around / 2))
    middles = (np.arange(rows, dtype=np.longdouble) + 0.5) / rows * PI - PI / 2
    columns = np.maximum(np.floor(around * np.cos(middles) + 0.5), 1).astype(int)
    return rows, columns


def find_cells(points: np.ndarray) -> np.ndarray:
    """Returns cell_x and cell_y of each point, (n, 2), by bisection among the borders."""
    rows, columns = grid_shape()
    lon, lat = (points[:, axis].astype(np.longdouble) for axis in (0, 1))
    row_borders = np.arange(rows, dtype=np.longdouble) * 180 / rows - 90
    y = np.searchsorted(row_borders, lat + np.longdouble(ON_BORDER) * 180 / rows, side="right") - 1
    x = np.zeros(len(points), dtype=np.int64)
    order = np.argsort(y, kind="stable")
    starts = np.searchsorted(y[order], np.arange(rows + 1))
    for row in np.unique(y):
        members = order[starts[row] : starts[row + 1]]
        borders = np.arange(columns[row] + 1, dtype=np.longdouble) * 360 / columns[row] - 180
        found = (
            np.searchsorted(
                borders, lon[members] + np.longdouble(ON_BORDER) * 360 / columns[row], side="right"
            )
            - 1
        )
        x[members] = np.where(found == columns[row], 0, found)  # 180 degrees east are 180 degrees west
    return np.stack([x, y], axis=1)


def count_mismatches(spark: SparkSession, points: np.ndarray) -> tuple[int, str]:
    """Returns the points whose cell differs, and one of them."""
    import pandas as pd

    frame = spark.createDataFrame(
        pd.DataFrame({"lon": points[:, 0], "lat": points[:, 1]}).reset_index(names="number")
    )
    cell = spacetime.grid_cell(F.col("lon"), F.col("lat"), cell_km=CELL_KM)
    found = frame.select("number", cell.cell_x.alias("x"), cell.cell_y.alias("y")).toPandas()
    found = found.sort_values("number")[["x", "y"]].to_numpy()  # type: ignore[attr-defined]
    off = np.flatnonzero((found != find_cells(points)).any(axis=1))
    example = f"{points[off[0]].tolist()}: {found[off[0]].tolist()}" if len(off) else "none"
    return len(off), example


def main() -> int:
    """Measures, records, and returns 0 if all cells agree."""
    parser = argparse.ArgumentParser(description="Records how the grid compares with an oracle in results/.")
    parser.add_argument("--points", type=int, default=NUM_POINTS)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    spark = open_session(
        Settings(spark=SparkSettings(quick_start=True, shuffle_partitions=2)), "index oracle"
    )
    points = make_points(np.random.default_rng(4), options.points)
    mismatches, example = count_mismatches(spark, points)
    spark.stop()
    notes = (
        f"{len(points)} points: {NUM_BORDER_POINTS} on or beside borders of cells, 100 at poles, 180 degrees and round "
        f"numbers, the others uniform on the sphere; cells of {CELL_KM} km; example: {example}"
    )
    record(
        "index-oracle-mismatches", mismatches, "points", "== 0", "make bench-index", notes, options.results
    )
    print(f"{mismatches} mismatches; {notes}")
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
