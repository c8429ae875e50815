"""The four feature jobs over real Spark, Delta and a small model."""

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark import SparkFiles

from conf.errors import CapacityError, GateFailedError, IndexVersionError, MissingInputError
from conf.tables import FEATURE_TABLES, TABLES
from etl.delta.storage import table_location
from models.serving.bundle import digest_folder
from tests.udfs.feature_city import DAY_1, DAY_2, make_bundle, request, sequence, slot
from udfs.features import model_cache

pytestmark = pytest.mark.spark
BELOW = -7
"""A category at which the model raises; the contract would refuse it."""


def test_rerun_of_a_day_gives_equal_tables(computed):
    before = {name: computed.digest(name) for name in FEATURE_TABLES}

    computed.run("features", DAY_1, run_id="second")

    assert {name: computed.digest(name) for name in FEATURE_TABLES} == before


def test_first_night_embeds_every_user_and_every_live_poi(first_night):
    first_night.deliver(DAY_1, poi_index=[slot(9, valid_to=DAY_1, closed_day=DAY_1)])  # closed before the day

    summary = first_night.run("features", DAY_1)

    assert [row["user_id"] for row in first_night.read("user_embeddings")] == ["u1", "u2", "u3"]
    assert [row["poi_id"] for row in first_night.read("poi_embeddings")] == [
        f"p{number}" for number in range(8)
    ]
    assert summary.rows_refused == 0
    assert summary.notes["index_version"] == 1


def test_next_night_embeds_only_who_acted_and_what_changed(second_computed):
    assert [row["user_id"] for row in second_computed.read("user_embeddings", DAY_2)] == ["u2"]
    assert [row["poi_id"] for row in second_computed.read("poi_embeddings", DAY_2)] == ["p8"]
    assert len(second_computed.read("user_embeddings", DAY_1)) == 3  # their rows stay as they were


def test_incremental_vectors_equal_those_of_a_full_refresh(computed, other_city):
    second = {"action_sequences": [sequence("u2", DAY_2, [4, 5, 4, 6, 4])], "ranking_requests": []}
    computed.deliver(DAY_2, **second)
    computed.run("user_embeddings", DAY_2)
    other_city.deliver(DAY_2, **second)
    other_city.run("user_embeddings", DAY_2)  # the model's first night: everyone

    latest = {row["user_id"]: row["embedding"] for row in computed.read("user_embeddings")}  # sorted by day
    full = {row["user_id"]: row["embedding"] for row in other_city.read("user_embeddings")}
    assert latest.keys() == full.keys() == {"u1", "u2", "u3"}
    assert all(latest[user] == pytest.approx(full[user], abs=1e-6) for user in full)


def test_rerun_of_an_earlier_day_sees_the_index_of_that_day(computed):
    before = computed.digest("poi_embeddings")
    computed.deliver(DAY_2, poi_index=[slot(1, valid_to=DAY_2, closed_day=DAY_2, changed_day=DAY_2)])

    computed.run("poi_embeddings", DAY_1)

    assert computed.digest("poi_embeddings") == before


def test_output_has_the_columns_and_types_of_the_contract(computed):
    from etl.delta.contracts import spark_schema
    from etl.delta.storage import read_table

    for name in FEATURE_TABLES:
        found = read_table(computed.spark, computed.root, name).schema
        expected = spark_schema(TABLES[name])
        assert [(field.name, field.dataType.simpleString()) for field in found] == [
            (field.name, field.dataType.simpleString()) for field in expected
        ]


def test_vectors_have_unit_length_and_scores_are_probabilities(computed):
    for name in ("user_embeddings", "poi_embeddings"):
        for row in computed.read(name):
            assert math.hypot(*row["embedding"]) == pytest.approx(1, abs=1e-5)
    for row in computed.read("ranking_scores"):
        assert row["score"] == pytest.approx(1 / (1 + math.exp(-row["click_logit"])), abs=1e-6)


def test_candidates_are_scored_or_refused_with_a_reason(first_night):
    first_night.deliver(
        DAY_1,
        ranking_requests=[
            request("r1", "u1", DAY_1, [0, 99, 0]),  # p99 is not in the index; p0 is listed twice
            request("r2", "new", DAY_1, [2]),  # a user without a past is scored too
            request("r3", "u1", DAY_1, [1], action_type="hover"),
            request("r4", "u1", DAY_1, []),  # nothing to score
        ],
    )

    summary = first_night.run("ranking_scores", DAY_1)

    assert [(row["request_id"], row["poi_id"]) for row in first_night.read("ranking_scores")] == [
        ("r1", "p0"),
        ("r2", "p2"),
    ]
    refused = {(row["reason"], row["detail"]) for row in first_night.read("quarantined_rows")}
    assert refused == {("score_no_live_slot", "p99"), ("score_unknown_action_type", "hover")}
    assert (summary.rows_in, summary.rows_out, summary.rows_refused) == (4, 2, 2)


def test_bad_and_repeated_requests_stop_nothing_and_are_all_accounted_for(computed):
    """Every row is answered, refused or dropped, and the audit counts the same."""
    good = request("r1", "u1", DAY_1, [0, 1])
    null = {"user_id": None, "request_ts_ms": None, "candidate_poi_ids": None, "action_type": None}
    computed.deliver(
        DAY_1,
        ranking_requests=[
            good,
            good,
            request("r1", "u2", DAY_1, [2]),  # the id of another request
            request("huge", "u1", DAY_1, [0], request_ts_ms=9 * 10**18),
            request(None, None, DAY_1, [], **{name: null[name] for name in null if name != "user_id"}),
            request("odd", "u1  ", DAY_1, [], candidate_poi_ids=[None, " p2", "NULL"], user_lon=math.nan),
            request(
                "silent", "u1", DAY_1, [3], tz_offset_min=None, user_lon=None, user_lat=None, action_type=None
            ),
        ],
    )

    scores = computed.run("ranking_scores", DAY_1)
    generated = computed.run("poi_candidates", DAY_1)

    scored = {(row["request_id"], row["poi_id"]) for row in computed.read("ranking_scores")}
    assert scored == {("r1", "p0"), ("r1", "p1"), ("odd", "p2"), ("silent", "p3")}
    assert {row["user_id"] for row in computed.read("poi_candidates")} == {"u1"}
    refused = [(row["reason"], row["detail"]) for row in computed.read("quarantined_rows")]
    assert sorted(refused) == [
        ("request_missing_id", "request_id=null"),
        ("request_repeated", "request_id=r1"),
        ("request_time_in_future", f"request_ts_ms={9 * 10**18}"),
        ("score_no_candidate_id", "NULL"),
        ("score_no_candidate_id", "null"),
    ]
    # Units are candidates of good requests, and requests that are not looked into.
    assert (scores.rows_in, scores.rows_out, scores.rows_refused, scores.rows_dropped) == (10, 4, 5, 1)
    assert (generated.rows_in, generated.rows_refused, generated.rows_dropped) == (7, 3, 1)
    assert generated.notes["requests"]["accepted"] == 3

    before = computed.digest("quarantined_rows")
    computed.run("ranking_scores", DAY_1, run_id="again")
    assert computed.digest("quarantined_rows") == before
    computed.run("audit", DAY_1)


def test_two_jobs_that_refuse_the_same_requests_at_once_both_finish(first_night):
    first_night.deliver(
        DAY_1, ranking_requests=[request("r1", "u1", DAY_1, [99]), request("r2", None, DAY_1, [])]
    )

    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(first_night.run, name, DAY_1) for name in ("ranking_scores", "poi_candidates")]
        assert [job.result().notes["requests"]["refused"] for job in jobs] == [1, 1]

    refused = [row["reason"] for row in first_night.read("quarantined_rows")]
    assert sorted(refused) == ["request_missing_user", "score_no_live_slot"]


def test_scores_do_not_see_actions_after_the_request(first_night):
    early = request(
        "r1", "u2", DAY_1, [4, 5], request_ts_ms=sequence("u2", DAY_1, [4, 5, 4, 6])["timestamps_ms"][2]
    )
    first_night.deliver(DAY_1, ranking_requests=[early])
    first_night.run("ranking_scores", DAY_1)
    with_all = [row["click_logit"] for row in first_night.read("ranking_scores")]
    known = sequence("u2", DAY_1, [4, 5, 4, 6])
    past = {name: value[:2] if isinstance(value, list) else value for name, value in known.items()}
    first_night.deliver(DAY_1, action_sequences=[past])  # the two actions before the request, nothing else

    first_night.run("ranking_scores", DAY_1)

    assert [row["click_logit"] for row in first_night.read("ranking_scores")] == pytest.approx(
        with_all, abs=1e-6
    )


def test_a_vector_made_from_a_day_that_was_corrected_is_made_again(computed):
    before = {row["user_id"]: row["embedding"] for row in computed.read("user_embeddings")}
    corrected = [sequence("u1", DAY_1, [5, 5, 5]), sequence("u2", DAY_1, [4, 5, 4, 6])]  # u3 was never there
    computed.deliver(DAY_1, action_sequences=corrected)
    computed.deliver(DAY_2, action_sequences=[])

    computed.run("user_embeddings", DAY_2)

    rows = computed.read("user_embeddings", DAY_2)
    assert [(row["user_id"], row["sequence_day"]) for row in rows] == [("u1", DAY_1), ("u2", DAY_1)]
    assert rows[0]["embedding"] != before["u1"]
    assert rows[1]["embedding"] == pytest.approx(before["u2"], abs=1e-6)

    computed.run("user_embeddings", date(2026, 3, 3))

    assert computed.read("user_embeddings", date(2026, 3, 3)) == []  # once is enough


def test_generated_pois_are_live_as_of_the_request(first_night):
    first_night.deliver(
        DAY_1,
        poi_index=[
            slot(number, valid_to=DAY_1, closed_day=DAY_1) for number in range(6)
        ],  # two are left: p6, p7
        ranking_requests=[
            request("r1", "u1", DAY_1, []),
            request("r0", "u1", date(2026, 2, 28), []),  # made the day before they closed
        ],
    )

    first_night.run("poi_candidates", DAY_1)

    rows = first_night.read("poi_candidates")
    assert [row["rank"] for row in rows] == [1, 2, 3, 1, 2]  # top 3 of eight, then the two that are left
    assert {row["poi_id"] for row in rows if row["request_id"] == "r1"} == {"p6", "p7"}
    assert all(row["log_probability"] <= 0 for row in rows)


@pytest.fixture
def lax_night(first_night):
    """A city whose histories may hold any category."""
    path = table_location(first_night.root, "action_sequences")
    first_night.spark.sql(f"ALTER TABLE delta.`{path}` DROP CONSTRAINT category_ids_range")
    return first_night


def test_a_row_that_makes_the_model_fail_is_quarantined_and_the_rest_is_finished(lax_night):
    poison = sequence("u2", DAY_1, [4, 5], category_ids=[1, BELOW])
    lax_night.deliver(
        DAY_1, action_sequences=[sequence("u1", DAY_1, [0]), poison, sequence("u3", DAY_1, [7])]
    )

    summary = lax_night.run("user_embeddings", DAY_1)

    assert [row["user_id"] for row in lax_night.read("user_embeddings")] == ["u1", "u3"]
    (refused,) = lax_night.read("quarantined_rows")
    assert (refused["source_table"], refused["reason"]) == ("action_sequences", "embed_user_failed")
    assert '"user_id": "u2"' in refused["payload"]
    assert (summary.rows_in, summary.rows_out, summary.rows_refused) == (3, 2, 1)

    lax_night.deliver(DAY_1, action_sequences=[sequence("u1", DAY_1, [0])])
    lax_night.run("user_embeddings", DAY_1)
    assert lax_night.read("quarantined_rows") == []  # repaired input, rerun: nothing is left of the refusal


def test_a_night_in_which_most_rows_fail_stops(lax_night):
    poison = [sequence(user, DAY_1, [4], category_ids=[BELOW]) for user in ("u1", "u2", "u3")]
    lax_night.deliver(DAY_1, action_sequences=poison)

    with pytest.raises(GateFailedError, match="3 of 3 rows made the model fail"):
        lax_night.run("user_embeddings", DAY_1)


def test_a_worker_process_loads_the_model_once(first_night, tmp_path):
    own_bundle = make_bundle(tmp_path / "own", seed=3)  # no worker has seen it

    def count_loads(job):
        return first_night.run(job, DAY_1, model=str(own_bundle)).notes["model_loads"]

    loads = count_loads("user_embeddings") + count_loads("poi_embeddings")
    again = count_loads("user_embeddings")

    assert 1 <= loads <= 2  # local[2]: two worker processes, two tables
    assert again == 0  # they live on


def test_an_index_with_reassigned_ids_is_refused(first_night):
    index = first_night.settings.index.model_copy(update={"version": 2})
    first_night.settings = first_night.settings.model_copy(update={"index": index})

    with pytest.raises(IndexVersionError):
        first_night.run("features", DAY_1)


def test_histories_of_another_index_version_are_refused(first_night):
    first_night.deliver(DAY_1, action_sequences=[sequence("u1", DAY_1, [0], index_version=2)])

    with pytest.raises(IndexVersionError):
        first_night.run("user_embeddings", DAY_1)


def test_an_index_that_outgrew_the_model_is_refused(first_night):
    first_night.deliver(DAY_1, poi_index=[slot(9, block_id=10_000)])

    with pytest.raises(CapacityError, match="blocks"):
        first_night.run("poi_embeddings", DAY_1)


def test_a_missing_input_is_named(city):
    with pytest.raises(MissingInputError, match="action_sequences"):
        city.run("user_embeddings", DAY_1)


def test_a_bundle_is_sent_to_executors_that_do_not_see_the_drivers_disk(spark, bundle):
    name = model_cache.ship_folder(spark, bundle)

    def look(batches):
        yield pa.RecordBatch.from_pydict({"digest": [digest_folder(Path(SparkFiles.get(name)))]})

    found = spark.range(0, 1, 1, 1).mapInArrow(look, "digest string").collect()
    assert [row["digest"] for row in found] == [digest_folder(bundle)]
