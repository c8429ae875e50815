"""Every rule catches its row, repairs what can be repaired, and no row is lost or doubled."""

from datetime import date, timedelta

import pytest
from pyspark.sql import functions as F

from conf.rules import RULES, rules_of
from conf.settings import CleanSettings
from etl.columns import action_rules
from etl.columns.refusal import count_rows, tally, to_quarantine
from etl.spark.session import local_frame
from etl.tables.clean_actions import judge_actions, keep_accepted, with_interest
from tests.rows import DAY, HOUR_MS, NOON_MS, action, cleaned, frame_of

SLOT = {
    "index_version": 1,
    "block_id": 0,
    "inner_id": 0,
    "poi_lon": 4.89,
    "poi_lat": 52.36,
    "category_id": 1,
    "valid_from": date(2026, 1, 1),
    "indexed_day": date(2026, 1, 1),
    "name": "",
    "text": "",
    "changed_day": DAY,
    "is_simulated": False,
}
YEAR_MS = 365 * 24 * HOUR_MS
BAD = {
    "corrupt_record": {"corrupt_record": '{"user_id": "u1", "time', "user_id": None},
    "missing_user": {"user_id": "  "},
    "missing_poi": {"poi_id": None},
    "missing_time": {"action_ts_ms": None},
    "missing_action_type": {"action_type": None},
    "text_too_long": {"user_id": "x" * 5000},
    "placeholder_user": {"user_id": "NULL"},
    "placeholder_poi": {"poi_id": " NaN"},
    "broken_text": {"user_id": "u\ufffd1"},
    "unknown_action_type": {"action_type": "hover"},
    "time_negative": {"action_ts_ms": -NOON_MS},
    "time_zero": {"action_ts_ms": 0},
    "time_in_seconds": {"action_ts_ms": NOON_MS // 1000},
    "time_in_microseconds": {"action_ts_ms": NOON_MS * 1000},
    "time_in_nanoseconds": {"action_ts_ms": NOON_MS * 1_000_000},
    "time_in_future": {"action_ts_ms": NOON_MS + 13 * HOUR_MS},
    "time_too_early": {"action_ts_ms": NOON_MS // 2},
    "poi_place_not_finite": {"poi_lon": float("nan"), "poi_lat": float("inf")},
    "poi_place_swapped": {
        "poi_lon": 52.36,
        "poi_lat": 4.89,
    },  # in range, but at the catalogue's place the other way round
    "poi_place_out_of_range": {"poi_lon": 400.0, "poi_lat": 400.0},
    "poi_place_zero": {"poi_lon": 0.0, "poi_lat": 0.0},
    "unknown_poi": {"poi_id": "p404"},
    "user_place_swapped": {"user_lon": 52.37, "user_lat": 4.90},
    "duplicate_id": {"action_id": "good", "action_ts_ms": NOON_MS + 1},
    "repeated_action": {"action_id": "good again"},
    "too_many_actions": {"user_id": "bot", "action_ts_ms": NOON_MS + 2},
}
MENDED = {
    "action_id_missing": {"action_id": "None"},
    "id_trimmed": {"poi_id": "p1\r\n"},
    "action_type_spelling": {"action_type": "Click "},
    "user_place_not_finite": {"user_lon": float("nan")},
    "user_place_incomplete": {"user_lat": None},
    "user_place_out_of_range": {"user_lat": 252.0},
    "user_place_zero": {"user_lon": 0.0, "user_lat": 0.0},
    "poi_place_far": {"poi_lon": 5.2},
    "poi_place_incomplete": {"poi_lon": None},
    "tz_missing": {"tz_offset_min": None},
    "tz_out_of_range": {"tz_offset_min": 2000},
}
FLAGGED = {
    "tz_far_from_place": {"tz_offset_min": -480},
    "before_poi_opened": {"action_ts_ms": NOON_MS - 10 * YEAR_MS},
    "after_poi_closed": {"poi_id": "p2"},
    "impossible_speed": {"user_lon": 4.9, "user_lat": 53.3},  # a second after the user was 104 km away
}
SETTINGS = CleanSettings(max_actions_per_day=2)


def judge(spark, rows, *, settings=SETTINGS):
    # Two slots of one POI that moved: the one of the day of the action counts.
    later = {**SLOT, "poi_id": "p1", "valid_from": DAY + timedelta(days=9), "inner_id": 7}
    closed = {**SLOT, "poi_id": "p2", "valid_to": DAY - timedelta(days=1), "inner_id": 1}
    first = {**SLOT, "poi_id": "p1", "valid_to": DAY + timedelta(days=9)}
    slots = frame_of(spark, "poi_index", [first, later, closed])
    known = frame_of(spark, "cleaned_actions", [])
    raw = rows if hasattr(rows, "columns") else frame_of(spark, "raw_actions", rows)
    return judge_actions(raw, slots, known, day=DAY, settings=settings)


@pytest.fixture(scope="module")
def judged(spark):
    rows = [action(action_id="good"), action(action_id="good")]
    rows += [action(action_id=f"bot {n}", user_id="bot", action_ts_ms=NOON_MS + n) for n in (0, 1)]
    rows += [action(**{"action_id": f"bad {code}", **fields}) for code, fields in BAD.items()]
    # Each of these has a user of its own.
    rows += [
        action(**{"action_id": f"kept {code}", "user_id": f"user {code}", **fields})
        for code, fields in {**MENDED, **FLAGGED}.items()
    ]
    rows += [
        action(action_id="before the jump", user_id="user impossible_speed", action_ts_ms=NOON_MS - 1000)
    ]
    return judge(spark, rows).cache()


def test_every_refusing_rule_has_a_row_here_and_catches_it(judged):
    assert list(BAD) == [rule.code for rule in rules_of("raw_actions", "refuse")]
    rows = judged.where("status = 'refused'").select("reason", "detail", "action_id").collect()

    expected = {code: fields.get("action_id", f"bad {code}") for code, fields in BAD.items()}
    assert {row["reason"]: row["action_id"] for row in rows} == expected
    assert len(rows) == len(BAD)
    details = {row["reason"]: row["detail"] for row in rows}
    assert details["unknown_action_type"] == "action_type=hover"
    assert details["poi_place_zero"] == "poi_lon=0.0, poi_lat=0.0"
    assert details["too_many_actions"] == f"user_id=bot, action_ts_ms={NOON_MS + 2}"
    assert len(details["text_too_long"]) <= 200


def test_every_repairing_and_flagging_rule_keeps_its_row_with_a_note(judged):
    assert list(MENDED) == [rule.code for rule in rules_of("raw_actions", "repair")]
    assert list(FLAGGED) == [rule.code for rule in rules_of("raw_actions", "flag")]
    kept = {
        row["user_id"]: row for row in keep_accepted(judged).where("action_id <> 'before the jump'").collect()
    }

    codes = {**MENDED, **FLAGGED}
    assert {code: kept[f"user {code}"]["repairs"] for code in codes} == {code: [code] for code in codes}
    assert kept["user user_place_zero"]["user_lon"] is None
    assert kept["user user_place_not_finite"]["user_lat"] is None  # half of a place is none
    assert kept["user poi_place_far"]["poi_lon"] == 4.89
    assert kept["user id_trimmed"]["poi_id"] == "p1"
    assert kept["user tz_missing"]["tz_offset_min"] == 0


def test_rows_in_are_accepted_plus_refused_plus_dropped(judged):
    counts = tally(count_rows(judged).collect())

    # One good row, two of the bot, one before the jump; of two equal rows one is dropped.
    num_kept = len(MENDED) + len(FLAGGED)
    assert counts["statuses"] == {"accepted": 4 + num_kept, "refused": len(BAD), "dropped": 1}
    assert counts["reasons"] == dict.fromkeys(sorted(BAD), 1)
    assert counts["repairs"] == dict.fromkeys(sorted({**MENDED, **FLAGGED}), 1)


def test_an_action_without_id_gets_one_from_its_content_and_the_slot_of_its_day(judged):
    (row,) = keep_accepted(judged).where("length(action_id) = 64").collect()

    assert (row["event_date"], row["inner_id"], row["action_type_id"]) == (DAY, 0, 0)


def test_further_and_reordered_columns_change_nothing(spark):
    rows = [action(action_id="a1"), action(action_id="a2", action_type="hover"), action(action_id="a1")]
    plain = frame_of(spark, "raw_actions", rows)
    other = plain.select(*reversed(plain.columns), F.lit(1).alias("app_version"))

    found = [
        judge(spark, frame).select("status", "reason", "detail", *sorted(plain.columns)).collect()
        for frame in (plain, other)
    ]

    assert sorted(map(str, found[0])) == sorted(map(str, found[1]))


def test_the_earliest_actions_of_a_day_are_kept_whatever_the_order_of_delivery(spark):
    rows = [action(action_id=f"a{n}", action_ts_ms=NOON_MS + n // 2 * 1000) for n in range(6)]
    rows = [{**row, "poi_id": "p2"} if n % 2 else row for n, row in enumerate(rows)]
    rows += [action(action_id="next day", action_ts_ms=NOON_MS - 24 * HOUR_MS)]  # another day: another count

    for partitions in (1, 3):
        raw = frame_of(spark, "raw_actions", rows[::-1]).repartition(partitions)
        kept = keep_accepted(judge(spark, raw)).collect()

        assert sorted(row["action_id"] for row in kept) == ["a0", "a1", "next day"]


def test_an_action_sent_again_under_another_id_does_not_count_towards_the_cap(spark):
    rows = [action(action_id=f"a{n}") for n in range(3)] + [action(action_id="b", action_ts_ms=NOON_MS + 1)]

    judged = {row["action_id"]: (row["status"], row["reason"]) for row in judge(spark, rows).collect()}

    again = ("refused", "repeated_action")
    assert judged == {"a0": ("accepted", None), "a1": again, "a2": again, "b": ("accepted", None)}


def test_numbers_at_the_ends_of_their_types_are_refused_and_stop_nothing(spark):
    extremes = [(-(2**63), -(2**31)), (2**63 - 1, 2**31 - 1), (2**62, 0)]
    rows = [action(action_id="same", action_ts_ms=time, tz_offset_min=tz) for time, tz in extremes]
    rows += [action(action_id="good", tz_offset_min=-(2**31))]

    judged = {row["action_ts_ms"]: row["reason"] for row in judge(spark, rows).collect()}

    future = "time_in_future"
    assert judged == {-(2**63): "time_negative", 2**63 - 1: future, 2**62: future, NOON_MS: None}


def test_a_checkin_is_where_its_poi_is_and_a_click_is_not(spark):
    home = {"user_lon": 4.9, "user_lat": 51.0}  # 150 km from p1
    rows = [
        action(action_id="click at home", **home),
        action(action_id="checkin", action_type="checkin", action_ts_ms=NOON_MS + 60_000, **home),
        action(action_id="click from p1", action_ts_ms=NOON_MS + 60_001),
    ]

    kept = keep_accepted(judge(spark, rows, settings=CleanSettings())).collect()

    assert {row["action_id"]: row["repairs"] for row in kept} == {
        "click at home": [],
        "checkin": ["impossible_speed"],
        "click from p1": [],
    }


def test_refused_rows_keep_their_payload_and_equal_ones_are_numbered(spark):
    refused = frame_of(spark, "raw_actions", [action(user_id=None), action(user_id=None)])
    refused = refused.withColumns({"reason": F.lit("missing_user"), "detail": F.lit("user_id=null")})

    rows = to_quarantine(
        refused, source_table="raw_actions", payload_columns=action_rules.PAYLOAD_COLUMNS
    ).collect()

    assert sorted(row["duplicate_no"] for row in rows) == [0, 1]
    assert len({row["row_hash"] for row in rows}) == 1
    assert '"user_id":null' in rows[0]["payload"]


def test_the_time_zone_of_a_checkin_is_compared_with_its_poi(spark):
    unplaced = {"user_lon": None, "user_lat": None}  # as every source of check-ins delivers them
    rows = [
        action(action_id="hours", action_type="checkin", tz_offset_min=1, **unplaced),
        action(action_id="wrong sign", action_type="checkin", user_id="bob", tz_offset_min=-120, **unplaced),
        action(action_id="summer", action_type="checkin", user_id="cid", tz_offset_min=120, **unplaced),
        action(action_id="click from far", user_id="eve", tz_offset_min=-300, user_lon=-74.0, user_lat=40.7),
    ]

    kept = {row["action_id"]: row for row in keep_accepted(judge(spark, rows)).collect()}

    flagged = {name for name, row in kept.items() if "tz_far_from_place" in row["repairs"]}
    assert flagged == {"hours", "wrong sign"}
    assert kept["hours"]["tz_offset_min"] == 1  # flagged as it is, not converted


def test_an_errand_is_a_functional_category_or_the_own_home_or_work(spark):
    actions = frame_of(
        spark,
        "cleaned_actions",
        [
            cleaned(action_id="cafe"),
            cleaned(action_id="office", category_id=2, poi_lon=5.5),
            cleaned(action_id="home", poi_lon=4.0, category_id=0),
            cleaned(action_id="unknown category", category_id=0),
            cleaned(action_id="cafe at another's home", user_id="bob", poi_lon=4.0),
        ],
    ).drop("is_interest", "day")
    categories = local_frame(spark, [(1, True), (2, False)], "category_id int, is_interest boolean")
    places = frame_of(
        spark,
        "user_places",
        [
            {
                "day": DAY,
                "user_id": "ann",
                "home_lon": 4.0001,
                "home_lat": 52.36,
                "home_days": 5,
                "work_days": 0,
            }
        ],
    )

    rows = with_interest(actions, categories, places, at_place_km=0.05).collect()

    assert {row["action_id"]: row["is_interest"] for row in rows} == {
        "cafe": True,
        "office": False,
        "home": False,
        "unknown category": True,
        "cafe at another's home": True,
    }


def test_codes_are_unique_and_explained():
    assert len({rule.code for rule in RULES}) == len(RULES)
    assert all(rule.explanation and rule.example and rule.columns for rule in RULES)


def test_an_id_that_two_days_have_accepted_is_compared_with_both_and_no_row_is_doubled(spark):
    known = frame_of(
        spark,
        "cleaned_actions",
        [
            cleaned(action_id="a1", day=DAY - timedelta(days=90), action_ts_ms=NOON_MS - 90 * 24 * HOUR_MS),
            cleaned(action_id="a1", day=DAY - timedelta(days=1)),
        ],
    )
    rows = frame_of(spark, "raw_actions", [action(), action(user_id="bob", action_ts_ms=NOON_MS + 1)])
    slots = frame_of(spark, "poi_index", [{**SLOT, "poi_id": "p1"}])

    judged = judge_actions(rows, slots, known, day=DAY, settings=SETTINGS).collect()

    assert sorted((row["user_id"], row["status"], row["reason"]) for row in judged) == [
        ("ann", "dropped", None),
        ("bob", "refused", "duplicate_id"),
    ]
