"""The figures of a day, on rows that can be counted by eye, and how they are computed."""

from datetime import date

import pytest

from conf.tables import TABLES
from etl.delta.contracts import spark_schema
from etl.quality.table_statistics import measure_tables
from etl.spark.session import local_frame
from tests.rows import DAY, cleaned, frame_of

EVE = date(2026, 1, 30)


def measured(spark, table, rows, before=None):
    frame = frame_of(spark, table, rows)
    then = {} if before is None else {table: frame_of(spark, table, before)}
    found = measure_tables({table: frame}, then, day=DAY).collect()
    return {
        (row["column_name"], row["statistic"]): (row["value"], row["example"])
        for row in found
        if row["table_name"] == table
    }


def slot(number, **changes):
    row = {
        "index_version": 1,
        "poi_id": f"p{number}",
        "block_id": 0,
        "inner_id": number,
        "poi_lon": 4.9,
        "poi_lat": 52.4,
        "category_id": 1,
        "valid_from": EVE,
        "indexed_day": EVE,
        "name": "",
        "text": "",
        "changed_day": EVE,
        "is_simulated": False,
    }
    return {**row, **changes}


def vector(user_id, embedding):
    row = {"day": DAY, "user_id": user_id, "embedding": embedding, "sequence_day": DAY}
    return {**row, "model_version": "7", "index_version": 1, "run_id": "r", "is_simulated": False}


def test_actions_are_counted_in_every_way_that_is_watched(spark):
    rows = [
        cleaned(action_id="a1"),
        cleaned(action_id="a2", user_lon=None, user_lat=None, is_interest=False),
        cleaned(action_id="a3", event_date=EVE, user_lon=181.0),
        cleaned(action_id="a3", poi_lat=float("nan")),  # the same id again
    ]

    found = measured(spark, "cleaned_actions", rows)

    assert found["", "rows"] == (4, None)
    assert found["", "rows_of_the_day"] == (3, None)  # a3 is late
    assert found["is_interest", "true"] == (3, None)
    assert found["user_lon", "nulls"] == (1, None)
    assert found["user_id", "nulls"] == (0, None)
    assert found["user_lon", "out_of_bounds"] == (1, "181.0")
    assert found["poi_lat", "out_of_bounds"] == (1, "NaN")
    assert found["poi_lon", "out_of_bounds"] == (0, None)
    assert found["event_date", "newest_day"] == ((DAY - date(1970, 1, 1)).days, "2026-01-31")
    assert found["action_id", "repeated"] == (2, '{"action_id":"a3"}')


def test_vectors_must_be_of_unit_length(spark):
    rows = [vector("ann", [0.6, 0.8]), vector("bob", [3.0, 4.0]), vector("eve", [float("nan"), 0.0])]

    assert measured(spark, "user_embeddings", rows)["embedding", "not_unit_length"] == (2, "5.0")


def test_values_outside_a_closed_list_and_arrays_of_unequal_length_are_counted(spark):
    names = TABLES["action_sequences"].equal_lengths[0]
    good = {"user_id": "ann", "day": DAY, "pattern": "local", **{name: [] for name in names}}
    rows = [
        good,
        {**good, "user_id": "bob", "pattern": "nomad"},
        {**good, "user_id": "eve", "poi_ids": ["p1"]},
    ]

    frame = local_frame(
        spark,
        [tuple(row.get(name) for name in TABLES["action_sequences"].column_names) for row in rows],
        ", ".join(f"{column.name} {column.type}" for column in TABLES["action_sequences"].columns),
    )
    rows = measure_tables({"action_sequences": frame}, {}, day=DAY).collect()
    found = {(row["column_name"], row["statistic"]): (row["value"], row["example"]) for row in rows}

    assert found["pattern", "not_allowed"] == (1, "nomad")
    assert found[names[0], "lengths_differ"] == (1, None)


def test_a_slot_of_two_pois_is_counted(spark):
    found = measured(spark, "poi_index", [slot(1), slot(2), slot(3, inner_id=2)])

    assert found["index_version, block_id, inner_id", "repeated"] == (
        2,
        '{"index_version":1,"block_id":0,"inner_id":2}',
    )
    assert found["index_version, poi_id, valid_from", "repeated"] == (0, None)


def test_ids_that_changed_or_went_overnight_are_counted_and_new_slots_are_not(spark):
    before = [slot(1), slot(2), slot(3)]

    same = measured(spark, "poi_index", [*before, slot(4)], before)
    found = measured(spark, "poi_index", [slot(1), slot(2, inner_id=9), slot(4)], before)

    assert same["block_id, inner_id", "changed"] == (0, None)
    changed, example = found["block_id, inner_id", "changed"]
    assert changed == 2  # p2 has another number, p3 is gone
    assert '"poi_id":"p2"' in example
    assert '"was":{"block_id":0,"inner_id":2},"now":{"block_id":0,"inner_id":9}' in example


def test_no_rows_give_zeros_and_no_newest_day(spark):
    found = measured(spark, "cleaned_actions", [])

    assert found["", "rows"] == (0, None)
    assert found["event_date", "newest_day"] == (None, None)
    assert found["action_id", "repeated"] == (0, None)


@pytest.mark.parametrize("table", TABLES)
def test_every_contract_can_be_measured_without_python_or_a_sort(spark, table):
    frame = local_frame(spark, [], spark_schema(TABLES[table]))

    plan = measure_tables({table: frame}, {}, day=DAY)._jdf.queryExecution().executedPlan().toString()

    assert "Python" not in plan
    assert "Sort " not in plan  # rows are counted where they lie; only keys are shuffled
