"""The command line that `python -m etl`, `python -m models` and `python -m udfs` share.

A program hands over its job table; this file parses, loads settings, sets up logging, runs the job, prints the summary
(people read stderr, programs read the one JSON line on stdout) and turns errors into exit codes: 0 done, 2 wrong usage,
settings or input, 3 a data gate failed, 4 versions that do not fit, 5 another run was in the way, 1 anything else.
"""

import argparse
import importlib
import json
import logging
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from conf.errors import SpacetimeError
from conf.run_lock import Access, hold_tables
from conf.settings import Settings, load_settings

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobContext:
    """Everything that a job may know of the outside: its day, its settings, its run."""

    job: str
    day: date
    settings: Settings
    run_id: str
    dry_run: bool
    options: argparse.Namespace


@dataclass
class JobSummary:
    """The outcome of a job. Rows in = rows out + rows refused + rows dropped, where that makes sense for the job.

    Attributes:
        rows_in: rows read.
        rows_out: rows written.
        rows_refused: rows quarantined.
        rows_dropped: exact duplicates dropped.
        tables: Delta version of every table written.
        notes: anything else worth a glance: small numbers and short strings.
        steps: seconds by step.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_refused: int = 0
    rows_dropped: int = 0
    tables: dict[str, int] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def take(self, done: "JobSummary", step: str) -> None:
        """Adds the refused and dropped rows, tables and seconds of a step; the job itself sets rows in and out."""
        self.rows_refused += done.rows_refused
        self.rows_dropped += done.rows_dropped
        self.tables |= done.tables
        self.steps |= {f"{step}.{name}": seconds for name, seconds in done.steps.items()}


@dataclass(frozen=True)
class Job:
    """One line of a job table.

    Attributes:
        help: one line about what the job reads and writes.
        run: does the work.
        add_options: adds the job's own options to its parser.
        needs_day: whether `--day` is required.
        access: kind of access to the tables that it needs (`conf/run_lock.py`).
    """

    help: str
    run: Callable[[JobContext], JobSummary]
    add_options: Callable[[argparse.ArgumentParser], None] | None = None
    needs_day: bool = True
    access: Access = "none"


def main(program: str, description: str, jobs: Mapping[str, Job], argv: Sequence[str] | None = None) -> int:
    """Runs one job of a job table and returns the exit code."""
    options = build_parser(program, description, jobs).parse_args(argv)
    _set_up_logging(options.verbose)
    job = jobs[options.job]
    run_id = options.run_id or f"{options.job}-{uuid.uuid4().hex[:12]}"
    started = time.perf_counter()
    try:
        settings = load_settings(options.conf, options.set)
        context = JobContext(
            options.job, options.day or date(1970, 1, 1), settings, run_id, options.dry_run, options
        )
        access: Access = "none" if options.dry_run else job.access
        with hold_tables(settings.storage.artifacts, access, job=f"{program} {options.job}", run_id=run_id):
            summary = job.run(context)
    except SpacetimeError as error:
        _report_error(program, options, run_id, error, error.exit_code)
        return error.exit_code
    except Exception as error:
        LOGGER.exception("%s %s failed", program, options.job)
        _report_error(program, options, run_id, error, 1)
        return 1
    _report(program, options, run_id, summary, time.perf_counter() - started)
    return 0


def run_later(module: str, function: str) -> Callable[[JobContext], JobSummary]:
    """Returns a job that is a function of a module, imported when it runs, so that --help is quick."""

    def run(context: JobContext) -> JobSummary:
        job: Callable[[JobContext], JobSummary] = load_function(module, function)
        return job(context)

    return run


def load_function(module: str, function: str) -> Any:
    """Imports a module and returns a function of it."""
    return getattr(importlib.import_module(module), function)


def calendar_day(text: str) -> date:
    """Parses a day of the years 1900 to 9998, whose neighbours exist too.

    Raises:
        ArgumentTypeError: it is no such day.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if str(day) != text:  # Python reads 20260131 and 2026-W05-6, too
        raise argparse.ArgumentTypeError(f"{text} is no day, written as YYYY-MM-DD")
    if not 1900 <= day.year < date.max.year:
        raise argparse.ArgumentTypeError(f"{text} is not of the years 1900 to {date.max.year - 1}")
    return day


def positive(text: str) -> int:
    """Reads a whole number of at least 1, for options."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def hours(text: str) -> float:
    """Reads a number of hours, finite and not negative, for options."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of hours from 0 on")
    return number


def run_name(text: str) -> str:
    """Reads the name of a run, which becomes part of file names."""
    if text and not re.fullmatch(r"\w[\w.:+@=-]{0,199}", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no plain name: up to 200 letters, digits and _ . : + @ = -, the first a letter or digit"
        )
    return text


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults to the help where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", [], False) else super()._get_help_string(action)


def build_parser(program: str, description: str, jobs: Mapping[str, Job]) -> argparse.ArgumentParser:
    """Builds the parser of a program from its job table."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    for name, job in jobs.items():
        sub = subparsers.add_parser(name, help=job.help, description=job.help, formatter_class=_HelpFormatter)
        sub.add_argument(
            "--day",
            type=calendar_day,
            required=job.needs_day,
            metavar="YYYY-MM-DD",
            help="the job's day (Airflow's data interval); rows written carry it"
            + ("" if job.needs_day else "; without meaning where the job's help does not name it"),
        )
        sub.add_argument(
            "--conf",
            action="append",
            default=[],
            type=Path,
            metavar="PATH",
            help="settings layer over conf/base.yaml; repeatable, later ones win",
        )
        sub.add_argument(
            "--set", action="append", default=[], metavar="a.b=value", help="one setting; repeatable"
        )
        sub.add_argument(
            "--run-id",
            type=run_name,
            default="",
            help="name of the run in tables and MLflow; made up if empty",
        )
        sub.add_argument("--dry-run", action="store_true", help="do everything but write")
        sub.add_argument("--verbose", action="store_true", help="log more")
        if job.add_options:
            job.add_options(sub)
    return parser


def peak_memory_gib() -> float:
    """Returns the sum of the peak resident memory of this process and its live descendants (JVM, workers), GiB.

    Linux only (/proc); elsewhere 0.0. A sum of peaks is an upper bound of the peak of the sum.
    """
    lines = [line for status in _read_of_descendants("status") for line in status.splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def cpu_seconds() -> float:
    """Returns the CPU time of this process, its live descendants and the children they waited for, seconds.

    Linux only; elsewhere 0.0. On a shared machine it says more about a job than its wall time.
    """
    # After the name in parentheses: user, system, waited-for user and system time are fields 11 to 14.
    fields = [stat.rpartition(")")[2].split()[11:15] for stat in _read_of_descendants("stat")]
    return sum(int(ticks) for ticks_of_process in fields for ticks in ticks_of_process) / os.sysconf(
        "SC_CLK_TCK"
    )


def _read_of_descendants(name: str) -> list[str]:
    """Reads a file of /proc/PID for this process and all its live descendants."""
    contents, pending = [], [os.getpid()]
    while pending:
        pid = pending.pop()
        try:
            contents.append(Path(f"/proc/{pid}/{name}").read_text())
            pending += [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except OSError:  # the process ended while we looked, or there is no /proc
            continue
    return contents


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s  %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in (
        "py4j",
        "matplotlib",
        "alembic",
        "mlflow",
        "great_expectations",
        "urllib3",
        "git",
        "fontTools",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _report(
    program: str, options: argparse.Namespace, run_id: str, summary: JobSummary, seconds: float
) -> None:
    line: dict[str, object] = {
        "program": program,
        "job": options.job,
        "day": str(options.day) if options.day else None,
        "run_id": run_id,
        "rows_in": summary.rows_in,
        "rows_out": summary.rows_out,
        "rows_refused": summary.rows_refused,
        "rows_dropped": summary.rows_dropped,
        "tables": summary.tables,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds(), 2),
        "peak_gib": round(peak_memory_gib(), 2),
        "steps": {step: round(value, 2) for step, value in summary.steps.items()},
        "notes": summary.notes,
    }
    LOGGER.info(
        "%s %s done: %d rows in, %d out, %d refused, %d dropped, %.1f s (%.1f s of CPU), %.1f GiB",
        program,
        options.job,
        summary.rows_in,
        summary.rows_out,
        summary.rows_refused,
        summary.rows_dropped,
        seconds,
        line["cpu_seconds"],
        line["peak_gib"],
    )
    print(json.dumps(line, default=str), flush=True)


def _report_error(
    program: str, options: argparse.Namespace, run_id: str, error: Exception, code: int
) -> None:
    print(f"\nerror: {error}\n", file=sys.stderr)
    line = {
        "program": program,
        "job": options.job,
        "day": str(options.day) if options.day else None,
        "run_id": run_id,
        "error": type(error).__name__,
        "message": str(error),
        "exit_code": code,
    }
    print(json.dumps(line), flush=True)
