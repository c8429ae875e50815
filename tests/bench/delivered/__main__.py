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
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from conf import results
from conf.settings import load_settings
from etl.spark.session import open_session
from tests.bench.delivered import second_parser, tables
from tests.bench.delivered.asked import DAY as ASKED_DAY
from tests.bench.delivered.asked import write_request_files
from tests.bench.delivered.planted import DAY, Planted, make_pois
from tests.bench.delivered.verdicts import (
    Verdict,
    judge,
    judge_answers,
    judge_pois,
    judge_profiles,
    judge_samples,
)  # fmt: skip
from tests.bench.delivered.ways import WAYS, Way, Writer
from tests.cases.case_city import build_case_city
from tests.cases.foreign_cases import Json, read_rows, run_command

SPARK = {
    "shuffle_partitions": 2,
    "driver_memory": "3g",
    "conf": {"spark.python.daemon.module": "udfs.worker_daemon"},
}
QUIET = {"impressions": {"max_requests_per_day": 1, "since_days": 1}}
"""Simulated impressions are not what is asked about."""
MAX_KINDS = 25
SEEDS = (77071,)
"""Not used while readers and rules were written."""


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
    runs = [(way.name, partial(run_way, way)) for way in WAYS] + list(TABLE_RUNS.items())
    ways = [(name, run) for name, run in runs if not options.only or name in options.only]
    unexplained = wrong = records = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        layer = folder / "session.yaml"
        layer.write_text(yaml.safe_dump({"spark": SPARK, **QUIET}))
        open_session(load_settings([layer]), "delivered")
        for seed in options.seeds:
            for name, run in ways:
                started = time.perf_counter()
                verdict = run(folder / f"{name}-{seed}", layer, seed=seed, num_each=options.each)
                report(name, seed, verdict, time.perf_counter() - started)
                unexplained += verdict.unexplained
                wrong += sum(verdict.wrong.values())
                records += verdict.counts["in_files"]
    if not options.only:
        command = "make bench-delivered"
        notes = f"{records} records, {len(ways)} ways in, seeds {', '.join(map(str, options.seeds))}"
        results.record("delivered-records-unexplained", unexplained, "records", "== 0", command, notes)
        results.record("delivered-rows-wrong", wrong, "rows", "== 0", command, notes)
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


def run_tables(folder: Path, layer: Path, *, seed: int, num_each: int) -> Verdict:
    """Writes raw tables as a user would, runs the night and the ranking samples, and judges what came out."""
    rng, root = random.Random(f"tables {seed}"), folder / "warehouse"
    pois = make_pois(max(30, num_each // 3), rng)
    actions = tables.write_raw_actions(root, Writer(folder, pois, rng, num_each))
    good = [
        record for record in actions if not record.refused and not record.structure and not record.damages
    ]
    users = [str(record.truth["user_id"]) for record in good]
    listed = tables.write_raw_pois(root, pois, rng, num_each)
    profiles = tables.write_profiles(root, users, rng, num_each)
    shown = tables.write_impressions(root, users, rng, num_each)
    common = ["--day", str(DAY), "--conf", str(layer), "--set", f"storage.root={root}"]
    code, summary, log = run_command(["etl", "night", *common])
    if code:
        return _failed(f"exit {code}: {summary.get('message', log[-2000:])}", len(actions))
    verdict = judge(str(root), actions, summary, in_files=len(actions), table="raw_actions")
    judge_pois(verdict, str(root), listed)
    judge_profiles(verdict, str(root), profiles)
    code, summary, log = run_command(["etl", "ranking_samples", *common, "--set", "samples.val_days=1"])
    if code:
        verdict.note(None, f"ranking_samples: exit {code}: {summary.get('message', log[-2000:])}", "")
        return verdict
    last_places = {record.truth["user_id"]: (record.poi.lon, record.poi.lat) for record in good}
    judge_samples(verdict, str(root), shown, last_places)
    verdict.counts |= {"pois": len(listed), "profiles": len(profiles), "requests_shown": len(shown)}
    return verdict


def run_given_requests(folder: Path, layer: Path, *, seed: int, num_each: int) -> Verdict:
    """Asks `poi_candidates --requests` with damaged files, in a finished warehouse."""
    rng = random.Random(f"requests {seed}")
    city = build_case_city(
        open_session(load_settings([layer]), "delivered"), load_settings([layer]), folder / "city"
    )
    records = write_request_files(folder, num_each, rng)
    in_files = second_parser.count_parquet(folder / "files")
    out = folder / "out"
    words = [
        "udfs",
        "poi_candidates",
        "--day",
        str(ASKED_DAY),
        "--conf",
        str(layer),
        "--model",
        str(city / "bundle"),
    ]
    words += [
        "--set",
        f"storage.root={city / 'warehouse'}",
        "--requests",
        str(folder / "files"),
        "--out",
        str(out),
        "--top",
        "1",
    ]
    code, summary, log = run_command(words)
    if code:
        return _failed(f"exit {code}: {summary.get('message', log[-2000:])}", in_files)
    answered = {(row["request_id"], row["user_id"]) for row in pq.read_table(out / "candidates").to_pylist()}
    refused = pq.read_table(out / "refused").to_pylist()
    return _judge_asked(records, in_files, answered, refused, summary)


def run_asked_tables(folder: Path, layer: Path, *, seed: int, num_each: int) -> Verdict:
    """Appends damaged requests to `ranking_requests` of a finished warehouse and runs the two jobs that answer them."""
    rng = random.Random(f"ranking_requests {seed}")
    city = build_case_city(
        open_session(load_settings([layer]), "delivered"), load_settings([layer]), folder / "city"
    )
    root = city / "warehouse"
    known = len(read_rows(root, "ranking_requests"))
    records = tables.write_ranking_requests(root, num_each, rng)
    words = [
        "--day",
        str(ASKED_DAY),
        "--conf",
        str(layer),
        "--model",
        str(city / "bundle"),
        "--set",
        f"storage.root={root}",
    ]
    words += ["--set", "features.top_k=1"]
    for job in ("ranking_scores", "poi_candidates"):
        code, summary, log = run_command(["udfs", job, *words])
        if code:
            return _failed(f"{job}: exit {code}: {summary.get('message', log[-2000:])}", len(records))
        if job == "ranking_scores":
            scored = {(row["request_id"], row["poi_id"]) for row in read_rows(root, "ranking_scores")}
    rows = read_rows(root, "poi_candidates")
    answered = {(row["request_id"], row["user_id"]) for row in rows} - {("r1", "u1"), ("r2", "new")}
    quarantined = [
        row for row in read_rows(root, "quarantined_rows") if row["source_table"] == "ranking_requests"
    ]
    refused = [row for row in quarantined if not row["reason"].startswith("score_")]  # type: ignore[attr-defined]
    verdict = _judge_asked(records, len(records), answered, refused, summary, known=known)
    for record in records:
        if record.refused or record.structure == "equal":
            continue
        wanted = {"p1", "p2"} if "candidates" in record.given else {"p1"}
        missing = {poi for poi in wanted if (record.truth["request_id"], poi) not in scored}
        if missing:
            verdict.note(record, "not scored", f"{missing}: {record.given}")
    return verdict


def _judge_asked(
    records: Sequence[Planted],
    in_files: int,
    answered: Collection[tuple[object, object]],
    refused: Collection[Json],
    summary: Json,
    *,
    known: int = 0,
) -> Verdict:
    counts = {"in_files": in_files, "planted": len(records), "answered": len(answered), "refused": len(refused),
              "dropped": summary["rows_dropped"]}  # fmt: skip
    gone = in_files - len(answered) - len(refused) - summary["rows_dropped"]
    verdict = Verdict(
        counts, abs(gone) + abs(in_files - len(records)) + abs(summary["rows_in"] - known - in_files)
    )
    judge_answers(verdict, records, answered, refused)
    return verdict


TABLE_RUNS = {
    "raw_tables": run_tables,
    "given_requests": run_given_requests,
    "ranking_requests": run_asked_tables,
}
"""Ways in that are no files of a source."""


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
