"""The plans of the ETL are Catalyst's own: no Python runs per row, nothing is multiplied out."""

import re
from contextlib import contextmanager

import pytest

from conf.settings import CleanSettings, PlacesSettings, SequenceSettings
from conf.tables import TABLES
from conf.taxonomy import load_taxonomy
from etl.columns import action_rules, poi_slots
from etl.columns.refusal import to_quarantine
from etl.delta.contracts import spark_schema
from etl.jobs import index_pois
from etl.tables import (
    action_sequences,
    categories,
    clean_actions,
    poi_index,
    training_transitions,
    training_visits,
    user_places,
)
from tests.rows import DAY

FORBIDDEN = (
    "PythonUDF",
    "BatchEvalPython",
    "ArrowEvalPython",
    "MapInPandas",
    "MapInArrow",
    "CartesianProduct",
)
TEXT_LIMIT = "spark.sql.debug.maxToStringFields"
"""Columns that the text of a plan shows per operator."""


@contextmanager
def all_columns_told(spark):
    """Has the text of a plan show every column; the session of the tests leaves most out."""
    shortened = spark.conf.get(TEXT_LIMIT)
    spark.conf.set(TEXT_LIMIT, 10_000)
    try:
        yield
    finally:
        spark.conf.set(TEXT_LIMIT, shortened)


@pytest.fixture(scope="module")
def plans(spark):
    tables = {name: spark.createDataFrame([], spark_schema(contract)) for name, contract in TABLES.items()}
    cleaned, known = tables["cleaned_actions"], tables["categories"]
    before = poi_slots.state_before(tables["poi_index"], day=DAY)
    judged_pois = poi_index.judge_pois(tables["raw_pois"], before, day=DAY, settings=CleanSettings())
    pois = index_pois.describe_pois(judged_pois)
    indexed = pois.join(known.selectExpr("category AS leaf", "category_id"), "leaf", "left")
    compared = poi_index.compare_with_index(indexed, day=DAY, moved_km=0.2, cell_km=5.0)
    judged = clean_actions.judge_actions(
        tables["raw_actions"], tables["poi_index"], cleaned, day=DAY, settings=CleanSettings()
    )
    accepted = clean_actions.keep_accepted(judged)
    training = cleaned.selectExpr("*", "is_interest AS is_target")
    taxonomy = load_taxonomy()
    frames = {
        "categories": categories.build_categories(
            pois, known, day=DAY, index_version=1, first_id=1, taxonomy=taxonomy
        ),
        "blocks": poi_index.build_blocks(
            compared, tables["blocks"], day=DAY, index_version=1, first_id=0, cell_km=5.0
        ),
        "poi_index": poi_index.build_poi_index(
            compared, tables["poi_index"], tables["blocks"], day=DAY, index_version=1
        ),
        "quarantined_rows": to_quarantine(
            judged, source_table="raw_actions", payload_columns=action_rules.PAYLOAD_COLUMNS
        ),
        "cleaned_actions": clean_actions.with_interest(
            accepted, known, tables["user_places"], at_place_km=0.05
        ),
        "user_places": user_places.build_user_places(
            cleaned, cleaned.select("user_id").distinct(), known, settings=PlacesSettings(), taxonomy=taxonomy
        ),
        "action_sequences": action_sequences.build_action_sequences(
            cleaned,
            tables["user_places"],
            tables["raw_profiles"],
            index_version=1,
            settings=SequenceSettings(),
        ),
        "training_visits": training_visits.build_training_visits(training, index_version=1),
        "training_transitions": training_transitions.build_training_transitions(training, index_version=1),
    }
    with all_columns_told(spark):
        # Adaptive execution would cut empty inputs away: the plan as first made is what is read.
        return {name: frame._jdf.queryExecution().sparkPlan().toString() for name, frame in frames.items()}


@pytest.mark.parametrize(
    "table",
    [
        "categories",
        "blocks",
        "poi_index",
        "quarantined_rows",
        "cleaned_actions",
        "user_places",
        "action_sequences",
        "training_visits",
        "training_transitions",
    ],
)
def test_no_python_and_no_cartesian_product(plans, table):
    assert not [word for word in FORBIDDEN if word in plans[table]]


def test_the_rows_of_a_user_are_shuffled_and_sorted_once(spark):
    raw, slots, known = (
        spark.createDataFrame([], spark_schema(TABLES[name]))
        for name in ("raw_actions", "poi_index", "cleaned_actions")
    )
    judged = clean_actions.judge_actions(raw, slots, known, day=DAY, settings=CleanSettings())

    plan = judged._jdf.queryExecution().executedPlan().toString()

    assert plan.count("Exchange hashpartitioning(owner") == 1
    assert plan.count("Sort [owner") == 1


def test_histories_are_collected_as_they_come_sorted(spark):
    """A hash table of lists falls back to a sort that keeps the memory which the window before it needs."""
    cleaned, places, profiles = (
        spark.createDataFrame([], spark_schema(TABLES[name]))
        for name in ("cleaned_actions", "user_places", "raw_profiles")
    )
    sequences = action_sequences.build_action_sequences(
        cleaned, places, profiles, index_version=1, settings=SequenceSettings()
    )

    with all_columns_told(spark):
        plan = sequences._jdf.queryExecution().executedPlan().toString()

    collecting = [line for line in plan.splitlines() if "Aggregate(" in line and "num_actions" in line]
    assert collecting
    assert all(" SortAggregate(" in line for line in collecting)


def test_nothing_is_sorted_for_every_action_of_a_history(plans):
    """The optimizer moves what is used once to where it is used: into a loop, where it is computed every time."""
    # Loops over the actions; one over a single element binds a value, so that what is in it is computed once.
    loops = re.split(r"(?:transform|filter)\(visits#\d+\w*, lambdafunction\(", plans["action_sequences"])[1:]

    assert loops
    for loop in loops:
        assert "sort_array" not in up_to_its_end(loop)


def up_to_its_end(text: str) -> str:
    """Returns the text up to the bracket that closes the one open at its start."""
    depth = 1
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[:position]
    return text
