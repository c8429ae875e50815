"""Trains on a Spark standalone cluster of two workers and locally by one process, and compares the validation losses.

    python -m tests.bench.cluster_training

The cluster is that of `tests.bench.cluster_equals_local`; the training there is `python -m udfs train --processes 2`,
through TorchDistributor, a barrier task on each worker. Both read the same tables, with dropout off: what dropout
draws depends on the process.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import yaml

from conf.results import record
from tests import small_city
from tests.bench.cluster_equals_local import CLUSTER, NUM_WORKERS, standalone_cluster

COMMAND = "make bench-cluster"
NO_DROPOUT = (
    "decoder.dropout=0", "decoder.embedding_dropout=0", "sft_embedding.drop_request=0",
)  # fmt: skip


def told_losses(summary: dict[str, object]) -> dict[str, float]:
    """Returns the best validation loss of each stage."""
    notes = summary["notes"]
    assert isinstance(notes, dict)
    return {name: float(value) for name, value in notes.items() if name.endswith("_val_loss")}


def compare(work: Path, results: str) -> int:
    """Trains both ways, compares and records."""
    layer = small_city.write_settings(work, num_users=200)
    samples, training = small_city.training()
    for program, *words in (*small_city.night(0), samples):
        small_city.run(layer, program, *words)
    options = [*training[2:], *(word for key in NO_DROPOUT for word in ("--set-recipe", key))]
    started = time.monotonic()
    alone = told_losses(small_city.run(layer, "models", "train", *options, "--threads", "1"))
    alone_s = time.monotonic() - started
    content = yaml.safe_load(layer.read_text())
    content["storage"]["artifacts"] = str(work / "cluster-artifacts")
    content["mlflow"]["tracking_uri"] = f"sqlite:///{work / 'cluster.db'}"
    small_city.close_spark()
    with standalone_cluster(work / "spark") as master:
        content["spark"] |= {"master": master, "conf": CLUSTER}
        cluster_layer = work / "cluster.yaml"
        cluster_layer.write_text(yaml.safe_dump(content))
        started = time.monotonic()
        found = told_losses(
            small_city.run(cluster_layer, "udfs", "train", *options, "--processes", str(NUM_WORKERS))
        )
        cluster_s = time.monotonic() - started
        small_city.close_spark()
    assert len(alone) == len(small_city.STAGES)
    assert alone.keys() == found.keys()
    worst = max(abs(alone[name] - found[name]) for name in alone)
    notes = (
        f"largest difference of a stage's best validation loss, told in four digits: {alone}; simulated city, "
        f"{NUM_WORKERS} barrier tasks on workers of one core, all on one machine; one process {alone_s:.0f} s, cluster "
        f"{cluster_s:.0f} s with Spark's and torch's start"
    )
    record("cluster-training-difference", worst, "nats", "<= 0.0001", COMMAND, notes, results)
    print(f"{worst:.1e}: {notes}")
    return 0 if worst <= 1e-4 else 1


def main() -> int:
    """Compares."""
    parser = argparse.ArgumentParser(description="Records whether a cluster trains the model of one process.")
    parser.add_argument("--work", type=Path, default=Path(".demo/cluster-training"), help="made again")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    return compare(options.work.absolute(), options.results)


if __name__ == "__main__":
    sys.exit(main())
