"""The grid, the curve and the clock against plain Python."""

import math
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from pyspark.sql import functions as F

from etl.columns import spacetime
from etl.spark.session import local_frame

CELL_KM = 5.0
EDGES = [
    (0.0, 0.0),
    (-180.0, 0.0),
    (180.0, 0.0),
    (179.999999999, 52.0),
    (-180.0, 52.0),
    (0.0, 90.0),
    (0.0, -90.0),
    (180.0, 90.0),
    (-77.5, -90.0),
    (13.0, 89.9999),
    (13.0, -89.9999),
]


ON_BORDER = 1e-9
"""Cells; what is nearer to a border counts as on it, whatever the rounding of either side."""


def oracle_cell(lon: float, lat: float, cell_km: float) -> tuple[int, int]:
    """The grid as the design words it, written without a glance at the columns."""
    rows = round(math.pi * spacetime.EARTH_RADIUS_KM / cell_km)
    row = min(math.floor((lat + 90) / (180 / rows) + ON_BORDER), rows - 1)
    middle = math.radians((row + 0.5) * (180 / rows) - 90)
    columns = max(1, math.floor(2 * math.pi * spacetime.EARTH_RADIUS_KM / cell_km * math.cos(middle) + 0.5))
    if lon >= 180:
        lon = -180
    return math.floor((lon + 180) / 360 * columns + ON_BORDER) % columns, row


@pytest.fixture(scope="module")
def points():
    rng = random.Random(5)
    rows = spacetime.num_rows(CELL_KM)
    borders = [(rng.uniform(-180, 180), rng.randrange(rows) * (180 / rows) - 90) for _ in range(200)]
    anywhere = [(rng.uniform(-180, 180), math.degrees(math.asin(rng.uniform(-1, 1)))) for _ in range(20_000)]
    return EDGES + borders + anywhere


def test_every_point_lies_in_the_cell_that_the_oracle_names(spark, points):
    frame = local_frame(spark, points, "lon double, lat double")
    cell = spacetime.grid_cell(F.col("lon"), F.col("lat"), cell_km=CELL_KM)

    found = frame.select("lon", "lat", cell.cell_x, cell.cell_y, cell.east, cell.north).collect()

    for lon, lat, x, y, east, north in found:
        assert (x, y) == oracle_cell(lon, lat, CELL_KM), (lon, lat)
        assert -ON_BORDER <= east <= 1
        assert -ON_BORDER <= north <= 1


def test_a_cell_is_about_as_wide_and_high_as_asked_and_holds_its_centre(spark, points):
    frame = local_frame(spark, [p for p in points if abs(p[1]) < 89], "lon double, lat double")
    cell = spacetime.grid_cell(F.col("lon"), F.col("lat"), cell_km=CELL_KM)
    lon, lat = spacetime.cell_center(F.col("x"), F.col("y"), cell_km=CELL_KM)
    placed = frame.select("lon", "lat", cell.cell_x.alias("x"), cell.cell_y.alias("y")).withColumns(
        {"center_lon": lon, "center_lat": lat}
    )
    again = spacetime.grid_cell(F.col("center_lon"), F.col("center_lat"), cell_km=CELL_KM)
    far = spacetime.distance_km(F.col("lon"), F.col("lat"), F.col("center_lon"), F.col("center_lat"))

    row = placed.agg(
        F.max(far).alias("far"),
        F.bool_and((again.cell_x == F.col("x")) & (again.cell_y == F.col("y"))).alias("inside"),
    ).first()

    assert row["inside"]
    assert row["far"] < CELL_KM * 0.75  # half a diagonal is 0.71; columns near the poles are a little wider


def test_the_curve_visits_every_square_once_and_only_steps_to_neighbours(spark):
    side = 2**spacetime.HILBERT_ORDER
    squares = spark.range(side * side).select(
        (F.floor(F.col("id") / side)).alias("x"), F.pmod("id", F.lit(side)).alias("y")
    )
    number = spacetime.hilbert_number((F.col("x") + 0.5) / side, (F.col("y") + 0.5) / side)

    path = squares.select(number.alias("number"), "x", "y").orderBy("number").collect()

    assert [row["number"] for row in path] == list(range(side * side))
    assert all(abs(a.x - b.x) + abs(a.y - b.y) == 1 for a, b in pairwise(path))


def test_distances_agree_with_known_ones(spark):
    frame = local_frame(
        spark,
        [
            (4.9, 52.37, 4.9, 52.37, 0.0),
            (0.0, 0.0, 1.0, 0.0, 111.195),  # one degree along the equator
            (179.5, 0.0, -179.5, 0.0, 111.195),  # the short way over the date line
            (0.0, 90.0, 55.0, -90.0, 20015.115),  # pole to pole
        ],
        "a double, b double, c double, d double, expected double",
    )
    far = spacetime.distance_km(F.col("a"), F.col("b"), F.col("c"), F.col("d"))

    assert all(abs(row[0] - row[1]) < 0.01 for row in frame.select(far, "expected").collect())


def test_local_time_agrees_with_the_standard_library(spark):
    rng = random.Random(9)
    rows = [(rng.randrange(0, 2_000_000_000_000), rng.randrange(-840, 841)) for _ in range(2000)]
    frame = local_frame(spark, rows, "ts bigint, tz int")
    ts, tz = F.col("ts"), F.col("tz")
    columns = (
        spacetime.event_date(ts),
        spacetime.local_date(ts, tz),
        spacetime.local_hour(ts, tz),
        spacetime.local_weekday(ts, tz),
    )

    for ms, minutes, utc_day, day, hour, weekday in frame.select("ts", "tz", *columns).collect():
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
        local = moment + timedelta(minutes=minutes)
        assert (utc_day, day, hour, weekday) == (moment.date(), local.date(), local.hour, local.weekday())


def test_a_missing_time_zone_is_the_nautical_one(spark):
    frame = local_frame(
        spark, [(-74.0, -300), (4.9, 0), (139.7, 540), (180.0, 720)], "lon double, expected int"
    )

    rows = frame.select(spacetime.tz_offset_from_longitude(F.col("lon")), "expected").collect()

    assert all(row[0] == row[1] for row in rows)


def test_nothing_missing_or_out_of_range_is_on_earth(spark):
    frame = local_frame(
        spark,
        [
            (0.0, 0.0, True),
            (180.0, -90.0, True),
            (181.0, 0.0, False),
            (0.0, 90.1, False),
            (None, 1.0, False),
            (float("nan"), 1.0, False),
        ],
        "lon double, lat double, expected boolean",
    )

    rows = frame.select(spacetime.is_on_earth(F.col("lon"), F.col("lat")), "expected").collect()

    assert all(row[0] == row[1] for row in rows)


def test_a_distance_is_null_where_a_coordinate_is_and_half_the_earth_between_opposite_points(spark):
    points = [(4.9, 52.4, None, 52.4), (4.9, 52.4, 4.9, 52.4), (10.1, 20.3, -169.9, -20.3)]
    rows = local_frame(spark, points, "a double, b double, c double, d double")

    found = [row[0] for row in rows.select(spacetime.distance_km(*map(F.col, "abcd"))).collect()]

    assert found[:2] == [None, 0.0]
    assert found[2] == pytest.approx(3.141592653589793 * 6371.0088)


def test_times_outside_the_calendar_have_no_day_and_stop_nothing(spark):
    times = [
        (-1,),
        (0,),
        (spacetime.LAST_DATED_MS,),
        (spacetime.LAST_DATED_MS + 1,),
        (2**63 - 1,),
        (-(2**63),),
    ]
    frame = local_frame(spark, times, "ts bigint")
    ts = F.col("ts")

    rows = frame.select(
        spacetime.event_date(ts).isNotNull(),
        spacetime.local_hour(ts, F.lit(-840)).isNotNull(),
        spacetime.local_weekday(ts, F.lit(2**31 - 1)).isNotNull(),
        spacetime.local_date(ts, F.lit(0)).isNotNull(),
    ).collect()

    assert [set(row) for row in rows] == [{False}, {True}, {True}, {False}, {False}, {False}]


def test_the_median_of_longitudes_is_between_them_on_the_date_line_too(spark):
    rows = [
        ("Fiji", 179.0), ("Fiji", -179.0), ("Fiji", -177.0), ("Fiji", None),
        ("Amsterdam", 4.9), ("Amsterdam", 4.5), ("Amsterdam", 5.0),
        ("line", 179.0), ("line", -179.0),
        ("Taveuni", 179.5), ("Taveuni", 180.0), ("Taveuni", -179.9),
    ]  # fmt: skip
    frame = local_frame(spark, rows, "at string, lon double")

    found = {
        row["at"]: row["lon"]
        for row in frame.groupBy("at").agg(spacetime.median_lon(F.col("lon")).alias("lon")).collect()
    }

    assert {at: abs(lon) for at, lon in found.items()} == {
        "Fiji": 179.0,
        "Amsterdam": 4.9,
        "line": 180.0,
        "Taveuni": 180.0,
    }
    assert found["Fiji"] == -179.0


def test_longitudes_of_the_cell_at_the_date_line_can_be_compared(spark):
    frame = local_frame(spark, [(180.0, 0), (-179.9, 0), (4.9, 7), (179.9, 9)], "lon double, cell_x int")

    near = spacetime.lon_in_cell(F.col("lon"), F.col("cell_x"))
    rows = frame.select(near, spacetime.wrap_lon(near), spacetime.wrap_lon(F.col("lon") + 0.5)).collect()

    assert [tuple(row) for row in rows] == [
        (-180.0, -180.0, -179.5),
        (-179.9, -179.9, -179.4),
        (4.9, 4.9, 5.4),
        (179.9, 179.9, pytest.approx(-179.6)),
    ]
