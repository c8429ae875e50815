"""Audit, publish, rollback, and what readers see of it."""

import json
from pathlib import Path

import pytest

from conf.errors import (
    AuditMissingError,
    ConflictingWriteError,
    GateFailedError,
    NoReleaseError,
    ReleaseDamagedError,
    ReleaseOrderError,
    ReleaseSkewError,
)
from etl.quality.expectations import Judgement, judge
from tests.udfs.feature_city import DAY_1, DAY_2, action, request, sequence
from udfs.releases.reader import read_release
from udfs.releases.release_log import load_releases

pytestmark = pytest.mark.spark


@pytest.fixture(autouse=True)
def gate_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate has tests of its own, and a test below runs it; the others need not wait for it."""
    monkeypatch.setattr("udfs.releases.audit.judge", lambda rules, docs, day: Judgement())


def test_readers_see_nothing_before_the_first_release(computed):
    with pytest.raises(NoReleaseError):
        read_release(computed.spark, computed.root, "user_embeddings")
    with pytest.raises(NoReleaseError):
        read_release(None, computed.root, "user_embeddings")


def test_readers_see_whole_releases_only(second_computed):
    shown = read_release(second_computed.spark, second_computed.root, "user_embeddings").collect()

    assert second_computed.read("user_embeddings", DAY_2)  # written, not published
    of_release = second_computed.read("user_embeddings", DAY_1)
    assert sorted((row.asDict() for row in shown), key=lambda row: row["user_id"]) == of_release


def test_vectors_of_several_nights_complete_each_other(published_twice):
    users = read_release(published_twice.spark, published_twice.root, "user_embeddings").collect()
    pois = read_release(published_twice.spark, published_twice.root, "poi_embeddings").collect()
    assert {(row["user_id"], row["day"]) for row in users} == {("u1", DAY_1), ("u2", DAY_2), ("u3", DAY_1)}
    assert {row["poi_id"] for row in pois} == {f"p{number}" for number in range(1, 9)}  # p0 has closed


def test_an_older_release_can_still_be_read(published_twice):
    pois = read_release(published_twice.spark, published_twice.root, "poi_embeddings", release=1).collect()

    assert {row["poi_id"] for row in pois} == {f"p{number}" for number in range(8)}


@pytest.mark.parametrize("release", [1, 2])
def test_readers_without_spark_see_the_same_rows(published_twice, release):
    for table in ("user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates"):
        by_spark = read_release(published_twice.spark, published_twice.root, table, release=release)
        by_arrow = read_release(None, published_twice.root, table, release=release)
        assert by_arrow.schema.names == by_spark.columns
        rows = sorted(by_arrow.to_pylist(), key=repr)
        assert rows == sorted((row.asDict() for row in by_spark.collect()), key=repr)
        assert rows or (table, release) in {("ranking_scores", 2), ("poi_candidates", 2)}


def test_publishing_the_same_content_again_is_a_no_op(published):
    assert published.run("publish", DAY_1).notes == {"release_id": 1, "is_new": False}
    published.run("features", DAY_1, run_id="cleared and rerun")  # equal rows, new Delta versions
    published.run("audit", DAY_1)

    assert published.run("publish", DAY_1).notes == {"release_id": 1, "is_new": False}
    assert len(published.read("releases")) == 1


def test_a_release_says_what_it_was_made_from(published):
    (release,) = published.read("releases")

    assert release["day"] == DAY_1
    assert release["rollback_of"] is None
    assert set(release["table_versions"]) >= {
        "user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates",
        "cleaned_actions", "poi_index", "action_sequences", "ranking_requests",
    }  # fmt: skip


@pytest.mark.operations("9")
def test_a_repeated_run_publishes_and_rolls_back_once(published_twice):
    city = published_twice
    first = city.run("rollback", DAY_1, run_id="op-1").notes["release_id"]
    city.run("rollback", DAY_1, run_id="op-2", to=2)

    assert first == 3
    assert city.run("rollback", DAY_1, run_id="op-1").notes == {"release_id": 3, "is_new": False}
    assert city.run("publish", DAY_2).notes == {"release_id": 2, "is_new": False}
    assert len(city.read("releases")) == 4


@pytest.mark.operations("9")
def test_an_older_day_and_what_was_rolled_back_need_a_switch(published_twice):
    city = published_twice
    city.run("rollback", DAY_1)

    with pytest.raises(ReleaseOrderError, match="those of release 2, which was rolled back"):
        city.run("publish", DAY_2, run_id="retry")
    assert city.run("publish", DAY_2, run_id="decided", replace=True).notes["release_id"] == 4

    city.run("features", DAY_1, run_id="cleared")
    city.run("audit", DAY_1)
    with pytest.raises(ReleaseOrderError, match=f"release 4 of {DAY_2}, a newer day"):
        city.run("publish", DAY_1, run_id="cleared")
    assert city.run("publish", DAY_1, run_id="cleared", replace=True).notes["release_id"] == 5


def test_what_was_rolled_back_stays_back_when_its_versions_are_gone(published_twice):
    city = published_twice
    city.run("rollback", DAY_1)
    city.run("vacuum", DAY_1, hours=0.0, keep_releases=1)

    with pytest.raises(
        ReleaseOrderError, match="release 2 of this day and model was rolled back and has been withdrawn"
    ):
        city.run("publish", DAY_2, run_id="retry")
    assert city.run("publish", DAY_2, run_id="decided", replace=True).notes["release_id"] == 4


@pytest.mark.operations("10")
@pytest.mark.parametrize("damage", ["gone", "cut", "log"])
def test_a_damaged_release_is_not_gone_back_to(published_twice, damage):
    city = published_twice
    (before, current) = city.read("releases")
    table = Path(city.root) / "user_embeddings"
    versions = [release["table_versions"]["user_embeddings"] for release in (before, current)]
    if damage == "log":
        (table / "_delta_log" / f"{versions[0]:020}.json").unlink()
    else:
        file = next(path for path in table.rglob("*.parquet") if f"day={DAY_1}" in str(path))
        file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(
        ReleaseDamagedError, match=f"release 1 shows version {versions[0]} of user_embeddings"
    ):
        city.run("rollback", DAY_1)

    assert len(city.read("releases")) == 2


def test_a_day_that_was_made_again_repairs_a_damaged_release(published):
    city = published
    file = next(
        path
        for path in (Path(city.root) / "user_embeddings").rglob("*.parquet")
        if f"day={DAY_1}" in str(path)
    )
    file.unlink()

    city.run("features", DAY_1, run_id="again")
    city.run("audit", DAY_1)

    assert city.run("publish", DAY_1, run_id="repair").notes == {
        "release_id": 2,
        "is_new": True,
        "day": str(DAY_1),
    }


@pytest.mark.operations("15")
def test_the_loser_of_a_race_is_told_to_try_again(published, monkeypatch):
    city = published
    city.run("features", DAY_1, run_id="again")
    releases = load_releases(city.spark, city.root)
    monkeypatch.setattr(
        "udfs.releases.publish.load_releases", lambda spark, root: []
    )  # before the other committed
    city.run("audit", DAY_1)

    with pytest.raises(ConflictingWriteError, match="release 1 was published meanwhile") as raised:
        city.run("publish", DAY_1, run_id="late")

    assert raised.value.exit_code == 5
    assert load_releases(city.spark, city.root) == releases


def test_rollback_shows_the_release_before_and_can_be_repeated(published_twice):
    assert published_twice.run("rollback", DAY_1).notes["release_id"] == 3

    one, _, three = published_twice.read("releases")
    assert three["rollback_of"] == 2
    assert (three["day"], three["table_versions"]) == (one["day"], one["table_versions"])
    users = read_release(published_twice.spark, published_twice.root, "user_embeddings").collect()
    assert {row["day"] for row in users} == {DAY_1}
    with pytest.raises(NoReleaseError, match="before 1"):
        published_twice.run(
            "rollback", DAY_1, run_id="again"
        )  # nothing is older than release 1, whose content is shown


def test_rollback_goes_to_a_named_release(published_twice):
    published_twice.run("rollback", DAY_1)

    assert published_twice.run("rollback", DAY_1, run_id="again", to=2).notes["release_id"] == 4

    assert published_twice.read("releases")[-1]["day"] == DAY_2
    with pytest.raises(NoReleaseError, match="release 9"):
        published_twice.run("rollback", DAY_1, run_id="at last", to=9)


def test_tables_of_two_models_are_refused(computed, other_bundle):
    computed.run("poi_embeddings", DAY_1, model=str(other_bundle))

    with pytest.raises(GateFailedError):
        computed.run("audit", DAY_1)
    with pytest.raises(ReleaseSkewError, match="poi_embeddings by model"):
        computed.run("publish", DAY_1)


def test_a_second_night_by_another_model_for_users_only_is_refused(published, other_bundle):
    published.deliver(
        DAY_2,
        cleaned_actions=[action("a2", "u2", DAY_2, 4)],
        action_sequences=[sequence("u2", DAY_2, [4])],
        ranking_requests=[],
    )
    published.run("user_embeddings", DAY_2, model=str(other_bundle))

    with pytest.raises(GateFailedError, match="poi_ids without a vector"):
        published.run("audit", DAY_2)
    with pytest.raises(ReleaseSkewError, match="poi_embeddings holds vectors"):
        published.run("publish", DAY_2)


def test_only_what_was_audited_is_published(computed):
    with pytest.raises(AuditMissingError, match="never audited"):
        computed.run("publish", DAY_1)
    computed.run("audit", DAY_1)
    computed.run("user_embeddings", DAY_1)

    with pytest.raises(AuditMissingError, match="user_embeddings changed after the audit"):
        computed.run("publish", DAY_1)


def test_a_failed_audit_is_recorded_and_nothing_is_published(computed):
    computed.deliver(DAY_1, action_sequences=[sequence("u4", DAY_1, [0]), sequence("u1", DAY_1, [0])])

    # u4 has kept actions and no vector; that of u1 was made from what the day held before.
    with pytest.raises(GateFailedError, match="2 user_ids without a vector"):
        computed.run("audit", DAY_1)

    record = json.loads(next((computed.artifacts / "audits").glob("*.json")).read_text())
    assert record["is_passed"] is False
    with pytest.raises(AuditMissingError, match="audit failed"):
        computed.run("publish", DAY_1)


def test_a_candidate_without_a_score_fails_the_audit(computed):
    computed.deliver(DAY_1, ranking_requests=[request("r1", "u1", DAY_1, [0, 1, 4, 5])])  # p5 came later

    with pytest.raises(GateFailedError, match="1 candidates neither scored nor refused"):
        computed.run("audit", DAY_1)


def test_the_gate_judges_every_table_and_keeps_data_docs(computed, monkeypatch):
    monkeypatch.setattr("udfs.releases.audit.judge", judge)
    computed.deliver(DAY_1, cleaned_actions=[])  # a delivery that failed

    with pytest.raises(GateFailedError, match="cleaned_actions: 0 rows"):
        computed.run("audit", DAY_1)

    assert (computed.artifacts / "data_docs" / str(DAY_1) / "index.html").is_file()
