"""Erases 100 users of a simulated city with three nights and searches the raw bytes of everything kept for their ids.

    python -m tests.bench.erasure_hits

The city is delivered, cleaned, trained on, released, reported and explained as usual, the last night's features
twice, so that there are versions which no release shows. What is kept lies in one folder: tables with all their
versions and logs, quarantine, audits, Data Docs, checkpoints, model registry, reports. Beside the hits it is checked
that the release shows the other users' vectors unchanged, that a rollback still works and that a withdrawn release
says why.
"""

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path

from conf.errors import ReleaseWithdrawnError
from conf.results import record
from tests.bench import small_city
from tests.bench.raw_search import search
from udfs.read_release import read_release

COMMAND = "make bench-erasure"
NUM_USERS, NUM_ERASED = 300, 100
Vectors = dict[str, list[float]]


def make_city(folder: Path) -> Path:
    """Makes three nights with a release each, one training, reports, and explanations of the first users."""
    layer = small_city.write_settings(folder, num_users=NUM_USERS)
    days = [str(day) for day in small_city.DAYS]
    commands = [*small_city.night(0), ("etl", "training_others", "--day", days[0]), *small_city.training()]
    for number, day in enumerate(days):
        commands += small_city.night(number) if number else []
        commands += [("udfs", "release", "--day", day)]
    commands += [("models", "report", "--day", days[-1])]
    commands += [("udfs", "features", "--day", days[-1]), ("udfs", "audit", "--day", days[-1])]
    for words in commands:
        small_city.run(layer, *words)
    for user in known_users(folder)[:2]:
        small_city.run(layer, "models", "explain", "--day", days[0], "--user", user)
    return layer


def known_users(folder: Path) -> list[str]:
    """Returns the users of the current release, those to be erased first."""
    return sorted(read_vectors(folder))


def read_vectors(folder: Path, release: int | None = None) -> Vectors:
    """Reads the users' vectors as readers do, without Spark."""
    rows = read_release(None, str(folder / "warehouse"), "user_embeddings", release=release)
    return dict(zip(rows["user_id"].to_pylist(), rows["embedding"].to_pylist(), strict=True))


def check_readers(folder: Path, layer: Path, before: Vectors, erased: set[str]) -> None:
    """Checks what readers see afterwards: the same but for the erased; a rollback; why a release is gone."""
    expected = {user: vector for user, vector in before.items() if user not in erased}
    assert read_vectors(folder) == expected, "the release shows other rows than before"
    try:
        read_vectors(folder, release=1)
    except ReleaseWithdrawnError as error:
        print(error)
    else:
        raise AssertionError("release 1 pins versions that hold erased users, and is not withdrawn")
    small_city.run(layer, "udfs", "rollback")
    assert set(read_vectors(folder)) <= set(expected), "a rollback brings erased users back"


def record_hits(before: Counter[str], after: Counter[str], summary: dict, folder: str) -> None:
    """Prints where the ids were and records how often they still are."""
    for kind, found in sorted(before.items()):
        print(f"{kind:32} {found:8} before {after[kind]:8} after")
    notes = (
        f"{NUM_ERASED} of {NUM_USERS} users of a simulated city with 3 nights, 4 versions of the features, a training, "
        f"a report and explanations; ids found before: {before.total()} times, in {len(before)} kinds of files "
        f"({', '.join(f'{kind} {found}' for kind, found in before.most_common(6))} ...); after: {after.total()}; "
        f"{summary['seconds']:.0f} s; the release shows the other users' vectors unchanged, a rollback works"
    )
    record("erasure-hits", after.total(), "hits", "== 0", COMMAND, notes, folder)


def main() -> int:
    """Makes the city, erases, searches, records, and returns 0 if nothing was found."""
    parser = argparse.ArgumentParser(description="Records what is left of erased users in results/.")
    parser.add_argument("--work", type=Path, default=Path(".demo/erasure"), help="made anew")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    folder = options.work.absolute()
    layer = make_city(folder)
    vectors = read_vectors(folder)
    erased = sorted(vectors)[:NUM_ERASED]
    before = search(folder, erased)
    # Outside of what is kept: the list of those who asked.
    asked = folder.with_name(folder.name + "-users.txt")
    asked.write_text("\n".join(erased) + "\n")
    summary = small_city.run(layer, "udfs", "erase", "--users", str(asked))
    asked.unlink()
    after = search(folder, erased)
    check_readers(folder, layer, vectors, set(erased))
    after += search(folder, erased) - after  # a rollback must not bring them back either
    record_hits(before, after, summary, options.results)
    return 1 if after.total() else 0


if __name__ == "__main__":
    sys.exit(main())
