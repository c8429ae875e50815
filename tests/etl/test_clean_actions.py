"""Every rule catches its row, mends what can be mended, and no row is lost or doubled."""

from datetime import date, timedelta

import pytest
from pyspark.sql import functions as F

from conf.rules import RULES, rules_of
from conf.settings import CleanSettings
from etl import clean_actions
from etl.clean_actions import judge_actions, keep_accepted, with_interest
from etl.refusal import to_quarantine
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
BAD = {
    "corrupt_record": {"corrupt_record": '{"user_id": "u1", "time', "user_id": None},
    "missing_user": {"user_id": "  "},
    "missing_poi": {"poi_id": None},
    "missing_time": {"action_ts_ms": None},
    "text_too_long": {"user_id": "x" * 5000},
    "unknown_action_type": {"action_type": "hover"},
    "time_in_seconds": {"action_ts_ms": NOON_MS // 1000},
    "time_in_microseconds": {"action_ts_ms": NOON_MS * 1000},
    "time_in_future": {"action_ts_ms": NOON_MS + 13 * HOUR_MS},
    "time_too_early": {"action_ts_ms": NOON_MS // 2},
    "poi_place_swapped": {
        "poi_lon": 52.36,
        "poi_lat": 4.89,
    },  # in range, but at the catalogue's place the other way round
    "poi_place_out_of_range": {"poi_lon": 400.0, "poi_lat": 400.0},
    "poi_place_zero": {"poi_lon": 0.0, "poi_lat": 0.0},
    "unknown_poi": {"poi_id": "p404"},
    "user_place_swapped": {"user_lon": 52.37, "user_lat": 4.90},
    "duplicate_id": {"action_id": "good", "action_ts_ms": NOON_MS + 1},
}
MENDED = {
    "user_place_out_of_range": {"user_lat": 252.0},
    "user_place_zero": {"user_lon": 0.0, "user_lat": 0.0},
    "poi_place_far": {"poi_lon": 5.2},
    "tz_missing": {"tz_offset_min": None},
    "tz_out_of_range": {"tz_offset_min": 2000},
}


@pytest.fixture(scope="module")
def judged(spark):
    rows = [action(action_id="good"), action(action_id="good"), action(action_id=None)]
    rows += [action(**{"action_id": f"bad {code}", **fields}) for code, fields in BAD.items()]
    rows += [action(**{"action_id": f"mended {code}", **fields}) for code, fields in MENDED.items()]
    raw = frame_of(spark, "raw_actions", rows)
    # Four slots of one POI that moved: the one of the day of the action counts.
    later = {**SLOT, "poi_id": "p1", "valid_from": DAY + timedelta(days=9), "inner_id": 7}
    slots = frame_of(
        spark, "poi_index", [{**SLOT, "poi_id": "p1", "valid_to": DAY + timedelta(days=9)}, later]
    )
    known = frame_of(spark, "cleaned_actions", [])
    return judge_actions(raw, slots, known, day=DAY, settings=CleanSettings()).cache()


def test_every_refusing_rule_has_a_row_here_and_catches_it(judged):
    assert list(BAD) == [rule.code for rule in rules_of("raw_actions", "refuse")]
    rows = judged.where("status = 'refused'").select("reason", "detail", "action_id").collect()

    assert {row["reason"] for row in rows} == set(BAD)
    assert len(rows) == len(BAD)
    details = {row["reason"]: row["detail"] for row in rows}
    assert details["unknown_action_type"] == "action_type=hover"
    assert details["poi_place_zero"] == "poi_lon=0.0, poi_lat=0.0"
    assert len(details["text_too_long"]) <= 200


def test_every_repairing_rule_keeps_its_row_with_a_note(judged):
    assert set(MENDED) == {rule.code for rule in rules_of("raw_actions", "repair")}
    rows = {row["action_id"]: row for row in keep_accepted(judged).collect()}

    assert {code: rows[f"mended {code}"]["repairs"] for code in MENDED} == {code: [code] for code in MENDED}
    assert rows["mended user_place_zero"]["user_lon"] is None
    assert rows["mended poi_place_far"]["poi_lon"] == 4.89
    assert rows["mended tz_missing"]["tz_offset_min"] == 0


def test_rows_in_are_accepted_plus_refused_plus_dropped(judged):
    counts = {row["status"]: row["count"] for row in judged.groupBy("status").count().collect()}

    assert counts == {"accepted": 2 + len(MENDED), "refused": len(BAD), "dropped": 1}


def test_an_action_without_id_gets_one_from_its_content_and_the_slot_of_its_day(judged):
    (row,) = keep_accepted(judged).where("length(action_id) = 64").collect()

    assert (row["event_date"], row["inner_id"], row["action_type_id"]) == (DAY, 0, 0)


def test_refused_rows_keep_their_payload_and_equal_ones_are_numbered(spark):
    refused = frame_of(spark, "raw_actions", [action(user_id=None), action(user_id=None)])
    refused = refused.withColumns({"reason": F.lit("missing_user"), "detail": F.lit("user_id=null")})

    rows = to_quarantine(
        refused, source_table="raw_actions", payload_columns=clean_actions.PAYLOAD_COLUMNS
    ).collect()

    assert sorted(row["duplicate_no"] for row in rows) == [0, 1]
    assert len({row["row_hash"] for row in rows}) == 1
    assert '"user_id":null' in rows[0]["payload"]


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
    categories = spark.createDataFrame([(1, True), (2, False)], "category_id int, is_interest boolean")
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
