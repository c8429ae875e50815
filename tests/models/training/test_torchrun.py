"""`torchrun -m models train`: the whole command in two processes ends as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conf.settings import Settings
from tests.models.planted_city import RECIPE

STAGES = ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
PAIR_TABLES = ("history_copy.", "crowd_copy.small", "crowd_copy.large", "crowd_copy.poi")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_command(
    launcher: tuple[str, ...], settings: Settings, folder: Path, *more: str
) -> tuple[int, list[str]]:
    """Runs `python -m models train` through a launcher; returns the exit code and the lines printed."""
    recipe = RECIPE.replace("sft_embedding: {", "sft_embedding: {drop_request: 0.0, ")  # a dropout, too
    (folder / "recipe.yaml").write_text(recipe)
    command = [
        sys.executable, *launcher, "-m", "models", "train", "--day", "2026-03-01", "--threads", "1",
        f"--set=storage.root={settings.storage.root}", f"--set=storage.artifacts={folder}/artifacts",
        f"--set=mlflow.tracking_uri=sqlite:///{folder}/mlflow.db", f"--set=mlflow.artifact_root={folder}/mlruns",
        "--recipe", str(folder / "recipe.yaml"), *more,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400
    )
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def trainings(city_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training by one process and by two."""
    found = {}
    for name, launcher in {"one": (), "two": TWO}.items():
        folder = tmp_path_factory.mktemp(name)
        code, lines = run_command(launcher, city_settings, folder)
        assert code == 0, lines
        found[name] = folder
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_end_with_the_model_of_one(trainings, stage):
    folders = [folder / "artifacts/training/2026-03-01" / stage / "model" for folder in trainings.values()]
    models = [load_file(folder / "model.safetensors") for folder in folders]
    losses = [json.loads((folder / "config.json").read_text())["notes"]["val_loss"] for folder in folders]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    off = {name: (models[0][name] - models[1][name]).nan_to_num().abs() > 1e-5 for name in models[0]}
    # Adam makes steps of full length of gradients that are nothing but rounding: a few rows of pair tables.
    assert not any(part.any() for name, part in off.items() if not name.startswith(PAIR_TABLES))
    assert sum(int(part.sum()) for part in off.values()) <= 0.01 * sum(part.numel() for part in off.values())


def test_only_the_first_process_logs_evaluates_and_registers(trainings):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trainings['two']}/mlflow.db")
    runs = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    versions = client.search_model_versions()
    assert len(runs) == 1 + len(STAGES)
    assert len(versions) == 1
    assert json.loads((trainings["two"] / "artifacts/training/2026-03-01/evaluation.json").read_text())


def test_a_training_without_samples_ends_all_processes(city_settings, tmp_path):
    code, lines = run_command(TWO, city_settings, tmp_path, "--set=storage.root=/nowhere/at/all")
    assert code != 0
    assert any("MissingInputError" in line for line in lines)
