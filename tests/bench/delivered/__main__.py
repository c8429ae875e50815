"""Damaged deliveries in every format: is each record accounted for, and is every row right?

    make bench-delivered [SEEDS="N N"]

plants records with some sixty kinds of damage, alone and in pairs, into files of every reader, delivers them through
the real command lines and compares each row with the truth (`planted.py`). Records are counted by a second parser.
Records `delivered-records-unexplained` and `delivered-rows-wrong`, which both have to be 0.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import yaml

from conf.results import record
from conf.settings import load_settings
from etl.session import open_session
from tests.bench.delivered.planted import DAY, make_pois
from tests.bench.delivered.verdicts import Verdict, judge
from tests.bench.delivered.ways import WAYS, Way, Writer
from tests.cases.foreign_cases import run_command

SPARK = {"quick_start": False, "shuffle_partitions": 2, "driver_memory": "3g"}
QUIET = {"impressions": {"max_requests_per_day": 1, "since_days": 1}}
"""Simulated impressions are not what is asked about."""
MAX_KINDS = 25
SEEDS = (20260301, 20260302)


def main() -> int:
    """Runs every way, records both figures, and returns 0 if both are 0."""
    parser = argparse.ArgumentParser(
        description="Records delivered-records-unexplained and delivered-rows-wrong."
    )
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=SEEDS, metavar="N", help="one run of every way each"
    )
    parser.add_argument(
        "--each", type=int, default=1000, metavar="N", help="records per kind of damage and seed"
    )
    parser.add_argument("--only", nargs="*", metavar="WAY", help="ways to run; nothing is recorded")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave files and tables there")
    options = parser.parse_args()
    ways = [way for way in WAYS if not options.only or way.name in options.only]
    unexplained = wrong = records = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        layer = folder / "session.yaml"
        layer.write_text(yaml.safe_dump({"spark": SPARK, **QUIET}))
        open_session(load_settings([layer]), "delivered")
        for seed in options.seeds:
            for way in ways:
                started = time.perf_counter()
                verdict = run_way(way, folder / f"{way.name}-{seed}", layer, seed=seed, num_each=options.each)
                report(way.name, seed, verdict, time.perf_counter() - started)
                unexplained += verdict.unexplained
                wrong += sum(verdict.wrong.values())
                records += verdict.counts["in_files"]
    if not options.only:
        command = "make bench-delivered"
        notes = f"{records} records, {len(ways)} ways in, seeds {', '.join(map(str, options.seeds))}"
        record("delivered-records-unexplained", unexplained, "records", "== 0", command, notes)
        record("delivered-rows-wrong", wrong, "rows", "== 0", command, notes)
    return 0 if unexplained == wrong == 0 else 1


def run_way(way: Way, folder: Path, layer: Path, *, seed: int, num_each: int) -> Verdict:
    """Writes the files of a way, delivers them and judges what came out."""
    rng = random.Random(f"{way.name} {seed}")
    pois = make_pois(max(30, num_each // 3), rng)
    planted = way.write(Writer(folder, pois, rng, num_each))
    words = ["etl", "night", "--source", way.source, "--day", str(DAY), "--conf", str(layer)]
    places = (f"source.path={folder / way.path}", f"storage.root={folder / 'warehouse'}")
    for setting in (*places, *(text.replace("{folder}", str(folder)) for text in way.settings)):
        words += ["--set", setting]
    code, summary, log = run_command(words)
    if code:
        return _failed(f"exit {code}: {summary.get('message', log[-2000:])}", way.count(folder))
    return judge(str(folder / "warehouse"), planted, summary, in_files=way.count(folder), table="raw_actions")


def report(name: str, seed: int, verdict: Verdict, seconds: float) -> None:
    """Prints what became of the records of a way."""
    counts = ", ".join(f"{what} {number}" for what, number in verdict.counts.items())
    mistakes = f"unexplained {verdict.unexplained}, wrong {sum(verdict.wrong.values())}"
    print(f"{name} {seed}: {counts}; {mistakes}, {seconds:.0f} s")
    for kind, number in verdict.wrong.most_common(MAX_KINDS):
        print(f"    {number:6} {kind}")
        for example in verdict.examples[kind]:
            print(f"           {example}")
    sys.stdout.flush()


def _failed(message: str, in_files: int) -> Verdict:
    verdict = Verdict({"in_files": in_files}, in_files)
    verdict.note(None, message, "")
    return verdict


if __name__ == "__main__":
    sys.exit(main())
