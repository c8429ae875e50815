"""The ledger: what is written can be trusted, what is malformed is found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conf.results import MalformedResultError, format_page, load, reaches, record

KEYS = ["name", "value", "unit", "bar", "holds", "command", "commit", "date", "machine", "notes"]


def run_ledger(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conf.results", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("value", "bar", "holds"),
    [
        (0.40, ">= 0.40", True),
        (0.39, ">= 0.40", False),
        (600, "<= 600", True),
        (601, "<= 600", False),
        (0, "== 0", True),
        (1, "== 0", False),
        (6.0, "< 6", False),
        (-1.0, "> -2", True),
        (1e9, "", True),  # a number without a bar is only told
    ],
)
def test_bar_is_evaluated(value: float, bar: str, holds: bool) -> None:
    assert reaches(value, bar) is holds


@pytest.mark.parametrize("bar", ["0.4", ">=0.4", "at least 1", ">= x", "=> 1"])
def test_bar_of_another_form_is_refused(bar: str) -> None:
    with pytest.raises(MalformedResultError, match="is not a comparison and a number"):
        reaches(1.0, bar)


def test_record_writes_every_field_and_nothing_that_names_the_machine(tmp_path: Path) -> None:
    record("demo-seconds", 431.5, "s", "<= 600", "make demo", "synthetic city", folder=tmp_path)

    content = json.loads((tmp_path / "demo-seconds.json").read_text())
    assert list(content) == KEYS
    assert (content["value"], content["holds"], content["command"]) == (431.5, True, "make demo")
    assert list(content["machine"]) == ["cores", "memory_gib", "cpu"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo-seconds.json"]  # no draft is left


def test_record_replaces_the_number_of_the_same_name(tmp_path: Path) -> None:
    record("demo-seconds", 700, "s", "<= 600", "make demo", folder=tmp_path)
    record("demo-seconds", 500, "s", "<= 600", "make demo", folder=tmp_path)

    results, problems = load(tmp_path)
    assert [(result.value, result.holds) for result in results] == [(500, True)]
    assert problems == []


@pytest.mark.parametrize("name", ["Demo", "demo_seconds", "demo seconds", ""])
def test_name_that_is_not_kebab_case_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedResultError, match="is not kebab-case"):
        record(name, 1.0, "s", "", "make demo", folder=tmp_path)


def test_path_of_one_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedResultError, match="name a path of one machine"):
        record("demo-seconds", 1.0, "s", "", "make demo DATA=/home/me/data", folder=tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(MalformedResultError, match="is not a finite number"):
        record("demo-seconds", value, "s", "", "make demo", folder=tmp_path)


def test_table_marks_what_falls_short_and_still_succeeds(tmp_path: Path) -> None:
    record("demo-seconds", 431.5, "s", "<= 600", "make demo", folder=tmp_path)
    record("demo-peak-gib", 7.25, "GiB", "< 6", "make demo", folder=tmp_path)

    printed = run_ledger(tmp_path)

    assert printed.returncode == 0
    lines = printed.stdout.splitlines()
    assert "FALLS SHORT" in next(line for line in lines if line.startswith("demo-peak-gib"))
    assert "FALLS SHORT" not in next(line for line in lines if line.startswith("demo-seconds"))
    assert lines[-1] == "2 results, 1 fall short: demo-peak-gib"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"holds": False}, "holds is False"),
        ({"value": "431"}, "value is '431'"),
        ({"value": True}, "value is True"),
        ({"date": "31.1.2026"}, "is not YYYY-MM-DD"),
        ({"machine": {"cores": 2}}, "machine: the fields should be exactly"),
        ({"host": "server-7"}, "the fields should be exactly"),
        ({"name": "other"}, "not that of the file"),
    ],
)
def test_malformed_entry_fails_the_ledger(change: dict[str, object], problem: str, tmp_path: Path) -> None:
    record("demo-seconds", 431.5, "s", "<= 600", "make demo", folder=tmp_path)
    path = tmp_path / "demo-seconds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    printed = run_ledger(tmp_path)

    assert printed.returncode == 1
    assert problem in printed.stderr


def test_file_that_is_not_json_fails_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")

    assert run_ledger(tmp_path).returncode == 1


def test_committed_ledger_is_well_formed() -> None:
    _, problems = load(Path(__file__).parents[2] / "results")

    assert problems == []


def test_the_page_has_every_number_under_its_command(tmp_path):
    record("rows-lost", 0, "rows", "== 0", "make bench-rows", "of 5 rows", tmp_path)
    record("seconds", 12.5, "s", "<= 10", "make bench-rows", "warm", tmp_path)

    page = format_page(load(tmp_path)[0])

    assert "2 numbers, 1 fall short" in page
    section = page[page.index("## `make bench-rows`") :]
    assert "- **rows-lost**: 0 rows, target == 0 (" in section
    assert "- **seconds**: 12.5 s, target <= 10 **falls short** (" in section
    assert "of 5 rows" in section
