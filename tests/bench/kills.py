"""Kills the ETL's jobs at random moments, goes on with the killed job, and compares the tables with undisturbed ones.

    python -m tests.bench.kills --minutes 7        # as often as it takes; `make bench-kills` asks for more if it must

A chain is one copy of the same wrong nights, and a plan of jobs that corrects them: sources, index, cleansing,
sequences, samples, replay (`kill_steps`). A process runs the plan and is sent SIGKILL, JVM and all, at a random moment;
the next one begins with the job that was killed, as a scheduler's retry does, and is killed in turn, until the plan is
done. A reader of another kind (the `deltalake` library) looks at the tables all the while: every day of a table that it
sees must be one that an undisturbed run leaves behind between two jobs. Kills count if their chain ends with the tables
of the undisturbed run and no key occurs twice. Chains add up in a file, so that a sweep can be run in parts.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from conf.results import record
from conf.tables import TABLES
from tests.bench import kill_steps

COMMAND = "make bench-kills"
BAR = ">= 60"
LONGEST_S = 15.0
"""The first kill that a job meets comes within so many seconds, each further one within so many more: a job that takes
longer than expected, in a JVM that has just started, is done in the end."""
PROBE_EVERY_S = 0.1
LOGGER = logging.getLogger(__name__)
Digests = dict[str, str]
"""Table and day (or table alone) -> digest of its rows."""


@dataclass
class Chain:
    """One disturbed run of the plan.

    Attributes:
        kills: the job that each kill met.
        num_probes: tables that the reader looked at.
        torn: table and day that the reader saw in a state that no job leaves behind.
        different: table and day that ended up different from the undisturbed run's.
        num_doubled: keys that occur twice in the end.
    """

    kills: list[str] = field(default_factory=list)
    num_probes: int = 0
    torn: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    num_doubled: int = 0

    @property
    def is_survived(self) -> bool:
        return not (self.torn or self.different or self.num_doubled)


def digest_table(root: Path, name: str) -> Digests:
    """Reads a table at its latest version and digests it as a whole, or every day apart; empty without the table."""
    if not (root / name / "_delta_log").is_dir():
        return {}
    contract = TABLES[name]
    rows = DeltaTable(str(root / name)).to_pyarrow_table(columns=list(contract.business_columns)).to_pylist()
    sums: Counter[str] = Counter()
    for row in rows:
        text = json.dumps(row, default=str, sort_keys=True)
        part = f"{name} {row['day']}" if contract.write == "day" else name
        sums[part] += int.from_bytes(hashlib.sha256(text.encode()).digest()[:12]) + (
            1 << 104
        )  # rows and hashes
    return {part: f"{total:x}" for part, total in sums.items()}


def digest_all(root: Path) -> Digests:
    """Digests all tables."""
    return {part: digest for name in TABLES for part, digest in digest_table(root, name).items()}


def count_doubled_keys(root: Path) -> int:
    """Counts the keys of all derived tables that occur more than once."""
    doubled = 0
    for name, contract in TABLES.items():
        if contract.raw or not (root / name / "_delta_log").is_dir():
            continue
        rows = DeltaTable(str(root / name)).to_pyarrow_table(columns=list(contract.key)).to_pylist()
        doubled += sum(n > 1 for n in Counter(tuple(row.values()) for row in rows).values())
    return doubled


def start(root: Path, plan: str, first: int, *, pause: bool = False) -> subprocess.Popen[str]:
    """Starts the jobs in a process group of their own."""
    words = [
        sys.executable,
        "-m",
        "tests.bench.kill_steps",
        "--root",
        str(root),
        "--plan",
        plan,
        "--start",
        str(first),
    ]
    return subprocess.Popen(
        words + ["--pause"] * pause,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(root.parent / "steps.log").open("a"),
        text=True,
        start_new_session=True,
    )


def run_undisturbed(root: Path, plan: str) -> tuple[dict[str, set[str]], Digests]:
    """Runs a plan to its end; returns every state of a table or day between two jobs, and the last ones."""
    seen: dict[str, set[str]] = {}
    digests = _note(seen, digest_all(root))
    process = start(root, plan, 0, pause=True)
    for line in _lines(process):
        if line.startswith("done"):
            digests = _note(seen, digest_all(root))
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    if process.wait() != 0:
        raise RuntimeError(f"the undisturbed run of plan {plan} failed: see {root.parent / 'steps.log'}")
    return seen, digests


def run_chain(base: Path, root: Path, seen: dict[str, set[str]], last: Digests, rng: random.Random) -> Chain:
    """Runs the plan on a copy of the base, killed again and again, and compares."""
    shutil.copytree(base, root)
    chain, first, attempt, plan = Chain(), 0, 1, kill_steps.PLANS["night"]
    stop = threading.Event()
    reader = threading.Thread(target=_probe, args=(root, seen, chain, stop, random.Random(rng.random())))
    reader.start()
    try:
        while first < len(plan):
            reached = _run_and_kill(root, first, rng.uniform(0, attempt * LONGEST_S), chain)
            first, attempt = reached, attempt + 1 if reached == first else 1
    finally:
        stop.set()
        reader.join()
    found = digest_all(root)
    chain.different = sorted(part for part in {**last, **found} if last.get(part) != found.get(part))
    chain.num_doubled = count_doubled_keys(root)
    shutil.rmtree(root)
    return chain


def _run_and_kill(root: Path, first: int, delay_s: float, chain: Chain) -> int:
    """Runs the plan from a step on, kills it after the delay, and returns the step to go on with."""
    process = start(root, "night", first)
    timer: threading.Timer | None = None
    for line in _lines(process):
        if line == "ready":
            timer = threading.Timer(delay_s, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
        elif line.startswith("done"):
            first = int(line.split()[1]) + 1
    code = process.wait()
    if timer is None:
        raise RuntimeError(f"the jobs could not be started: see {root.parent / 'steps.log'}")
    timer.cancel()
    if code == -signal.SIGKILL:
        _await_end_of_group(process.pid)
        job, day = kill_steps.PLANS["night"][min(first, len(kill_steps.PLANS["night"]) - 1)]
        chain.kills.append(f"{job} {day}")
        LOGGER.info("kill %d of this chain, after %.1f s: %s %s", len(chain.kills), delay_s, job, day)
    elif code != 0:
        raise RuntimeError(f"step {first} failed after a kill: see {root.parent / 'steps.log'}")
    return first


def _await_end_of_group(group: int) -> None:
    """Waits until the JVM too is gone: a dead process may still be writing for a moment."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise RuntimeError("a killed process does not end")


def _probe(
    root: Path, seen: dict[str, set[str]], chain: Chain, stop: threading.Event, rng: random.Random
) -> None:
    while not stop.wait(PROBE_EVERY_S):
        name = rng.choice(list(TABLES))
        try:
            found = digest_table(root, name)
        except DeltaError:  # made at this moment: not yet a table
            continue
        chain.num_probes += 1
        chain.torn += [part for part, digest in found.items() if digest not in seen.get(part, ())]


def _note(seen: dict[str, set[str]], digests: Digests) -> Digests:
    for part, digest in digests.items():
        seen.setdefault(part, set()).add(digest)
    return digests


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    out: IO[str] | None = process.stdout
    assert out is not None
    for line in out:
        yield line.strip()


def prepare(work: Path) -> tuple[dict[str, set[str]], Digests]:
    """Makes the wrong nights and runs the plan on them undisturbed; both are kept for the other parts of the sweep."""
    known = work / "undisturbed.json"
    if not known.is_file():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        run_undisturbed(work / "base", "base")
        shutil.copytree(work / "base", work / "whole")
        seen, last = run_undisturbed(work / "whole", "night")
        known.write_text(
            json.dumps({"seen": {part: sorted(states) for part, states in seen.items()}, "last": last})
        )
    told = json.loads(known.read_text())
    return {part: set(states) for part, states in told["seen"].items()}, told["last"]


def record_chains(chains: list[Chain], folder: str) -> int:
    """Records the result; returns the number of kills survived."""
    survived = sum(len(chain.kills) for chain in chains if chain.is_survived)
    met = Counter(kill.split()[0] for chain in chains for kill in chain.kills)
    notes = (
        f"SIGKILLs of Python and JVM within {LONGEST_S:.0f} s after a job began, for each further one of the same job "
        f"in a row within so many more, in {len(chains)} chains, "
        f"{sum(not chain.is_survived for chain in chains)} of them not survived; killed in "
        f"{', '.join(f'{job} {n}' for job, n in sorted(met.items()))}; tables of the end different: "
        f"{sum(len(chain.different) for chain in chains)}, keys that occur twice: "
        f"{sum(chain.num_doubled for chain in chains)}, torn states seen in "
        f"{sum(chain.num_probes for chain in chains)} looks of a concurrent reader: "
        f"{sum(len(chain.torn) for chain in chains)}; simulated city, local file system"
    )
    record("kill-sweep-survived", survived, "kills", BAR, COMMAND, notes, folder)
    print(f"{survived} kills survived; {notes}")
    return survived


def main() -> int:
    """Runs chains until the time is up, records, and returns 0 if none was lost."""
    parser = argparse.ArgumentParser(description="Records how many kills the ETL survives in results/.")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no chain after so long")
    parser.add_argument("--kills", type=int, default=60, help="enough, with those of earlier parts")
    parser.add_argument(
        "--work", type=Path, default=Path(".demo/kills"), help="kept between the parts of a sweep"
    )
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    started = time.monotonic()
    seen, last = prepare(options.work)
    log = options.work / "chains.jsonl"
    chains = [Chain(**json.loads(line)) for line in log.read_text().splitlines()] if log.is_file() else []
    while time.monotonic() - started < 60 * options.minutes:
        if sum(len(chain.kills) for chain in chains) >= options.kills:
            break
        rng = random.Random(len(chains))
        shutil.rmtree(options.work / "chain", ignore_errors=True)
        chain = run_chain(options.work / "base", options.work / "chain", seen, last, rng)
        chains.append(chain)
        with log.open("a") as file:
            file.write(json.dumps(asdict(chain)) + "\n")
        sys.stderr.write(f"chain {len(chains)}: {len(chain.kills)} kills, survived: {chain.is_survived}\n")
    record_chains(chains, options.results)
    return 0 if all(chain.is_survived for chain in chains) else 1


if __name__ == "__main__":
    sys.exit(main())
