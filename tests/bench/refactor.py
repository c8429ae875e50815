"""The synthetic demo at two commits: are the tables equal, and do the models learn the same?

    python -m tests.bench.refactor --base COMMIT [--work FOLDER]

Runs `demo.sh` in a checkout of each commit with this environment, both at once. Tables before the model must be equal
bit for bit in their business columns; vectors, scores and log probabilities may differ by 1e-5, losses logged in the
first 50 steps of a stage by 1e-6 of their size and the last ones by 1e-4. Records `refactor-digests-equal`.
"""

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from conf.results import record
from conf.tables import FEATURE_TABLES, TABLES

COMMAND = "make bench-refactor"
LINEAGE = {"run_id", "model_version", "published_ts_ms"}
MADE_BY_MODEL = {*FEATURE_TABLES, "releases", "table_statistics", "withdrawals"}
NUMBERS = {"embedding", "click_logit", "score", "log_probability"}
FEATURES_MAY_DIFFER, FIRST_LOSSES_MAY_DIFFER, LAST_LOSSES_MAY_DIFFER = 1e-5, 1e-6, 1e-4
FIRST_STEPS = 50
Losses = dict[tuple[str, str], list[tuple[int, float]]]


def check_out(commit: str, folder: Path) -> None:
    """Makes a checkout of a commit that finds the environment and the jars of this one."""
    subprocess.run(["git", "worktree", "remove", "--force", str(folder)], capture_output=True, check=False)
    subprocess.run(["git", "worktree", "add", "--force", "--detach", str(folder), commit], check=True)
    for name in (".ivy", ".venv"):
        if not (folder / name).exists():
            (folder / name).symlink_to(Path(name).absolute())


def start_demo(folder: Path) -> "subprocess.Popen[bytes]":
    """Starts the demo of a checkout; its log lies beside it."""
    shutil.rmtree(folder / ".demo", ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        return subprocess.Popen(["./demo.sh"], cwd=folder, env=environment, stdout=log, stderr=log)


def read(folder: Path, name: str) -> pa.Table:
    """Reads a table of a demo without lineage, by key."""
    table = DeltaTable(str(folder / ".demo" / "synthetic" / "warehouse" / name)).to_pyarrow_table()
    kept = [column for column in table.column_names if column not in LINEAGE]
    key = [column for column in TABLES[name].key if column in kept]
    order = key + [
        column for column in kept if pa.types.is_string(table.schema.field(column).type) and column not in key
    ]
    return (
        table.select(kept).sort_by([(column, "ascending") for column in order])
        if order
        else table.select(kept)
    )


def as_texts(table: pa.Table) -> list[str]:
    """Returns the rows as texts, in order: raw rows may be equal in every column, and NaN is like itself here."""
    return sorted(map(repr, table.to_pylist()))


def compare_tables(one: Path, two: Path) -> tuple[list[str], float]:
    """Returns the tables before the model that differ, and by how much the model's numbers do at most."""
    different, furthest = [], 0.0
    for name in TABLES:
        paths = [folder / ".demo" / "synthetic" / "warehouse" / name for folder in (one, two)]
        if [path.exists() for path in paths] == [False, False]:
            continue
        first, second = read(one, name), read(two, name)
        if name not in MADE_BY_MODEL:
            different += [] if as_texts(first) == as_texts(second) else [name]
        elif name in FEATURE_TABLES:
            furthest = max(furthest, furthest_number(first, second))
    return different, furthest


def furthest_number(one: pa.Table, two: pa.Table) -> float:
    """Returns the largest difference of vectors, scores and log probabilities; infinite for other rows."""
    others = [column for column in one.column_names if column not in NUMBERS]
    if one.num_rows != two.num_rows or not one.select(others).equals(two.select(others)):
        return float("inf")
    gaps = [0.0]
    for column in sorted(NUMBERS & set(one.column_names)):
        values = [np.array(table[column].to_pylist(), dtype=np.float64) for table in (one, two)]
        gaps.append(float(np.abs(values[0] - values[1]).max()) if values[0].size else 0.0)
    return max(gaps)


def read_losses(folder: Path) -> Losses:
    """Returns the losses that MLflow holds, by stage and name, in order of their steps."""
    found: Losses = {}
    question = """SELECT r.name, m.key, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid)
                  WHERE m.key LIKE '%loss%' ORDER BY m.step"""
    with sqlite3.connect(folder / ".demo" / "synthetic" / "mlflow.db") as database:
        for run, key, step, value in database.execute(question):
            found.setdefault((run, key), []).append((step, value))
    return found


def compare_losses(one: Losses, two: Losses) -> tuple[float, float, int]:
    """Returns the largest relative difference in the first steps and at the end, and how many losses were compared."""
    if {key: [step for step, _ in rows] for key, rows in one.items()} != {
        key: [step for step, _ in rows] for key, rows in two.items()
    }:
        return float("inf"), float("inf"), 0

    def furthest(pairs: Sequence[tuple[float, float]]) -> float:
        return max((abs(a - b) / max(abs(a), 1e-9) for a, b in pairs), default=0.0)

    early, last = [], []
    for key, rows in one.items():
        pairs = [(step, a, b) for (step, a), (_, b) in zip(rows, two[key], strict=True)]
        early += [(a, b) for step, a, b in pairs if step <= FIRST_STEPS]
        last += [(a, b) for _, a, b in pairs[-1:]]
    return furthest(early), furthest(last), len(early) + len(last)


def main() -> int:
    """Runs both demos, compares, records, and returns 0 if they are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, metavar="COMMIT", help="commit before the refactoring")
    parser.add_argument("--work", type=Path, default=Path(".demo/refactor"))
    parser.add_argument("--keep", action="store_true", help="compare what an earlier call has made")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    folders: Mapping[str, Path] = {"base": work / "base", "head": work / "head"}
    if not options.keep:
        for commit, folder in zip((options.base, "HEAD"), folders.values(), strict=True):
            check_out(commit, folder)
        codes = [demo.wait() for demo in [start_demo(folder) for folder in folders.values()]]
        if any(codes):
            raise SystemExit(f"the demos ended with {codes}; their logs are in {work}")
    one, two = folders.values()
    different, furthest = compare_tables(one, two)
    early, last, compared = compare_losses(read_losses(one), read_losses(two))
    is_equal = (
        not different
        and furthest <= FEATURES_MAY_DIFFER
        and early <= FIRST_LOSSES_MAY_DIFFER
        and last <= LAST_LOSSES_MAY_DIFFER
        and compared > 0
    )
    notes = (
        f"synthetic demo, both nights, at {options.base} and now; tables before the model that differ: "
        f"{', '.join(different) or 'none'}; vectors, scores and log probabilities differ by at most {furthest:.1e}; "
        f"{compared} losses, early ones by {early:.1e}, last ones by {last:.1e} of their size"
    )
    print(f"refactor-digests-equal {int(is_equal)}: {notes}")
    record("refactor-digests-equal", int(is_equal), "", "== 1", COMMAND, notes, options.results)
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
