"""The planted city of the tests on disk, and its trainings of 30 steps: what `resume` and `drift` measure on.

Rows are dealt to small shards and streamed from disk, and dropout is on, so that everything a resume has to bring
back is in use.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from models.config import Recipe
from models.data.dataset import TableAt
from models.network.checkpoint import load_stage
from models.serving.bundle import save_bundle
from models.training.align_dpo import run_align_dpo
from models.training.posttraining import SftRun
from models.training.pretrain import PretrainTables, run_pretrain
from models.training.sft_embedding import run_sft_embedding
from models.training.sft_ranking import run_sft_ranking
from models.training.stage import TrainResult
from tests.models.planted_city import (
    DAY,
    block_rows,
    pair_rows,
    poi_rows,
    pretrain_rows,
    request_rows,
    to_arrow,
)

STAGES = ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
NUM_STEPS = 30
NUM_REQUESTS = 48
_TRAIN = {
    "epochs": 5, "max_steps": NUM_STEPS, "learning_rate": 0.01, "warmup_steps": 5, "device": "cpu", "patience": 99,
    "val_every": 5, "checkpoint_every": 4, "in_memory_rows": 0, "buffer_rows": 8,
}  # fmt: skip
RECIPE = Recipe.model_validate(
    {
        "decoder": {
            "hidden_dim": 16, "ffn_dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "window_actions": 12,
            "embedding_dim": 8, "geo_buckets": 64, "dropout": 0.1, "embedding_dropout": 0.1,
        },
        "pretrain": {**_TRAIN, "batch_size": 2},
        "sft_embedding": {**_TRAIN, "batch_size": 4},
        "sft_ranking": {**_TRAIN, "batch_size": 4},
        "align_dpo": {**_TRAIN, "batch_size": 4, "learning_rate": 0.001},
    }
)  # fmt: skip


def city_tables() -> Mapping[str, pa.Table]:
    """Returns the city by table name."""
    rows = {
        "poi_index": poi_rows(),
        "blocks": block_rows(),
        "pretrain_samples": pretrain_rows(),
        "ranking_samples": request_rows(NUM_REQUESTS),
        "preference_pairs": pair_rows(NUM_REQUESTS),
    }
    return {name: to_arrow(name, own) for name, own in rows.items()}


def write_city(root: Path) -> None:
    """Writes the city as Delta tables."""
    for name, table in city_tables().items():
        write_deltalake(str(root / name), table)


def train_stage(stage: str, root: Path, pretrained: Path, folder: Path) -> TrainResult:
    """Trains one stage of the city, or goes on with what `folder` holds.

    Args:
        stage: one of `STAGES`.
        root: where the tables are.
        pretrained: folder of the pre-training; not looked at by the pre-training itself.
        folder: of the stage; the weights end in `folder/model`.
    """
    day = DAY.isoformat()

    def table(name: str) -> TableAt:
        return TableAt(str(root / name), 0)

    def ignore(metrics: object, step: int) -> None:
        pass

    index = PretrainTables(table("pretrain_samples"), table("poi_index"), table("blocks"))
    if stage == "pretrain":
        return run_pretrain(index, day=day, recipe=RECIPE, layout=None, folder=folder, log=ignore)
    if stage == "align_dpo":
        return run_align_dpo(
            table("preference_pairs"), index, day=day, recipe=RECIPE, pretrained=pretrained, folder=folder, log=ignore
        )  # fmt: skip
    run = run_sft_embedding if stage == "sft_embedding" else run_sft_ranking
    return run(
        SftRun(table("ranking_samples"), day, RECIPE, pretrained=pretrained, folder=folder, log=ignore)
    )


def train_city(root: Path, work: Path) -> Path:
    """Trains all stages of the city and returns the folder of their bundle."""
    for stage in STAGES:
        train_stage(stage, root, work / "pretrain", work / stage)
    layout = load_stage(work / "pretrain" / "model").config.layout
    content = {"embedding_dim": RECIPE.decoder.embedding_dim, "is_simulated": True}
    folders = {stage: work / stage / "model" for stage in STAGES}
    return save_bundle(work / "bundle", folders, layout=layout, content=content)
