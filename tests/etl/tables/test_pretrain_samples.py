"""Windows of actions: split by time, context in front, every action a target once."""

from datetime import timedelta

import pytest
from pyspark.sql import SparkSession

from conf.settings import SampleSettings, SequenceSettings
from conf.tables import HISTORY_NAMES
from etl.spark.session import local_frame
from etl.tables.pretrain_samples import build_pretrain_samples
from tests.rows import DAY, HOUR_MS, NOON_MS, cleaned, frame_of

DAY_MS = 24 * HOUR_MS
SETTINGS = SampleSettings(window_actions=2, context_actions=3, val_days=1, test_days=1, min_richness=2.0)


def acted(user: str, number: int, days_ago: int, **fields: object) -> dict[str, object]:
    time = NOON_MS - days_ago * DAY_MS + number * HOUR_MS
    content = {
        "action_id": f"{user}{number}",
        "user_id": user,
        "poi_id": f"p{number}",
        "action_ts_ms": time,
        "event_date": DAY - timedelta(days=days_ago),
        "user_lon": None,
        "user_lat": None,
        "poi_lon": 4.0 + number,
    }
    return cleaned(**{**content, **fields})


# Five training actions, two of validation (yesterday), one of test (the day itself); the fourth is an errand.
ANN = [acted("ann", n, days_ago, is_interest=n != 3) for n, days_ago in enumerate((9, 8, 7, 6, 5, 1, 1, 0))]
# Bob goes to one place only: monotonous.
BOB = [acted("bob", n, days_ago, poi_id="p1") for n, days_ago in enumerate((4, 3, 0))]


def build(
    spark: SparkSession, rows: list[dict[str, object]], **settings: object
) -> dict[str, dict[str, object]]:
    samples = build_pretrain_samples(
        frame_of(spark, "cleaned_actions", rows),
        local_frame(spark, [], "user_id string, day date, home_lon double, home_lat double"),
        local_frame(spark, [("ann", DAY, [7])], "user_id string, day date, profile_ids array<int>"),
        day=DAY,
        first_day=DAY,
        index_version=1,
        samples=SETTINGS.model_copy(update=settings),
        sequences=SequenceSettings(),
    )
    return {row["sample_id"]: row.asDict() for row in samples.collect()}


@pytest.fixture(scope="module")
def built(spark: SparkSession) -> dict[str, dict[str, object]]:
    return build(spark, ANN + BOB)


def test_windows_are_cut_within_a_split_and_carry_the_actions_before_them(built):
    windows = {
        key: (row["poi_ids"], row["num_context"]) for key, row in built.items() if row["user_id"] == "ann"
    }

    assert windows == {
        "ann/train/0": (["p0", "p1"], 0),
        "ann/train/1": (["p0", "p1", "p2", "p3"], 2),
        "ann/train/2": (["p1", "p2", "p3", "p4"], 3),  # the last window of a split may be short
        "ann/val/0": (["p2", "p3", "p4", "p5", "p6"], 3),  # context reaches back into training, never forward
        "ann/test/0": (["p4", "p5", "p6", "p7"], 3),
    }


def test_targets_are_the_interest_actions_of_the_window(built):
    assert built["ann/train/1"]["is_targets"] == [False, False, True, False]  # p3 is an errand


def test_every_action_is_a_target_when_errands_are(spark):
    rows = build(spark, ANN, interest_only=False)

    targets = [
        (row["split"], poi)
        for row in rows.values()
        for poi, is_target in zip(row["poi_ids"], row["is_targets"], strict=True)
        if is_target
    ]
    assert sorted(targets) == [
        ("test", "p7"),
        ("train", "p0"),
        ("train", "p1"),
        ("train", "p2"),
        ("train", "p3"),
        ("train", "p4"),
        ("val", "p5"),
        ("val", "p6"),
    ]


def test_the_user_is_at_the_previous_poi_and_at_first_nowhere(built):
    lons = built["ann/train/0"]["user_lons"]

    assert str(lons[0]) == "nan"
    assert lons[1] == 4.0  # p0; p1 itself lies at 5.0


def test_a_monotonous_user_leaves_training_only(built):
    kept = {key: row["is_kept"] for key, row in built.items() if row["user_id"] == "bob"}

    assert kept == {"bob/train/0": False, "bob/test/0": True}


def test_richness_is_of_training_actions_alone(built):
    assert built["ann/test/0"]["richness"] == pytest.approx(4.0)  # p0, p1, p2, p4 once each; p3 is an errand


def test_a_window_of_errands_alone_is_not_kept(spark):
    rows = build(spark, [acted("ann", n, 5, is_interest=False) for n in range(2)], min_richness=0.0)

    assert [row["is_kept"] for row in rows.values()] == [False]


def test_arrays_have_equal_lengths_and_profiles_come_along(built):
    row = built["ann/val/0"]

    assert {len(row[name]) for name in (*HISTORY_NAMES, "is_targets")} == {row["seq_len"]} == {5}
    assert (row["profile_ids"], built["bob/test/0"]["profile_ids"]) == ([7], [])
