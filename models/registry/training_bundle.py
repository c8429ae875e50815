"""The bundle of a training: its stages, and the choice of the stage that generates.

`python -m models train` and every single stage end with it. `bundle.json` names skipped stages with their reasons, and
records when there were no validation rows to choose the generator.
"""

from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path

import pyarrow.dataset as pds

from models.data.dataset import read_table
from models.evaluation.generator_choice import GeneratorChoice, choose_generator
from models.evaluation.release_split import EvaluationRows, most_common_action_type
from models.network.checkpoint import load_stage
from models.registry.held_out import find_evaluation_rows
from models.serving.bundle import load_bundle, save_bundle
from models.training.pipeline import Training
from models.training.stage_tables import STAGE_TABLES


def make_bundle(training: Training) -> tuple[EvaluationRows | None, GeneratorChoice]:
    """Collects the stages and chooses the one that generates.

    Returns:
        The validation rows, None if the training has none and does not need them, and the choice on them.
    """
    bundle = load_bundle(gather_stages(training))
    held_out = find_evaluation_rows(training, "val", bundle)
    return held_out, choose_generator(held_out, bundle)


def gather_stages(training: Training) -> Path:
    """Collects the trained stages in `bundle/`."""
    stages = {
        stage: training.stage_folder(stage) / "model" for stage in STAGE_TABLES if training.is_trained(stage)
    }
    layout = load_stage(stages["pretrain"]).config.layout
    of_day = pds.field("day") == date.fromisoformat(training.day)
    read = partial(read_table, training.table("pretrain_samples"), ("action_type_ids", "is_targets"))
    samples = read(of_day & (pds.field("split") == "val"))
    if not samples.num_rows:
        samples = read(of_day & (pds.field("split") == "train"))
    return save_bundle(
        training.bundle_folder,
        stages,
        layout=layout,
        content={
            "day": training.day,
            "embedding_dim": training.recipe.decoder.embedding_dim,
            "action_type_id": most_common_action_type(samples),
            "is_simulated": training.is_simulated,
            "recipe": training.recipe.model_dump(mode="json"),
            "data": {name: asdict(pin) for name, pin in training.pins.items()},
            "made_of": training.made_of,
            "skipped": training.skipped,
        },
    )
