"""Records with damage of known kinds, and what has to become of each.

The truth is written from the rules of `conf/rules.py` and from what a delivery means; nothing here looks at how the
pipeline reads files. A record is what a file says (`given`), what the table says if the record is accepted (`truth`),
the codes of the rules that refuse it, and those under which values are repaired or flagged. Every user acts once, so
that no rule that compares actions of a user joins in unasked.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from conf.rules import rules_of
from conf.tokens import ACTION_TYPES

DAY = date(2026, 2, 22)
FIRST_MS = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp() * 1000)
LAST_MS = int(datetime(2026, 2, 22, 20, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000
PLACEHOLDERS = ("NULL", "null", "None", "NaN", "undefined", "N/A", "nil", "\\N")
ANY = "<any>"
"""A value of the truth that is not known beforehand, such as a hash."""


class Raw(str):
    """A value of a JSON file, spelled out."""


@dataclass(frozen=True)
class Poi:
    poi_id: str
    lon: float
    lat: float
    tz: int
    category: str


@dataclass
class Planted:
    """One record of a file.

    Attributes:
        tag: unique text in a field that no table has, found again in the refused record's text.
        given: field -> value in the file; None is a null.
        truth: column -> value of the accepted row.
        refused: codes of refusing rules that hold.
        repairs: codes of repairs and flags.
        is_later: it happened after the day, so it is counted and not delivered.
        structure: name of a damage of the record's text as a whole, done by the writer.
        written: the texts of the record in its file.
        damages: names of what was done to it.
        table: the table whose rules it is judged by.
    """

    tag: str
    poi: Poi
    given: dict[str, object]
    truth: dict[str, object]
    refused: set[str] = field(default_factory=set)
    repairs: set[str] = field(default_factory=set)
    is_later: bool = False
    structure: str = ""
    written: tuple[str, ...] = ()
    damages: tuple[str, ...] = ()
    table: str = "raw_actions"

    @property
    def reason(self) -> str | None:
        """The first refusing rule in the order of the contract; one of another table comes after all of them.

        Of a POI that nobody knows, a swapped place is seen only where it is off the earth.
        """
        order = [rule.code for rule in rules_of(self.table, "refuse")]
        unseen = {"poi_place_swapped"} if "unknown_poi" in self.refused and abs(self.poi.lon) <= 90 else set()
        return min(
            self.refused - unseen,
            key=lambda code: order.index(code) if code in order else len(order),
            default=None,
        )


@dataclass(frozen=True)
class Damage:
    """One kind of damage.

    Attributes:
        name: what it is.
        touches: fields that it changes; two damages of one record touch different ones.
        forms: forms of files in which it can occur.
        plant: does it.
    """

    name: str
    touches: frozenset[str]
    forms: frozenset[str]
    plant: Callable[[Planted, random.Random], None]


TEXT = frozenset({"text_user", "text_poi", "text_time", "text_tz", "text_place"})
"""What a form of file can say, field by field. Further words: `json` values of JSON; `untyped` a format that knows text
alone; `utf8` any letter; `iso` times with an offset; `clock` times that are always written out, `number` never;
`float_...` numbers with a fraction; `user_place`, `action` (types and ids of actions), `file` or `table`, `catalogue` (POIs come apart)."""


def make_pois(number: int, rng: random.Random) -> list[Poi]:
    """Returns POIs of three cities whose clocks agree with the sun; every second id is a number."""
    cities = ((-74.0, 40.7, -300), (139.7, 35.7, 540), (-118.2, 34.0, -480))
    pois = []
    for count in range(number):
        lon, lat, tz = cities[count % len(cities)]
        poi_id = f"p{count:05d}" if count % 2 else str(30_000_000 + count)
        place = round(lon + rng.uniform(-0.1, 0.1), 6), round(lat + rng.uniform(-0.1, 0.1), 6)
        pois.append(Poi(poi_id, *place, tz, ("Cafe", "Museum", "Park")[count % 3]))
    return pois


def make_record(number: int, poi: Poi, rng: random.Random, *, is_checkin: bool, numeric_ids: bool) -> Planted:
    """Returns a record without damage."""
    user = str(10_000_000 + number) if numeric_ids else f"u{number:07d}"
    time = rng.randrange(FIRST_MS // 1000, LAST_MS // 1000) * 1000
    kind = "checkin" if is_checkin else rng.choice(ACTION_TYPES)
    user_lon, user_lat = (round(poi.lon + 0.01, 6), round(poi.lat - 0.01, 6))
    given = {
        "action_id": f"a{number:07d}", "user": user, "poi": poi.poi_id, "time": time, "tz": poi.tz,
        "user_lon": user_lon, "user_lat": user_lat, "poi_lon": poi.lon, "poi_lat": poi.lat,
        "category": poi.category, "type": kind, "tag": f"t{number:07d}",
    }  # fmt: skip
    truth = {
        "action_id": ANY if is_checkin else given["action_id"], "user_id": user, "poi_id": poi.poi_id,
        "action_ts_ms": time, "tz_offset_min": poi.tz, "user_lon": None if is_checkin else user_lon,
        "user_lat": None if is_checkin else user_lat, "poi_lon": poi.lon, "poi_lat": poi.lat,
        "action_type_id": ACTION_TYPES.index(kind), "category": poi.category,
    }  # fmt: skip
    return Planted(f"t{number:07d}", poi, given, truth)


def plant(record: Planted, damages: Sequence[Damage], rng: random.Random) -> Planted:
    """Does damages to a record, which is changed and returned."""
    for damage in damages:
        damage.plant(record, rng)
    record.damages = tuple(damage.name for damage in damages)
    return record


def damages_for(form: Collection[str]) -> list[Damage]:
    """Returns the damages that can occur in a form of file."""
    return [damage for damage in DAMAGES if damage.forms <= set(form)]


def pick_pairs(damages: Sequence[Damage], number: int, rng: random.Random) -> list[tuple[Damage, Damage]]:
    """Returns random pairs of damages that touch different fields."""
    pairs = []
    while len(pairs) < number:
        first, second = rng.sample(damages, 2)
        if not first.touches & second.touches:
            pairs.append((first, second))
    return pairs


def ms_of(text: str) -> int:
    """Returns an ISO clock of UTC in epoch milliseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


# --- the damages ------------------------------------------------------------------------------------------------------


def _refuse(code: str, **given: object) -> Callable[[Planted, random.Random], None]:
    def plant_it(record: Planted, rng: random.Random) -> None:
        record.refused.add(code)
        record.given |= {
            name: value(record, rng) if callable(value) else value for name, value in given.items()
        }

    return plant_it


def _repair(
    code: str, truth: Mapping[str, object], **given: object
) -> Callable[[Planted, random.Random], None]:
    """Changes what is given and what has to come out; an empty code is a value that is just read."""

    def plant_it(record: Planted, rng: random.Random) -> None:
        if code:
            record.repairs.add(code)
        record.given |= {
            name: value(record, rng) if callable(value) else value for name, value in given.items()
        }
        record.truth |= {name: value(record) if callable(value) else value for name, value in truth.items()}

    return plant_it


def _damage(
    name: str, touches: str, forms: str, plant_it: Callable[[Planted, random.Random], None]
) -> Damage:
    return Damage(name, frozenset(touches.split()), frozenset(forms.split()), plant_it)


def _padded(name: str) -> Callable[[Planted, random.Random], str]:
    def pad(record: Planted, rng: random.Random) -> str:
        return rng.choice(("{}   ", "  {}", " {} ", "{}\u00a0")).format(record.given[name])

    return pad


def _with_inside(name: str, *letters: str) -> Callable[[Planted, random.Random], str]:
    def put(record: Planted, rng: random.Random) -> str:
        text = str(record.given[name])
        return text[:2] + rng.choice(letters) + text[2:]

    return put


def _id_damages(field_name: str, column: str, who: str) -> list[Damage]:
    """Damages of a user's or a POI's id."""
    placeholder, missing = f"placeholder_{who}", f"missing_{who}"
    damages = [
        _damage(f"{who}_null", field_name, "", _refuse(missing, **{field_name: None})),
        _damage(f"{who}_blank", field_name, f"text_{who}", _refuse(missing, **{field_name: lambda r, g: g.choice((" ", "\u00a0 "))})),
        _damage(
            f"{who}_placeholder", field_name, f"text_{who}",
            _refuse(placeholder, **{field_name: lambda r, g: g.choice(PLACEHOLDERS)}),
        ),
        _damage(
            f"{who}_padded_placeholder", field_name, f"text_{who}",
            _refuse(placeholder, **{field_name: lambda r, g: f" {g.choice(PLACEHOLDERS)} "}),
        ),
        _damage(f"{who}_padded", field_name, f"text_{who}", _repair("id_trimmed", {}, **{field_name: _padded(field_name)})),
        _damage(
            f"{who}_control", field_name, f"text_{who}", _refuse("broken_text", **{field_name: _with_inside(field_name, "\x07", "\x1b", "\x7f")}),
        ),
        _damage(f"{who}_replacement", field_name, f"text_{who} utf8", _refuse("broken_text", **{field_name: _with_inside(field_name, "\ufffd")})),
        _damage(
            f"{who}_too_long", field_name, f"text_{who}", _refuse("text_too_long", **{field_name: lambda r, g: str(r.given[field_name]) * 900}),
        ),
    ]  # fmt: skip
    return damages


def _user_spelled(record: Planted, template: str, kind: type = str) -> object:
    """Gives a user an id that is a number, and spells it."""
    number = 10_000_000 + int(record.tag[1:])
    record.truth["user_id"] = str(number)
    return kind(template.format(number))


def _poi_spelled(template: str, kind: type) -> Callable[[Planted, random.Random], None]:
    def plant_it(record: Planted, rng: random.Random) -> None:
        if record.poi.poi_id.isdigit():  # others have no number to spell
            record.given["poi"] = kind(template.format(record.poi.poi_id))

    return plant_it


def _user_plant(template: str, kind: type) -> Callable[[Planted, random.Random], None]:
    def plant_it(record: Planted, rng: random.Random) -> None:
        record.given["user"] = _user_spelled(record, template, kind)

    return plant_it


def _leading_zeros(record: Planted, rng: random.Random) -> None:
    record.given["user"] = record.truth["user_id"] = f"00{int(record.tag[1:]):07d}"


def _long_whole_number(record: Planted, rng: random.Random) -> None:
    """More digits than a double holds, written as a whole number: all of them count."""
    digits = str(9_007_199_254_000_000_000 + 2 * int(record.tag[1:]) + 1)
    record.given["user"], record.truth["user_id"] = Raw(digits), digits


def _shifted(record: Planted, rng: random.Random) -> None:
    """Another time of the day, spelled with an offset."""
    hours, form = rng.choice((-8, -5, 2, 9)), rng.choice(("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"))
    moment = datetime.fromtimestamp(record.truth["action_ts_ms"] / 1000, UTC)  # type: ignore[operator]
    local = moment + timedelta(hours=hours)
    record.given["time"] = f"{local.strftime(form)}{'+' if hours > 0 else '-'}{abs(hours):02d}:00"


def _with_fraction(record: Planted, rng: random.Random) -> None:
    record.truth["action_ts_ms"] += 123  # type: ignore[operator]
    moment = datetime.fromtimestamp(record.truth["action_ts_ms"] / 1000, UTC)  # type: ignore[operator]
    record.given["time"] = moment.strftime("%Y-%m-%dT%H:%M:%S.123Z")


def _later(record: Planted, rng: random.Random) -> None:
    record.is_later = True
    later = record.truth["action_ts_ms"] + rng.randrange(30, 900) * 24 * HOUR_MS  # type: ignore[operator]
    record.given["time"] = record.truth["action_ts_ms"] = later


def _time_of(value: Callable[[int], object]) -> Callable[[Planted, random.Random], object]:
    def spell(record: Planted, rng: random.Random) -> object:
        return value(record.truth["action_ts_ms"])  # type: ignore[arg-type]

    return spell


def _swap_poi(record: Planted, rng: random.Random) -> None:
    record.refused.add("poi_place_swapped")
    record.given |= {"poi_lon": record.poi.lat, "poi_lat": record.poi.lon}


def _half_poi(record: Planted, rng: random.Random) -> None:
    record.repairs.add("poi_place_incomplete")
    record.given[rng.choice(("poi_lon", "poi_lat"))] = None


def _word_for_poi(record: Planted, rng: random.Random) -> None:
    record.repairs.add("poi_place_incomplete")
    axis = rng.choice(("poi_lon", "poi_lat"))
    record.given[axis] = rng.choice(("unknown", "40 N", str(record.given[axis]).replace(".", ",")))


def _swap_user(record: Planted, rng: random.Random) -> None:
    record.refused.add("user_place_swapped")
    record.given |= {"user_lon": record.given["user_lat"], "user_lat": record.given["user_lon"]}


def _half_user(record: Planted, rng: random.Random) -> None:
    record.repairs.add("user_place_incomplete")
    record.given[rng.choice(("user_lon", "user_lat"))] = None
    record.truth |= {"user_lon": None, "user_lat": None}


def _id_made_by_reader(record: Planted, rng: random.Random) -> None:
    """A file need not name its actions; the reader then does."""
    record.given["action_id"], record.truth["action_id"] = None, ANY


def _id_missing(*given: object) -> Callable[[Planted, random.Random], None]:
    def plant_it(record: Planted, rng: random.Random) -> None:
        record.repairs.add("action_id_missing")
        record.given["action_id"], record.truth["action_id"] = rng.choice(given), ANY

    return plant_it


NO_USER_PLACE = {"user_lon": None, "user_lat": None}
NAN, INF = float("nan"), float("inf")
DAMAGES: tuple[Damage, ...] = (
    *_id_damages("user", "user_id", "user"),
    *_id_damages("poi", "poi_id", "poi"),
    _damage("user_number", "user", "json", _user_plant("{}", Raw)),
    _damage("user_whole_float", "user", "json", _user_plant("{}.0", Raw)),
    _damage("user_whole_float_text", "user", "text_user untyped", _user_plant("{}.0", str)),
    _damage("user_leading_zeros", "user", "text_user", _leading_zeros),
    _damage("user_long_number", "user", "json", _long_whole_number),
    _damage("user_huge_float", "user", "json", _refuse("missing_user", user=Raw("1.2345678901234567e19"))),
    _damage("user_nan_token", "user", "json", _refuse("placeholder_user", user=Raw("NaN"))),
    _damage("poi_nan_token", "poi", "json", _refuse("placeholder_poi", poi=Raw("NaN"))),
    _damage("user_fraction", "user", "json", _refuse("missing_user", user=Raw("1234567.5"))),
    _damage("poi_number", "poi", "json", _poi_spelled("{}", Raw)),
    _damage("poi_whole_float", "poi", "json", _poi_spelled("{}.0", Raw)),
    _damage("poi_whole_float_text", "poi", "text_poi untyped", _poi_spelled("{}.0", str)),
    _damage("time_null", "time", "", _refuse("missing_time", time=None)),
    _damage("time_word", "time", "text_time", _refuse("missing_time", time=lambda r, g: g.choice(("yesterday", "n/a", "12 Feb")))),
    _damage("time_clock_only", "time", "text_time", _refuse("missing_time", time=lambda r, g: g.choice(("02:53:04", "T10:13", "10:13")))),
    _damage("time_date_only", "time", "text_time", _refuse("missing_time", time=lambda r, g: g.choice(("2026-02-12", "2026-02")))),
    _damage("time_year_only", "time", "text_time clock", _refuse("missing_time", time="2012")),
    _damage("time_no_such_day", "time", "text_time", _refuse("missing_time", time="2026-02-30 10:00:00")),
    _damage("time_with_offset", "time", "text_time iso", _shifted),
    _damage("time_with_fraction", "time", "text_time iso", _with_fraction),
    _damage("time_seconds", "time", "", _refuse("time_in_seconds", time=_time_of(lambda ms: ms // 1000))),
    _damage("time_microseconds", "time", "number", _refuse("time_in_microseconds", time=_time_of(lambda ms: ms * 1000))),
    _damage("time_nanoseconds", "time", "number", _refuse("time_in_nanoseconds", time=_time_of(lambda ms: ms * 1_000_000))),
    _damage("time_whole_float", "time", "number json", _repair("", {}, time=_time_of(lambda ms: Raw(f"{ms}.0")))),
    _damage("time_digits", "time", "number json", _repair("", {}, time=_time_of(str))),
    _damage("time_half", "time", "number json", _refuse("missing_time", time=_time_of(lambda ms: Raw(f"{ms}.5")))),
    _damage("time_huge", "time", "number", _refuse("time_in_future", time=9_000_000_000_000_000_000)),
    _damage("time_negative", "time", "", _refuse("time_negative", time=lambda r, g: -1000 * g.randrange(1, 10_000_000))),
    _damage("time_zero", "time", "", _refuse("time_zero", time=0)),
    _damage("time_too_early", "time", "", _refuse("time_too_early", time=ms_of("1999-12-31T12:00:00"))),
    _damage("time_later", "time", "", _later),
    _damage("place_zero", "place", "", _refuse("poi_place_zero", poi_lon=0.0, poi_lat=0.0)),
    _damage("place_swapped", "place", "", _swap_poi),
    _damage("place_nan", "place", "", _refuse("poi_place_not_finite", poi_lon=NAN)),
    _damage("place_infinite", "place", "", _refuse("poi_place_not_finite", poi_lat=INF)),
    _damage("place_out_of_range", "place", "", _refuse("poi_place_out_of_range", poi_lon=400.0)),
    _damage("place_half", "place", "", _half_poi),
    _damage("place_word", "place", "text_place", _word_for_poi),
    _damage("place_missing", "place", "", _repair("", {}, poi_lon=None, poi_lat=None)),
    _damage("place_far", "place", "", _repair("poi_place_far", {}, poi_lat=lambda r, g: r.poi.lat + 0.2)),
    _damage("user_place_zero", "user_place", "user_place", _repair("user_place_zero", NO_USER_PLACE, user_lon=0.0, user_lat=0.0)),
    _damage("user_place_nan", "user_place", "user_place", _repair("user_place_not_finite", NO_USER_PLACE, user_lon=NAN)),
    _damage("user_place_out_of_range", "user_place", "user_place", _repair("user_place_out_of_range", NO_USER_PLACE, user_lon=-400.0)),
    _damage("user_place_half", "user_place", "user_place", _half_user),
    _damage("user_place_missing", "user_place", "user_place", _repair("", NO_USER_PLACE, user_lon=None, user_lat=None)),
    _damage("user_place_swapped", "user_place", "user_place", _swap_user),
    _damage("tz_null", "tz", "", _repair("tz_missing", {}, tz=None)),
    _damage("tz_word", "tz", "text_tz", _repair("tz_missing", {}, tz=lambda r, g: g.choice(("EST", "UTC+9", "-5:00")))),
    _damage("tz_out_of_range", "tz", "", _repair("tz_out_of_range", {}, tz=lambda r, g: g.choice((2000, -18000)))),
    _damage(
        "tz_hours", "tz", "",
        _repair("tz_far_from_place", {"tz_offset_min": lambda r: r.poi.tz // 60}, tz=lambda r, g: r.poi.tz // 60),
    ),
    _damage(
        "tz_wrong_sign", "tz", "",
        _repair("tz_far_from_place", {"tz_offset_min": lambda r: -r.poi.tz}, tz=lambda r, g: -r.poi.tz),
    ),
    _damage("tz_whole_float", "tz", "json", _repair("", {}, tz=lambda r, g: Raw(f"{r.poi.tz}.0"))),
    _damage("tz_whole_float_text", "tz", "text_tz", _repair("", {}, tz=lambda r, g: f"{r.poi.tz}.0")),
    _damage("type_unknown", "type", "action", _refuse("unknown_action_type", type="hover")),
    _damage("type_null", "type", "action", _refuse("missing_action_type", type=None)),
    _damage("type_spelling", "type", "action", _repair("action_type_spelling", {}, type=lambda r, g: g.choice(("{} ", " {}")).format(str(r.given["type"]).capitalize()))),
    _damage("id_null_in_file", "action_id", "action file", _id_made_by_reader),
    _damage("id_null_in_table", "action_id", "action table", _id_missing(None)),
    _damage("id_word", "action_id", "action", _id_missing("", " ", "NULL", "None")),
    _damage("id_padded", "action_id", "action", _repair("id_trimmed", {}, action_id=_padded("action_id"))),
    _damage("id_too_long", "action_id", "action", _refuse("text_too_long", action_id=lambda r, g: str(r.given["action_id"]) * 700)),
    _damage("user_fraction_float", "user", "float_user", _refuse("missing_user", user=1234567.5)),
    _damage("user_huge_float_float", "user", "float_user", _refuse("missing_user", user=1.2345678901234567e19)),
    _damage("user_nan", "user", "float_user", _refuse("missing_user", user=NAN)),
    _damage("poi_nan", "poi", "float_poi", _refuse("missing_poi", poi=NAN)),
    _damage("time_half_float", "time", "float_time", _refuse("missing_time", time=_time_of(lambda ms: ms + 0.5))),
    _damage("time_nan", "time", "float_time", _refuse("missing_time", time=NAN)),
    _damage("tz_half_float", "tz", "float_tz", _repair("tz_missing", {}, tz=lambda r, g: r.poi.tz + 0.5)),
    _damage("tz_nan", "tz", "float_tz", _repair("tz_missing", {}, tz=NAN)),
    _damage("poi_unknown", "poi", "catalogue text_poi", _refuse("unknown_poi", poi=lambda r, g: f"x{r.tag}")),
    _damage("category_null", "category", "", _repair("", {}, category=None)),
)  # fmt: skip
