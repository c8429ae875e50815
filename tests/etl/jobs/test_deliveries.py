"""What is new of a source: compared by content with the event days that it touches."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from conf.units import MS_PER_DAY
from etl.jobs.deliveries import MAX_RANGES, in_event_days, is_later, keep_new_actions, merge_days
from etl.spark.session import local_frame
from tests.rows import DAY, NOON_MS, action, frame_of

AGAIN = {"record": "the same row, spelled otherwise"}


def new_ids(spark, rows, delivered):
    frames = (frame_of(spark, "raw_actions", side) for side in (rows, delivered))
    return sorted(str(row["action_id"]) for row in keep_new_actions(*frames).collect())


def test_a_row_is_new_unless_every_value_is_known(spark):
    delivered = [
        action(),
        action(action_id="a2", user_lon=None, tz_offset_min=None),
        action(action_id="a4", action_ts_ms=NOON_MS // 1000),
        action(action_id="a5", user_lon=float("nan")),
    ]
    delivered.append(action(action_id="a3", action_ts_ms=None, **AGAIN))
    rows = [{**row, **AGAIN} for row in delivered] + [
        action(user_id="bob"),  # the id of another row
        action(action_id="a6"),
        action(action_id="a7", action_ts_ms=None),
    ]

    assert new_ids(spark, rows, delivered) == ["a1", "a6", "a7"]


def test_records_of_which_a_key_could_not_be_read_are_the_same_only_if_their_texts_are(spark):
    delivered = [action(action_ts_ms=None, record="yesterday")]
    rows = [*delivered, action(action_ts_ms=None, record="25:99")]

    assert new_ids(spark, rows, delivered) == ["a1"]
    assert new_ids(spark, delivered, delivered) == []


def test_rows_that_are_known_twice_or_come_twice_are_known(spark):
    assert new_ids(spark, [action(), action()], [action(), action(), action()]) == []


def test_only_event_days_that_are_touched_are_looked_at(spark):
    rows = [action(), action(action_id="a2", action_ts_ms=NOON_MS + 40 * MS_PER_DAY)]
    condition = in_event_days(frame_of(spark, "raw_actions", rows))
    days = [0, 1, 39, 40, 41]
    frame = local_frame(
        spark, [(NOON_MS + day * MS_PER_DAY,) for day in days] + [(None,)], "action_ts_ms bigint"
    )

    found = [row[0] for row in frame.where(condition).collect()]

    assert found == [NOON_MS, NOON_MS + 40 * MS_PER_DAY]


def test_a_row_after_the_day_is_not_due_and_one_without_a_date_is(spark):
    times = [NOON_MS, NOON_MS + MS_PER_DAY, None, 0, NOON_MS // 1000, NOON_MS * 1000]
    frame = local_frame(spark, [(time,) for time in times], "action_ts_ms bigint")

    later = [row[0] for row in frame.select(is_later(frame["action_ts_ms"], day=DAY)).collect()]

    assert later == [False, True, False, False, False, False]


@given(st.lists(st.integers(0, 40_000), max_size=200))
def test_ranges_hold_every_day_are_few_and_do_not_overlap(days):
    ranges = merge_days(days)

    assert len(ranges) <= MAX_RANGES
    assert all(any(first <= day <= last for first, last in ranges) for day in days)
    assert all(last < first for (_, last), (first, _) in pairwise(ranges))
    assert all(first in days and last in days for first, last in ranges)


def test_days_are_not_joined_over_gaps_while_there_are_ranges_left():
    assert merge_days([5, 6, 7, 20, 21, 40]) == [(5, 7), (20, 21), (40, 40)]
    assert merge_days([5, 6, 7, 20, 21, 40], max_ranges=2) == [(5, 21), (40, 40)]
