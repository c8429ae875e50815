"""Any requests: the night's answers for the night's requests, the past as it was known, every row accounted for."""

import math
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from conf.errors import MissingInputError, SchemaError, SettingsError
from tests.udfs.feature_city import DAY_1, DAY_2, FeatureCity, at

pytestmark = pytest.mark.spark
NOON, EVENING = at(DAY_1, 12), at(DAY_1, 18)
TYPES = {
    "request_ts_ms": pa.int64(),
    "user_lon": pa.float64(),
    "user_lat": pa.float64(),
    "tz_offset_min": pa.int32(),
}
NIGHTS = {"user_lon": 4.91, "user_lat": 52.37, "tz_offset_min": 60, "action_type": "click"}
"""What the requests of the city's night say."""


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {
        name: pa.array([row.get(name) for row in rows], TYPES.get(name, pa.string())) for name in names
    }
    pq.write_table(pa.table(columns), path)
    return path


def asked(request: str, user: str | None, timestamp_ms: int | None, **more: object) -> dict[str, object]:
    return {"request_id": request, "user_id": user, "request_ts_ms": timestamp_ms, **more}


def answer(city: FeatureCity, tmp_path: Path, requests: Path, day: date = DAY_1, **options: object):
    out = tmp_path / "out"
    options = {"requests": str(requests), "out": out, "top": None, "new_logit": None, **options}
    summary = city.run("poi_candidates", day, **options)
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


def test_a_list_may_be_shifted_away_from_new_places_for_these_requests_alone(first_night, tmp_path):
    """u1 was at p0 and p1 only."""
    requests = write(tmp_path / "r.parquet", [asked("a", "u1", EVENING, **NIGHTS)])

    _, found, _ = answer(first_night, tmp_path, requests, new_logit=-12.0)

    assert {poi for poi, _ in found["a"][:2]} == {"p0", "p1"}


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
        asked("good", "u1", EVENING),
        asked("stranger", "nobody knows", EVENING),
        asked("good", "u2", EVENING),
        asked("no user", None, EVENING),
        asked("no time", "u1", None),
        asked("seconds", "u1", EVENING // 1000),
        asked("microseconds", "u1", EVENING * 1000),
        asked("tomorrow", "u1", at(DAY_2, 12)),
        asked("huge", "u1", 9 * 10**18),
        asked("negative", "u1", -5),
        asked("north", "u1", EVENING, user_lon=4.9, user_lat=95.0),  # on earth the other way round
        asked("half", "u1", EVENING, user_lon=4.9),
        asked("no number", "u1", EVENING, user_lon=math.nan, user_lat=52.4),
        asked("zone", "u1", EVENING, tz_offset_min=2**31 - 1),
        asked("padded  ", "u1  ", EVENING),
        asked("hover", "u1", EVENING, action_type="hover"),
    ]
    write_deltalake(str(tmp_path / "asked"), pq.read_table(write(tmp_path / "r.parquet", rows)))

    summary, found, refused = answer(first_night, tmp_path, tmp_path / "asked", top=2)

    # A place or a time zone that is none is as if not given.
    answered = {"good", "stranger", "half", "no number", "zone", "padded"}
    assert {name: len(own) for name, own in found.items()} == dict.fromkeys(answered, 2)
    assert all(found[name] == found["good"] for name in answered - {"stranger"})
    assert {(row["request_id"], row["reason"], row["detail"]) for row in refused} == {
        ("good", "request_repeated", "request_id=good"),
        ("no user", "request_missing_user", "user_id=null"),
        ("no time", "request_missing_time", "request_ts_ms=null"),
        ("seconds", "request_time_in_seconds", f"request_ts_ms={EVENING // 1000}"),
        ("microseconds", "request_time_in_microseconds", f"request_ts_ms={EVENING * 1000}"),
        ("tomorrow", "request_time_in_future", f"request_ts_ms={at(DAY_2, 12)}"),
        ("huge", "request_time_in_future", f"request_ts_ms={9 * 10**18}"),
        ("negative", "request_time_negative", "request_ts_ms=-5"),
        ("north", "request_place_swapped", "user_lon=4.9, user_lat=95.0"),
        ("hover", "generate_unknown_action_type", "hover"),
    }
    assert (summary.rows_in, summary.rows_out, summary.rows_refused, summary.rows_dropped) == (17, 6, 10, 1)
    assert summary.notes["repairs"]["request_id_trimmed"] == 1
    assert '"user_lat":95.0' in next(row["payload"] for row in refused if row["request_id"] == "north")


def test_files_of_a_folder_may_differ_in_columns_types_and_case(first_night, tmp_path):
    folder = tmp_path / "asked"
    folder.mkdir()
    write(folder / "a.parquet", [asked("7", "u1", EVENING, **NIGHTS)])
    columns = {
        "Request_ID": pa.array([8.0, 8.5]),  # a column of integers with a gap, as pandas writes it
        "USER_ID": pa.array(["u1", "u1"]),
        "request_ts_ms": pa.array([EVENING, EVENING], pa.timestamp("ms", "UTC")),
        "tz_offset_min": pa.array(["60", "no"]),
    }
    pq.write_table(pa.table(columns), folder / "b.parquet")

    _, found, refused = answer(first_night, tmp_path, folder)

    assert found.keys() == {"7", "8"}
    assert [(row["reason"], '"Request_ID":8.5' in row["payload"]) for row in refused] == [
        ("request_missing_id", True)
    ]


def test_wrong_options_and_inputs_say_what_to_do(first_night, tmp_path):
    good = write(tmp_path / "r.parquet", [asked("a", "u1", EVENING)])
    nameless = write(tmp_path / "n.parquet", [{"id": "a", "user_id": "u1", "request_ts_ms": EVENING}])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()

    with pytest.raises(SettingsError, match="--out"):
        answer(first_night, tmp_path, good, out=None)
    with pytest.raises(SettingsError, match="no job wrote"):
        answer(first_night, tmp_path, good, out=tmp_path / "full")
    with pytest.raises(SettingsError, match="--top"):
        answer(first_night, tmp_path, good, top=0)
    for logit in (math.nan, math.inf, 21.0):
        with pytest.raises(SettingsError, match="--new-logit"):
            answer(first_night, tmp_path, good, new_logit=logit)
    for option, value in {"top": 3, "new_logit": 1.0, "out": tmp_path}.items():
        with pytest.raises(SettingsError, match="goes with --requests"):
            first_night.run("poi_candidates", DAY_1, **{option: value})
    with pytest.raises(MissingInputError, match=r"nothing\.parquet"):
        answer(first_night, tmp_path, tmp_path / "nothing.parquet")
    with pytest.raises(SchemaError, match="request_id"):
        answer(first_night, tmp_path, nameless)
    twice = pa.table({**good_columns(EVENING), "REQUEST_ID": ["x"]})
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(SchemaError, match="one column of that name"):
        answer(first_night, tmp_path, tmp_path / "twice.parquet")
    pq.write_table(pa.table({**good_columns(EVENING), "user_id": [True]}), tmp_path / "flag.parquet")
    with pytest.raises(SchemaError, match="user_id"):
        answer(first_night, tmp_path, tmp_path / "flag.parquet")


def good_columns(timestamp_ms: int) -> dict[str, list[object]]:
    return {"request_id": ["r1"], "user_id": ["u1"], "request_ts_ms": [timestamp_ms]}
