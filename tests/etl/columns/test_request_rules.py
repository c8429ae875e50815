"""Requests, impressions and profiles: every rule catches its row, and no row is lost or doubled."""

from datetime import timedelta

import pytest

from conf.rules import rules_of
from conf.settings import CleanSettings
from etl.columns import impression_rules, request_rules
from etl.columns.impression_rules import judge_impressions
from etl.columns.refusal import count_rows, tally, to_quarantine
from etl.columns.request_rules import is_no_id, judge_requests
from etl.tables import profiles
from etl.tables.profiles import build_profile_ids, judge_profiles, profile_states
from tests.rows import DAY, HOUR_MS, NOON_MS, frame_of

pytestmark = pytest.mark.spark
SETTINGS = CleanSettings(max_text_length=16)
NAN = float("nan")
TOMORROW_MS = NOON_MS + 13 * HOUR_MS
OF_REQUEST = {
    "missing_id": {"request_id": " "},
    "missing_user": {"user_id": "  "},
    "missing_time": {"request_ts_ms": None},
    "text_too_long": {"user_id": "u" * 17},
    "placeholder_user": {"user_id": "None"},
    "broken_text": {"user_id": "u\ufffd1"},
    "time_negative": {"request_ts_ms": -5},
    "time_zero": {"request_ts_ms": 0},
    "time_in_seconds": {"request_ts_ms": NOON_MS // 1000},
    "time_in_microseconds": {"request_ts_ms": NOON_MS * 1000},
    "time_in_nanoseconds": {"request_ts_ms": NOON_MS * 1_000_000},
    "time_in_future": {"request_ts_ms": TOMORROW_MS},
    "time_too_early": {"request_ts_ms": NOON_MS // 2},
    "place_swapped": {"user_lon": 40.7, "user_lat": -120.0},
}
OF_REQUEST_MENDED = {
    "id_trimmed": {"user_id": "ann\u00a0\r\n"},
    "place_not_finite": {"user_lon": NAN},
    "place_incomplete": {"user_lat": None},
    "place_out_of_range": {"user_lon": 400.0},
    "place_zero": {"user_lon": 0.0, "user_lat": 0.0},
    "tz_out_of_range": {"tz_offset_min": 2**31 - 1},
    "tz_far_from_place": {"tz_offset_min": 1},
}


def request(**fields):
    good = {
        "day": DAY, "request_id": "r1", "user_id": "ann", "request_ts_ms": NOON_MS, "tz_offset_min": 60,
        "user_lon": 4.9, "user_lat": 52.4, "action_type": "click", "candidate_poi_ids": ["p1"], "is_simulated": False,
    }  # fmt: skip
    return {**good, **fields}


def shown(**fields):
    good = {**request(), "poi_id": "p1", "position": 1, "label": 0}
    del good["action_type"], good["candidate_poi_ids"]
    return {**good, **fields}


def judged_by(judged, key):
    return {row[key]: (row["status"], row["reason"]) for row in judged.collect()}


def codes(table, severity, prefix):
    return [rule.code for rule in rules_of(table, severity) if rule.code.startswith(prefix)]


@pytest.fixture(scope="module")
def requests(spark):
    rows = [
        request(request_id=f"bad {code}"[:16], **fields)
        for code, fields in OF_REQUEST.items()
        if "request_id" not in fields
    ]
    rows += [request(**OF_REQUEST["missing_id"])]
    rows += [request(request_id=f"ok {code}"[:16], **fields) for code, fields in OF_REQUEST_MENDED.items()]
    rows += [
        request(request_id="spelling", action_type="Click "),
        request(request_id="huge", request_ts_ms=9 * 10**18),
        request(request_id="silent", action_type=" ", tz_offset_min=None, user_lon=None, user_lat=None),
        request(request_id="padded", candidate_poi_ids=["p1  ", None]),
        request(request_id="no candidates", candidate_poi_ids=None),
        request(request_id="twice"),
        request(request_id="twice"),
        request(
            request_id="twice ", request_ts_ms=NOON_MS + 1
        ),  # the same id once trimmed, with other content
    ]
    return judge_requests(frame_of(spark, "ranking_requests", rows), day=DAY, settings=SETTINGS).cache()


def test_every_rule_of_requests_catches_its_row(requests):
    refusing = codes("ranking_requests", "refuse", "request_")
    repairing = codes("ranking_requests", "repair", "request_") + codes(
        "ranking_requests", "flag", "request_"
    )
    assert refusing == [f"request_{code}" for code in OF_REQUEST] + ["request_repeated"]

    counts = tally(count_rows(requests).collect())

    # Of a time of 9e18 and of the day after tomorrow one says the same: it is to come.
    assert counts["reasons"] == {**dict.fromkeys(refusing, 1), "request_time_in_future": 2}
    assert set(counts["repairs"]) == set(repairing)
    assert counts["statuses"] == {"accepted": 7 + 5, "refused": len(refusing) + 1, "dropped": 1}
    refused = {row["reason"]: row for row in requests.where("status = 'refused'").collect()}
    assert refused["request_repeated"]["request_id"] == "twice "
    assert refused["request_time_negative"]["detail"] == "request_ts_ms=-5"


def test_accepted_requests_hold_clean_values_alone(requests):
    kept = {row["request_id"]: row for row in request_rules.keep_accepted(requests).collect()}

    assert kept["ok id_trimmed"]["user_id"] == "ann"
    places = {name: (row["user_lon"], row["user_lat"]) for name, row in kept.items()}
    assert {name for name, place in places.items() if place == (None, None)} == {
        "ok place_not_fin", "ok place_incompl", "ok place_out_of_", "ok place_zero", "silent"
    }  # fmt: skip
    assert kept["ok tz_out_of_ran"]["tz_offset_min"] is None
    assert kept["silent"]["action_type"] is None
    assert kept["spelling"]["action_type"] == "click"
    assert kept["padded"]["candidate_poi_ids"] == ["p1", None]
    assert kept["no candidates"]["candidate_poi_ids"] == []


def test_any_refused_request_fits_the_quarantine(spark):
    empty = dict.fromkeys(("request_id", "user_id", "request_ts_ms", "candidate_poi_ids", "action_type"))
    rows = [request(**empty), request(**empty), request(user_id=None, user_lon=NAN, candidate_poi_ids=[None])]
    judged = judge_requests(frame_of(spark, "ranking_requests", rows), day=DAY, settings=SETTINGS)

    found = to_quarantine(
        judged, source_table="ranking_requests", payload_columns=request_rules.PAYLOAD_COLUMNS
    ).collect()

    assert all(value is not None for row in found for value in row)
    assert sorted(row["duplicate_no"] for row in found) == [0, 0, 1]
    assert {row["reason"] for row in found} == {"request_missing_id", "request_missing_user"}
    assert any('"candidate_poi_ids":[null]' in row["payload"] for row in found)


def test_a_word_for_nothing_is_an_id_as_long_as_one_request_has_it(spark):
    rows = [request(request_id="nan"), request(request_id="nan"), request(request_id="r2", user_id="bob")]

    alone = judge_requests(frame_of(spark, "ranking_requests", rows), day=DAY, settings=SETTINGS)
    rows += [request(request_id="NULL", user_id="bob")]
    shared = judge_requests(frame_of(spark, "ranking_requests", rows), day=DAY, settings=SETTINGS)

    assert tally(count_rows(alone).collect())["statuses"] == {"accepted": 2, "refused": 0, "dropped": 1}
    assert tally(count_rows(shared).collect())["reasons"] == {"request_missing_id": 3}


def test_what_cannot_be_the_id_of_a_candidate(spark):
    frame = spark.createDataFrame([("p1",), ("",), (None,), ("NaN",), ("p\x00",), ("p" * 17,)], "poi string")

    found = [row[0] for row in frame.select(is_no_id(frame["poi"], max_length=16)).collect()]

    assert found == [False, True, True, True, True, True]


def test_every_rule_of_impressions_catches_its_row(spark):
    bad = {f"impression_{code}": fields for code, fields in OF_REQUEST.items()} | {
        "impression_missing_poi": {"poi_id": "None"},
        "impression_bad_position": {"position": 0},
        "impression_bad_label": {"label": -1},
    }
    rows = [shown(**{"request_id": f"bad {n}", **fields}) for n, fields in enumerate(bad.values())]
    rows += [shown(request_id=f"ok {code}"[:16], **fields) for code, fields in OF_REQUEST_MENDED.items()]
    judged = judge_impressions(frame_of(spark, "raw_impressions", rows), settings=SETTINGS)

    counts = tally(count_rows(judged).collect())

    comparing = [impression_rules.OTHER_REQUEST, impression_rules.REPEATED]
    assert codes("raw_impressions", "refuse", "impression_") == [*bad, *comparing]
    assert counts["reasons"] == dict.fromkeys(sorted(bad), 1)
    assert counts["repairs"] == dict.fromkeys(sorted(f"impression_{code}" for code in OF_REQUEST_MENDED), 1)


def test_rows_of_a_request_agree_and_a_poi_counts_once(spark):
    before = DAY - timedelta(days=1)
    early = {"day": before, "request_ts_ms": NOON_MS - 24 * HOUR_MS}
    rows = {
        "first": shown(),
        "second": shown(poi_id="p2", position=2, label=1),
        "place unknown": shown(poi_id="p3", position=3, user_lon=NAN),
        "other user": shown(poi_id="p4", position=4, user_id="bob"),
        "other time": shown(poi_id="p5", position=5, request_ts_ms=NOON_MS + 1),
        "other place": shown(poi_id="p6", position=6, user_lon=5.0),
        "other position": shown(poi_id="p2 ", position=7),
        "before, same request": shown(
            day=before, request_ts_ms=NOON_MS, poi_id="p1"
        ),  # in the future of its day
        "before, other request": shown(poi_id="p9", **early),
        "again, before": shown(request_id="r2", poi_id="p1", **early),
        "again, now": shown(request_id="r2", poi_id="p1", label=1, **{**early, "day": DAY}),
        "again, only before": shown(request_id="r2", poi_id="p2", position=2, **early),
    }
    frame = frame_of(spark, "raw_impressions", [*rows.values(), rows["second"]])
    names = {tuple(row.values()): name for name, row in rows.items()}

    other, again = "impression_of_other_request", "impression_delivered_again"
    expected = [
        ("first", "accepted", ""),
        ("second", "accepted", ""),
        ("second", "dropped", "impression_exact_duplicate"),
        ("place unknown", "accepted", ""),
        ("other user", "refused", other),
        ("other time", "refused", other),
        ("other place", "refused", other),
        ("other position", "refused", "impression_repeated"),
        ("before, same request", "refused", "impression_time_in_future"),
        ("before, other request", "refused", other),  # today the id stands for another request
        ("again, before", "dropped", again),
        ("again, now", "accepted", ""),
        ("again, only before", "accepted", ""),
    ]
    for partitions in (1, 3):
        judged = judge_impressions(frame.repartition(partitions), settings=SETTINGS).collect()
        found = sorted(
            (
                names.get(tuple(row[key] for key in rows["first"]), "place unknown"),
                row["status"],
                row["reason"] or "",
            )
            for row in judged
        )

        other, again = "impression_of_other_request", "impression_delivered_again"
        assert found == sorted(expected)


def profile(user, value, attribute="age_group", day=DAY):
    return {"day": day, "user_id": user, "attribute": attribute, "value": value}


def test_every_rule_of_profiles_catches_its_row(spark):
    bad = {
        "profile_missing_user": profile("null", "18-24"),
        "profile_missing_attribute": profile("ann", "18-24", " "),
        "profile_missing_value": profile("ann", None),
        "profile_text_too_long": profile("ann", "x" * 17),
        "profile_broken_text": profile("ann", "18\x00"),
        "profile_conflicting": profile("bob", "18-24"),
    }
    rows = [*bad.values(), profile("bob ", "25-34"), profile("bob", "25-34"), profile("cid", "none")]
    judged = judge_profiles(frame_of(spark, "raw_profiles", rows), settings=SETTINGS)

    counts = tally(count_rows(judged).collect())
    kept = profiles.keep_accepted(judged).collect()

    assert list(bad) == [rule.code for rule in rules_of("raw_profiles", "refuse")]
    assert counts["reasons"] == dict.fromkeys(sorted(bad), 1)
    assert counts["statuses"] == {"accepted": 2, "refused": 6, "dropped": 1}
    assert {tuple(row) for row in kept} == {
        (DAY, "bob", "age_group", "25-34"),
        (DAY, "cid", "age_group", "none"),  # a word for nothing may be a value
    }


def test_serving_and_training_take_the_same_of_two_values_in_any_order(spark):
    rows = [
        profile("ann", "18-24"),
        profile("ann", "25-34"),
        profile("ann", "99", day=DAY - timedelta(days=1)),
    ]

    for order in (rows, rows[::-1]):
        frame = frame_of(spark, "raw_profiles", order)
        (serving,) = build_profile_ids(frame).collect()
        training = profile_states(frame).where(f"day = DATE'{DAY}'").collect()

        assert [row["profile_ids"] for row in training] == [serving["profile_ids"]]
        (expected,) = build_profile_ids(frame_of(spark, "raw_profiles", [rows[1]])).collect()
        assert serving["profile_ids"] == expected["profile_ids"]
