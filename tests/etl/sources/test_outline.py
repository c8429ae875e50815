"""The outline of data that nobody has seen: shapes are recognised, days and splits fit, what is left out has a name."""

import gzip
import json
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from conf.cli import main
from conf.errors import MissingInputError
from etl.__main__ import JOBS
from etl.sources.outline import Plan, derive_plan, list_skipped
from etl.sources.shapes import guess_source
from tests.own_miniatures import MINIATURES, simulate_visits, write_checkins, write_json_actions

FIRST = date(2024, 3, 1)


def every_day(num_days: int, rows: int = 10) -> dict[date, int]:
    return {FIRST + timedelta(days=number): rows for number in range(num_days)}


@pytest.mark.parametrize(
    ("name", "source"),
    [("200-rows", "actions"), ("37-days", "getnext"), ("one-user", "checkins"), ("no-category", "checkins"),
     ("no-zone", "tsmc"), ("date-line", "checkins")],
)  # fmt: skip
def test_shapes_are_recognised_whatever_the_name(tmp_path, name, source):
    miniature = next(found for found in MINIATURES if found.name == name)
    miniature.write(tmp_path / miniature.path)
    assert guess_source(str(tmp_path / miniature.path)) == source


def test_folders_of_files_and_compressed_files_are_recognised(tmp_path):
    visits = simulate_visits(seed=1, num_users=2, num_pois=3, num_rows=10, num_days=5)
    lines = tmp_path / "export"
    lines.mkdir()
    (lines / "_SUCCESS").touch()
    write_json_actions(lines / "part-0.json", visits)
    assert guess_source(str(lines)) == "actions"
    packed = tmp_path / "export.json.gz"
    packed.write_bytes(gzip.compress((lines / "part-0.json").read_bytes()))
    assert guess_source(str(packed)) == "actions"
    table = tmp_path / "days.parquet"
    (table / "day=2024-03-01").mkdir(parents=True)
    columns = {"time": [1], "user_id": ["u"], "poi_id": ["p"], "action_type": ["click"]}
    pq.write_table(pa.table(columns), table / "day=2024-03-01" / "part-0.parquet")
    assert guess_source(str(table)) == "actions"


def test_the_case_of_names_does_not_matter(tmp_path):
    (tmp_path / "data").write_text("USER_ID,poi_id,POI_CATNAME,latitude,longitude,utc_time\n")
    assert guess_source(str(tmp_path / "data")) == "getnext"
    pq.write_table(pa.table({"Time": [1], "USER_ID": ["u"], "Poi_Id": ["p"]}), tmp_path / "data")
    assert guess_source(str(tmp_path / "data")) == "actions"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PAR1", b"a\tb\tc\n"])
def test_an_unknown_shape_is_an_error_that_lists_the_known_ones(tmp_path, content):
    (tmp_path / "data").write_bytes(content)
    if content == b"PAR1":
        pq.write_table(pa.table({"x": [1]}), tmp_path / "data")
    with pytest.raises(
        MissingInputError, match=r"Known are checkins: a folder .* getnext: .* tsmc: .* actions: "
    ):
        guess_source(str(tmp_path / "data"))


def test_a_check_in_file_by_itself_names_its_folder(tmp_path):
    write_checkins(
        tmp_path / "city", simulate_visits(seed=1, num_users=2, num_pois=3, num_rows=9, num_days=5)
    )
    with pytest.raises(MissingInputError, match="name the folder that holds it"):
        guess_source(str(tmp_path / "city" / "checkins.parquet"))


def test_nothing_at_the_path_is_said(tmp_path):
    with pytest.raises(MissingInputError, match="nowhere"):
        guess_source(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("num_days", "held_out"), [(1, 0), (2, 0), (3, 0), (5, 1), (37, 4), (60, 6), (300, 21)]
)
def test_held_out_days_are_a_tenth_of_the_span_each(num_days, held_out):
    plan = derive_plan(every_day(num_days))
    last = FIRST + timedelta(days=num_days - 1)
    if num_days == 1:
        assert plan == Plan(last, None, 0, 0)
    else:
        assert plan == Plan(last - timedelta(days=1), last, held_out, held_out)


def test_days_without_data_are_no_days_of_a_delivery():
    rows = every_day(30) | {FIRST + timedelta(days=40): 1, FIRST + timedelta(days=55): 1}
    plan = derive_plan(rows)
    assert (plan.day, plan.next_day) == (FIRST + timedelta(days=40), FIRST + timedelta(days=55))


def test_a_wrong_clock_years_ago_does_not_stretch_the_span():
    rows = every_day(37, rows=100) | {date(2007, 1, 1): 1}
    assert derive_plan(rows).val_days == derive_plan(every_day(37)).val_days == 4


def test_most_rows_stay_for_training():
    growing = {FIRST + timedelta(days=number): 2 ** (number // 4) for number in range(60)}
    plan = derive_plan(growing)
    before = plan.day - timedelta(days=plan.val_days + plan.test_days - 1)
    known = sum(rows for day, rows in growing.items() if day <= plan.day)
    assert sum(rows for day, rows in growing.items() if day < before) >= known / 2


def test_no_more_rows_are_held_out_than_figures_need():
    plan = derive_plan(every_day(300, rows=700))
    assert plan.val_days == plan.test_days == 7
    assert derive_plan(every_day(300, rows=1_000_000)).test_days == 1


def test_days_that_the_user_names_are_kept():
    rows, wanted = every_day(60), FIRST + timedelta(days=20)
    plan = derive_plan(rows, day=wanted)
    assert (plan.day, plan.next_day, plan.val_days) == (wanted, max(rows), 2)
    plan = derive_plan(rows, next_day=wanted)
    assert (plan.day, plan.next_day) == (wanted - timedelta(days=1), wanted)
    plan = derive_plan(rows, day=max(rows))
    assert plan.next_day is None


def test_what_is_left_out_has_a_name():
    facts = {"users_seen_twice": 0, "rows_with_category": 0, "rows_with_time_zone": 0}
    skipped = list_skipped(facts, Plan(FIRST, None, 0, 0))
    assert set(skipped) == {
        "second release", "validation and test", "ranking SFT, embedding SFT, DPO", "categories", "time zones",
    }  # fmt: skip
    whole = {"users_seen_twice": 5, "rows_with_category": 9, "rows_with_time_zone": 9}
    assert list_skipped(whole, Plan(FIRST, FIRST + timedelta(days=1), 2, 2)) == {}


def outline(capsys, path: Path, *more: str) -> tuple[int, dict]:
    code = main("etl", "", JOBS, ["outline", "--set", f"source.path={path}", *more])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_outline_counts_and_writes_the_layer(tmp_path, spark, capsys):
    miniature = MINIATURES[0]
    path, layer = tmp_path / miniature.path, tmp_path / "layers" / "outline.yaml"
    miniature.write(path)
    late = {"user_id": "u1", "poi_id": "p1", "action_type": "click", "time": 4_102_444_800_000}  # 2100
    path.write_text(
        path.read_text() + json.dumps(late) + "\n" + json.dumps({**late, "time": 1_000_000_000_000})
    )

    code, summary = outline(capsys, path, "--out", str(layer))

    notes = summary["notes"]
    assert code == 0
    assert (notes["source"], notes["rows"], notes["rows_dated"]) == ("actions", 202, 200)
    assert (notes["users"], notes["users_seen_twice"], notes["pois"]) == (40, 40, 25)
    assert (notes["first_day"], notes["day"], notes["next_day"]) == ("2024-03-01", "2024-04-18", "2024-04-19")
    assert (notes["val_days"], notes["test_days"], notes["days_with_data"]) == (5, 5, 50)
    assert set(notes["skipped"]) == {"time zones"}
    assert yaml.safe_load(layer.read_text()) == {
        "source": {"path": str(path)}, "samples": {"val_days": 5, "test_days": 5},
    }  # fmt: skip


def test_categories_of_the_catalogue_count(tmp_path, spark, capsys):
    write_checkins(
        tmp_path / "city", simulate_visits(seed=1, num_users=2, num_pois=3, num_rows=9, num_days=5)
    )
    code, summary = outline(capsys, tmp_path / "city", "--source", "checkins")
    assert code == 0
    assert summary["notes"]["pois_listed_with_category"] == 3
    assert summary["notes"]["skipped"].keys() == {"validation and test"} | set()


def test_a_day_on_which_only_unknown_pois_were_visited_decides_nothing(tmp_path, spark, capsys):
    visits = simulate_visits(seed=1, num_users=2, num_pois=8, num_rows=20, num_days=9)
    write_checkins(tmp_path / "city", visits)
    last_day = max(visit.time.date() for visit in visits)
    odd = {visit.poi_id for visit in visits if visit.time.date() == last_day}
    listed = pq.read_table(tmp_path / "city" / "pois.parquet")
    is_odd = pc.is_in(listed["poi_id"], value_set=pa.array(sorted(odd)))
    pq.write_table(listed.filter(pc.invert(is_odd)), tmp_path / "city" / "pois.parquet")
    expected = max(visit.time.date() for visit in visits if visit.poi_id not in odd)

    code, summary = outline(capsys, tmp_path / "city")

    assert code == 0
    assert summary["notes"]["last_day"] == str(expected) < str(last_day)


def test_without_a_plausible_time_nothing_can_be_planned(tmp_path, spark, capsys):
    path = tmp_path / "seconds.json"
    path.write_text(
        json.dumps({"user_id": "u", "poi_id": "p", "action_type": "click", "time": 1_700_000_000})
    )
    code, summary = outline(capsys, path)
    assert code == 2
    assert "unit of the times" in summary["message"]
