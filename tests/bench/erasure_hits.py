"""Erases 40 users of a simulated city with three releases and searches the raw bytes of everything kept for their ids.

    python -m tests.bench.erasure_hits

The city (`erasure_city.py`) is delivered, cleaned, trained on twice, released, rolled back, reported and explained. Its
users are erased in five commands, each killed at random moments, twenty times in all, and repeated until it ends; the
lists of ids come with and without a byte order mark. Everything kept lies in one folder: tables with all their versions
and logs, quarantine, audits, Data Docs, checkpoints, model registry, reports. Then five more nights run from the same
source, which still holds the users. Records

- `erasure-hits`: how often an id still stands anywhere,
- `erasure-bystanders-changed`: tables in which rows of others are not what they were,
- `erasure-returned`: rows of erased users in any table after the later nights.
"""

import argparse
import importlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest import mock

from conf.errors import ReleaseWithdrawnError
from conf.results import record
from conf.settings import load_settings
from etl.spark.session import open_session
from tests import small_city
from tests.bench import erasure_city
from tests.bench.raw_search import search
from udfs.releases.reader import read_release

COMMAND, SEED = "make bench-erasure", 4711
NUM_ERASED, NUM_COMMANDS, NUM_KILLS = 40, 5, 20
STEPS = (
    "etl.delta.erasure.delete_users",
    "etl.delta.retention.show_version",
    "etl.delta.retention.restart_history",
    "etl.delta.retention.forget_history",
    "udfs.upkeep.erase.save_plan",
    "udfs.upkeep.erase.append_release",
    "udfs.upkeep.erase.withdraw",
    "udfs.upkeep.erase.erase_files", "udfs.upkeep.erase.keep_digests",
)  # fmt: skip
MOST_STEPS, FEWEST_STEPS = 60, 15
"""Calls of these in a whole erasure, and in one that had only its end to do, about."""
Vectors = dict[str, list[float]]


class KilledError(BaseException):
    """Ends a job where it stands."""


def read_vectors(folder: Path, release: int | None = None) -> Vectors:
    """Reads the users' vectors as readers do, without Spark."""
    rows = read_release(None, str(folder / "warehouse"), "user_embeddings", release=release)
    return dict(zip(rows["user_id"].to_pylist(), rows["embedding"].to_pylist(), strict=True))


def choose_users(vectors: Vectors) -> list[str]:
    """Returns who is to be erased: the odd ids but for the bystanders, and the first of the others."""
    odd = [user for user in erasure_city.ODD_IDS.values() if user not in erasure_city.BYSTANDERS]
    plain = sorted(user for user in vectors if user not in erasure_city.ODD_IDS.values())
    return [*odd, *plain][:NUM_ERASED]


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Ends a job at the n-th call of any of the steps."""
    left = iter(range(number - 1))

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def step(*words: object, **named: object) -> object:
            if next(left, None) is None:
                raise KilledError
            return real(*words, **named)

        return step

    with ExitStack() as stack:
        for path in STEPS:
            module, _, name = path.rpartition(".")
            stack.enter_context(mock.patch(path, dying(getattr(importlib.import_module(module), name))))
        yield


def erase(layer: Path, users: list[str], rng: random.Random, *, kills: int, has_mark: bool) -> int:
    """Erases users by one command that is killed some times and repeated; returns how often it was killed."""
    # Outside of what is kept: the list of those who asked.
    asked = layer.parent.with_name(layer.parent.name + "-users.txt")
    asked.write_text("\n".join(users) + "\n", encoding="utf-8-sig" if has_mark else "utf-8")
    killed = 0
    for attempt in range(kills):
        with suppress(KilledError):
            with killed_at(rng.randint(1, FEWEST_STEPS if attempt else MOST_STEPS)):
                small_city.run(layer, "udfs", "erase", "--users", str(asked))
            break
        killed += 1
    else:
        small_city.run(layer, "udfs", "erase", "--users", str(asked))
    asked.unlink()
    return killed


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
    assert not set(read_vectors(folder)) & erased, "a rollback brings erased users back"


def main() -> int:
    """Makes the city, erases, searches, records, and returns 0 if all three figures are 0."""
    parser = argparse.ArgumentParser(description="Records what is left of erased users in results/.")
    parser.add_argument("--work", type=Path, default=Path(".demo/erasure"), help="made again")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    folder, rng = options.work.absolute(), random.Random(SEED)
    layer = erasure_city.write_settings(folder)
    root = str(folder / "warehouse")
    with erasure_city.odd_ids():
        erasure_city.make_city(layer)
        spark = open_session(load_settings([layer]), "erasure")
        vectors = read_vectors(folder)
        erased = choose_users(vectors)
        for user in erased[:2]:
            small_city.run(layer, "models", "explain", "--day", str(small_city.DAYS[0]), "--user", user)
        before, others = search(folder, erased), erasure_city.digest_others(spark, root, erased)
        killed = 0
        for number in range(NUM_COMMANDS):
            left = -(-(NUM_KILLS - killed) // (NUM_COMMANDS - number))
            killed += erase(layer, erased[number::NUM_COMMANDS], rng, kills=left, has_mark=number % 2 == 0)
        after = search(folder, erased)
        found = erasure_city.digest_others(spark, root, erased)
        changed = [name for name in others if found.get(name) != others[name]]
        check_readers(folder, layer, vectors, set(erased))
        after += search(folder, erased) - after  # a rollback must not bring them back either
        for number in range(erasure_city.NUM_LATER):
            erasure_city.later_night(layer, number)
        returned = erasure_city.count_returned(spark, root, erased)
    for kind, hits in sorted(before.items()):
        print(f"{kind:32} {hits:8} before {after[kind]:8} after")
    users = f"{NUM_ERASED} of {erasure_city.NUM_USERS} users of a simulated city"
    city = f"{users}, {killed} kills in {NUM_COMMANDS} commands"
    notes = {
        "erasure-hits": f"{city}; ids found before: {before.total()} times, in {len(before)} kinds of files; after: "
        f"{after.total()}; the release shows the others' vectors unchanged, a rollback works",
        "erasure-bystanders-changed": f"{city}; rows of others in {len(others)} tables; changed: {changed or 'none'}",
        "erasure-returned": f"{city}; {erasure_city.NUM_LATER} later nights of the same source",
    }
    values = {
        "erasure-hits": after.total(),
        "erasure-bystanders-changed": len(changed),
        "erasure-returned": returned,
    }
    units = {"erasure-hits": "hits", "erasure-bystanders-changed": "tables", "erasure-returned": "rows"}
    for name, value in values.items():
        print(f"{name} {value}: {notes[name]}")
        record(name, value, units[name], "== 0", COMMAND, notes[name], options.results)
    return 1 if any(values.values()) or killed < NUM_KILLS else 0


if __name__ == "__main__":
    sys.exit(main())
