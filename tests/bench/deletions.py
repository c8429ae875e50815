"""Vacuums, new histories and `--out` folders at random roots, killed at random: does anything go that is needed?

    python -m tests.bench.deletions [--rounds 200] [--seed N]

A round makes a table of a few versions under odd folders, pins some of them, and deletes while a reader has a pinned
version open; most rounds are killed in between and repeated. What each version needs is read here from the JSON of
Delta's log, by nothing of the pipeline. A file that a kept version needs and that is gone was deleted wrongly; one
that no kept version needs and that is still there was left. Rounds with `--out` put files of somebody else into the
folder.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

from pyarrow import fs

from conf.errors import SettingsError
from conf.out_folder import LOCK, MANIFEST, fill_out_folder
from conf.results import record
from conf.settings import load_settings
from etl.delta import retention
from etl.delta.storage import read_table, replace_day
from etl.spark.session import local_frame, open_session

COMMAND, SEED = "make bench-deletions", 20261130
TABLE, DAY = "user_places", date(2026, 1, 5)
COLUMNS = (
    "user_id string, home_lon double, home_lat double, home_days int, "
    "work_lon double, work_lat double, work_days int"
)
LETTERS = [*"ab #?+=%'\"[]{}();:,&*!@^~ü漢", "day=1", "50%", "..x", ".hidden", "_x", "x" * 100]


class KilledError(BaseException):
    """Ends a job where it stands."""


def odd_folder(rng: random.Random, base: Path) -> Path:
    """Returns a path of one to three folders with odd names that the settings take."""
    while True:
        parts = ["".join(rng.choices(LETTERS, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        path = base.joinpath(*(part if part.strip(". ") else "x" for part in parts))
        with suppress(SettingsError):
            return Path(load_settings(overrides=[f"storage.root={path}"]).storage.root)


def needed_files(table: Path, version: int) -> set[Path]:
    """Returns the data files of a version, by the commits of the log up to it."""
    files: set[str] = set()
    for number in range(version + 1):
        for line in (table / "_delta_log" / f"{number:020}.json").read_text().splitlines():
            action = json.loads(line)
            files |= {action["add"]["path"]} if "add" in action else set()
            files -= {action["remove"]["path"]} if "remove" in action else set()
    return {table / unquote(file) for file in files}


@contextmanager
def killed_after(deletions: int) -> Iterator[None]:
    """Kills a job before it deletes more files than given."""
    left = iter(range(deletions))
    real_delete, real_unlink = fs.LocalFileSystem.delete_file, Path.unlink

    class Dying:
        def __init__(self, system: fs.FileSystem) -> None:
            self.system = system

        def __getattr__(self, name: str) -> object:
            return getattr(self.system, name)

        def delete_file(self, path: str) -> None:
            if next(left, None) is None:
                raise KilledError
            real_delete(self.system, path)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if next(left, None) is None:
            raise KilledError
        real_unlink(path, missing_ok=missing_ok)

    real_open = retention.open_folder

    def open_dying(path: str) -> tuple[object, str]:
        system, folder = real_open(path)
        return Dying(system), folder

    with mock.patch.object(retention, "open_folder", open_dying), mock.patch.object(Path, "unlink", unlink):
        yield


def delete_in_table(spark: object, rng: random.Random, base: Path) -> tuple[int, int, int]:
    """Plays a round with a table; returns files deleted wrongly, files left, files deleted."""
    root = odd_folder(rng, base)
    versions = []
    for number in range(rng.randint(2, 5)):
        rows = [(f"u{number}", 4.9, 52.3, 9, None, None, 0)]
        frame = local_frame(spark, rows, COLUMNS)
        versions.append(replace_day(frame, TABLE, str(root), day=DAY, run_id="bench", job="bench"))
    table = root / TABLE
    pinned = sorted(rng.sample(versions, rng.randint(0, len(versions) - 1)))
    kept = {file for version in {*pinned, versions[-1]} for file in needed_files(table, version)}
    before = {path for path in table.rglob("*.parquet") if "_delta_log" not in path.parts}
    readers = [read_table(spark, str(root), TABLE, version=version) for version in pinned]

    def vacuum() -> None:
        retention.vacuum_table(spark, str(root), TABLE, keep_versions=pinned, hours=0)

    def forget() -> None:
        retention.vacuum_table(spark, str(root), TABLE, keep_versions=(), hours=0)
        retention.forget_history(spark, str(root), TABLE, retention.restart_history(spark, str(root), TABLE))

    is_erasure = rng.random() < 0.3
    run = forget if is_erasure else vacuum
    if is_erasure:
        kept = needed_files(table, versions[-1])
    if rng.random() < 0.6:
        with suppress(KilledError), killed_after(rng.randint(0, 3)):
            run()
    run()
    there = {path for path in table.rglob("*.parquet") if "_delta_log" not in path.parts}
    wrong, left = len(kept - there), len(there - kept)
    if not is_erasure:
        wrong += sum(reader.count() != 1 for reader in readers)
    wrong += read_table(spark, str(root), TABLE).count() != 1
    return wrong, left, len(before - there)


def delete_in_out(rng: random.Random, base: Path) -> tuple[int, int, int]:
    """Plays a round with an `--out` folder; returns as `delete_in_table`."""
    out, deleted = odd_folder(rng, base) / "out", 0
    foreign: dict[Path, str] = {}
    written: set[str] = set()
    for _ in range(rng.randint(2, 5)):
        names = {"/".join(rng.choices(["a", "b", "c c", "#"], k=rng.randint(1, 2))) + ".x" for _ in range(3)}

        def fill(names: set[str] = names) -> None:
            with fill_out_folder(out, "bench") as work:
                for name in names:
                    (work / name).parent.mkdir(parents=True, exist_ok=True)
                    (work / name).write_text("ours")

        if rng.random() < 0.3:
            path = out / rng.choice(["mine.txt", "a/mine.txt", ".secret"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
            foreign[path] = "mine"
        before = {path: path.read_text() for path in out.rglob("*") if path.is_file()}
        try:
            if rng.random() < 0.5:
                with suppress(KilledError), killed_after(rng.randint(0, 3)):
                    fill()
            fill()
            deleted += len(written - names)
            written = names
        except SettingsError:
            changed = [
                path for path, text in before.items() if not path.is_file() or path.read_text() != text
            ]
            if foreign and not [path for path in changed if path.name not in (MANIFEST, LOCK)]:
                for path in list(foreign):
                    path.unlink()  # as the message says: moved away
                foreign.clear()
                continue
            return len(changed) or 1, 0, deleted
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {MANIFEST, LOCK}
    return len(written - there), len(there - written - {str(path) for path in foreign}), deleted


def main() -> int:
    """Plays the rounds, records both figures, and returns 0 if they are 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    rng, base = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="deletions-"))
    settings = load_settings(overrides=["spark.quick_start=true", "spark.shuffle_partitions=1"])
    spark = open_session(settings, "deletions")
    wrong = left = deleted = 0
    for number in range(options.rounds):
        folder = base / str(number)
        play = delete_in_out if number % 3 == 2 else delete_in_table
        found = play(rng, folder) if play is delete_in_out else delete_in_table(spark, rng, folder)
        wrong, left, deleted = wrong + found[0], left + found[1], deleted + found[2]
        if found[0] or found[1]:
            print(f"round {number}: {found[0]} deleted wrongly, {found[1]} left, {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if number % 20 == 19:
            print(
                f"{number + 1} rounds, {deleted} files deleted, {wrong} wrongly, {left} left", file=sys.stderr
            )
    notes = (
        f"{options.rounds} rounds, seed {options.seed}: vacuum, new history (as an erasure makes it) and --out at "
        f"roots of odd names, 60 % killed and repeated, pinned versions open in readers; {deleted} files deleted"
    )
    record("files-deleted-wrongly", wrong, "files", "== 0", COMMAND, notes, options.results)
    record("vacuum-files-left", left, "files", "== 0", COMMAND, notes, options.results)
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
