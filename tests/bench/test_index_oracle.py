"""The grid beside its oracle, on the points that are hard: poles, 180 degrees, borders, corners."""

import numpy as np

from tests.bench import index_oracle


def test_the_grid_agrees_with_the_oracle_where_it_is_hard(spark, monkeypatch):
    monkeypatch.setattr(index_oracle, "NUM_BORDER_POINTS", 2_000)
    points = index_oracle.make_points(np.random.default_rng(1), 3_000)

    assert index_oracle.count_mismatches(spark, points) == (0, "none")


def test_the_oracle_knows_the_corners_of_the_earth():
    rows, columns = index_oracle.grid_shape()

    corners = np.array([(-180.0, -90.0), (180.0, -90.0), (-180.0, 90.0), (179.999999, 90.0)])

    assert index_oracle.find_cells(corners).tolist() == [
        [0, 0],
        [0, 0],  # 180 degrees east are 180 degrees west
        [0, rows - 1],  # the north pole belongs to the last row
        [columns[-1] - 1, rows - 1],
    ]
