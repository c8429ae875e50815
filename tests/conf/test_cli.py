"""The shared command line: one JSON line on stdout, errors for people on stderr, exit codes for programs."""

import json
from collections.abc import Callable

import pytest

from conf.cli import Job, JobContext, JobSummary, build_parser, main
from conf.errors import (
    GateFailedError,
    IndexVersionError,
    LossNotFiniteError,
    MissingInputError,
    SpacetimeError,
)

Run = Callable[[JobContext], JobSummary]


def call(run: Run, *words: str, job: str = "clean_actions") -> int:
    """Runs a job table of one job with the words of a command line."""
    return main(
        "etl", "test program", {job: Job("raw -> cleaned", run)}, [job, "--day", "2026-01-31", *words]
    )


def done(context: JobContext) -> JobSummary:
    return JobSummary(rows_in=10, rows_out=8, rows_refused=1, rows_dropped=1, tables={"cleaned_actions": 3})


def failing(error: Exception) -> Run:
    def run(context: JobContext) -> JobSummary:
        raise error

    return run


def test_a_job_that_is_done_returns_0_and_prints_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(done, "--run-id", "night-1") == 0

    line = json.loads(capsys.readouterr().out)
    assert {key: line[key] for key in ("program", "job", "day", "run_id")} == {
        "program": "etl",
        "job": "clean_actions",
        "day": "2026-01-31",
        "run_id": "night-1",
    }
    assert (line["rows_in"], line["rows_out"], line["rows_refused"], line["rows_dropped"]) == (10, 8, 1, 1)
    assert line["tables"] == {"cleaned_actions": 3}
    assert line["seconds"] >= 0
    assert line["peak_gib"] >= 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MissingInputError(what="a", where="b", needed_by="C", remedy="D."), 2),
        (GateFailedError(table="t", day="2026-01-31", failures=("f",), docs="d"), 3),
        (IndexVersionError(model_uri="m", trained_on=1, found=2), 4),
        (LossNotFiniteError(stage="pretrain", step=1, batch_file="b"), 1),
    ],
    ids=["input", "gate", "versions", "other"],
)
def test_a_named_error_becomes_its_exit_code_and_its_text(
    error: SpacetimeError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(failing(error)) == code

    printed = capsys.readouterr()
    assert str(error) in printed.err
    line = json.loads(printed.out)
    assert (line["error"], line["exit_code"], line["message"]) == (type(error).__name__, code, str(error))


def test_an_error_that_nobody_expected_returns_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(failing(ZeroDivisionError("division by zero"))) == 1

    assert json.loads(capsys.readouterr().out)["error"] == "ZeroDivisionError"


def test_an_unknown_setting_returns_2_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(failing(AssertionError("the job ran")), "--set", "index.cel_km=3") == 2

    assert "setting 'index.cel_km' in --set index.cel_km=3 cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["nightly", "--day", "2026-01-31"], ["clean_actions"], ["clean_actions", "--day", "31.1.2026"], []],
    ids=["unknown job", "no day", "not a day", "nothing"],
)
def test_wrong_usage_returns_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main("etl", "test program", {"clean_actions": Job("raw -> cleaned", done)}, words)

    assert caught.value.code == 2


def test_settings_reach_the_job() -> None:
    seen: list[JobContext] = []

    def remember(context: JobContext) -> JobSummary:
        seen.append(context)
        return JobSummary()

    call(remember, "--set", "index.version=2", "--set", "index.cell_km=3", "--dry-run")

    assert (seen[0].settings.index.version, seen[0].settings.index.cell_km) == (2, 3.0)
    assert seen[0].dry_run
    assert seen[0].day.isoformat() == "2026-01-31"


def test_two_runs_get_different_run_ids() -> None:
    seen: list[str] = []

    def remember(context: JobContext) -> JobSummary:
        seen.append(context.run_id)
        return JobSummary()

    call(remember)
    call(remember)

    assert len(set(seen)) == 2


def test_help_lists_every_job_with_what_it_reads_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main("etl", "test program", {"clean_actions": Job("raw -> cleaned", done)}, ["--help"])

    assert caught.value.code == 0
    assert "raw -> cleaned" in capsys.readouterr().out


@pytest.mark.operations("15")
@pytest.mark.parametrize(
    "words",
    [
        ["vacuum", "--keep-releases", "-5"],
        ["vacuum", "--keep-releases", "0"],
        ["vacuum", "--keep-releases", "nan"],
        ["vacuum", "--hours", "-24"],
        ["vacuum", "--hours", "nan"],
        ["vacuum", "--hours", "inf"],
        ["releases", "--max-age-hours", "nan"],
        ["releases", "--max-age-hours", "-1"],
        ["rollback", "--to", "0"],
        ["rollback", "--run-id", "../../.."],
        ["rollback", "--run-id", "a/b"],
        ["rollback", "--run-id", "."],
        ["backfill", "--from", "0001-01-01", "--to", "2026-01-01"],
        ["backfill", "--from", "2026-02-30", "--to", "2026-03-01"],
        ["backfill", "--from", "20260131", "--to", "2026-03-01"],
    ],
)
def test_options_have_bounds_and_runs_have_plain_names(words, capsys):
    from udfs.__main__ import JOBS

    with pytest.raises(SystemExit) as ended:
        build_parser("udfs", "", JOBS).parse_args([words[0], "--day", "2026-03-01", *words[1:]])

    assert ended.value.code == 2
    assert words[1] in capsys.readouterr().err
