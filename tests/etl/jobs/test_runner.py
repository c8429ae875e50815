"""The jobs of a night on hand-made rows: raw tables in, sequences out, the same again on a rerun."""

import argparse
from datetime import timedelta

import pytest
from pyspark.sql import functions as F

from conf.cli import JobContext
from conf.errors import EmptyDeliveryError, IndexFullError, IndexOrderError, MissingInputError
from etl.delta.digests import digest_tables
from etl.delta.storage import read_table, replace_day, table_version
from etl.jobs import index_pois, runner
from etl.jobs.replay import replay_day
from tests.etl.contexts import context_of
from tests.rows import DAY, HOUR_MS, NOON_MS, action, frame_of, poi

MADE = 0
"""Version of a table that nothing has been written to."""
DERIVED = (
    "quarantined_rows",
    "categories",
    "blocks",
    "poi_index",
    "cleaned_actions",
    "user_places",
    "action_sequences",
)
STEPS = {
    "poi_index": index_pois.index_pois,
    "clean_actions": runner.clean_day,
    "action_sequences": runner.sequence_day,
}


def deliver(spark, settings, *, actions=(), pois=(), day=DAY):
    for name, rows in (("raw_actions", actions), ("raw_pois", pois)):
        frame = frame_of(spark, name, rows)
        replace_day(frame, name, settings.storage.root, day=day, run_id="test-run", job="test")


def run_night(spark, settings, day=DAY):
    return {name: step(context_of(settings, name, day), spark) for name, step in STEPS.items()}


POIS = [
    poi(),
    poi(poi_id="p2", name="Two", poi_lon=4.8901),
    poi(
        poi_id="p3",
        name="Far",
        poi_lon=5.6,
        category="Office",
        category_path="Professional & Other Places > Office",
    ),
    poi(poi_id="p0", poi_lat=95.0, poi_lon=200.0),
]
ACTIONS = [
    action(),
    action(),  # delivered twice: dropped
    action(action_id="a2", poi_id="p2", action_ts_ms=NOON_MS + HOUR_MS, user_lon=None, user_lat=None),
    action(action_id="a3", poi_id="p3", poi_lon=5.6, action_ts_ms=NOON_MS - HOUR_MS, tz_offset_min=None),
    action(action_id="b1", user_id="bob", poi_id="p9"),  # unknown POI
    action(action_id="b2", user_id="bob", action_ts_ms=NOON_MS // 1000),
    action(action_id="b3", user_id="bob", user_lon=0.0, user_lat=0.0),
]


def test_a_night_makes_sequences_counts_every_row_and_a_rerun_changes_nothing(spark, settings):
    deliver(spark, settings, actions=ACTIONS, pois=POIS)
    root = settings.storage.root

    first = run_night(spark, settings)
    digests = digest_tables(spark, root, DERIVED, day=DAY)
    second = run_night(spark, settings)

    assert digest_tables(spark, root, DERIVED, day=DAY) == digests
    assert set(digests) == set(DERIVED)
    clean = first["clean_actions"]
    assert (clean.rows_in, clean.rows_out, clean.rows_refused, clean.rows_dropped) == (7, 4, 2, 1)
    assert clean.notes["reasons"] == {"time_in_seconds": 1, "unknown_poi": 1}
    assert clean.notes["repairs"] == {"tz_missing": 1, "user_place_zero": 1}
    assert first["poi_index"].notes["reasons"] == {"poi_out_of_range": 1}
    assert {name: s.rows_out for name, s in first.items()} == {name: s.rows_out for name, s in second.items()}
    ann = read_table(spark, root, "action_sequences").where("user_id = 'ann'").first()
    assert ann["poi_ids"] == ["p3", "p1", "p2"]
    assert ann["is_interests"] == [False, True, True]  # an office is an errand
    assert ann["tz_offsets_min"] == [0, 60, 60]  # derived from the longitude where none was delivered
    assert ann["user_lons"][2] == pytest.approx(4.89)  # place of the previous action's POI
    assert ann["richness"] == pytest.approx(2.0)
    reasons = {r["source_table"] for r in read_table(spark, root, "quarantined_rows").collect()}
    assert reasons == {"raw_actions", "raw_pois"}


def test_the_second_night_appends_ids_and_closes_moved_and_closed_pois(spark, made):
    deliver(spark, made, pois=POIS)
    index = index_pois.index_pois
    index(context_of(made, "poi_index"), spark)
    root, next_day = made.storage.root, DAY + timedelta(days=1)
    before = {
        r["poi_id"]: (r["block_id"], r["inner_id"]) for r in read_table(spark, root, "poi_index").collect()
    }
    delivery = [
        poi(poi_id="p4", name="Four", day=next_day),
        poi(poi_id="p1", poi_lon=4.95, day=next_day),  # moved by 4 km
        poi(poi_id="p2", poi_lon=4.8901, is_closed=True, name="Two", day=next_day),
        poi(poi_id="p3", name="Farther", poi_lon=5.6, day=next_day),  # renamed in place
    ]
    deliver(spark, made, pois=delivery, day=next_day)

    index(context_of(made, "poi_index", next_day), spark)
    digests = digest_tables(spark, root, ("poi_index", "blocks", "categories"), day=next_day)
    index(context_of(made, "poi_index", next_day), spark)

    assert digest_tables(spark, root, ("poi_index", "blocks", "categories"), day=next_day) == digests
    rows = {(r["poi_id"], r["valid_from"]): r for r in read_table(spark, root, "poi_index").collect()}
    assert {key[0]: (r["block_id"], r["inner_id"]) for key, r in rows.items() if key[1] == DAY} == before
    assert rows["p1", DAY]["valid_to"] == next_day
    assert rows["p1", next_day]["valid_to"] is None
    assert rows["p2", DAY]["valid_to"] == next_day
    assert (rows["p3", DAY]["name"], rows["p3", DAY]["valid_to"]) == ("Farther", None)
    assert rows["p4", next_day]["inner_id"] == 2  # p1 and p2 keep 0 and 1 of the block for ever
    assert len(rows) == 5


def test_a_rerun_takes_back_what_the_first_run_had_added_closed_and_renamed(spark, made):
    next_day = DAY + timedelta(days=1)
    deliver(spark, made, pois=[poi(), poi(poi_id="p2", name="Two")])
    index_pois.index_pois(context_of(made, "poi_index"), spark)
    root = made.storage.root
    digests = digest_tables(spark, root, ("poi_index", "blocks", "categories"), day=DAY)
    wrong = [
        poi(poi_id="p5", poi_lon=9.0, category="Zoo", day=next_day),
        poi(is_closed=True, day=next_day),
        poi(poi_id="p2", name="Deux", category="Zoo", day=next_day),
    ]
    deliver(spark, made, pois=wrong, day=next_day)
    index_pois.index_pois(context_of(made, "poi_index", next_day), spark)
    renamed = read_table(spark, root, "poi_index").where("poi_id = 'p2'").first()
    assert (renamed["name"], renamed["category_id"], renamed["changed_day"]) == ("Deux", 2, next_day)

    deliver(spark, made, pois=[], day=next_day)
    index_pois.index_pois(context_of(made, "poi_index", next_day), spark)

    assert digest_tables(spark, root, ("poi_index", "blocks", "categories"), day=DAY) == digests


def test_a_day_before_the_last_indexed_one_is_refused_if_it_brings_pois(spark, made):
    earlier = DAY - timedelta(days=1)
    deliver(spark, made, pois=[poi()])
    index_pois.index_pois(context_of(made, "poi_index"), spark)
    before = digest_tables(spark, made.storage.root, ("poi_index",), day=DAY)

    nothing = index_pois.index_pois(
        context_of(made, "poi_index", earlier), spark
    )  # it brings none: left alone
    deliver(spark, made, pois=[poi(poi_id="p2", day=earlier)], day=earlier)

    assert "the index stays as it is" in nothing.notes["warnings"][0]
    with pytest.raises(
        IndexOrderError, match="poi_index cannot index 2026-01-30: it already holds 2026-01-31"
    ):
        index_pois.index_pois(context_of(made, "poi_index", earlier), spark)
    assert digest_tables(spark, made.storage.root, ("poi_index",), day=DAY) == before


def test_a_delivery_of_which_nothing_is_accepted_stops_the_night_and_says_why_in_quarantine(spark, made):
    deliver(
        spark, made, actions=[action(user_id=None), action(action_id="a2", poi_id="nowhere")], pois=[poi()]
    )
    index_pois.index_pois(context_of(made, "poi_index"), spark)

    with pytest.raises(EmptyDeliveryError, match=r"all 2 rows .* \(missing_user 1, unknown_poi 1\)"):
        runner.clean_day(context_of(made, "clean_actions"), spark)

    reasons = {row["reason"] for row in read_table(spark, made.storage.root, "quarantined_rows").collect()}
    assert reasons == {"missing_user", "unknown_poi"}


def test_a_full_block_stops_the_night_before_anything_is_written(spark, made):
    deliver(spark, made, pois=POIS)

    with pytest.raises(IndexFullError, match="would hold 2 POIs"):
        index_pois.index_pois(context_of(made, "poi_index", overrides=("index.max_inner=1",)), spark)

    assert table_version(spark, made.storage.root, "poi_index") == MADE


def test_a_missing_raw_table_names_the_command_that_makes_it(spark, settings):
    with pytest.raises(MissingInputError, match=r"python -m etl SOURCE .* --day 2026-01-31"):
        runner.clean_day(context_of(settings, "clean_actions"), spark)


def test_an_action_redelivered_on_a_later_day_is_dropped_and_one_with_other_content_refused(spark, made):
    next_day = DAY + timedelta(days=1)
    deliver(spark, made, actions=[action(), action(action_id="a2", action_ts_ms=NOON_MS + 1)], pois=[poi()])
    run_night(spark, made)
    again = [
        action(day=next_day),
        action(day=next_day, action_id="a2"),
        action(day=next_day, action_id="a3", action_ts_ms=NOON_MS + 2),
        action(day=next_day, action_id="a4"),  # what a1 says, under another id: sent twice
    ]
    deliver(spark, made, actions=again, day=next_day)

    summary = run_night(spark, made, next_day)["clean_actions"]

    assert (summary.rows_out, summary.rows_refused, summary.rows_dropped) == (1, 2, 1)
    assert summary.notes["reasons"] == {"duplicate_id": 1, "repeated_action": 1}
    late = read_table(spark, made.storage.root, "cleaned_actions").where(F.col("day") == next_day).first()
    assert (late["action_id"], late["event_date"]) == ("a3", DAY)  # late rows land on the day they happened


def test_a_replay_takes_in_actions_on_a_poi_that_was_delivered_later(spark, made):
    root, next_day = made.storage.root, DAY + timedelta(days=1)
    tables = ("cleaned_actions", "quarantined_rows", "user_places")
    # Of the actions on the unknown POI one has the id of a good action, one is delivered again the day after.
    ids = ("b1", "a1", "b2")
    late = [action(action_id=name, poi_id="p9", action_ts_ms=NOON_MS + n) for n, name in enumerate(ids)]
    deliver(spark, made, actions=[action(), action(), *late], pois=[poi()])
    catalogue = [poi(poi_id="p9", category="Zoo", day=next_day)]
    deliver(spark, made, actions=[{**late[2], "day": next_day}], pois=catalogue, day=next_day)
    for day in (DAY, next_day):
        index_pois.index_pois(context_of(made, "poi_index", day), spark)
        runner.clean_day(context_of(made, "clean_actions", day), spark)
    as_night_did = digest_tables(spark, root, tables, day=DAY)

    def replay(as_of):
        options = argparse.Namespace(as_of=as_of)
        done = replay_day(JobContext("replay", DAY, made, "test-run", False, options), spark)
        return done, digest_tables(spark, root, tables, day=DAY)

    done, replayed = replay(None)
    assert (done.rows_in, done.rows_out, done.rows_refused, done.rows_dropped) == (5, 2, 1, 2)
    assert done.notes["quarantined_change"] == {"duplicate_id": 1, "unknown_poi": -3}
    rows = {r["action_id"]: r for r in read_table(spark, root, "cleaned_actions").collect()}
    assert {name: r["day"] for name, r in rows.items()} == {"a1": DAY, "b1": DAY, "b2": next_day}
    assert rows["b1"]["category_id"] == 2  # the zoo became known with the POI
    again, same = replay(next_day)
    assert (again.notes["quarantined_change"], "next" in again.notes, same) == ({}, False, replayed)
    _, taken_back = replay(DAY)  # with the catalogue of the day itself, as the night did
    assert taken_back == as_night_did


def test_a_dry_run_writes_nothing_and_tells_how_full_the_index_would_be(spark, made):
    deliver(spark, made, pois=[poi()])
    tight = context_of(made, "poi_index", overrides=("index.max_inner=1",), dry_run=True)

    summary = index_pois.index_pois(tight, spark)

    assert summary.rows_out == 1
    assert summary.notes["fullest_block"] == {"block_id": 0, "inner_ids": 1, "of": 1}
    (warning,) = summary.notes["warnings"]
    assert warning.startswith("1 blocks have given out 80% of their 1 inner ids, block 0 most (1)")
    assert not summary.tables
    assert table_version(spark, made.storage.root, "poi_index") == MADE
