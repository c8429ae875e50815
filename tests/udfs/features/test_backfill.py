"""Backfills: past days by one model are what the daily jobs would have computed, and nothing published changes."""

from datetime import timedelta

import pytest

from conf.errors import SettingsError
from conf.releases import load_releases, read_table
from conf.tables import FEATURE_TABLES
from etl.columns.poi_slots import date_details
from tests.udfs.feature_city import DAY_1, DAY_2, at, request, sequence, slot
from udfs.features.backfill import poi_states, user_states
from udfs.training_sets.reader import read_training_set

pytestmark = pytest.mark.spark
BEFORE, DAY_3 = DAY_1 - timedelta(days=1), DAY_2 + timedelta(days=1)


def impressions(made):
    """The rows of `raw_impressions` that show the candidates of a request."""
    shared = {key: made[key] for key in ("request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon",
                                         "user_lat", "is_simulated")}  # fmt: skip
    return [
        {**shared, "poi_id": poi, "position": place, "label": 0}
        for place, poi in enumerate(made["candidate_poi_ids"], 1)
    ]


def vectors(city, name, key):
    return {(row["day"], row[key]): row["embedding"] for row in read_table(city.root, name).to_pylist()}


def test_a_backfill_equals_the_daily_jobs_and_publishes_nothing(published_twice, other_city, other_bundle):
    city = published_twice
    other_city.deliver_second_night()
    other_city.run("features", DAY_1, model=str(other_bundle))
    other_city.run("features", DAY_2, model=str(other_bundle))
    asked = [request("r1", "u1", DAY_1, [0, 1, 4]), request("r2", "new", DAY_1, [2, 3])]
    asked += [request("r3", "u2", DAY_2, [0, 8, 4])]
    city.deliver(DAY_3, raw_impressions=[row for one in asked for row in impressions(one)])
    before = {name: city.digest(name) for name in FEATURE_TABLES}, load_releases(city.root)

    options = {"first": DAY_1, "last": DAY_3, "model": str(other_bundle)}
    done = city.run("backfill", DAY_3, run_id="past", **options)

    assert ({name: city.digest(name) for name in FEATURE_TABLES}, load_releases(city.root)) == before
    users = vectors(city, "backfilled_user_embeddings", "user_id")
    # On the eve of the first delivery its actions of earlier days are known: u1's and u2's lie on DAY_1 itself.
    daily = vectors(other_city, "user_embeddings", "user_id")
    assert set(users) == set(daily)
    for key, vector in users.items():
        assert vector == pytest.approx(daily[key], abs=1e-6)  # other rows in a batch, other padding
    assert {day for day, _ in users} == {DAY_1, DAY_2}
    pois = vectors(city, "backfilled_poi_embeddings", "poi_id")
    daily_pois = vectors(other_city, "poi_embeddings", "poi_id")
    assert pois[BEFORE, "p7"] == pytest.approx(daily_pois[DAY_1, "p7"], abs=1e-6)
    assert pois[DAY_2, "p8"] == pytest.approx(daily_pois[DAY_2, "p8"], abs=1e-6)
    assert {day for day, poi in pois if poi == "p0"} == {BEFORE}
    scores = {(row["request_id"], row["poi_id"]): row for row in
              read_table(city.root, "backfilled_ranking_scores").to_pylist()}  # fmt: skip
    expected = {
        (row["request_id"], row["poi_id"]): row["click_logit"] for row in other_city.read("ranking_scores")
    }
    for key, logit in expected.items():
        assert scores[key]["click_logit"] == pytest.approx(logit, abs=1e-5)
    assert ("r3", "p8") in scores
    assert ("r3", "p0") not in scores  # closed that day
    assert done.notes["ranking_scores"]["refused"] == {"score_no_live_slot": 1}

    assert (
        city.run("backfill", DAY_3, run_id="past", **options).tables["backfills"] == done.tables["backfills"]
    )
    shown = [row for one in asked for row in impressions(one)]
    rows = read_training_set(
        None, city.root, "raw_impressions", clock="day", model=str(done.notes["model_version"])
    )
    assert rows.num_rows == len(shown)
    found = {(row["request_id"], row["poi_id"]): row for row in rows.to_pylist()}
    assert found["r1", "p0"]["user_embedding"] is None  # as of the eve nobody had acted
    assert found["r3", "p4"]["user_embedding"] == users[DAY_1, "u2"]
    assert found["r3", "p8"]["poi_embedding"] is None  # opened on the day of the request
    assert found["r3", "p8"]["click_logit"] == scores["r3", "p8"]["click_logit"]

    city.run("backfill", DAY_2, run_id="inner", **{**options, "first": DAY_2, "last": DAY_2})
    again = vectors(city, "backfilled_user_embeddings", "user_id")
    kept = {key: vector for key, vector in users.items() if key[0] != DAY_1}  # whose requests are of DAY_2
    assert {key: vector for key, vector in again.items() if key[0] != DAY_1} == kept
    table = read_table(city.root, "backfilled_ranking_scores").to_pylist()
    logits = {(row["request_id"], row["poi_id"]): row["click_logit"] for row in table}
    earlier = {key: row["click_logit"] for key, row in scores.items()}
    assert logits == pytest.approx(earlier, abs=1e-5)  # those of DAY_2 were computed again, in another batch


def test_the_first_delivery_counts_on_the_days_of_its_actions(city):
    """A history that was delivered at once is known up to the end of each of its days, and later rows as delivered."""
    days = [BEFORE - timedelta(days=1), BEFORE, DAY_1]
    history = sequence("u1", DAY_1, [0, 1, 2, 3], timestamps_ms=[at(days[0], 23), *(at(day, 0) for day in days[1:]),
                                                                 at(DAY_1, 9)])  # fmt: skip
    late = sequence("u2", DAY_2, [4], timestamps_ms=[at(BEFORE, 5)])
    rows = city.frame("action_sequences", [{"day": DAY_1, **history}, {"day": DAY_2, **late}])

    states = user_states(rows, first=BEFORE, last=DAY_3, delivered_first=DAY_1)

    found = {(row["user_id"], row["sequence_day"]): row["seq_len"] for row in states.collect()}
    assert found == {("u1", days[0]): 1, ("u1", BEFORE): 2, ("u1", DAY_1): 4, ("u2", DAY_2): 1}


def test_details_of_a_slot_are_those_of_their_time(city):
    past = [{"replaced_day": DAY_2, "changed_day": DAY_1, "name": "", "text": "", "category_id": 7}]
    slots = [
        slot(0, category_id=2, past_details=past, changed_day=DAY_2),
        slot(1, indexed_day=DAY_2, valid_from=DAY_2, changed_day=DAY_2),
        slot(2, valid_to=BEFORE, closed_day=DAY_1),
        slot(3, valid_to=DAY_2, closed_day=DAY_2),
    ]
    details = date_details(city.frame("poi_index", slots), index_version=1)

    states = poi_states(details, first=DAY_1, last=DAY_3).collect()

    found = {(row["poi_id"], row["changed_day"]): row["category_id"] for row in states}
    assert found == {("p0", BEFORE): 7, ("p0", DAY_2): 2, ("p1", DAY_2): 2, ("p3", BEFORE): 1}


def test_an_empty_range_is_refused(published):
    with pytest.raises(SettingsError, match="lies after"):
        published.run("backfill", DAY_1, first=DAY_2, last=DAY_1)
