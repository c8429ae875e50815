"""The losses of the first 50 steps of every stage, as they were: a refactoring must not move them.

After a change of results on purpose, `GOLDEN=write pytest tests/models/training/test_golden_losses.py` writes the file,
and the commit says why.
"""

import json
import os
from pathlib import Path

import pytest

from models.config import load_recipe
from models.data.dataset import TableAt
from models.training import trainer
from models.training.align_dpo import run_align_dpo
from models.training.posttraining import SftRun
from models.training.pretrain import PretrainTables, run_pretrain
from models.training.sft_embedding import run_sft_embedding
from models.training.sft_ranking import run_sft_ranking
from tests.models.planted_city import DAY, RECIPE

GOLDEN = Path(__file__).parents[2] / "golden" / "losses.json"
STEPS = 50
TOLERANCE = 1e-3
"""Relative; another processor adds in another order, and fifty steps carry that on."""
Losses = dict[str, list[float]]


@pytest.fixture(scope="module")
def losses(city_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """Trains every stage for 50 steps on the planted city."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "recipe.yaml").write_text(RECIPE)
    stages = ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
    # Patience must not end a stage early: all fifty steps are compared.
    steps = [f"{stage}.{key}" for stage in stages for key in (f"max_steps={STEPS}", f"patience={STEPS}")]
    recipe = load_recipe(folder / "recipe.yaml", [*steps, "decoder.crowd.enabled=false"])
    names = ("pretrain_samples", "poi_index", "blocks", "ranking_samples", "preference_pairs")
    at = {name: TableAt(str(city_root / name), 0) for name in names}
    tables = PretrainTables(at["pretrain_samples"], at["poi_index"], at["blocks"])
    found: Losses = {}

    def keep(stage: str):
        def log(metrics, step):
            if "train/loss" in metrics:
                found.setdefault(stage, []).append(metrics["train/loss"])

        return log

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "LOG_EVERY_STEPS", 1)
        common = {"day": str(DAY), "recipe": recipe}
        run_pretrain(tables, layout=None, folder=folder / "pretrain", log=keep("pretrain"), **common)
        start = {**common, "pretrained": folder / "pretrain"}
        samples = at["ranking_samples"]
        run_sft_embedding(SftRun(samples, folder=folder / "embedding", log=keep("sft_embedding"), **start))
        run_sft_ranking(SftRun(samples, folder=folder / "ranking", log=keep("sft_ranking"), **start))
        run_align_dpo(at["preference_pairs"], tables, folder=folder / "dpo", log=keep("align_dpo"), **start)
    return found


def test_losses_are_what_they_were(losses: Losses) -> None:
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())

    assert {stage: len(values) for stage, values in losses.items()} == dict.fromkeys(golden, STEPS)
    for stage, values in golden.items():
        assert losses[stage] == pytest.approx(values, rel=TOLERANCE, abs=1e-6), stage
