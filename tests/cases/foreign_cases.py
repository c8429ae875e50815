"""Inputs that other people's exports resemble, the commands that read them, and what has to come out.

Each folder beside this file is a case: its README tells what went wrong once, `expected.json` what is right. The latter
was written from the README. It holds:

    kind      what the case stands for
    choice    which of several outcomes that the README allows is ours, and why
    runs      commands in order: `warehouse` (tables of its own), `command`, `exit`; then, where they matter, `error`
              (class), `says` (words of the message), `warns` (words of one warning each), `notes` (a path into the
              summary line -> value), `env` (the command runs in a process of its own), `city` (the warehouse is a copy
              of a finished one, `case_city.py`); or a `script`, all of whose finds of the pattern `same` agree
    before    of a run: `copy` (file -> place), `repeat` and `append` (rows of a table of the warehouse)
    finds     of a warehouse: `tables` (rows), `reasons` (of all quarantined rows), `repairs` (of cleaned actions),
              `rows` (columns and their values, of a whole table), `files` (the same of Parquet files)
    equal     tables that two warehouses agree in

Words in braces are places: {case} the folder, {work} an empty one, {today} the day on which this runs.
"""

import contextlib
import io
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from conf.cli import main

FOLDER = Path(__file__).parent
CASES = tuple(sorted(path.parent.name for path in FOLDER.glob("*/expected.json")))
IN_EVERY_RUN = ("c01_concat_json", "c13_index_full", "c16_requests_unit", "c27_profile_ties")
"""One case of each kind, a repaired delivery, a refused one, requests of a file, ties, is part of `make test`."""
Json = dict[str, Any]
Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Place:
    """Where a case is run.

    Attributes:
        work: an empty folder.
        layer: settings of the Spark session, as YAML; the tables' places are added by each run.
        city: a finished warehouse with a model, `warehouse` and `bundle`, which cases that ask for it get a copy of.
        empty: every table without a row, to start other warehouses from, which saves seconds; None: no tables.
    """

    work: Path
    layer: Path
    city: Callable[[], Path]
    empty: Path | None = None


def load_case(name: str) -> Json:
    """Returns what is expected of a case."""
    loaded: Json = json.loads((FOLDER / name / "expected.json").read_text(encoding="utf-8"))
    return loaded


def is_long(name: str) -> bool:
    """Tells whether a case is left to `make bench-cases`.

    A case runs half a minute or more, and unit tests cover the mechanism behind it.
    """
    return name not in IN_EVERY_RUN


def find_differences(name: str, place: Place) -> list[str]:
    """Runs a case and returns in which ways it did not end as expected; none if it is right."""
    case = load_case(name)
    words = {"case": str(FOLDER / name), "work": str(place.work), "today": str(datetime.now(UTC).date())}
    problems: list[str] = []
    for run in case["runs"]:
        for problem in _check_run(_fill(run, words), place):
            problems.append(f"{run.get('command', run.get('script'))}: {problem}")
    for warehouse, found in _fill(case.get("finds", {}), words).items():
        problems += [f"{warehouse}: {problem}" for problem in _check_tables(_root(place, warehouse), found)]
    for table, warehouses in case.get("equal", {}).items():
        digests = [_business_rows(_root(place, warehouse), table) for warehouse in warehouses]
        if any(digest != digests[0] for digest in digests):
            problems.append(f"{table} differs between {', '.join(warehouses)}")
    return problems


def run_command(words: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[int, Json, str]:
    """Runs `etl ...` or `udfs ...` and returns the exit code, the summary line and what went to stderr.

    It runs in this process, which spares the start of Spark, unless an environment is given.
    """
    if env is not None:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True, text=True, check=False, env={**os.environ, **env},
        )  # fmt: skip
        return done.returncode, _last_line(done.stdout), done.stderr
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words[0], "", _jobs(words[0]), words[1:])
        except SystemExit as left:  # argparse
            code = left.code if isinstance(left.code, int) else 2
    return code, _last_line(out.getvalue()), err.getvalue()


def read_rows(root: str | Path, table: str) -> Rows:
    """Returns the rows of a Delta table as another engine sees them; none if there is no table."""
    folder = Path(root) / table
    if not (folder / "_delta_log").is_dir():
        return []
    rows: Rows = DeltaTable(str(folder)).to_pyarrow_table().to_pylist()
    return rows


def _jobs(program: str) -> Mapping[str, Any]:
    if program == "etl":
        from etl.__main__ import JOBS as ETL_JOBS

        return ETL_JOBS
    from udfs.__main__ import JOBS as UDFS_JOBS

    return UDFS_JOBS


def _check_run(run: Json, place: Place) -> Iterator[str]:
    warehouse = run.get("warehouse", "main")
    if run.get("city") and not (place.work / warehouse).exists():
        shutil.copytree(place.city(), place.work / warehouse)
    elif place.empty and "command" in run and not _root(place, warehouse).exists():
        shutil.copytree(place.empty, _root(place, warehouse))
    _prepare(run.get("before", {}), place, _root(place, warehouse))
    if "script" in run:
        yield from _check_script(run)
        return
    words = [*shlex.split(run["command"]), *run.get("words", ())]
    words += ["--conf", str(place.layer)]
    if not any(word.startswith("storage.root=") for word in words):
        words += ["--set", f"storage.root={_root(place, warehouse)}"]
    words += ["--set", f"storage.artifacts={place.work / 'artifacts'}"]
    if run.get("city"):
        words += ["--model", str(place.work / warehouse / "bundle")]
    code, summary, log = run_command(words, run.get("env"))
    if code != run["exit"]:
        yield f"exit {code}, not {run['exit']}: {summary.get('error')} {str(summary.get('message', log[-2000:]))[:600]}"
        return
    if "error" in run and summary.get("error") != run["error"]:
        yield f"{summary.get('error')}, not {run['error']}"
    message = str(summary.get("message", ""))
    yield from (
        f"the error does not say {word!r}: {message}" for word in run.get("says", ()) if word not in message
    )
    warnings = list(_find_warnings(summary))
    for word in run.get("warns", ()):
        if not any(word in warning for warning in warnings):
            yield f"no warning says {word!r}: {warnings}"
    for path, value in run.get("notes", {}).items():
        found: Any = summary
        for part in path.split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        if found != value:
            yield f"{path} is {found!r}, not {value!r}"


def _check_script(run: Json) -> Iterator[str]:
    """Runs a script of the case; all that the pattern finds in what it prints has to be the same."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(run["script"], run_name="__main__")
    found = re.findall(run["same"], out.getvalue())
    if len(found) != run["times"] or len(set(found)) != 1:
        yield f"found {found}, which should be {run['times']} times the same"


def _prepare(before: Json, place: Place, root: Path) -> None:
    for source, target in before.get("copy", {}).items():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for table, condition in before.get("repeat", {}).items():
        stored = DeltaTable(str(root / table)).to_pyarrow_table()
        kept = [
            row for row in stored.to_pylist() if all(row[key] == value for key, value in condition.items())
        ]
        write_deltalake(str(root / table), pa.Table.from_pylist(kept, schema=stored.schema), mode="append")
    for table, rows in before.get("append", {}).items():
        schema = DeltaTable(str(root / table)).to_pyarrow_table().schema
        write_deltalake(
            str(root / table), pa.Table.from_pylist(_typed(rows, schema), schema=schema), mode="append"
        )


def _typed(rows: Rows, schema: pa.Schema) -> Rows:
    """Reads what JSON has no words for: days, and numbers that are none."""
    typed = []
    for row in rows:
        values = {}
        for field in schema:
            value = row.get(field.name)
            if value is not None and pa.types.is_date(field.type):
                value = date.fromisoformat(str(value))
            elif isinstance(value, str) and pa.types.is_floating(field.type):
                value = float(value)
            values[field.name] = value
        typed.append(values)
    return typed


def _check_tables(root: Path, found: Json) -> Iterator[str]:
    root = Path(found.get("root", root))
    for table, number in found.get("tables", {}).items():
        rows = len(read_rows(root, table))
        if rows != number:
            yield f"{rows} rows of {table}, not {number}"
    if "reasons" in found:
        reasons = Counter(row["reason"] for row in read_rows(root, "quarantined_rows"))
        if reasons != found["reasons"]:
            yield f"refused are {dict(reasons)}, not {found['reasons']}"
    if "repairs" in found:
        repairs = Counter(code for row in read_rows(root, "cleaned_actions") for code in row["repairs"])  # type: ignore[attr-defined]
        if repairs != found["repairs"]:
            yield f"repaired and flagged are {dict(repairs)}, not {found['repairs']}"
    for table, wanted in found.get("rows", {}).items():
        yield from _check_rows(read_rows(root, table), table, wanted)
    for file, wanted in found.get("files", {}).items():
        yield from _check_rows(pq.read_table(file).to_pylist(), file, wanted)


def _check_rows(rows: Rows, what: str, wanted: Json) -> Iterator[str]:
    """Compares the values of some columns, each distinct row once where `distinct` is set."""
    values = [[_plain(row.get(name)) for name in wanted["columns"]] for row in rows]
    if wanted.get("distinct"):
        values = [json.loads(text) for text in {json.dumps(row) for row in values}]
    expected = sorted(wanted["rows"], key=str)
    values.sort(key=str)
    same = len(values) == len(expected) and all(
        _is_equal(have, want)
        for row, other in zip(values, expected, strict=True)
        for have, want in zip(row, other, strict=True)
    )
    if not same:
        yield f"{what} holds {values}, not {expected}"


def _is_equal(have: object, want: object) -> bool:
    if isinstance(have, float) and isinstance(want, int | float):
        return math.isclose(have, want, rel_tol=0, abs_tol=1e-6)
    return have == want or (isinstance(want, str) and want.endswith("*") and str(have).startswith(want[:-1]))


def _business_rows(root: Path, table: str) -> list[str]:
    from conf.tables import TABLES

    names = TABLES[table].business_columns
    return sorted(
        json.dumps([_plain(row[name]) for name in names], default=str) for row in read_rows(root, table)
    )


def _plain(value: object) -> object:
    return str(value) if isinstance(value, date) else value


def _root(place: Place, warehouse: str) -> Path:
    return place.work / warehouse / "warehouse"


def _find_warnings(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from map(str, value) if key == "warnings" else _find_warnings(value)


def _last_line(text: str) -> Json:
    lines = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def _fill(value: Any, words: Mapping[str, str]) -> Any:
    """Puts places in for the words in braces, in every text."""
    if isinstance(value, str):
        for name, text in words.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, list):
        return [_fill(item, words) for item in value]
    if isinstance(value, dict):
        return {_fill(key, words): _fill(item, words) for key, item in value.items()}
    return value
