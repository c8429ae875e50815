"""As-of features: known from the day after they were made, the first night's known before."""

from datetime import date, timedelta

import pytest
from pyspark.sql import functions as F

from etl.columns.as_of import known_before
from etl.spark.session import local_frame
from etl.tables.histories import densest_of_list, densest_place, number_of_cell
from etl.tables.profiles import profile_states
from tests.rows import DAY, frame_of

FIRST = DAY - timedelta(days=5)


def test_a_row_counts_from_the_day_after_it_was_made_and_the_first_night_counts_ever(spark):
    told = [("ann", FIRST, 1.0), ("ann", DAY, 2.0), ("ann", DAY + timedelta(days=1), None), ("bob", DAY, 9.0)]
    asked = [("ann", FIRST - timedelta(days=99)), *(("ann", DAY + timedelta(days=n)) for n in range(3))]
    asked += [("bob", DAY), ("ann", DAY), ("eve", DAY)]  # twice Ann on one day: one row

    found = known_before(
        local_frame(spark, asked, "user_id string, asked date"),
        local_frame(spark, told, "user_id string, day date, home_lon double"),
        on="asked",
        first_day=FIRST,
    ).collect()

    assert sorted(
        (row["user_id"], row["asked"], row["home_lon"]) for row in found if row["user_id"] == "ann"
    ) == [
        ("ann", FIRST - timedelta(days=99), 1.0),  # handed over by the first night
        ("ann", DAY, 1.0),  # what the night of the day itself finds out is not known on it
        ("ann", DAY + timedelta(days=1), 2.0),
        ("ann", DAY + timedelta(days=2), None),  # the last row says that no home is known any more
    ]
    assert {(row["user_id"], row["home_lon"]) for row in found} >= {("bob", None), ("eve", None)}


def test_a_profile_has_a_state_for_every_day_that_changed_it(spark):
    def told(day: date, attribute: str, value: str) -> dict[str, object]:
        return {"day": day, "user_id": "ann", "attribute": attribute, "value": value}

    rows = [
        told(FIRST, "age", "20s"),
        told(FIRST, "city", "AMS"),
        told(DAY, "age", "30s"),
        told(DAY, "city", "AMS"),
        told(DAY + timedelta(days=1), "age", "30s"),  # told again: no change
    ]

    found = profile_states(frame_of(spark, "raw_profiles", rows)).collect()

    states = {row["day"]: set(row["profile_ids"]) for row in found}
    assert sorted(states) == [FIRST, DAY]
    assert len(states[FIRST] & states[DAY]) == 1  # the city stays, the age changes


def test_without_a_home_the_densest_place_stands_for_it_in_training_as_in_serving(spark):
    visits = [
        ("two cities", 4.9, 52.4), ("two cities", 4.91, 52.41), ("two cities", 4.89, 52.4), ("two cities", -74.0, 40.7),
        ("two cities", -74.01, 40.71),
        ("Fiji", 179.99, -16.8), ("Fiji", -179.99, -16.8), ("Fiji", -179.98, -16.8), ("Fiji", 180.0, -16.8),
        ("tie", 30.0, 10.0), ("tie", 10.0, 30.0),
    ]  # fmt: skip
    actions = local_frame(spark, visits, "user_id string, poi_lon double, poi_lat double")
    cell = number_of_cell(F.col("poi_lon"), F.col("poi_lat"), cell_km=25.0)
    listed = actions.groupBy("user_id").agg(
        F.collect_list(F.struct("poi_lon", "poi_lat", cell.alias("cell"))).alias("visits")
    )

    training = {row["user_id"]: row[1:] for row in densest_place(actions, cell_km=25.0).collect()}
    place = densest_of_list(F.col("visits"))
    serving = {
        row["user_id"]: tuple(row["at"]) for row in listed.select("user_id", place.alias("at")).collect()
    }

    assert training == serving
    assert training["two cities"] == (4.9, 52.4)  # a median of all would lie in the sea
    assert training["Fiji"] == (pytest.approx(-179.99), -16.8)  # not at longitude 0
    assert training["tie"] == (30.0, 10.0)  # equally full: the southern one
