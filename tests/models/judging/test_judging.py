"""Lists side by side: which side, who wins, and that what people and models choose is counted for the right list."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import CorruptInputError, MissingInputError, SchemaError
from models.judging.facts import gather_facts
from models.judging.lists import LEFT, Pair, read_pairs
from models.judging.page import read_choices, render_page, render_prompts
from models.judging.verdicts import compare_values, judge_by_values, tally, tally_lists, unblind
from tests.models.planted_city import poi_rows
from tests.models.report_city import DAY, write

PAIRS = [
    Pair("r1", "u1", ("a", "b"), ("c", "d")), Pair("r2", "u1", ("a", "b"), ("a", "b")),
    Pair("r3", "u2", ("c", "d"), ("a", "b")),
]  # fmt: skip
VALUES = {
    (f"r{n}", poi): value for n in (1, 2, 3) for poi, value in zip("abcd", (0.4, 0.2, 0.1, 0.2), strict=True)
}


def write_lists(path: Path, lists: dict[str, list[str]]) -> Path:
    rows = [
        {"request_id": request, "rank": rank, "poi_id": poi, "user_id": "u"}
        for request, pois in lists.items()
        for rank, poi in reversed(list(enumerate(pois, 1)))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_mean_value_of_a_list_decides_and_ranks_are_compared_one_by_one():
    lists, ranks = judge_by_values(PAIRS, VALUES)
    assert lists == {"r1": "win", "r2": "even", "r3": "lose"}
    # a .4 with c .1, b .2 with d .2; equal lists; the other way round.
    assert [verdict for _, verdict in ranks] == ["win", "even", "even", "even", "lose", "even"]
    found = tally_lists(PAIRS, lists)
    assert found.pairs == 3
    assert [own.value for own in found.shares.values()] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(0.1, "even"), (0.1009, "even"), (0.1012, "win"), (0.0991, "even"), (0.0988, "lose")],
)
def test_within_one_percent_of_theirs_is_even(ours, verdict):
    assert compare_values(ours, 0.1) == verdict


def test_choices_of_sides_become_verdicts_on_our_list():
    pairs = [Pair(f"r{n}", "u", ("a",), ("b",)) for n in range(200)]
    left = {pair.request_id: "left" for pair in pairs}
    verdicts = unblind(left, pairs, 1, source="x")
    ours_left = {pair.request_id for pair in pairs if pair.our_side(1) == LEFT}
    assert {request for request, verdict in verdicts.items() if verdict == "win"} == ours_left
    assert 70 < len(ours_left) < 130  # about half
    assert {pair.request_id for pair in pairs if pair.our_side(2) == LEFT} != ours_left
    assert unblind({"r0": "even"}, pairs, 1, source="x") == {"r0": "even"}
    with pytest.raises(CorruptInputError, match="'both'"):
        unblind({"r0": "both"}, pairs, 1, source="x")


def test_lists_are_read_by_rank_and_only_shared_requests_count(tmp_path):
    ours = write_lists(tmp_path / "a.parquet", {"r1": ["p1", "p2", "p3"], "r2": ["p1"]})
    theirs = write_lists(tmp_path / "b.parquet", {"r1": ["p9", "p8"], "r3": ["p1"]})
    assert read_pairs(ours, theirs, top=2) == [Pair("r1", "u", ("p1", "p2"), ("p9", "p8"))]
    with pytest.raises(MissingInputError, match="both lists"):
        read_pairs(ours, write_lists(tmp_path / "c.parquet", {"r7": ["p1"]}), top=2)
    twice = pa.table({"request_id": ["r1", "r1"], "rank": [1, 1], "poi_id": ["a", "b"]})
    pq.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(SchemaError, match="rank 1 twice"):
        read_pairs(ours, tmp_path / "d.parquet", top=2)


def test_intervals_are_by_user():
    one_user = tally(["u"] * 100, ["win"] * 50 + ["lose"] * 50).shares["win"]
    many_users = tally([f"u{n}" for n in range(100)], ["win"] * 50 + ["lose"] * 50).shares["win"]
    assert one_user.value == many_users.value == 0.5
    assert many_users.low < 0.45
    assert np.isnan(one_user.low)  # one user has no spread
    assert tally(["u"], ["win"]).as_json()["win"] == {"value": 1.0, "low": None, "high": None}


def test_choices_are_read_from_the_page_and_from_json_lines(tmp_path):
    rows = [{"request_id": "r1", "choice": "left"}, {"request_id": "r2", "choice": "even"}]
    page, lines = tmp_path / "choices.json", tmp_path / "answers.jsonl"
    page.write_text(json.dumps(rows, indent=1))
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert read_choices(page) == read_choices(lines) == {"r1": "left", "r2": "even"}
    lines.write_text("left\n")
    with pytest.raises(CorruptInputError):
        read_choices(lines)


@pytest.fixture
def facts(tmp_path):
    root = str(tmp_path / "warehouse")
    write(root, "poi_index", poi_rows())
    write(root, "categories", [{"index_version": 1, "category_id": 1, "category_path": "Food > Cafe"}])
    past = {"poi_ids": ["p0-1", "p0-0", "p0-1"], "timestamps_ms": [1, 2, 1_900_000_000_000]}
    write(root, "action_sequences", [{"day": DAY, "user_id": "u0", **past}])
    requests = tmp_path / "requests.parquet"
    pq.write_table(pa.table({
        "request_id": ["r1"], "user_id": ["u0"], "request_ts_ms": [1_800_000_000_000], "user_lon": [4.9],
        "user_lat": [52.4], "tz_offset_min": [60],
    }), requests)  # fmt: skip
    pairs = [Pair("r1", "u0", ("p0-0", "gone</script>"), ("p0-1", "p1-0"))]
    return gather_facts(root, requests, pairs, seed=1), pairs


def test_what_is_shown_of_a_pair_does_not_tell_whose_list_it_is(facts):
    shown, pairs = facts
    assert [poi.name for poi in shown[0].past] == ["p0-0", "p0-1"]  # before the request, latest first
    ours = shown[0].left if pairs[0].our_side(1) == LEFT else shown[0].right
    assert [poi.name for poi in ours][1] == "gone</script>"
    assert ours[0].km is not None
    assert ours[1].km is None
    page = render_page(shown, pairs, seed=1, title="Two lists")
    assert page.count("</script>") == 1
    assert "ours" not in page
    assert "theirs" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    prompt = json.loads(render_prompts(shown))
    assert prompt["request_id"] == "r1"
    assert "Left list:\n1. " in prompt["prompt"]
