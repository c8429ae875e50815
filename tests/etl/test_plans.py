"""The plans of the ETL are Catalyst's own: no Python runs per row, nothing is multiplied out."""

import pytest

from conf.settings import CleanSettings, PlacesSettings, SequenceSettings
from conf.tables import TABLES
from conf.taxonomy import load_taxonomy
from etl import action_sequences, categories, clean_actions, index_job, poi_index, poi_slots, user_places
from etl.contracts import spark_schema
from etl.refusal import to_quarantine
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


@pytest.fixture(scope="module")
def plans(spark):
    tables = {name: spark.createDataFrame([], spark_schema(contract)) for name, contract in TABLES.items()}
    cleaned, known = tables["cleaned_actions"], tables["categories"]
    before = poi_slots.state_before(tables["poi_index"], day=DAY)
    judged_pois = poi_index.judge_pois(tables["raw_pois"], before, day=DAY, settings=CleanSettings())
    pois = index_job.describe_pois(judged_pois)
    indexed = pois.join(known.selectExpr("category AS leaf", "category_id"), "leaf", "left")
    compared = poi_index.compare_with_index(indexed, day=DAY, moved_km=0.2, cell_km=5.0)
    judged = clean_actions.judge_actions(
        tables["raw_actions"], tables["poi_index"], cleaned, day=DAY, settings=CleanSettings()
    )
    accepted = clean_actions.keep_accepted(judged)
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
            judged, source_table="raw_actions", payload_columns=clean_actions.PAYLOAD_COLUMNS
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
    }
    shortened = spark.conf.get(TEXT_LIMIT)
    spark.conf.set(TEXT_LIMIT, 10_000)
    try:
        # Adaptive execution would cut empty inputs away: the plan as first made is what is read.
        return {name: frame._jdf.queryExecution().sparkPlan().toString() for name, frame in frames.items()}
    finally:
        spark.conf.set(TEXT_LIMIT, shortened)


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


def test_nothing_is_sorted_for_every_action_of_a_history(plans):
    """The optimizer moves what is used once to where it is used: into a loop, where it is computed every time."""
    loops = plans["action_sequences"].split("lambdafunction(")[1:]

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
