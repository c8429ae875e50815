"""Candidates by a model that copies from the crowd: from the tables of the training period, never from the own rows."""

import json

import pytest

from conf.errors import MissingInputError
from etl.delta.storage import table_history
from tests.udfs.feature_city import DAY_1, DAY_2, FeatureCity, make_bundle, request, transition, visit

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def copying_bundle(build_once):
    """A model that takes most of every prediction from crowd candidates."""
    return (
        build_once("copying", lambda folder: make_bundle(folder, seed=1, copies_from_crowd=True)) / "bundle"
    )


def probabilities(city: FeatureCity, request_id: str = "r1") -> dict[str, float]:
    rows = city.read("poi_candidates")
    return {row["poi_id"]: row["log_probability"] for row in rows if row["request_id"] == request_id}


def deliver_crowd(city: FeatureCity, day, *, transitions=(), visits=()) -> None:
    city.deliver(day, training_transitions=transitions, training_visits=visits)


def run(city: FeatureCity, model, day=DAY_1) -> dict[str, float]:
    city.run("poi_candidates", day, model=str(model))
    return probabilities(city)


def test_a_model_that_copies_names_the_job_that_makes_its_tables(first_night, copying_bundle):
    with pytest.raises(MissingInputError, match="training_others --day 2026-03-01"):
        run(first_night, copying_bundle)


def test_candidates_follow_what_others_did_and_not_what_the_user_did(first_night, copying_bundle):
    """u1 was last at p0, from where others went to p6; u1's own way to p5 tells u1 nothing."""
    city, crowd = first_night, [visit(f"x{n}", 6) for n in range(5)]
    deliver_crowd(
        city,
        DAY_1,
        transitions=[transition(f"x{n}", 0, 6) for n in range(5)],
        visits=[*crowd, visit("u1", 0)],
    )
    with_crowd = run(city, copying_bundle)
    assert next(iter(with_crowd)) == "p6"
    digest = city.digest("poi_candidates")

    deliver_crowd(
        city,
        DAY_1,
        transitions=[*(transition(f"x{n}", 0, 6) for n in range(5)), transition("u1", 0, 5, 50.0)],
        visits=[*crowd, visit("u1", 0)],
    )
    run(city, copying_bundle)

    assert city.digest("poi_candidates") == digest
    commit = table_history(city.spark, city.root, "poi_candidates").first()
    read = json.loads(commit["userMetadata"])["read"]
    assert read["training_transitions"] == 2  # made empty, then two deliveries
    assert "training_visits" in read


def test_a_day_reads_the_statistics_that_there_were_by_then(first_night, copying_bundle):
    city = first_night
    deliver_crowd(city, DAY_1, transitions=[transition("x", 0, 6)], visits=[visit("x", 6)])
    before = run(city, copying_bundle)

    deliver_crowd(city, DAY_2, transitions=[transition("x", 0, 3, 9.0)], visits=[visit("x", 3, 9)])

    assert run(city, copying_bundle) == before
    city.deliver(DAY_2, ranking_requests=[request("r3", "u1", DAY_2, [])])
    city.run("poi_candidates", DAY_2, model=str(copying_bundle))
    later = probabilities(city, "r3")
    assert next(iter(later)) == "p3"


def test_each_poi_says_where_it_comes_from_and_whether_the_next_is_new(first_night, copying_bundle):
    """u1 was at p0 and p1; others went from p0 to p6; nobody went elsewhere."""
    city = first_night
    deliver_crowd(
        city,
        DAY_1,
        transitions=[transition(f"x{n}", 0, 6) for n in range(5)],
        visits=[visit(f"x{n}", 6) for n in range(5)],
    )
    run(city, copying_bundle)

    rows = [row for row in city.read("poi_candidates") if row["request_id"] == "r1"]

    sources = {row["poi_id"]: row["source"] for row in rows}
    assert sources["p6"] == "crowd"
    assert {poi for poi, source in sources.items() if source == "returned"} <= {"p0", "p1"}
    assert len({row["p_new"] for row in rows}) == 1
    assert 0.5 < rows[0]["p_new"] <= 1  # most of every prediction is copied from the crowd


def test_a_shift_moves_the_list_and_not_p_new(first_night, copying_bundle):
    city = first_night
    deliver_crowd(city, DAY_1, transitions=[transition("x", 0, 6)], visits=[visit("x", 6)])
    run(city, copying_bundle)
    plain = {row["poi_id"]: row for row in city.read("poi_candidates") if row["request_id"] == "r1"}

    city.settings = city.settings.model_copy(
        update={"features": city.settings.features.model_copy(update={"new_logit": -12.0})}
    )
    run(city, copying_bundle)

    shifted = [row for row in city.read("poi_candidates") if row["request_id"] == "r1"]
    assert [row["source"] for row in shifted[:2]] == ["returned", "returned"]
    assert {row["p_new"] for row in shifted} == {next(iter(plain.values()))["p_new"]}
