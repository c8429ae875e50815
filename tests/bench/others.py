"""What the crowd copy is worth in the pipeline: the same check-ins and samples, with the switch and without.

    python -m tests.bench.others --data FOLDER [--seeds 0,1]

Spark makes samples and the tables of what the crowd did; `python -m models pretrain` trains on them, test rows are
ranked among all live POIs. Records the gain in Acc@10 on discoveries, in points, with its interval; what all rows gain
stands in the notes. Everything lies in the folder of --work, and trainings found there are not repeated.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import yaml

from conf.results import record
from conf.settings import Settings, load_settings
from models.config import load_recipe
from models.data.arrays import BoolArray, Float64Array
from models.data.ranks import Ranks
from models.evaluation.figures import rank_baselines
from models.evaluation.generator_choice import rank_by_stage
from models.evaluation.metrics import Interval, bootstrap_mean, hit_values
from models.evaluation.release_split import EvaluationRows
from models.registry.held_out import read_evaluation_rows
from models.serving.bundle import load_bundle
from models.training.pipeline import open_training
from tests import small_city

DAY = "2013-02-14"
"""Last but one day of the Foursquare New York check-ins, as in the demo."""
RECIPE = "conf/models/tiny.yaml"
SWITCH = {True: "decoder.crowd.enabled=true", False: "decoder.crowd.enabled=false"}
COMMAND = "make bench-others DATA=FOLDER"


def write_layer(work: Path, data: Path) -> Path:
    """Writes the settings layer: all tables in the folder, held-out stretches as in the demo."""
    work.mkdir(parents=True, exist_ok=True)
    layer = work / "settings.yaml"
    content = {
        "storage": {"root": str(work / "warehouse"), "artifacts": str(work / "artifacts")},
        "spark": {"quick_start": True, "conf": {"spark.sql.codegen.factoryMode": "FALLBACK"}},
        "source": {"path": str(data)},
        "samples": {"val_days": 21, "test_days": 21},
        "mlflow": {"tracking_uri": f"sqlite:///{work}/mlflow.db", "artifact_root": str(work / "mlruns")},
    }
    layer.write_text(yaml.safe_dump(content))
    return layer


def make_tables(layer: Path) -> None:
    """Has Spark make what the trainings read."""
    small_city.run(layer, "etl", "night", "--source", "checkins", "--day", DAY)
    for job in ("pretrain_samples", "training_others"):
        small_city.run(layer, "etl", job, "--day", DAY)
    small_city.close_spark()


def train(layer: Path, work: Path, *, copies: bool, seed: int) -> Settings:
    """Trains one model, unless it is there; returns the settings that lead to it."""
    artifacts = f"storage.artifacts={work}/{'with' if copies else 'without'}-{seed}"
    changed = ("--set-recipe", SWITCH[copies], "--set-recipe", f"pretrain.seed={seed}")
    words = ("--recipe", RECIPE, *changed, "--set", artifacts, "--threads", "1")
    small_city.run(layer, "models", "pretrain", "--day", DAY, *words)
    return load_settings([layer], [artifacts])


def rank(settings: Settings, *, copies: bool, seed: int) -> tuple[EvaluationRows, Ranks]:
    """Ranks the test rows by one model."""
    recipe = load_recipe(RECIPE, [SWITCH[copies], f"pretrain.seed={seed}"])
    training = open_training(settings, DAY, recipe)
    bundle = load_bundle(training.bundle_folder)
    rows = read_evaluation_rows(training, "test", bundle)
    return rows, rank_by_stage(rows, bundle, "pretrain")


def mean_hits(ranks: list[Ranks], k: int) -> Float64Array:
    """Returns the share of the seeds that have each row among their first k."""
    values: Float64Array = np.mean([hit_values(own, k) for own in ranks], axis=0)
    return values


def compare(rows: EvaluationRows, ranks: dict[bool, list[Ranks]], group: BoolArray, k: int) -> Interval:
    """Returns what the switch adds to Acc@k on some rows, with an interval from resampling users."""
    gain = mean_hits(ranks[True], k) - mean_hits(ranks[False], k)
    return bootstrap_mean(gain[group], rows.requests.users[group])


def describe_ranks(rows: EvaluationRows, ranks: dict[bool, list[Ranks]], group: BoolArray, k: int) -> str:
    """Says both figures, their difference and the baselines on some rows."""
    baselines = rank_baselines(rows.requests, rows.counts, catalogue=rows.catalogue)
    own = {copies: mean_hits(found, k)[group].mean() for copies, found in ranks.items()}
    gain = compare(rows, ranks, group, k)
    told = ", ".join(
        f"{name.replace('_', ' ')} {hit_values(baselines[name], k)[group].mean():.4f}" for name in baselines
    )
    return (
        f"Acc@{k} {own[False]:.4f} to {own[True]:.4f}, difference {gain.value:+.4f} "
        f"({gain.low:+.4f} to {gain.high:+.4f}); baselines: {told}"
    )


def main() -> int:
    """Makes tables, trains, ranks and records."""
    parser = argparse.ArgumentParser(description="Records what the crowd copy adds in the pipeline.")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with checkins.parquet and pois.parquet"
    )
    parser.add_argument("--work", type=Path, default=Path(".demo/others"))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--results", default="results")
    options = parser.parse_args()
    layer = write_layer(options.work, options.data)
    make_tables(layer)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    ranks: dict[bool, list[Ranks]] = {}
    for copies in SWITCH:
        found = [
            rank(train(layer, options.work, copies=copies, seed=seed), copies=copies, seed=seed)
            for seed in seeds
        ]
        rows, ranks[copies] = found[0][0], [own for _, own in found]
    is_new, everything = ~rows.requests.returns(), np.ones(len(rows.requests), np.bool_)
    gain = compare(rows, ranks, is_new, 10)
    notes = (
        f"{int(is_new.sum())} discoveries: {describe_ranks(rows, ranks, is_new, 10)}; "
        + "; ".join(
            f"all {len(is_new)} rows: {describe_ranks(rows, ranks, everything, k)}" for k in (1, 10, 100)
        )
        + f"; release split of {DAY}, mean of seeds {options.seeds}; recipe tiny"
    )
    result = record(
        "others-discoveries-gain",
        round(100 * gain.value, 2),
        "points",
        "> 0",
        COMMAND,
        notes,
        options.results,
    )
    sys.stderr.write(
        json.dumps({"name": result.name, "value": result.value, "notes": notes}, indent=1) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
