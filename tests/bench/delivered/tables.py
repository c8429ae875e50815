"""Raw tables that a user writes: actions and POIs, requests, impressions and profiles, with planted damage."""

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from tests.bench.delivered import asked
from tests.bench.delivered.planted import DAY, INF, NAN, PLACEHOLDERS, TEXT, Planted, Poi
from tests.bench.delivered.ways import Writer

ACTIONS_FORM = " ".join(
    (
        *(TEXT - {"text_time", "text_tz", "text_place"}),
        "utf8",
        "number",
        "catalogue",
        "user_place",
        "action",
        "table",
    )
)
IMPRESSION_FORM = frozenset({"text", "number"})
ASKED_MS = int(datetime(2026, 2, 22, 23, 30, tzinfo=UTC).timestamp() * 1000)
"""After the last action of the day."""
SHOWN = ("p00001", "p00003", "p00005")
"""POIs of the actions."""


def write_raw_actions(root: Path, writer: Writer) -> list[Planted]:
    """Writes `raw_actions` as an engineer would, without the columns that only readers fill."""
    records = writer.records(ACTIONS_FORM, is_checkin=False) + writer.repeated(is_checkin=False)
    writer.rng.shuffle(records)
    for record in records:
        if record.is_later:  # no file that could hold it back: the rules refuse it
            record.is_later, record.refused = False, {*record.refused, "time_in_future"}
    columns = {
        "action_id": pa.string(), "user": pa.string(), "poi": pa.string(), "type": pa.string(), "time": pa.int64(),
        "tz": pa.int32(), "user_lon": pa.float64(), "user_lat": pa.float64(), "poi_lon": pa.float64(),
        "poi_lat": pa.float64(), "tag": pa.string(),
    }  # fmt: skip
    names = ("action_id", "user_id", "poi_id", "action_type", "action_ts_ms", "tz_offset_min", "user_lon", "user_lat",
             "poi_lon", "poi_lat", "category")  # fmt: skip
    for record in records:
        record.written = tuple(v for key in columns if isinstance(v := record.given[key], str) and v)
    arrays = {
        name: pa.array([asked.as_type(record.given[key], kind) for record in records], kind)
        for name, (key, kind) in zip(names, columns.items(), strict=True)
    }
    _write(root, "raw_actions", arrays, DAY)
    return records


def write_raw_pois(root: Path, pois: Sequence[Poi], rng: random.Random, num_each: int) -> list[Planted]:
    """Writes `raw_pois`: the POIs of the actions, and others with damage; the tag is the address."""
    records = []
    for number, poi in enumerate(pois):
        records.append(_poi_record(f"t9{number:06d}", poi))
    at = len(records)
    for name in POI_DAMAGES:
        for _ in range(num_each):
            tag = f"t9{at:06d}"
            at += 1
            place = Poi(f"q{at:06d}", round(10 + rng.random(), 6), round(50 + rng.random(), 6), 60, "Cafe")
            records += _damaged_poi(name, _poi_record(tag, place), rng)
    rng.shuffle(records)
    columns = {"poi_id": pa.string(), "name": pa.string(), "tag": pa.string(), "category": pa.string(),
               "poi_lon": pa.float64(), "poi_lat": pa.float64(), "first_seen": pa.date32()}  # fmt: skip
    names = ("poi_id", "name", "address", "category", "poi_lon", "poi_lat", "first_seen_date")
    for record in records:
        record.written = tuple(v for key in columns if isinstance(v := record.given[key], str) and v)
    arrays = {
        name: pa.array([record.given[key] for record in records], kind)
        for name, (key, kind) in zip(names, columns.items(), strict=True)
    }
    _write(root, "raw_pois", arrays, DAY)
    return records


POI_DAMAGES = (
    "id_null", "id_blank", "id_placeholder", "id_broken", "id_too_long", "name_too_long", "id_padded", "place_null",
    "place_half", "place_nan", "place_infinite", "place_swapped", "place_out_of_range", "place_zero", "equal",
    "other_content", "first_seen_ahead", "name_null", "category_null",
)  # fmt: skip


def _poi_record(tag: str, poi: Poi) -> Planted:
    given: dict[str, object] = {"poi_id": poi.poi_id, "name": f"POI {poi.poi_id}", "tag": tag, "category": poi.category,
                                "poi_lon": poi.lon, "poi_lat": poi.lat, "first_seen": date(2026, 1, 1)}  # fmt: skip
    truth = {"poi_id": poi.poi_id, "poi_lon": poi.lon, "poi_lat": poi.lat, "valid_from": date(2026, 1, 1)}
    return Planted(tag, poi, given, truth, table="raw_pois")


def _damaged_poi(name: str, record: Planted, rng: random.Random) -> list[Planted]:
    given, poi_id = record.given, str(record.given["poi_id"])
    record.damages = (name,)
    changes: dict[str, tuple[str, dict[str, object]]] = {
        "id_null": ("poi_missing_id", {"poi_id": None}),
        "id_blank": ("poi_missing_id", {"poi_id": " "}),
        "id_placeholder": ("poi_placeholder_id", {"poi_id": rng.choice(PLACEHOLDERS)}),
        "id_broken": ("poi_broken_id", {"poi_id": f"{poi_id}\x07"}),
        "id_too_long": ("poi_text_too_long", {"poi_id": poi_id * 700}),
        "name_too_long": ("poi_text_too_long", {"name": "name " * 1000}),
        "place_null": ("poi_missing_place", {"poi_lon": None, "poi_lat": None}),
        "place_half": ("poi_missing_place", {"poi_lat": None}),
        "place_nan": ("poi_not_finite", {"poi_lon": NAN}),
        "place_infinite": ("poi_not_finite", {"poi_lat": INF}),
        "place_swapped": ("poi_swapped", {"poi_lon": 52.4, "poi_lat": 104.9}),
        "place_out_of_range": ("poi_out_of_range", {"poi_lon": 300.0}),
        "place_zero": ("poi_zero", {"poi_lon": 0.0, "poi_lat": 0.0}),
        "id_padded": ("", {"poi_id": f"{poi_id}  "}),
        "first_seen_ahead": ("", {"first_seen": date(2027, 1, 1)}),
        "name_null": ("", {"name": None}),
        "category_null": ("", {"category": None}),
    }
    if name in changes:
        code, values = changes[name]
        given |= values
        record.refused = {code} if code else set()
        if name == "first_seen_ahead":
            record.truth["valid_from"] = DAY
        return [record]
    again = Planted(
        record.tag,
        record.poi,
        dict(given),
        dict(record.truth),
        table="raw_pois",
        structure=name,
        damages=(name,),
    )
    if name == "other_content":
        again.given["name"], again.refused = f"Other {poi_id}", {"poi_duplicate_id"}
    return [record, again]


def write_ranking_requests(root: Path, num_each: int, rng: random.Random) -> list[Planted]:
    """Appends damaged requests to `ranking_requests` of a finished warehouse."""
    form = frozenset({"text", "number"})
    records = asked.make_requests("request", "ranking_requests", form, num_each, rng, 0)
    holes = [asked.make_request(len(records) + count, rng, "ranking_requests") for count in range(num_each)]
    for record in holes:
        record.given["candidates"], record.damages = [None, "p1", " ", "x", " p2 "], ("candidates",)
    records += holes
    rng.shuffle(records)
    text, real = pa.string(), pa.float64()
    columns = {"request_id": text, "user": text, "time": pa.int64(), "tz": pa.int32(), "user_lon": real,
               "user_lat": real, "type": text}  # fmt: skip
    names = ("request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon", "user_lat", "action_type")
    arrays = {
        name: pa.array([asked.as_type(record.given[key], kind) for record in records], kind)
        for name, (key, kind) in zip(names, columns.items(), strict=True)
    }
    for record in records:
        record.written = tuple(v for key in columns if isinstance(v := record.given[key], str) and v)
    arrays["candidate_poi_ids"] = pa.array(
        [record.given.get("candidates", ["p1"]) for record in records], pa.list_(text)
    )
    _write(root, "ranking_requests", arrays, asked.DAY)
    return records


def write_profiles(root: Path, users: Sequence[str], rng: random.Random, num_each: int) -> list[Planted]:
    """Appends profiles to `raw_profiles`: one attribute of users who act on the day; the tag is in what is damaged."""
    records = []
    names = ("none", "user_null", "user_placeholder", "attribute_null", "value_null", "value_blank", "broken", "too_long",
             "padded", "equal", "conflicting")  # fmt: skip
    at = 0
    for name in names:
        for _ in range(num_each):
            at += 1
            tag, user = f"t8{at:06d}", users[(at - 1) % len(users)]
            given: dict[str, object] = {
                "user": user,
                "attribute": f"attribute {tag}",
                "value": rng.choice(("a", "b", "c")),
            }
            record = Planted(tag, asked.PLACE, given, {}, damages=(name,), table="raw_profiles")
            record.refused = {
                "user_null": {"profile_missing_user"}, "user_placeholder": {"profile_missing_user"},
                "attribute_null": {"profile_missing_attribute"}, "value_null": {"profile_missing_value"},
                "value_blank": {"profile_missing_value"}, "broken": {"profile_broken_text"},
                "too_long": {"profile_text_too_long"},
            }.get(name, set())  # fmt: skip
            given |= {
                "user_null": {"user": None}, "user_placeholder": {"user": rng.choice(PLACEHOLDERS)},
                "attribute_null": {"attribute": None, "value": tag}, "value_null": {"value": None},
                "value_blank": {"value": "  "}, "broken": {"value": "a\x07"}, "too_long": {"value": "long " * 1000},
                "padded": {"value": " a  ", "user": f"{user} "},
            }.get(name, {})  # fmt: skip
            records.append(record)
            if name in ("equal", "conflicting"):
                again = Planted(
                    tag, asked.PLACE, dict(given), {}, structure=name, damages=(name,), table="raw_profiles"
                )
                if name == "conflicting":  # the largest in order of text is kept
                    again.given["value"], again.refused = "0", {"profile_conflicting"}
                records.append(again)
    rng.shuffle(records)
    for record in records:
        record.written = tuple(value for value in record.given.values() if isinstance(value, str) and value)
    arrays = {
        name: pa.array([record.given[key] for record in records], pa.string())
        for name, key in (("user_id", "user"), ("attribute", "attribute"), ("value", "value"))
    }
    _write(root, "raw_profiles", arrays, DAY)
    return records


def write_impressions(root: Path, users: Sequence[str], rng: random.Random, num_each: int) -> list[Planted]:
    """Writes damaged requests of known users into `raw_impressions`: each shows three POIs, the first was clicked.

    Args:
        root: the warehouse.
        users: who ask; each has acted before, so that there is a sample of the request.
        rng: source of chance.
        num_each: requests per damage.
    """
    kwargs = {"users": users, "now_ms": ASKED_MS}
    made = asked.make_requests("impression", "raw_impressions", IMPRESSION_FORM, num_each, rng, 0, **kwargs)
    # An impression says no type of action; which of two requests with one id stands is a matter of the table's order.
    records = [
        record for record in made
        if record.structure != "other_content" and not any(name.startswith("type_") for name in record.damages)
    ]  # fmt: skip
    rows: list[dict[str, object]] = []
    for record in records:
        record.truth["shown"] = list(SHOWN)
        has_tag = record.tag in str(record.given["request_id"])
        rows += _rows_of(record, SHOWN if has_tag else (record.tag,) * len(SHOWN))
    number = 5_000_000
    for name, (code, changes) in ROW_DAMAGES.items():
        for _ in range(num_each):
            number += 1
            record = asked.make_request(
                number, rng, "raw_impressions", user=rng.choice(users), now_ms=ASKED_MS
            )
            record.damages, record.structure = (f"row_{name}",), "row"
            record.refused = {code} if code else set()
            record.truth["shown"] = [SHOWN[0], SHOWN[2]] if code else list(SHOWN)
            shown = _rows_of(record, SHOWN)
            shown[1] |= changes
            rows += shown if name != "other_position" else [*shown, {**shown[0], "position": 9}]
            if name == "other_position":
                record.truth["shown"] = list(SHOWN)
            records.append(record)
    rng.shuffle(rows)
    text, real = pa.string(), pa.float64()
    columns = {"request_id": text, "user": text, "time": pa.int64(), "tz": pa.int32(), "user_lon": real, "user_lat": real,
               "poi_id": text, "position": pa.int32(), "label": pa.int32()}  # fmt: skip
    names = (
        "request_id",
        "user_id",
        "request_ts_ms",
        "tz_offset_min",
        "user_lon",
        "user_lat",
        "poi_id",
        "position",
        "label",
    )
    arrays = {
        name: pa.array([asked.as_type(row[key], kind) for row in rows], kind)
        for name, (key, kind) in zip(names, columns.items(), strict=True)
    }
    _write(root, "raw_impressions", arrays, DAY)
    return records


def _rows_of(record: Planted, pois: Sequence[str]) -> list[dict[str, object]]:
    return [
        {**record.given, "poi_id": poi, "position": position, "label": int(position == 1)}
        for position, poi in enumerate(pois, start=1)
    ]


ROW_DAMAGES: dict[str, tuple[str, dict[str, object]]] = {
    "poi_null": ("impression_missing_poi", {"poi_id": None}),
    "poi_placeholder": ("impression_missing_poi", {"poi_id": "NULL"}),
    "poi_padded": ("", {"poi_id": f" {SHOWN[1]} "}),
    "position_zero": ("impression_bad_position", {"position": 0}),
    "position_null": ("impression_bad_position", {"position": None}),
    "label_null": ("impression_bad_label", {"label": None}),
    "label_two": ("impression_bad_label", {"label": 2}),
    "other_user": ("impression_of_other_request", {"user": "somebody else"}),
    "other_position": ("impression_repeated", {}),
}
"""Damage of the second row of a request, or a further one."""


def _write(root: Path, table: str, arrays: dict[str, pa.Array], day: date) -> None:
    count = len(next(iter(arrays.values())))
    content = {"day": pa.array([day] * count, pa.date32()), **arrays}
    if table in ("raw_actions", "raw_pois", "ranking_requests", "raw_impressions"):
        content["is_simulated"] = pa.array([False] * count, pa.bool_())
    is_new = not (root / table / "_delta_log").is_dir()
    options = {} if is_new else {"schema_mode": "merge"}
    write_deltalake(str(root / table), pa.table(content), mode="append", partition_by=["day"], **options)
