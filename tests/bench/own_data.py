"""`make demo` on data that nobody here has looked at, with `DATA` as the only variable: does it end in a release?

    python -m tests.bench.own_data --data FOLDER        the folder holds one folder of check-ins per data set

Five public data sets and six miniatures (`own_miniatures.py`). A data set counts if the demo exits with 0, the last
two days with data are published and reported, and the release knows the users and POIs of the data: read here by a
second parser, none missing but those with a row in quarantine. Goes on where it stopped (`.demo/own-data/state.json`);
with all eleven done it writes `own-data-first-run`.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq

from conf.releases import load_releases
from conf.releases import read_table as read_arrow
from conf.results import record
from tests.own_miniatures import MINIATURES
from udfs.releases.reader import read_release

PUBLIC = ("fsq_charlotte", "fsq_calgary", "gowalla_nyc", "gowalla_world", "gowalla_ca_exact")
DEMOS = Path(".demo")
FOLDER = DEMOS / "own-data"
NOT_GIVEN = (
    "SOURCE",
    "WORK",
    "DAY",
    "NEXT_DAY",
    "RECIPE",
    "SPACETIME_CONF",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
)
"""Variables that could say more than DATA does; the demo runs without them."""
Row = tuple[str, str, date]
"""User, POI and UTC day of an action."""


@dataclass(frozen=True)
class Outcome:
    """How one demo ended.

    Attributes:
        problem: why it does not count; empty = it counts.
        seconds: that it took.
        releases: days published.
        users: in the last release.
        pois: in the last release.
        excused: users and POIs that are missing there, each with a row in quarantine.
    """

    problem: str
    seconds: float
    releases: tuple[str, ...] = ()
    users: int = 0
    pois: int = 0
    excused: int = 0


def prepare_data(public: Path | None) -> dict[str, Path]:
    """Writes the miniatures, links the public data sets, and returns what `DATA` is for each."""
    data = FOLDER / "data"
    data.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in PUBLIC if public else ():
        assert public is not None
        link = data / f"first-run-{name}"
        link.unlink(missing_ok=True)
        link.symlink_to((public / name).resolve())
        found[name] = link
    for miniature in MINIATURES:
        path = data / miniature.path
        if not path.exists():
            miniature.write(path)
        found[miniature.name] = path
    return found


def run_demo(data: Path, log: Path) -> Outcome:
    """Runs the demo from an empty folder and judges what it left."""
    for work in find_works(data):
        shutil.rmtree(work)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_GIVEN}
    started = time.perf_counter()
    with log.open("wb") as stream:
        # make reads a dollar sign as its own.
        command = ["make", "demo", f"DATA={str(data).replace('$', '$$')}"]
        code = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        ).returncode
    seconds = round(time.perf_counter() - started, 1)
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error:")]
        return Outcome(f"exit code {code}: {lines[-1] if lines else 'no error was named'}"[:400], seconds)
    return judge_demo(find_works(data), list(read_rows(data)), listed_pois(data), seconds)


def judge_demo(works: Sequence[Path], rows: Sequence[Row], listed: set[str], seconds: float) -> Outcome:
    """Compares what a demo published with the data that it was given.

    Args:
        works: folders that the demo has worked in; one.
        rows: the data.
        listed: POIs of the catalogue, if there is one.
        seconds: that the demo took.
    """
    if len(works) != 1:
        return Outcome(f"the demo left {len(works)} folders of its data", seconds)
    root, artifacts = str(works[0] / "warehouse"), works[0] / "artifacts"
    releases = load_releases(root)
    days, expected = [release.day for release in releases], sorted({day for _, _, day in rows})[-2:]
    found = Outcome("", seconds, tuple(map(str, days)))
    if days != expected:
        return Outcome(
            f"released are {days}, the last days with data are {expected}", seconds, found.releases
        )
    reports = [artifacts / "reports" / f"release-{release.release_id}.html" for release in releases]
    if missing := [path.name for path in reports if not path.is_file()]:
        return Outcome(f"reports are missing: {', '.join(missing)}", seconds, found.releases)
    users, pois = ids_of(root, "user_embeddings", "user_id"), ids_of(root, "poi_embeddings", "poi_id")
    wanted_users, wanted_pois = {user for user, _, _ in rows}, {poi for _, poi, _ in rows} | listed
    refused = quarantined_ids(root)
    problems = [
        f"{len(odd)} {what}, for example {min(odd)!r}"
        for what, odd in (
            ("users are not in the data", users - wanted_users),
            ("POIs are not in the data", pois - wanted_pois),
            ("users are missing and were not refused", wanted_users - users - refused),
            ("POIs are missing and were not refused", wanted_pois - pois - refused),
        )
        if odd
    ]
    excused = len(wanted_users - users) + len(wanted_pois - pois)
    return Outcome("; ".join(problems), seconds, found.releases, len(users), len(pois), excused)


def ids_of(root: str, table: str, key: str) -> set[str]:
    """Returns the ids that the current release has in a feature table."""
    return set(read_release(None, root, table)[key].to_pylist())


def quarantined_ids(root: str) -> set[str]:
    """Returns the users and POIs that have a row in quarantine."""
    found = set()
    for payload in read_arrow(root, "quarantined_rows", columns=["payload"])["payload"].to_pylist():
        row = json.loads(payload)
        found |= {str(row[key]) for key in ("user_id", "poi_id") if row.get(key) is not None}
    return found


def find_works(data: Path) -> list[Path]:
    """Returns the folders in which demos of these data have worked."""
    wanted = os.path.abspath(data)
    return [file.parent for file in DEMOS.glob("*/data.txt") if file.read_text().rstrip("\n") == wanted]


def read_rows(data: Path) -> Iterator[Row]:
    """Reads data of any of the shapes used here; imports nothing of the pipeline."""
    if data.is_dir():
        rows = pq.read_table(data / "checkins.parquet", columns=["user_id", "poi_id", "utc_time"])
        for row in rows.to_pylist():
            yield row["user_id"], row["poi_id"], row["utc_time"].astimezone(UTC).date()
        return
    with data.open(newline="", encoding="latin-1" if data.suffix == ".txt" else "utf-8") as stream:
        if data.suffix == ".csv":
            for row in csv.DictReader(stream):
                yield row["user_id"], row["POI_id"], date.fromisoformat(row["UTC_time"][:10])
        elif data.suffix == ".json":
            for row in map(json.loads, stream):
                yield row["user_id"], row["poi_id"], datetime.fromtimestamp(row["time"] / 1000, UTC).date()
        else:
            for line in stream:
                user, poi, *_, when = line.rstrip("\n").split("\t")
                yield user, poi, datetime.strptime(when, "%a %b %d %H:%M:%S %z %Y").date()


def listed_pois(data: Path) -> set[str]:
    """Returns the POIs of the catalogue beside check-ins."""
    file = data / "pois.parquet"
    return set(pq.read_table(file, columns=["poi_id"])["poi_id"].to_pylist()) if file.is_file() else set()


def tell_outcomes(outcomes: dict[str, Outcome]) -> str:
    """Returns the notes of the result."""
    parts = [
        f"{name}: {outcome.problem}"
        if outcome.problem
        else f"{name} {outcome.seconds:.0f} s, {outcome.users} users, {outcome.pois} POIs"
        + (f", {outcome.excused} others in quarantine" if outcome.excused else "")
        for name, outcome in outcomes.items()
    ]
    return (
        "releases of the last two days with data, reports, and the users and POIs of the data; "
        + "; ".join(parts)
    )


def main() -> int:
    """Runs what has not succeeded yet and returns 1 if anything does not count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=None, help="folder that holds the public check-in folders"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="data sets to run; all if none")
    parser.add_argument("--again", action="store_true", help="forget what was done before")
    options = parser.parse_args()
    public = options.data if options.data and all((options.data / name).is_dir() for name in PUBLIC) else None
    if public is None:
        print(
            f"{options.data or 'no folder'} does not hold {', '.join(PUBLIC)}: only the miniatures are run",
            file=sys.stderr,
        )
    data, state = prepare_data(public), FOLDER / "state.json"
    done: dict[str, Outcome] = {}
    if state.is_file() and not options.again:
        done = {name: Outcome(**content) for name, content in json.loads(state.read_text()).items()}
    for name in options.only or data:
        if name in done and not done[name].problem:
            continue
        print(f"{datetime.now(UTC):%H:%M:%S} {name} ...", file=sys.stderr, flush=True)
        done[name] = run_demo(data[name], FOLDER / f"{name}.log")
        print(f"{datetime.now(UTC):%H:%M:%S} {name}: {done[name]}", file=sys.stderr, flush=True)
        state.write_text(json.dumps({key: asdict(value) for key, value in done.items()}, indent=1) + "\n")
    wanted = (*PUBLIC, *(miniature.name for miniature in MINIATURES))
    failed = [name for name, outcome in done.items() if outcome.problem]
    if all(name in done for name in wanted):
        outcomes = {name: done[name] for name in wanted}
        value = sum(not outcome.problem for outcome in outcomes.values())
        command = "make bench-own-data DATA=FOLDER"
        record(
            "own-data-first-run", value, "data sets", f"== {len(wanted)}", command, tell_outcomes(outcomes)
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
