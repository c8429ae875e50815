"""Sequences are the last actions, oldest first, with a user place that never comes from the action itself."""

import math
from datetime import timedelta

import pytest
from pyspark.sql import functions as F

from conf.settings import SequenceSettings
from conf.tables import HISTORY_NAMES
from etl.spark.session import local_frame
from etl.tables.action_sequences import build_action_sequences, pattern_of
from etl.tables.histories import richness, richness_of_list
from etl.tables.profiles import build_profile_ids
from tests.rows import DAY, HOUR_MS, NOON_MS, cleaned, frame_of

VISITS = [("p1", 4.0), ("p2", 4.1), ("p1", 4.0), ("p3", 6.0), ("p1", 4.0)]


def history(user="ann", **fields):
    return [
        cleaned(
            **{
                "user_id": user,
                "action_id": f"{user}{n}",
                "poi_id": poi,
                "poi_lon": lon,
                "user_lon": None,
                "user_lat": None,
                "action_ts_ms": NOON_MS + n * HOUR_MS,
                **fields,
            }
        )
        for n, (poi, lon) in enumerate(VISITS)
    ]


def build(spark, rows, *, places=(), profiles=(), **settings):
    return {
        row["user_id"]: row
        for row in build_action_sequences(
            frame_of(spark, "cleaned_actions", rows),
            frame_of(spark, "user_places", places),
            frame_of(spark, "raw_profiles", profiles),
            index_version=1,
            settings=SequenceSettings(**settings),
        ).collect()
    }


def test_the_last_actions_are_kept_oldest_first_and_all_are_counted(spark):
    rows = history()
    ann = build(spark, [rows[n] for n in (3, 0, 4, 2, 1)], max_actions=3)["ann"]

    assert ann["poi_ids"] == ["p1", "p3", "p1"]
    assert (ann["num_actions"], ann["seq_len"]) == (5, 3)
    assert {len(ann[name]) for name in HISTORY_NAMES} == {3}
    assert ann["user_lons"][0] == pytest.approx(4.1)  # of the action before the window, not lost with it


def test_the_user_is_where_the_log_says_else_where_the_previous_action_was(spark):
    rows = history()
    rows[2] = {**rows[2], "user_lon": 4.5, "user_lat": 52.0}

    lons = build(spark, rows)["ann"]["user_lons"]

    assert math.isnan(lons[0])
    assert lons[1:] == pytest.approx([4.0, 4.5, 4.0, 6.0])


def test_equal_times_fall_back_on_the_action_id(spark):
    rows = [cleaned(action_id=name, poi_id=f"p{name}") for name in ("c", "a", "b")]

    assert build(spark, rows)["ann"]["poi_ids"] == ["pa", "pb", "pc"]


def test_richness_is_the_effective_number_of_interest_pois(spark):
    rows = history() + history(user="bob", is_interest=False)
    rows += [{**row, "user_id": "eve", "poi_id": f"q{n}"} for n, row in enumerate(history())]
    found = build(spark, rows)
    shares = (0.6, 0.2, 0.2)

    assert found["ann"]["richness"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert found["bob"]["richness"] == 0.0
    assert found["eve"]["richness"] == pytest.approx(5.0)


def test_richness_of_a_list_is_that_of_its_counts_to_the_last_digit(spark):
    lists = [([],), (["b"],), (["b", "a", "b", "c", "b", "a"],), ([f"p{n % 7}" for n in range(50)],)]
    frame = local_frame(spark, lists, "pois array<string>")

    of_lists = frame.select(richness_of_list(F.col("pois")).alias("found")).collect()

    counts = [[pois.count(poi) for poi in set(pois)] for (pois,) in lists]
    counted = local_frame(
        spark, [(n, c) for n, of_list in enumerate(counts) for c in [0, *of_list]], "n int, visits bigint"
    )
    of_counts = counted.groupBy("n").agg(richness(F.col("visits")).alias("found")).orderBy("n").collect()
    assert [row["found"] for row in of_lists] == [row["found"] for row in of_counts]
    # Three POIs, visited three, two times and once: exp of the entropy by hand.
    assert of_lists[2]["found"] == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6)))
    )


def test_travel_is_far_from_home_and_without_a_home_far_from_the_middle(spark):
    home = {"day": DAY, "user_id": "bob", "home_lon": 6.0, "home_lat": 52.36, "home_days": 3, "work_days": 0}
    found = build(spark, history() + history(user="bob"), places=[home])

    assert found["ann"]["is_travels"] == [False, False, False, True, False]
    assert found["bob"]["is_travels"] == [True, True, True, False, True]
    assert (found["ann"]["pattern"], found["bob"]["pattern"]) == ("mixed", "mixed")


def test_patterns_by_share_of_travel(spark):
    shares = [
        ([False] * 10, "local"),
        ([True] * 10, "travel"),
        ([True] + [False] * 9, "mixed"),
        ([True] + [False] * 10, "local"),
        ([False] + [True] * 9, "mixed"),
        ([False] + [True] * 10, "travel"),
    ]
    frame = local_frame(spark, shares, "travels array<boolean>, expected string")

    rows = frame.select(pattern_of(F.col("travels"), mixed_share=0.1).alias("found"), "expected").collect()

    assert [row["found"] for row in rows] == [row["expected"] for row in rows]


def test_profile_ids_are_of_the_latest_values_sorted_from_1(spark):
    profile = {"day": DAY, "user_id": "ann", "attribute": "age_group", "value": "30s"}
    older = {**profile, "day": DAY - timedelta(days=9), "value": "20s"}
    other = {**profile, "attribute": "city", "value": "AMS"}

    def ids(*rows):
        return [
            row["profile_ids"] for row in build_profile_ids(frame_of(spark, "raw_profiles", rows)).collect()
        ]

    assert ids(profile, older) == ids(profile)
    assert ids(profile) != ids(older)
    (both,) = ids(other, profile)
    assert both == sorted(both)
    assert min(both) >= 1
