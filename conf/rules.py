"""The rules of cleansing: every reason why a row is refused, repaired or flagged, in one table.

`etl/clean_actions.py` and `etl/poi_index.py` hold one condition per rule; a test keeps them in step. Within a
table the first rule that matches gives the reason, so the order is part of the contract. Standard library
only.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["refuse", "repair", "flag"]


@dataclass(frozen=True)
class Rule:
    """One way in which a delivered row can be bad.

    Attributes:
        code: reason code in `quarantined_rows.reason` or `cleaned_actions.repairs`.
        table: raw table that it is checked on.
        severity: `refuse` sends the row to quarantine, `repair` keeps it with a value mended, `flag` keeps it
            as it is.
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


def _poi(code: str, columns: str, explanation: str, example: str) -> Rule:
    return Rule(code, "raw_pois", "refuse", tuple(columns.split()), explanation, example)


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
        "missing_time", "refuse", "action_ts_ms", "no time: the action has no place in a history", "null"
    ),
    _action(
        "text_too_long",
        "refuse",
        "action_id user_id poi_id action_type",
        "an id longer than clean.max_text_length: a broken export",
        "an id of 100,000 letters",
    ),
    _action(
        "unknown_action_type", "refuse", "action_type", "not in the closed list of conf/tokens.py", "hover"
    ),
    _action("time_in_seconds", "refuse", "action_ts_ms", "a plausible time if read as seconds", "1767225600"),
    _action(
        "time_in_microseconds",
        "refuse",
        "action_ts_ms",
        "a plausible time if read as microseconds",
        "1767225600000000",
    ),
    _action("time_in_future", "refuse", "action_ts_ms", "after the end of the day of delivery", "next week"),
    _action(
        "time_too_early",
        "refuse",
        "action_ts_ms",
        "before clean.earliest_day: there was no service",
        "1970-01-20",
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
        "unknown_poi", "refuse", "poi_id", "the catalogue has never held this POI", "poi_id of a test system"
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
        "user_place_out_of_range",
        "repair",
        "user_lon user_lat",
        "no such place on earth, or half of a place: the user's place becomes unknown",
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
        "tz_missing",
        "repair",
        "tz_offset_min",
        "no time zone: the nautical one of the longitude is used",
        "null",
    ),
    _action(
        "tz_out_of_range", "repair", "tz_offset_min", "no such time zone: the nautical one is used", "2000"
    ),
    _poi("poi_missing_id", "poi_id", "no id: nothing could refer to it", "poi_id null or blank"),
    _poi(
        "poi_text_too_long",
        "poi_id name category category_path",
        "an id or a name longer than clean.max_text_length: a broken export",
        "a name of 100,000 letters",
    ),
    _poi("poi_missing_place", "poi_lon poi_lat", "no place: it lies in no block", "null"),
    _poi(
        "poi_swapped",
        "poi_lon poi_lat",
        "longitude and latitude are swapped: in range only the other way round",
        "lon 52.4, lat 104.9",
    ),
    _poi(
        "poi_out_of_range", "poi_lon poi_lat", "no such place on earth, either way round", "lat 95, lon 300"
    ),
    _poi("poi_zero", "poi_lon poi_lat", "(0, 0): a default where a place should be", "lon 0, lat 0"),
)


def rules_of(table: str, severity: Severity) -> tuple[Rule, ...]:
    """Returns the rules of a raw table of one severity, in the order in which they are tried."""
    return tuple(rule for rule in RULES if rule.table == table and rule.severity == severity)
