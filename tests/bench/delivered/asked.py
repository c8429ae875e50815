"""Damaged requests: as files for `poi_candidates --requests`, in `ranking_requests`, and in `raw_impressions`.

The same kinds of damage as actions have, judged by the same rules under names of their own. A request carries its tag
in its id and in its user, and where both are damaged it goes by the rest of its row.
"""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from conf.tokens import ACTION_TYPES
from tests.bench.delivered.planted import (
    HOUR_MS,
    INF,
    NAN,
    PLACEHOLDERS,
    Damage,
    Planted,
    Poi,
    pick_pairs,
)  # fmt: skip

DAY = datetime(2026, 3, 1, tzinfo=UTC).date()
NOON_MS = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1000)
PLACE = Poi("p1", -74.0, 40.7, -300, "Cafe")
Change = Callable[[Planted, random.Random], None]


def request_damages(prefix: str, form: frozenset[str]) -> list[Damage]:
    """Returns the damages of a request in a form (`text` ids, `float` numbers, `number` times)."""
    made = [
        *_of_id("request_id", f"{prefix}_missing_id", f"{prefix}_missing_id", prefix),
        *_of_id("user", f"{prefix}_missing_user", f"{prefix}_placeholder_user", prefix),
        *_of_time(prefix),
        *_of_place(prefix),
        _make("tz_null", "tz", "", _set(tz=None)),
        _make("tz_out_of_range", "tz", "", _set(tz=2000)),
        _make("tz_hours", "tz", "", _set(tz=-5)),
        _make("tz_largest", "tz", "number", _set(tz=2**31 - 1)),
        _make("type_unknown", "type", "", _refuse("generate_unknown_action_type", type="hover")),
        _make("type_spelling", "type", "", _set(type=" Click")),
        _make("type_null", "type", "", _set(type=None)),
    ]
    return [damage for damage in made if damage.forms <= form]


def make_request(
    number: int, rng: random.Random, table: str, *, user: str = "", now_ms: int = NOON_MS
) -> Planted:
    """Returns a request without damage; of a user whom nobody knows, unless one is named."""
    tag = f"t{number:07d}"
    given: dict[str, object] = {
        "request_id": f"r-{tag}", "user": user or f"u-{tag}", "time": now_ms - rng.randrange(60) * 60_000, "tz": PLACE.tz,
        "user_lon": PLACE.lon, "user_lat": PLACE.lat, "type": rng.choice(ACTION_TYPES), "tag": tag,
    }  # fmt: skip
    truth = {"request_id": given["request_id"], "user_id": given["user"], "request_ts_ms": given["time"]}
    return Planted(tag, PLACE, given, truth, table=table)


def make_requests(
    prefix: str,
    table: str,
    form: frozenset[str],
    num_each: int,
    rng: random.Random,
    start: int,
    *,
    users: Sequence[str] = ("",),
    now_ms: int = NOON_MS,
) -> list[Planted]:
    """Returns requests with each damage, with pairs of damages, and as many without any, shuffled; then repeated ones."""
    damages = request_damages(prefix, form)
    chosen: list[Sequence[Damage]] = [(damage,) for damage in damages for _ in range(num_each)]
    chosen += pick_pairs(damages, 5 * num_each, rng)
    chosen += [()] * (len(chosen) // 2)
    rng.shuffle(chosen)
    found = []
    for number, picked in enumerate(chosen, start=start):
        record = make_request(number, rng, table, user=rng.choice(users), now_ms=now_ms)
        for damage in picked:
            damage.plant(record, rng)
        record.damages = tuple(damage.name for damage in picked)
        found.append(record)
    number = start + len(chosen)
    for count in range(2 * num_each):
        record = make_request(number + count, rng, table, user=rng.choice(users), now_ms=now_ms)
        again = Planted(record.tag, PLACE, dict(record.given), dict(record.truth), table=table)
        if count % 2:
            again.given["time"] = record.given["time"] + HOUR_MS // 2  # type: ignore[operator]
            again.refused, again.structure = {f"{prefix}_repeated"}, "other_content"
        else:
            again.structure = "equal"
        again.damages = (again.structure,)
        found += [record, again]
    return found


def write_request_files(folder: Path, num_each: int, rng: random.Random) -> list[Planted]:
    """Writes Parquet files of requests whose columns have different types, which share the records of a kind."""
    (folder / "files").mkdir(parents=True)
    text, real = pa.string(), pa.float64()
    names = (
        "request_id",
        "user_id",
        "request_ts_ms",
        "tz_offset_min",
        "user_lon",
        "user_lat",
        "action_type",
        "tag",
    )
    kinds = {
        "typed": ({"text", "utf8", "number"}, (text, text, pa.int64(), pa.int32(), real, real, text, text)),
        "text": ({"text", "utf8", "number", "words"}, (text,) * 8),
        "floats": ({"text", "utf8", "float"}, (text, text, real, real, real, real, text, text)),
        "moments": ({"text", "utf8"}, (text, text, pa.timestamp("ns", tz="UTC"), pa.int16(), real, real, text, text)),
    }  # fmt: skip
    found: list[Planted] = []
    for name, (form, types) in kinds.items():
        each = max(1, num_each // len(kinds))
        records = make_requests("request", "ranking_requests", frozenset(form), each, rng, len(found))
        rows = []
        for record in records:
            given = record.given
            row = [
                given[key]
                for key in ("request_id", "user", "time", "tz", "user_lon", "user_lat", "type", "tag")
            ]
            record.written = tuple(value for value in row if isinstance(value, str) and value)
            rows.append(row)
        columns = [pa.array([as_type(row[at], kind) for row in rows], kind) for at, kind in enumerate(types)]
        pq.write_table(pa.table(columns, names=list(names)), folder / "files" / f"{name}.parquet")
        found += records
    return found


def as_type(value: object, kind: pa.DataType) -> object:
    """Converts a given value into what a column of Parquet holds."""
    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return int(value) * 1_000_000  # type: ignore[call-overload]
    if pa.types.is_integer(kind):
        return int(value)  # type: ignore[call-overload]
    return float(value) if pa.types.is_floating(kind) else str(value)  # type: ignore[arg-type]


def _make(name: str, touches: str, forms: str, plant: Change) -> Damage:
    return Damage(name, frozenset(touches.split()), frozenset(forms.split()), plant)


def _set(**given: object) -> Change:
    def plant(record: Planted, rng: random.Random) -> None:
        record.given |= {
            name: value(record, rng) if callable(value) else value for name, value in given.items()
        }

    return plant


def _refuse(code: str, **given: object) -> Change:
    def plant(record: Planted, rng: random.Random) -> None:
        record.refused.add(code)
        _set(**given)(record, rng)

    return plant


def _of_id(name: str, missing: str, placeholder: str, prefix: str) -> list[Damage]:
    def inside(record: Planted, rng: random.Random) -> str:
        return str(record.given[name]) + rng.choice(("\x07", "\x1b", "\ufffd")) + "x"

    def padded(record: Planted, rng: random.Random) -> str:
        return rng.choice(("{} ", "  {}", "{}\u00a0")).format(record.given[name])

    touches = "ids"  # one of the two ids has to tell which request it is
    return [
        _make(f"{name}_null", touches, "", _refuse(missing, **{name: None})),
        _make(f"{name}_blank", touches, "text", _refuse(missing, **{name: "  "})),
        _make(
            f"{name}_placeholder", touches, "text", _refuse(placeholder, **{name: lambda r, g: g.choice(PLACEHOLDERS)})
        ),
        _make(f"{name}_padded", touches, "text", _set(**{name: padded})),
        _make(f"{name}_broken", touches, "text", _refuse(f"{prefix}_broken_text", **{name: inside})),
        _make(
            f"{name}_too_long", touches, "text",
            _refuse(f"{prefix}_text_too_long", **{name: lambda r, g: str(r.given[name]) * 700}),
        ),
    ]  # fmt: skip


def _of_time(prefix: str) -> list[Damage]:
    def times(factor: float) -> Callable[[Planted, random.Random], object]:
        return lambda record, rng: int(record.truth["request_ts_ms"] * factor)  # type: ignore[operator]

    def spelled(record: Planted, rng: random.Random) -> None:
        moment = datetime.fromtimestamp(record.truth["request_ts_ms"] / 1000, UTC)  # type: ignore[operator]
        record.given["time"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    code = f"{prefix}_time_in_"
    return [
        _make("time_null", "time", "", _refuse(f"{prefix}_missing_time", time=None)),
        _make("time_seconds", "time", "", _refuse(f"{code}seconds", time=times(0.001))),
        _make("time_microseconds", "time", "number", _refuse(f"{code}microseconds", time=times(1000))),
        _make("time_nanoseconds", "time", "number", _refuse(f"{code}nanoseconds", time=times(1_000_000))),
        _make("time_microseconds_float", "time", "float", _refuse(f"{code}microseconds", time=times(1000))),
        _make("time_huge", "time", "number", _refuse(f"{code}future", time=9 * 10**18)),
        _make("time_negative", "time", "", _refuse(f"{prefix}_time_negative", time=-5000)),
        _make("time_zero", "time", "", _refuse(f"{prefix}_time_zero", time=0)),
        _make("time_next_week", "time", "", _refuse(f"{code}future", time=NOON_MS + 7 * 24 * HOUR_MS)),
        _make("time_year_10000", "time", "number", _refuse(f"{code}future", time=253_402_300_800_000)),
        _make("time_too_early", "time", "", _refuse(f"{prefix}_time_too_early", time=946_598_400_000)),
        _make("time_nan", "time", "float", _refuse(f"{prefix}_missing_time", time=NAN)),
        _make("time_half", "time", "float", _refuse(f"{prefix}_missing_time", time=NOON_MS + 0.5)),
        _make("time_word", "time", "words", _refuse(f"{prefix}_missing_time", time="yesterday")),
        _make("time_clock_only", "time", "words", _refuse(f"{prefix}_missing_time", time="10:13:36")),
        _make("time_digits_float", "time", "words", _set(time=lambda r, g: f"{r.truth['request_ts_ms']}.0")),
        _make("time_iso", "time", "words", spelled),
    ]  # fmt: skip


def _of_place(prefix: str) -> list[Damage]:
    return [
        _make("place_swapped", "place", "", _refuse(f"{prefix}_place_swapped", user_lon=40.7, user_lat=-120.0)),
        _make("place_nan", "place", "", _set(user_lon=NAN)),
        _make("place_infinite", "place", "", _set(user_lat=-INF)),
        _make("place_half", "place", "", _set(user_lon=None)),
        _make("place_missing", "place", "", _set(user_lon=None, user_lat=None)),
        _make("place_out_of_range", "place", "", _set(user_lon=400.0)),
        _make("place_zero", "place", "", _set(user_lon=0.0, user_lat=0.0)),
        _make("place_word", "place", "words", _set(user_lon="west")),
    ]  # fmt: skip
