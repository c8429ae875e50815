"""Does the gate refuse a trained model that lifts a ranking model less than the champion, and promote a better one?

    python -m tests.bench.lift_gate [--work .demo/synthetic] [--day D]

Run it after `make demo`. Beside the demo's model another one is trained on the same rows by the same recipe without
what the lift comes from: no POI texts, no interests, no fitted click head, and few steps. Each of the two is judged as
the challenger of the other, on the same held-out requests. Records `gate-refuses-lower-lift`: 1 if the weak one is
refused with figures and the strong one is not.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from conf.results import record
from conf.settings import Settings, load_settings
from models.config import load_recipe
from models.registry.champions import Champions
from models.registry.held_out import find_lift_rows
from models.registry.lift_gate import judge_lift
from models.registry.training_bundle import make_bundle
from models.serving.bundle import ModelBundle, load_bundle
from models.tracking import open_training_run
from models.training.pipeline import Training, open_training, train_stage

RECIPE = Path("conf/models/city.yaml")
WEAK = (
    "fuse_poi_vectors=false",
    "decoder.interest_match.enabled=false",
    "pretrain.interests.enabled=false",
    "pretrain.epochs=1",
    "sft_embedding.max_steps=10",
    "sft_ranking.max_steps=10",
    "sft_ranking.fit_head=0",
)
STAGES = ("pretrain", "sft_embedding", "sft_ranking")


def train_weak(settings: Settings, day: str, folder: Path) -> Training:
    """Trains the weak model into a folder; the tables are those of the demo."""
    storage = settings.storage.model_copy(update={"artifacts": str(folder)})
    mlflow = settings.mlflow.model_copy(
        update={"tracking_uri": f"sqlite:///{folder}/mlflow.db", "artifact_root": str(folder / "mlruns")}
    )
    weak = settings.model_copy(update={"storage": storage, "mlflow": mlflow})
    training = open_training(weak, day, load_recipe(RECIPE, WEAK))
    with open_training_run(mlflow, training.folder, name="weak", tags={}) as log:
        for stage in STAGES:
            train_stage(training, stage, log)
        make_bundle(training)
    return training


def describe(
    challenger: ModelBundle, champions: Champions, training: Training
) -> tuple[tuple[str, ...], str]:
    """Judges a challenger; returns the reasons against it, and its figures as text."""
    verdict = judge_lift(find_lift_rows(training, challenger), challenger, champions)
    assert verdict.difference is not None, verdict.missing
    value, low, high = (100 * number for number in verdict.difference)
    return verdict.reasons, f"{value:+.2f} points ({low:+.2f} to {high:+.2f})"


def main() -> int:
    """Records the figure; returns 0 if it is 1."""
    parser = argparse.ArgumentParser(description="The lift part of the gate, on two trained models.")
    parser.add_argument("--work", type=Path, default=Path(".demo/synthetic"), help="folder of the demo")
    parser.add_argument("--day", default="2026-02-28", help="day of the training")
    options = parser.parse_args()
    os.environ.pop("SPACETIME_CONF", None)
    settings = load_settings([options.work / "settings.yaml"])
    training = open_training(settings, options.day, load_recipe(RECIPE))
    strong = load_bundle(training.bundle_folder)
    with tempfile.TemporaryDirectory() as folder:
        weak = load_bundle(train_weak(settings, options.day, Path(folder)).bundle_folder)
        refusal, lower = describe(weak, {"champion": strong}, training)
        reasons, higher = describe(strong, {"champion": weak}, training)
    is_right = bool(refusal) and not reasons
    notes = (
        f"simulated; the weak model {lower} beside the strong one: {'; '.join(refusal) or 'promoted'}. "
        f"The strong one {higher} beside the weak one: {'; '.join(reasons) or 'promoted'}"
    )
    result = record(
        "gate-refuses-lower-lift", int(is_right), "yes = 1", "== 1", "make bench-lift-gate", notes
    )
    sys.stderr.write(f"{result.name}: {result.value}; {notes}\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
