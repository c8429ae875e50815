"""How far figures move with what must not matter: hash seed, batch size, row order, threads.

    python -m tests.bench.drift                                         the planted city, all four stages
    python -m tests.bench.drift --protocol nyc-table6 --data FOLDER     a public protocol, pre-training only

One set of models is trained (or, of a protocol, found in the work folder), then evaluated under every combination;
each hash seed and thread count is a process of its own. `metric-drift` is the largest absolute difference of any
figure, intervals and calibration included, from the first combination; a count or digest that differs counts as 1.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import torch

from conf.results import record
from conf.tables import TABLES
from models.config import load_recipe
from models.data.catalogue import Catalogue
from models.data.dataset import TableAt, read_table
from models.evaluation import evaluate
from models.evaluation.baselines import count_training
from models.evaluation.figures import Figures, describe_next_poi, rank_baselines
from models.evaluation.release_split import build_rows as build_release_rows
from models.protocols import run as protocol_run
from models.protocols.splits import PROTOCOLS, build_rows
from models.protocols.tables import build_evaluation_rows, build_tables
from models.serving import inference
from models.serving.bundle import load_bundle
from tests.bench.planted_training import train_city, write_city

HASH_SEEDS, THREADS, BATCH_SIZES = (0, 1, 2), (1, 2), (1, 7, 64)
BAR = "<= 0.00005"
SPLIT = "test"
PROTOCOL_RECIPE = "conf/models/checkins.yaml"
BATCHED = {
    evaluate: ("rank_targets_by_model", "score_candidates", "encode_user_requests", "encode_pois"),
    protocol_run: ("rank_targets_by_model",),
}
"""Functions that take a batch size, where they are called from."""
Leaf = float | str | None


def evaluate_city(folder: Path, order: np.random.Generator | None) -> Figures:
    """Evaluates the city's bundle: next POI and clicks.

    Args:
        folder: with `tables` and `bundle`.
        order: shuffles every table read; None = as written.
    """

    def read(name: str, condition: pds.Expression | None = None) -> pa.Table:
        location = folder / "tables" / name
        table = read_table(
            TableAt(str(location), 0), [column.name for column in TABLES[name].columns], condition
        )
        return table if order is None else table.take(pa.array(order.permutation(table.num_rows)))

    bundle = load_bundle(folder / "bundle")
    train, held_out = (read("pretrain_samples", pds.field("split") == split) for split in ("train", SPLIT))
    catalogue = Catalogue.from_arrow(read("poi_index"))
    rows = build_release_rows(train, held_out, catalogue)
    popularity: Counter[str] = Counter()
    for poi_id, visits in zip(catalogue.poi_ids, rows.counts.popularity, strict=True):
        popularity[poi_id] += visits
    clicks = read("ranking_samples", pds.field("split") == SPLIT)
    return {
        "next_poi": evaluate.evaluate_next_poi(rows, bundle),
        "ranking": evaluate.evaluate_ranking(clicks, popularity, bundle),
    }


def evaluate_public(options: argparse.Namespace, order: np.random.Generator | None) -> Figures:
    """Evaluates a model on a public protocol; trains it if the work folder does not hold it yet."""
    protocol = PROTOCOLS[options.protocol]
    built = build_rows(protocol, options.data)
    tables = build_tables(built, options.data)
    recipe = protocol_run.fit_recipe(load_recipe(options.recipe), protocol)
    finder = protocol_run.build_finder(tables, recipe)
    trained = protocol_run.train_on_protocol(
        tables, recipe, seed=options.seed, work=options.work, finder=finder
    )
    requests, rows = built.requests[SPLIT], build_evaluation_rows(tables, SPLIT)
    if order is not None:
        places = order.permutation(len(requests))
        requests, rows = requests.take(places), rows.take(places)
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    ranks = rank_baselines(requests, counts, hide_request_time=protocol.hides_request_time)
    ranks["model"] = protocol_run.rank_rows(rows, trained.model, finder)
    return {"next_poi": describe_next_poi(requests, ranks)}


def run_variants(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Evaluates in this process under every batch size and row order."""
    torch.set_num_threads(options.threads)
    for size, is_shuffled in product(BATCH_SIZES, (False, True)):
        for module, names in BATCHED.items():
            for name in names:
                setattr(module, name, partial(getattr(inference, name), micro_batch=size))
        order = np.random.default_rng(size) if is_shuffled else None
        figures = evaluate_public(options, order) if options.protocol else evaluate_city(options.work, order)
        yield {"batch": size, "shuffled": is_shuffled, "figures": dict(flatten(figures))}


def flatten(figures: object, name: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yields (path, value) of every leaf of nested figures."""
    if isinstance(figures, Mapping):
        for key, value in figures.items():
            yield from flatten(value, f"{name}/{key}" if name else str(key))
    elif isinstance(figures, list | tuple):
        for number, value in enumerate(figures):
            yield from flatten(value, f"{name}/{number}")
    else:
        yield name, figures if figures is None or isinstance(figures, str) else float(figures)  # type: ignore[arg-type]


def difference(one: Leaf, other: Leaf) -> float:
    """Returns how far two leaves are apart; 1 if they are not both numbers and not equal."""
    if isinstance(one, float) and isinstance(other, float) and math.isfinite(one) and math.isfinite(other):
        return abs(one - other)
    both_nan = one != one and other != other
    return 0.0 if both_nan or one == other else 1.0


def measure(options: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Runs every combination; returns by figure how far it moves at most, and how many combinations there are."""
    found: list[dict] = []
    for seed, threads in product(HASH_SEEDS, THREADS):
        words = [
            "--child",
            "--threads",
            str(threads),
            "--work",
            str(options.work),
            "--seed",
            str(options.seed),
        ]
        words += ["--protocol", options.protocol, "--data", str(options.data), "--recipe", options.recipe]
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.drift", *words],
            env={**os.environ, "PYTHONHASHSEED": str(seed)}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        sys.stderr.write(f"hash seed {seed}, {threads} threads: {len(found)} evaluations so far\n")
    first = found[0]["figures"]
    moved = {
        name: max(difference(value, own["figures"].get(name, "missing")) for own in found)
        for name, value in first.items()
    }
    extra = {name for own in found for name in own["figures"]} - set(first)
    return moved | dict.fromkeys(extra, 1.0), len(found)


def record_drift(moved: Mapping[str, float], num_runs: int, options: argparse.Namespace) -> float:
    """Records the largest difference and returns it."""
    worst = max(moved, key=lambda name: moved[name])
    means = [name for name in moved if "methods/" in name and not name.endswith(("/low", "/high"))]
    num_moved = sum(value > 0 for value in moved.values())
    told = f"{num_moved} figures move at all, most {worst}" if num_moved else "none moves"
    where = f"protocol {options.protocol}" if options.protocol else "the planted city, all stages"
    command = "make bench-drift" + (f" PROTOCOL={options.protocol} DATA=FOLDER" if options.protocol else "")
    notes = (
        f"{where}: {len(moved)} figures under {num_runs} combinations of hash seed {HASH_SEEDS}, threads {THREADS}, "
        f"batch size {BATCH_SIZES} and row order as written or shuffled; {told}; "
        "of the metrics themselves, without intervals and calibration, "
        f"{max(moved[name] for name in means):.2g} at most; trained once, evaluated {num_runs} times"
    )
    name = f"metric-drift-{options.protocol}" if options.protocol else "metric-drift"
    return record(name, moved[worst], "", BAR, command, notes, options.results).value


def main() -> int:
    """Measures and records; returns 0 if the bar holds."""
    parser = argparse.ArgumentParser(description="Records how far figures move in results/.")
    parser.add_argument("--protocol", default="", help="public protocol; empty = the planted city")
    parser.add_argument(
        "--data", type=Path, default=Path(), metavar="FOLDER", help="check-ins of the protocol"
    )
    parser.add_argument("--work", type=Path, default=None, metavar="FOLDER", help="for trained models")
    parser.add_argument("--recipe", default=PROTOCOL_RECIPE, help="of a protocol's model")
    parser.add_argument("--seed", type=int, default=0, help="of a protocol's model")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    parser.add_argument(
        "--child", action="store_true", help="evaluate only and print; used by the command itself"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a child")
    options = parser.parse_args()
    if options.child:
        for variant in run_variants(options):
            sys.stdout.write(json.dumps(variant) + "\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="drift-") as scratch:
        options.work = options.work or Path(".demo/protocols" if options.protocol else scratch)
        if options.protocol:
            evaluate_public(options, None)
        else:
            write_city(options.work / "tables")
            train_city(options.work / "tables", options.work)
        moved, num_runs = measure(options)
    drift = record_drift(moved, num_runs, options)
    return 0 if drift <= float(BAR.split()[1]) else 1


if __name__ == "__main__":
    sys.exit(main())
