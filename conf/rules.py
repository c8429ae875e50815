"""The rules of cleansing: every reason why a row is refused, dropped, repaired or flagged, in one table.

`etl/columns/action_rules.py`, `etl/tables/clean_actions.py`, `etl/tables/poi_index.py`, `etl/columns/request_rules.py`,
`etl/columns/impression_rules.py` and `etl/tables/profiles.py` hold one condition per rule; tests keep them in step.
Within a table the first refusing rule that matches gives the reason, so the order is part of the contract. The codes
under which the feature jobs (`udfs/`) refuse rows stand here too, so that every code in `quarantined_rows` is explained
in one place. Standard library only.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["refuse", "drop", "repair", "flag"]


@dataclass(frozen=True)
class Rule:
    """One way in which a delivered row can be bad.

    Attributes:
        code: reason code in `quarantined_rows.reason` or `cleaned_actions.repairs`; of dropped rows, and of repaired
            rows of other tables than actions, only the number is kept.
        table: table whose rows it is checked on.
        severity: `refuse` sends the row to quarantine, `drop` leaves out what is there already, `repair`
            keeps the row with a value repaired, `flag` keeps it as it is.
        columns: columns whose values go into `quarantined_rows.detail`.
        explanation: what is wrong and what follows from it, for whoever reads the funnel.
        example: a value that it catches.
    """

    code: str
    table: str
    severity: Severity
    columns: tuple[str, ...]
    explanation: str
    example: str


def _action(code: str, severity: Severity, columns: str, explanation: str, example: str) -> Rule:
    return Rule(code, "raw_actions", severity, tuple(columns.split()), explanation, example)


def _poi(code: str, severity: Severity, columns: str, explanation: str, example: str) -> Rule:
    return Rule(code, "raw_pois", severity, tuple(columns.split()), explanation, example)


def _impression(code: str, severity: Severity, columns: str, explanation: str, example: str) -> Rule:
    return Rule(code, "raw_impressions", severity, tuple(columns.split()), explanation, example)


def _request(code: str, severity: Severity, columns: str, explanation: str, example: str) -> Rule:
    return Rule(code, "ranking_requests", severity, tuple(columns.split()), explanation, example)


def _profile(code: str, severity: Severity, columns: str, explanation: str, example: str) -> Rule:
    return Rule(code, "raw_profiles", severity, tuple(columns.split()), explanation, example)


def _of_request(table: str, prefix: str, ids: str) -> tuple[Rule, ...]:
    """Returns the rules on what a request says of itself, for a table that holds requests."""
    place, time = "user_lon user_lat", "request_ts_ms"
    found: tuple[tuple[str, Severity, str, str, str], ...] = (
        ("missing_id", "refuse", "request_id", "no id, or a word for nothing that several requests have", "null, NULL"),
        ("missing_user", "refuse", "user_id", "no user: there is no history to look up", "user_id null or blank"),
        ("missing_time", "refuse", time, "no time, or one of a wrong type: what was known then?", "null, yesterday"),
        ("text_too_long", "refuse", ids, "an id longer than clean.max_text_length", "an id of 100,000 letters"),
        ("placeholder_user", "refuse", "user_id", "a word for nothing in place of a user", "user_id NULL, NaN"),
        ("broken_text", "refuse", ids, "an id with a control character or broken UTF-8", "u\\x00123"),
        ("time_negative", "refuse", time, "before 1970: an overflow or a wrong sign", "-1767225600000"),
        ("time_zero", "refuse", time, "0: a default where a time should be", "0"),
        ("time_in_seconds", "refuse", time, "a plausible time if read as seconds", "1767225600"),
        (
            "time_in_microseconds", "refuse", time,
            "a plausible time if read as microseconds: all of the history would lie before it", "1767225600000000",
        ),
        ("time_in_nanoseconds", "refuse", time, "a plausible time if read as nanoseconds", "1767225600000000000"),
        (
            "time_in_future", "refuse", time,
            "after the end of the day (of delivery, or --day): what will be known then is not known yet", "next week",
        ),
        ("time_too_early", "refuse", time, "before clean.earliest_day: there was no service", "1999-12-31"),
        (
            "place_swapped", "refuse", place,
            "longitude and latitude of the user are swapped: on earth only the other way round", "lon 40.7, lat -120",
        ),
        ("id_trimmed", "repair", ids, "blanks around an id are cut off", "r1 with a line end"),
        ("place_not_finite", "repair", place, "NaN or infinite: the place becomes unknown", "lon NaN"),
        ("place_incomplete", "repair", place, "half of a place: the place becomes unknown", "lon 4.9, lat null"),
        ("place_out_of_range", "repair", place, "no such place on earth: it becomes unknown", "lat 123.4"),
        ("place_zero", "repair", place, "(0, 0): the place becomes unknown", "lon 0, lat 0"),
        ("tz_out_of_range", "repair", "tz_offset_min", "no such time zone: as if none were given", "100000"),
        (
            "tz_far_from_place", "flag", "tz_offset_min user_lon",
            "a time zone that does not fit the user's place, or is in hours; it is taken as it is", "-4",
        ),
    )  # fmt: skip
    return tuple(
        Rule(f"{prefix}_{code}", table, severity, tuple(columns.split()), explanation, example)
        for code, severity, columns, explanation, example in found
    )


def _feature(code: str, table: str, columns: str, explanation: str, example: str) -> Rule:
    return Rule(code, table, "refuse", tuple(columns.split()), explanation, example)


RULES: tuple[Rule, ...] = (
    _action(
        "corrupt_record",
        "refuse",
        "corrupt_record",
        "the record could not be parsed",
        '{"user_id": "u1", "time',
    ),
    _action(
        "missing_user",
        "refuse",
        "user_id",
        "no user: the action belongs to no history",
        "user_id null or blank",
    ),
    _action("missing_poi", "refuse", "poi_id", "no POI: there is nothing to learn", "poi_id null or blank"),
    _action(
        "missing_time",
        "refuse",
        "action_ts_ms",
        "no time, or one of a wrong type: the action has no place in a history",
        'time "yesterday", which is read as null',
    ),
    _action(
        "missing_action_type",
        "refuse",
        "action_type",
        "no action type: nobody knows what was done",
        "action_type null or blank",
    ),
    _action(
        "text_too_long",
        "refuse",
        "action_id user_id poi_id action_type",
        "an id longer than clean.max_text_length: a broken export",
        "an id of 100,000 letters",
    ),
    _action(
        "placeholder_user",
        "refuse",
        "user_id",
        "a word for nothing in place of a user: it would join strangers in one history",
        "user_id NULL, None, NaN",
    ),
    _action(
        "placeholder_poi",
        "refuse",
        "poi_id",
        "a word for nothing in place of a POI",
        "poi_id null, undefined, \\N",
    ),
    _action(
        "broken_text",
        "refuse",
        "action_id user_id poi_id",
        "an id with a control character or broken UTF-8: whom or what it means is lost",
        "u\\x00123, p\\ufffd7",
    ),
    _action(
        "unknown_action_type", "refuse", "action_type", "not in the closed list of conf/tokens.py", "hover"
    ),
    _action(
        "time_negative",
        "refuse",
        "action_ts_ms",
        "before 1970: an overflow or a wrong sign",
        "-1767225600000",
    ),
    _action("time_zero", "refuse", "action_ts_ms", "0: a default where a time should be", "0"),
    _action("time_in_seconds", "refuse", "action_ts_ms", "a plausible time if read as seconds", "1767225600"),
    _action(
        "time_in_microseconds",
        "refuse",
        "action_ts_ms",
        "a plausible time if read as microseconds",
        "1767225600000000",
    ),
    _action(
        "time_in_nanoseconds",
        "refuse",
        "action_ts_ms",
        "a plausible time if read as nanoseconds",
        "1767225600000000000",
    ),
    _action("time_in_future", "refuse", "action_ts_ms", "after the end of the day of delivery", "next week"),
    _action(
        "time_too_early",
        "refuse",
        "action_ts_ms",
        "before clean.earliest_day: there was no service",
        "1999-12-31",
    ),
    _action(
        "poi_place_not_finite",
        "refuse",
        "poi_lon poi_lat",
        "NaN or infinite: the outcome of a failed computation",
        "lon NaN, lat Infinity",
    ),
    _action(
        "poi_place_swapped",
        "refuse",
        "poi_lon poi_lat",
        "longitude and latitude of the POI are swapped: on earth, or in the catalogue's place, only so",
        "lon 40.7, lat -74.0 for New York",
    ),
    _action(
        "poi_place_out_of_range",
        "refuse",
        "poi_lon poi_lat",
        "no such place on earth, either way round",
        "lon 400",
    ),
    _action(
        "poi_place_zero",
        "refuse",
        "poi_lon poi_lat",
        "(0, 0): a default where a place should be",
        "lon 0, lat 0",
    ),
    _action(
        "unknown_poi",
        "refuse",
        "poi_id",
        "the catalogue did not hold this POI; if it comes to, python -m etl replay takes the action in",
        "poi_id of a test system",
    ),
    _action(
        "user_place_swapped",
        "refuse",
        "user_lon user_lat",
        "longitude and latitude of the user are swapped: in range, or near the POI, only the other way round",
        "lon 52.4, lat 4.9 for Amsterdam",
    ),
    _action(
        "duplicate_id",
        "refuse",
        "action_id",
        "the id of an accepted action, with other content",
        "an id used twice",
    ),
    _action(
        "repeated_action",
        "refuse",
        "action_id user_id poi_id action_ts_ms",
        "same user, millisecond, POI and action type as another action of the delivery, under another id: sent twice",
        "a retry of the app with a new id",
    ),
    _action(
        "too_many_actions",
        "refuse",
        "user_id action_ts_ms",
        "beyond clean.max_actions_per_day of one user on one day: a bot or a test account; the earliest are kept",
        "the 2,001st action of a day",
    ),
    _action(
        "exact_duplicate",
        "drop",
        "action_id",
        "equal to an accepted action in every value: counted, not kept",
        "a file delivered twice",
    ),
    _action(
        "action_id_missing",
        "repair",
        "action_id",
        "no id, or a word for nothing: a hash of the content is the id",
        "action_id null, blank, None",
    ),
    _action(
        "id_trimmed",
        "repair",
        "action_id user_id poi_id",
        "blanks around an id are cut off",
        "p1 with a line end",
    ),
    _action(
        "action_type_spelling",
        "repair",
        "action_type",
        "a known action type but for case and blanks around it",
        "Click",
    ),
    _action(
        "user_place_not_finite",
        "repair",
        "user_lon user_lat",
        "NaN or infinite: the user's place becomes unknown",
        "lon NaN",
    ),
    _action(
        "user_place_incomplete",
        "repair",
        "user_lon user_lat",
        "half of a place: the user's place becomes unknown",
        "lon 4.9, lat null",
    ),
    _action(
        "user_place_out_of_range",
        "repair",
        "user_lon user_lat",
        "no such place on earth: the user's place becomes unknown",
        "lat 123.4",
    ),
    _action(
        "user_place_zero",
        "repair",
        "user_lon user_lat",
        "(0, 0): the user's place becomes unknown",
        "lon 0, lat 0",
    ),
    _action(
        "poi_place_far",
        "repair",
        "poi_lon poi_lat",
        "farther than clean.max_poi_shift_km from the catalogue's place, which is used",
        "a POI logged 12 km away",
    ),
    _action(
        "poi_place_incomplete",
        "repair",
        "poi_lon poi_lat",
        "half of a place, or a value of a wrong type: the catalogue's place is used",
        "lon null, lat 52.4",
    ),
    _action(
        "tz_missing",
        "repair",
        "tz_offset_min",
        "no time zone: the nautical one of the longitude is used",
        "null",
    ),
    _action(
        "tz_out_of_range", "repair", "tz_offset_min", "no such time zone: the nautical one is used", "2000"
    ),
    _action(
        "tz_far_from_place",
        "flag",
        "tz_offset_min user_lon poi_lon",
        "a time zone that does not fit the place (the POI's for a check-in): the wrong sign, or hours for minutes? It "
        "is taken as it is",
        "+300 or -4 in New York",
    ),
    _action(
        "before_poi_opened",
        "flag",
        "poi_id action_ts_ms",
        "more than a day before the catalogue's first sight of the POI",
        "an action of 2011 on a POI of 2024",
    ),
    _action(
        "after_poi_closed",
        "flag",
        "poi_id action_ts_ms",
        "more than a day after the POI closed, as far as the catalogue knows",
        "a click on a closed POI",
    ),
    _action(
        "impossible_speed",
        "flag",
        "user_lon user_lat action_ts_ms",
        "the user would have come from the last action's place faster than clean.max_speed_kmh",
        "Paris, a minute after Tokyo",
    ),
    _poi("poi_missing_id", "refuse", "poi_id", "no id: nothing could refer to it", "poi_id null or blank"),
    _poi(
        "poi_text_too_long",
        "refuse",
        "poi_id name category category_path",
        "an id or a name longer than clean.max_text_length: a broken export",
        "a name of 100,000 letters",
    ),
    _poi("poi_placeholder_id", "refuse", "poi_id", "a word for nothing in place of an id", "poi_id NaN"),
    _poi("poi_broken_id", "refuse", "poi_id", "an id with a control character or broken UTF-8", "p\\ufffd7"),
    _poi(
        "poi_missing_place",
        "refuse",
        "poi_lon poi_lat",
        "no place, or half of one: it lies in no block",
        "null",
    ),
    _poi(
        "poi_not_finite",
        "refuse",
        "poi_lon poi_lat",
        "NaN or infinite: the outcome of a failed geocoding",
        "lon NaN",
    ),
    _poi(
        "poi_swapped",
        "refuse",
        "poi_lon poi_lat",
        "longitude and latitude are swapped: in range, or near the place known so far, only the other way round",
        "lon 52.4, lat 104.9",
    ),
    _poi(
        "poi_out_of_range",
        "refuse",
        "poi_lon poi_lat",
        "no such place on earth, either way round",
        "lat 95, lon 300",
    ),
    _poi(
        "poi_zero", "refuse", "poi_lon poi_lat", "(0, 0): a default where a place should be", "lon 0, lat 0"
    ),
    _poi(
        "poi_moved_too_far",
        "refuse",
        "poi_id poi_lon poi_lat",
        "farther than clean.max_poi_move_km from its place so far: an id used again, or a wrong place; if the place so "
        "far is the wrong one, run poi_index of the day with a larger bound: the POI moves",
        "a cafe of Paris in Rome",
    ),
    _poi(
        "poi_duplicate_id",
        "refuse",
        "poi_id name",
        "the id of another row of the day with other content; a closing, else the first in order, is kept",
        "an id used twice",
    ),
    _poi(
        "poi_exact_duplicate",
        "drop",
        "poi_id",
        "equal to another row of the day in every value: counted, not kept",
        "a page of the catalogue sent twice",
    ),
    _poi("poi_id_trimmed", "repair", "poi_id", "blanks around the id are cut off", "p1 with a line end"),
    _poi(
        "poi_first_seen_ahead",
        "repair",
        "first_seen_date",
        "first seen after the day of delivery: the day of delivery is used",
        "next year",
    ),
    _poi(
        "poi_shared_place",
        "flag",
        "poi_lon poi_lat",
        "one of more than clean.max_pois_at_place POIs at exactly this place: perhaps a geocoder's fallback",
        "4,202 POIs in the middle of a city",
    ),
    _poi("poi_name_missing", "flag", "name", "no name: kept, but its text says little to an encoder", "null"),
    _poi(
        "poi_category_missing",
        "flag",
        "category category_path",
        "no category: kept under category 0, as of interest",
        "null",
    ),
    *_of_request("raw_impressions", "impression", "request_id user_id poi_id"),
    _impression(
        "impression_missing_poi",
        "refuse",
        "poi_id",
        "no POI, or a word for nothing: what was shown?",
        "poi_id null, None",
    ),
    _impression(
        "impression_bad_position",
        "refuse",
        "position",
        "no position, or one before the first",
        "position 0",
    ),
    _impression(
        "impression_bad_label", "refuse", "label", "neither 1 (clicked) nor 0 (shown)", "label -1, null"
    ),
    _impression(
        "impression_of_other_request",
        "refuse",
        "request_id user_id request_ts_ms user_lon user_lat tz_offset_min",
        "user, time, place or time zone differ from those of the request's first row in order (of the last delivery)",
        "a request id used again by another user",
    ),
    _impression(
        "impression_repeated",
        "refuse",
        "request_id poi_id position label",
        "the same POI of the same request once more in a delivery, with other content; the first in order is kept",
        "a POI shown at two positions",
    ),
    _impression(
        "impression_exact_duplicate",
        "drop",
        "request_id poi_id",
        "equal to another row of the delivery in every value: counted, not kept",
        "a log delivered at least once",
    ),
    _impression(
        "impression_delivered_again",
        "drop",
        "request_id poi_id",
        "a later delivery holds this POI of this request, and is taken: counted, not kept",
        "a request whose clicks came a day later",
    ),
    _impression(
        "impression_no_live_slot",
        "drop",
        "poi_id",
        "no slot of the index was live on the day of the request: no sample of it, counted",
        "a POI closed the day before",
    ),
    _profile(
        "profile_missing_user", "refuse", "user_id", "no user, or a word for nothing", "user_id null, None"
    ),
    _profile(
        "profile_missing_attribute",
        "refuse",
        "attribute",
        "no attribute, or a word for nothing: what the value says is lost",
        "attribute null",
    ),
    _profile("profile_missing_value", "refuse", "value", "no value: nothing is said", "value null or blank"),
    _profile(
        "profile_text_too_long",
        "refuse",
        "user_id attribute value",
        "longer than clean.max_text_length: a broken export",
        "a value of 100,000 letters",
    ),
    _profile(
        "profile_broken_text",
        "refuse",
        "user_id attribute value",
        "a control character or broken UTF-8",
        "18\\x00-24",
    ),
    _profile(
        "profile_conflicting",
        "refuse",
        "user_id attribute value",
        "another value of one attribute of one user on one day; the largest in order of text is kept",
        "18-24 and 25-34",
    ),
    _profile(
        "profile_exact_duplicate",
        "drop",
        "user_id attribute value",
        "delivered twice on one day: counted, not kept",
        "a page sent twice",
    ),
    _profile(
        "profile_trimmed",
        "repair",
        "user_id attribute value",
        "blanks around an id or a value are cut off",
        "u1 with a line end",
    ),
    *_of_request("ranking_requests", "request", "request_id user_id"),
    _request(
        "request_repeated",
        "refuse",
        "request_id",
        "the id of another request of the delivery, with other content; the first in order is kept",
        "an id used twice",
    ),
    _request(
        "request_exact_duplicate",
        "drop",
        "request_id",
        "equal to another row of the delivery in every value: counted, not kept",
        "a log delivered at least once",
    ),
    _request(
        "request_action_type_spelling",
        "repair",
        "action_type",
        "an action type with capitals, or blanks around it",
        "Click",
    ),
    _feature(
        "embed_user_failed",
        "action_sequences",
        "user_id",
        "the model failed on this user's history: the user has no new vector",
        "a vector that is not finite",
    ),
    _feature(
        "embed_poi_failed",
        "poi_index",
        "poi_id",
        "the model failed on this POI: it has no new vector",
        "a vector that is not finite",
    ),
    _feature(
        "image_missing_id",
        "raw_poi_images",
        "poi_id",
        "a picture without a POI: it cannot be assigned to one",
        "poi_id null, NULL or blank",
    ),
    _feature(
        "image_missing",
        "raw_poi_images",
        "poi_id",
        "neither picture nor URI (or no vector, where vectors are given): the POI keeps the vector it has",
        "image and image_uri null",
    ),
    _feature(
        "image_too_large",
        "raw_poi_images",
        "poi_id image_uri",
        "more bytes than features.max_image_mib or more pixels than features.max_image_megapixels: not decoded",
        "a scan of 900 megapixels",
    ),
    _feature(
        "image_not_found",
        "raw_poi_images",
        "poi_id image_uri",
        "a URI that does not lie below features.image_root, or a file that cannot be read there",
        "image_uri ../secrets.png",
    ),
    _feature(
        "image_broken",
        "raw_poi_images",
        "poi_id image_uri",
        "bytes that are no complete JPEG, PNG, BMP, GIF or WebP file: the POI keeps the vector it has",
        "a download that was cut off",
    ),
    _feature(
        "image_vector_invalid",
        "raw_poi_images",
        "poi_id",
        "a vector with another length than those of most POIs, or with a value that is null, NaN or infinite",
        "512 numbers where others have 768",
    ),
    _feature(
        "image_encoder_failed",
        "raw_poi_images",
        "poi_id image_uri",
        "the encoder failed on this picture, or gave a vector that is not finite",
        "an encoder of one's own that expects square pictures",
    ),
    _feature(
        "score_no_live_slot",
        "ranking_requests",
        "request_id",
        "a candidate that the index does not hold as live: it is not scored",
        "a POI closed yesterday",
    ),
    _feature(
        "score_no_candidate_id",
        "ranking_requests",
        "request_id candidate_poi_ids",
        "a candidate that is no id: missing, a word for nothing, too long or broken text; the others are scored",
        "null among the candidates",
    ),
    _feature(
        "score_unknown_action_type",
        "ranking_requests",
        "request_id",
        "a request for an action type that is not in conf/tokens.py: none of it is scored",
        "hover",
    ),
    _feature(
        "score_failed",
        "ranking_requests",
        "request_id",
        "the model failed on this request: none of it is scored",
        "a score that is not finite",
    ),
    _feature(
        "generate_unknown_action_type",
        "ranking_requests",
        "request_id",
        "a request for an action type that is not in conf/tokens.py: nothing is generated",
        "hover",
    ),
    _feature(
        "generate_failed",
        "ranking_requests",
        "request_id",
        "the model failed on this request: nothing is generated",
        "a probability that is not finite",
    ),
)


def rules_of(table: str, severity: Severity) -> tuple[Rule, ...]:
    """Returns the rules of a table of one severity, in the order in which they are tried."""
    return tuple(rule for rule in RULES if rule.table == table and rule.severity == severity)
