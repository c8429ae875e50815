"""A mistyped day is refused before anything is written."""

from datetime import date, timedelta

import pytest

from conf.cli import main
from etl.__main__ import JOBS
from etl.jobs.day_bounds import find_problem

TODAY, EARLIEST, LAST = date(2026, 3, 20), date(2000, 1, 1), date(2026, 2, 10)


def problem_of(day: date, last: date | None = LAST) -> str | None:
    return find_problem(day, today=TODAY, earliest=EARLIEST, last=lambda: last)


@pytest.mark.parametrize("day", [LAST, LAST + timedelta(days=31), date(2026, 1, 1)])
def test_days_that_can_be_meant(day: date) -> None:
    assert problem_of(day) is None


@pytest.mark.operations("8")
@pytest.mark.parametrize(
    ("day", "words"),
    [
        (date(2062, 3, 4), "after today, 2026-03-20 UTC"),
        (TODAY + timedelta(days=1), "after today"),
        (date(1, 1, 1), "before 2000-01-01"),
        (LAST + timedelta(days=32), "2026-02-10, more than 31 days earlier"),
    ],
)
def test_days_that_cannot_be_meant_say_why(day: date, words: str) -> None:
    assert words in str(problem_of(day))


def test_the_first_delivery_may_be_of_any_day_up_to_today() -> None:
    assert problem_of(TODAY, last=None) is None
    assert problem_of(date(2012, 4, 12), last=None) is None


@pytest.mark.operations("8")
@pytest.mark.spark
@pytest.mark.parametrize("job", [["night", "--source", "synthetic"], ["synthetic"], ["poi_index"]])
@pytest.mark.parametrize("day", ["2062-03-04", "1999-12-31"])
def test_every_job_that_goes_forward_looks_at_the_day(spark, tmp_path, capsys, job, day) -> None:
    root = tmp_path / "warehouse"

    code = main("etl", "", JOBS, [*job, "--day", day, "--set", f"storage.root={root}"])

    assert code == 2
    assert f"--day {day} was refused" in capsys.readouterr().err
    assert not root.exists()


@pytest.mark.operations("8")
def test_a_year_without_neighbours_is_refused_by_the_command_line(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main("etl", "", JOBS, ["poi_index", "--day", "0001-01-01"])

    assert ended.value.code == 2
    assert "--day: 0001-01-01 is not of the years 1900 to" in capsys.readouterr().err
