"""Candidates by a model that copies from the crowd: from the tables of the training period, never from the own rows."""

import json

import pytest

from conf.errors import MissingInputError
from etl.delta.storage import table_history
from tests.udfs.town import DAY_1, DAY_2, Town, make_bundle, request, transition, visit

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def copying_bundle(build_once):
    """A model that takes most of every prediction from crowd candidates."""
    return (
        build_once("copying", lambda folder: make_bundle(folder, seed=1, copies_from_crowd=True)) / "bundle"
    )


def probabilities(town: Town, request_id: str = "r1") -> dict[str, float]:
    rows = town.read("poi_candidates")
    return {row["poi_id"]: row["log_probability"] for row in rows if row["request_id"] == request_id}


def deliver_crowd(town: Town, day, *, transitions=(), visits=()) -> None:
    town.deliver(day, training_transitions=transitions, training_visits=visits)


def run(town: Town, model, day=DAY_1) -> dict[str, float]:
    town.run("poi_candidates", day, model=str(model))
    return probabilities(town)


def test_a_model_that_copies_names_the_job_that_makes_its_tables(first_night, copying_bundle):
    with pytest.raises(MissingInputError, match="training_others --day 2026-03-01"):
        run(first_night, copying_bundle)


def test_candidates_follow_what_others_did_and_not_what_the_user_did(first_night, copying_bundle):
    """u1 was last at p0, from where others went to p6; u1's own way to p5 tells u1 nothing."""
    town, crowd = first_night, [visit(f"x{n}", 6) for n in range(5)]
    deliver_crowd(
        town,
        DAY_1,
        transitions=[transition(f"x{n}", 0, 6) for n in range(5)],
        visits=[*crowd, visit("u1", 0)],
    )
    with_crowd = run(town, copying_bundle)
    assert next(iter(with_crowd)) == "p6"
    digest = town.digest("poi_candidates")

    deliver_crowd(
        town,
        DAY_1,
        transitions=[*(transition(f"x{n}", 0, 6) for n in range(5)), transition("u1", 0, 5, 50.0)],
        visits=[*crowd, visit("u1", 0)],
    )
    run(town, copying_bundle)

    assert town.digest("poi_candidates") == digest
    commit = table_history(town.spark, town.root, "poi_candidates").first()
    read = json.loads(commit["userMetadata"])["read"]
    assert read["training_transitions"] == 2  # made empty, then two deliveries
    assert "training_visits" in read


def test_a_day_reads_the_statistics_that_there_were_by_then(first_night, copying_bundle):
    town = first_night
    deliver_crowd(town, DAY_1, transitions=[transition("x", 0, 6)], visits=[visit("x", 6)])
    before = run(town, copying_bundle)

    deliver_crowd(town, DAY_2, transitions=[transition("x", 0, 3, 9.0)], visits=[visit("x", 3, 9)])

    assert run(town, copying_bundle) == before
    town.deliver(DAY_2, ranking_requests=[request("r3", "u1", DAY_2, [])])
    town.run("poi_candidates", DAY_2, model=str(copying_bundle))
    later = probabilities(town, "r3")
    assert next(iter(later)) == "p3"
