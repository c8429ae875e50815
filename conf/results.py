"""The ledger of what the project claims about itself: one JSON file per number, in `results/`.

Each is written by the command that measured it.

`python -m conf.results` prints all of them as a table, marks those that fall short of their bar, and fails on
a malformed one. The README quotes only these. Standard library only.
"""

import json
import math
import operator
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path

from conf.files import write_whole

FOLDER = Path("results")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
BAR = re.compile(r"(>=|<=|==|<|>) (-?\d+(?:\.\d+)?)")
COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, "<": operator.lt, ">": operator.gt}
MACHINE_PATH = re.compile(r"(?:^|[\s='\"])(?:/|[A-Z]:\\)\w")


@dataclass(frozen=True)
class Machine:
    """The machine that a number was measured on, as far as it matters to the number."""

    cores: int
    memory_gib: float
    cpu: str


@dataclass(frozen=True)
class Result:
    """One measured number.

    Attributes:
        name: kebab-case; also the file's name.
        value: the number.
        unit: for example s, GiB, rows; empty for a ratio.
        bar: condition to meet, for example `>= 0.40`; empty if the number is only reported.
        holds: whether the value reaches the bar; true without a bar.
        command: command that repeats the measurement.
        commit: commit that was measured; `+changes` if the checkout had changes.
        date: UTC day.
        machine: machine that it was measured on.
        notes: facts that a reader needs to interpret the number.
    """

    name: str
    value: float
    unit: str
    bar: str
    holds: bool
    command: str
    commit: str
    date: str
    machine: Machine
    notes: str


NUMBER = (int, float)
MACHINE_TYPES: dict[str, type | tuple[type, ...]] = {"cores": int, "memory_gib": NUMBER, "cpu": str}
RESULT_TYPES: dict[str, type | tuple[type, ...]] = {
    **{field.name: str for field in fields(Result)},
    "value": NUMBER,
    "holds": bool,
    "machine": dict,
}
"""What the fields of a file have to be."""


class MalformedResultError(ValueError):
    """A result that cannot be trusted: a field is missing or wrong, or `holds` contradicts value and bar."""


def reaches(value: float, bar: str) -> bool:
    """Tells whether a value reaches a bar such as `>= 0.40`; true without a bar.

    Raises:
        MalformedResultError: the bar is not of that form.
    """
    if not bar:
        return True
    match = BAR.fullmatch(bar)
    if match is None:
        raise MalformedResultError(f"bar {bar!r} is not a comparison and a number, such as '>= 0.40'")
    return bool(COMPARE[match.group(1)](value, float(match.group(2))))


def record(
    name: str,
    value: float,
    unit: str,
    bar: str,
    command: str,
    notes: str = "",
    folder: str | Path = FOLDER,
) -> Result:
    """Writes a number into the ledger, replacing an earlier one of its name; the file is never half written.

    Raises:
        MalformedResultError: a field is wrong, for example a path of this machine in the command.
    """
    result = Result(
        name=name,
        value=value,
        unit=unit,
        bar=bar,
        holds=reaches(value, bar),
        command=command,
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        machine=describe_machine(),
        notes=notes,
    )
    content = asdict(result)
    parse(content, name)
    write_whole(Path(folder) / f"{name}.json", json.dumps(content, indent=2) + "\n")
    return result


def parse(content: object, name: str) -> Result:
    """Checks one entry of the ledger and returns it.

    Raises:
        MalformedResultError: names the field and its problem.
    """
    if not isinstance(content, Mapping):
        raise MalformedResultError(f"{name}: it is not a JSON object")
    _check_fields(content, RESULT_TYPES, name)
    _check_fields(content["machine"], MACHINE_TYPES, f"{name}: machine")
    result = Result(**{**content, "machine": Machine(**content["machine"])})
    if result.name != name or not NAME.fullmatch(name):
        raise MalformedResultError(f"{name}: name {result.name!r} is not kebab-case or not that of the file")
    if not math.isfinite(result.value):
        raise MalformedResultError(f"{name}: value {result.value} is not a finite number")
    if result.holds != reaches(result.value, result.bar):
        raise MalformedResultError(
            f"{name}: holds is {result.holds}, but {result.value} against {result.bar!r} is not"
        )
    if MACHINE_PATH.search(result.command) or MACHINE_PATH.search(result.notes):
        raise MalformedResultError(f"{name}: command or notes name a path of one machine")
    try:
        date.fromisoformat(result.date)
    except ValueError as error:
        raise MalformedResultError(f"{name}: date {result.date!r} is not YYYY-MM-DD") from error
    return result


def load(folder: str | Path = FOLDER) -> tuple[list[Result], list[str]]:
    """Returns the results of a folder by name, and the problems of malformed files."""
    results, problems = [], []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            results.append(parse(json.loads(path.read_text()), path.stem))
        except (MalformedResultError, json.JSONDecodeError) as error:
            problems.append(f"{path}: {error}")
    return results, problems


def describe_machine() -> Machine:
    """Returns cores, memory and CPU model; nothing that names the machine."""
    cpu_info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpu_info.read_text()) if cpu_info.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores=cores, memory_gib=round(memory, 1), cpu=models[0] if models else platform.machine())


def format_table(results: Sequence[Result]) -> str:
    """Returns the ledger as text, one line per number; numbers that fall short are marked."""
    header = ("name", "value", "unit", "bar", "holds", "date", "commit")
    rows = [
        (
            r.name,
            f"{r.value:.6g}",
            r.unit,
            r.bar or "-",
            "yes" if r.holds else "FALLS SHORT",
            r.date,
            r.commit,
        )
        for r in results
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def format_page(results: Sequence[Result]) -> str:
    """Returns the ledger as a Markdown page: a section per command, a line per number, its notes below."""
    short = [result for result in results if not result.holds]
    lines = [
        "# Results", "",
        "Made by `make results-page` from `results/`. Every number was measured by the command of its section.",
        f"{len(results)} numbers, {len(short)} fall short of their target (in the ledger its `bar`).", "",
        "In the notes a floor is a baseline on the same rows, and the kernel counter is the recency-weighted visit "
        "baseline (docs/design.md). Of the code's own structure, a room is a package within etl, models or udfs, its "
        "floor is its import layer, and a circle is an import cycle.",
    ]  # fmt: skip
    for command in sorted({result.command for result in results}):
        lines += ["", f"## `{command}`", ""]
        for r in results:
            if r.command == command:
                bar = f", target {r.bar}" if r.bar else ""
                mark = "" if r.holds else " **falls short**"
                value = f"{r.value:.6g} {r.unit}".rstrip()
                lines += [f"- **{r.name}**: {value}{bar}{mark} ({r.date}, {r.commit})", f"  <br>{r.notes}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Prints the ledger, or writes it as a page with `--page FILE`; returns 1 if an entry is malformed."""
    words = sys.argv[1:]
    page = Path(words.pop(words.index("--page") + 1)) if "--page" in words[:-1] else None
    folders = [Path(word) for word in words if word != "--page"]
    results, problems = load(folders[0] if folders else FOLDER)
    if page is not None:
        write_whole(page, format_page(results))
        return 1 if problems else 0
    short = [result.name for result in results if not result.holds]
    print(format_table(results))
    print(f"\n{len(results)} results, {len(short)} fall short{': ' if short else ''}{', '.join(short)}")
    for problem in problems:
        print(f"malformed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _check_fields(content: object, types: Mapping[str, type | tuple[type, ...]], name: str) -> None:
    if not isinstance(content, Mapping) or set(content) != set(types):
        raise MalformedResultError(f"{name}: the fields should be exactly {', '.join(types)}")
    for key, accepted in types.items():
        value = content[key]
        if not isinstance(value, accepted) or (isinstance(value, bool) and accepted is not bool):
            raise MalformedResultError(f"{name}: {key} is {value!r}, which is of the wrong type")


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        return (
            f"{commit}+changes"
            if _git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
            else commit
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
