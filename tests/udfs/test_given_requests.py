"""Any requests: the night's answers for the night's requests, the past as it was known, every row accounted for."""

import math
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from conf.errors import MissingInputError, SchemaError, SettingsError
from tests.udfs.town import DAY_1, DAY_2, Town, at

pytestmark = pytest.mark.spark
NOON, EVENING = at(DAY_1, 12), at(DAY_1, 18)
TYPES = {
    "request_ts_ms": pa.int64(),
    "user_lon": pa.float64(),
    "user_lat": pa.float64(),
    "tz_offset_min": pa.int32(),
}
NIGHTS = {"user_lon": 4.91, "user_lat": 52.37, "tz_offset_min": 60, "action_type": "click"}
"""What the requests of the town's night say."""


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {
        name: pa.array([row.get(name) for row in rows], TYPES.get(name, pa.string())) for name in names
    }
    pq.write_table(pa.table(columns), path)
    return path


def asked(request: str, user: str, timestamp_ms: int | None, **more: object) -> dict[str, object]:
    return {"request_id": request, "user_id": user, "request_ts_ms": timestamp_ms, **more}


def answer(town: Town, tmp_path: Path, requests: Path, day: date = DAY_1, **options: object):
    out = tmp_path / "out"
    options = {"requests": str(requests), "out": out, "top": None, **options}
    summary = town.run("poi_candidates", day, **options)
    found: dict[str, list[tuple[str, float]]] = {}
    for row in (
        pq.read_table(out / "candidates")
        .sort_by([("request_id", "ascending"), ("rank", "ascending")])
        .to_pylist()
    ):
        found.setdefault(row["request_id"], []).append((row["poi_id"], row["log_probability"]))
    return summary, found, pq.read_table(out / "refused").to_pylist()


def test_the_requests_of_a_night_get_the_answers_of_the_night(computed, tmp_path):
    requests = write(
        tmp_path / "requests.parquet",
        [asked("r1", "u1", EVENING, **NIGHTS), asked("r2", "new", EVENING, **NIGHTS)],
    )

    summary, found, refused = answer(computed, tmp_path, requests)

    nights: dict[str, list[tuple[str, float]]] = {}
    for row in computed.read("poi_candidates"):
        nights.setdefault(row["request_id"], []).append((row["poi_id"], row["log_probability"]))
    assert [[poi for poi, _ in own] for own in found.values()] == [
        [poi for poi, _ in own] for own in nights.values()
    ]
    for own, other in zip(found.values(), nights.values(), strict=True):
        assert [value for _, value in own] == pytest.approx([value for _, value in other], abs=1e-5)
    assert (summary.rows_in, summary.rows_out, summary.rows_refused) == (2, 2, 0)
    assert refused == []


def test_a_request_sees_what_was_known_on_its_day_and_happened_before_it(second_computed, tmp_path):
    """u2 acts again on DAY_2; a request of DAY_1 knows nothing of it, nor of what came after its own hour."""
    requests = [
        asked("a", "u2", EVENING, **NIGHTS),
        asked("b", "u2", NOON - 2 * 3_600_000 + 1, **NIGHTS),
        asked("c", "u2", at(DAY_2, 18), **NIGHTS),
    ]
    _, then, _ = answer(second_computed, tmp_path, write(tmp_path / "r.parquet", requests[:2]), DAY_1, top=8)

    _, now, _ = answer(second_computed, tmp_path, write(tmp_path / "r.parquet", requests), DAY_2, top=8)

    assert {name: now[name] for name in ("a", "b")} == then
    assert now["a"] != now["b"]
    assert "p8" in dict(now["c"])  # opened on DAY_2
    assert "p8" not in dict(now["a"])
    assert len(now["c"]) == 8  # p0 has closed
    assert math.isclose(sum(math.exp(value) for _, value in now["a"]), 1.0, abs_tol=1e-3)  # all that is live


def test_what_a_request_does_not_say_is_that_of_the_last_action(first_night, tmp_path):
    """Place and time zone of u1's last action, at p0; the model's own action type."""
    said = {"user_lon": 4.9, "user_lat": 52.37, "tz_offset_min": 60, "action_type": "click"}
    requests = write(
        tmp_path / "r.parquet", [asked("short", "u1", EVENING), asked("long", "u1", EVENING, **said)]
    )

    _, found, _ = answer(first_night, tmp_path, requests)

    assert found["short"] == found["long"]


def test_every_row_is_answered_or_refused_with_its_reason(first_night, tmp_path):
    rows = [
        asked("good", "u1", EVENING),
        asked("stranger", "nobody knows", EVENING),
        asked("good", "u2", EVENING),
        asked("no user", None, EVENING),  # type: ignore[arg-type]
        asked("no time", "u1", None),
        asked("seconds", "u1", EVENING // 1000),
        asked("north", "u1", EVENING, user_lon=4.9, user_lat=95.0),
        asked("half", "u1", EVENING, user_lon=4.9),
        asked("hover", "u1", EVENING, action_type="hover"),
    ]
    write_deltalake(str(tmp_path / "asked"), pq.read_table(write(tmp_path / "r.parquet", rows)))

    summary, found, refused = answer(first_night, tmp_path, tmp_path / "asked", top=2)

    assert {name: len(own) for name, own in found.items()} == {"good": 2, "stranger": 2}
    assert {(row["request_id"], row["reason"], row["detail"]) for row in refused} == {
        ("good", "request_repeated", "good"),
        ("no user", "request_incomplete", "no user_id"),
        ("no time", "request_incomplete", "no request_ts_ms"),
        ("seconds", "request_time_in_seconds", str(EVENING // 1000)),
        ("north", "request_place_out_of_range", "4.9, 95.0"),
        ("half", "request_place_out_of_range", "4.9, null"),
        ("hover", "generate_unknown_action_type", "hover"),
    }
    assert (summary.rows_in, summary.rows_out, summary.rows_refused) == (9, 2, 7)
    assert '"user_lat":95.0' in next(row["payload"] for row in refused if row["request_id"] == "north")


def test_wrong_options_and_inputs_say_what_to_do(first_night, tmp_path):
    good = write(tmp_path / "r.parquet", [asked("a", "u1", EVENING)])
    nameless = write(tmp_path / "n.parquet", [{"id": "a", "user_id": "u1", "request_ts_ms": EVENING}])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()

    with pytest.raises(SettingsError, match="--out"):
        answer(first_night, tmp_path, good, out=None)
    with pytest.raises(SettingsError, match="something else"):
        answer(first_night, tmp_path, good, out=tmp_path / "full")
    with pytest.raises(SettingsError, match="--top"):
        answer(first_night, tmp_path, good, top=0)
    with pytest.raises(MissingInputError, match=r"nothing\.parquet"):
        answer(first_night, tmp_path, tmp_path / "nothing.parquet")
    with pytest.raises(SchemaError, match="request_id"):
        answer(first_night, tmp_path, nameless)
