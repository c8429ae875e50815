"""One training: its folder, its pinned tables, its stages in order, and the bundle made of them.

    {storage.artifacts}/training/{day}/
        training.json           pins, and the digest of each stage's inputs
        mlflow_run.json         parent run
        pretrain/ sft_embedding/ sft_ranking/ align_dpo/       model/ and checkpoints/ of each stage
        bundle/                 the bundle that is registered
        evaluation.json

A restarted training resumes where it stopped. A stage whose recipe or rows have changed is trained again, and with it
the stages that start from it. `train` skips a stage without data, with a warning that the bundle records.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from conf.errors import MissingInputError, NoTrainingDataError, SpacetimeError
from conf.files import ERASURES_FILE, digest_json, read_json, write_json
from conf.settings import Settings
from models.config import Recipe, TrainConfig
from models.copying.crowd_candidates import SlotFinder
from models.copying.crowd_tables import CROWD_TABLES, CrowdAt, open_finder, read_catalogue
from models.data.dataset import TableAt
from models.data.parallel import broadcast_message
from models.data.pins import Pin, locate_table, pin_table
from models.network.checkpoint import load_stage, read_config
from models.tracking import RunLog, TableInput, open_stage_run
from models.training.align_dpo import run_align_dpo
from models.training.multimodal import SlotVectors, join_vectors, read_slot_vectors
from models.training.posttraining import SftRun
from models.training.pretrain import PretrainTables, last_index_version, run_pretrain
from models.training.sft_embedding import run_sft_embedding
from models.training.sft_ranking import run_sft_ranking
from models.training.stage import Log, TrainResult
from models.training.stage_tables import STAGE_TABLES, tables_of, vector_tables

LOGGER = logging.getLogger(__name__)
TRAINING_FILE = "training.json"
MAX_TAG = 500
"""Characters of a tag, a limit of MLflow's older stores."""


@dataclass
class Training:
    """A training of one day.

    Attributes:
        folder: folder of the training.
        day: day of the training, YYYY-MM-DD.
        recipe: settings of decoder and stages.
        settings: settings with the locations of tables and tracking store.
        pins: tables pinned so far.
        made_of: digest of all inputs of each stage.
        skipped: reason of each skipped stage.
        needs_validation: True = empty validation and test splits are an error; False = the model is not judged.
    """

    folder: Path
    day: str
    recipe: Recipe
    settings: Settings
    pins: dict[str, Pin] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    needs_validation: bool = True

    def take(self, content: Mapping[str, Any]) -> None:
        """Takes pins, digests and skipped stages from the content of `training.json`."""
        self.pins = {name: Pin(**pin) for name, pin in content["pins"].items()}
        self.made_of, self.skipped = content["made_of"], content["skipped"]

    def table(self, name: str) -> TableAt:
        """Returns a pinned table."""
        return TableAt(locate_table(self.settings.storage.root, name), self.pins[name].version)

    def stage_folder(self, stage: str) -> Path:
        """Returns the folder of a stage."""
        return self.folder / stage

    def is_trained(self, stage: str) -> bool:
        """Returns whether a stage has saved a model."""
        return (self.stage_folder(stage) / "model").is_dir()

    @property
    def bundle_folder(self) -> Path:
        """Folder of the bundle."""
        return self.folder / "bundle"

    @property
    def is_simulated(self) -> bool:
        """Whether any row that the training read comes from a simulation."""
        return any(pin.num_simulated for pin in self.pins.values())


def open_training(settings: Settings, day: str, recipe: Recipe, *, needs_validation: bool = True) -> Training:
    """Opens the training of a day; continues an earlier one if there is one."""
    folder = Path(settings.storage.artifacts) / "training" / day
    training = Training(folder, day, recipe, settings, needs_validation=needs_validation)
    path = folder / TRAINING_FILE
    if path.is_file():
        training.take(read_json(path, expected="the record of a training"))
    return training


def train_stage(training: Training, stage: str, parent: RunLog) -> TrainResult:
    """Trains one stage in a separate MLflow run, nested in the training's run.

    Raises:
        MissingInputError: a table or the pre-trained model does not exist.
        NoTrainingDataError: the stage has no sample.
    """
    try:
        prepare_stage(training, stage)
    except SpacetimeError as error:
        # The followers wait for a message about every stage, even one that is not trained.
        broadcast_message({"refused": str(error)})
        raise
    broadcast_message(_describe(training))
    started = time.perf_counter()
    with open_stage_run(training.settings.mlflow, parent, stage=stage) as log:
        log.log_params({"stage": stage, "day": training.day, "made_of": training.made_of[stage]})
        config: TrainConfig = getattr(training.recipe, stage)
        log.log_params({"train": config.model_dump(mode="json")})
        log.log_tables(_table_inputs(training, stage))
        log.log_tags({"simulated": str(training.is_simulated).lower()})
        result = run_stage(training, stage, log.log_metrics)
        best = {} if result.best_value is None else {f"best/val_{config.criterion}": result.best_value}
        log.log_metrics({**best, "seconds": time.perf_counter() - started}, result.steps)
        log.log_tags({"validated": str(result.best_value is not None).lower()})
    training.skipped.pop(stage, None)
    _save_training(training)
    return result


def train_all(training: Training, parent: RunLog) -> dict[str, TrainResult]:
    """Trains every stage; stages after pre-training are skipped if they have no data."""
    results = {"pretrain": train_stage(training, "pretrain", parent)}
    for stage in list(STAGE_TABLES)[1:]:
        try:
            results[stage] = train_stage(training, stage, parent)
        except (NoTrainingDataError, MissingInputError) as error:
            LOGGER.warning("stage %s is skipped: %s", stage, error)
            training.skipped[stage] = str(error)
            parent.log_tags({f"skipped.{stage}": str(error)[:MAX_TAG]})
            # The model of an earlier start would otherwise be gathered into the bundle.
            shutil.rmtree(training.stage_folder(stage), ignore_errors=True)
            _save_training(training)
    return results


def prepare_stage(training: Training, stage: str) -> None:
    """Pins the stage's tables; removes the output of an earlier start if recipe or rows have changed.

    Raises:
        MissingInputError: a table, or the model that the stage starts from, does not exist.
    """
    if stage != "pretrain" and not training.is_trained("pretrain"):
        raise MissingInputError(
            what="the pre-trained model",
            where=str(training.stage_folder("pretrain")),
            needed_by=f"Stage {stage}",
            remedy=f"Run: python -m models pretrain --day {training.day}, or python -m models train.",
        )
    for name in tables_of(stage, training.recipe):
        root = training.settings.storage.root
        training.pins[name] = pin_table(root, name, training.day, training.pins.get(name))
    made_of = _describe_stage(training, stage)
    before = training.made_of.get(stage)
    if before is not None and before != made_of:
        LOGGER.warning("stage %s is trained again: its recipe or its rows have changed", stage)
        # Removed before the new digest is saved: after a kill the next start sees the old digest and removes again.
        shutil.rmtree(training.stage_folder(stage), ignore_errors=True)
    training.made_of[stage] = made_of
    _save_training(training)


def _run_pretrain(training: Training, log: Log) -> TrainResult:
    tables = _index_tables(training)
    version = last_index_version(tables.poi_index)
    return run_pretrain(
        tables, day=training.day, recipe=training.recipe, layout=None, log=log,
        folder=training.stage_folder("pretrain"), finder=_open_finder(training, version),
        needs_validation=training.needs_validation,
    )  # fmt: skip


def _run_sft(run: Callable[[SftRun], TrainResult], stage: str, training: Training, log: Log) -> TrainResult:
    return run(
        SftRun(
            training.table("ranking_samples"), training.day, training.recipe,
            training.stage_folder("pretrain"), training.stage_folder(stage), log,
            vectors=_read_vectors(training, stage), needs_validation=training.needs_validation,
        )
    )  # fmt: skip


def _run_align_dpo(training: Training, log: Log) -> TrainResult:
    pretrained = training.stage_folder("pretrain")
    finder = _open_finder(training, read_config(pretrained / "model").index_version)
    return run_align_dpo(
        training.table("preference_pairs"), _index_tables(training), day=training.day, recipe=training.recipe,
        pretrained=pretrained, folder=training.stage_folder("align_dpo"), log=log, finder=finder,
        needs_validation=training.needs_validation,
    )  # fmt: skip


def run_stage(training: Training, stage: str, log: Log) -> TrainResult:
    """Trains a prepared stage; raises the errors of its `run_...` function."""
    return _RUNNERS[stage](training, log)


_RUNNERS: dict[str, Callable[[Training, Log], TrainResult]] = {
    "pretrain": _run_pretrain,
    "sft_embedding": partial(_run_sft, run_sft_embedding, "sft_embedding"),
    "sft_ranking": partial(_run_sft, run_sft_ranking, "sft_ranking"),
    "align_dpo": _run_align_dpo,
}


def _read_vectors(training: Training, stage: str) -> SlotVectors | None:
    """Reads the vectors of POIs, if the recipe fuses any."""
    tables = vector_tables(stage, training.recipe)
    if not tables:
        return None
    version = load_stage(training.stage_folder("pretrain") / "model").config.index_version
    index = training.table("poi_index")
    return join_vectors(
        read_slot_vectors(training.table(name), index, day=training.day, index_version=version)
        for name in tables
    )


def _open_finder(training: Training, index_version: int) -> SlotFinder | None:
    """Reads the statistics of the crowd, if the decoder copies from it."""
    if not training.recipe.decoder.crowd.enabled:
        return None
    visits, transitions = map(training.table, CROWD_TABLES)
    crowd = CrowdAt(visits, transitions, training.day, index_version)
    return open_finder(crowd, read_catalogue(training.table("poi_index"), index_version))


def _index_tables(training: Training) -> PretrainTables:
    return PretrainTables(
        training.table("pretrain_samples"), training.table("poi_index"), training.table("blocks")
    )


def _describe_stage(training: Training, stage: str) -> str:
    """Returns a digest of recipe and rows of a stage, and of the pre-training it starts from."""
    config: TrainConfig = getattr(training.recipe, stage)
    content = {
        "decoder": training.recipe.decoder.describe(),
        "stage": config.describe(),
        "fuses": vector_tables(stage, training.recipe),
        "rows": {name: training.pins[name].identity for name in tables_of(stage, training.recipe)},
        "from": "" if stage == "pretrain" else training.made_of.get("pretrain", ""),
    }
    return digest_json(content)


def _table_inputs(training: Training, stage: str) -> list[TableInput]:
    root = training.settings.storage.root
    return [
        TableInput(name, locate_table(root, name), pin.version, pin.num_rows, pin.digest)
        for name, pin in ((name, training.pins[name]) for name in tables_of(stage, training.recipe))
    ]


def refuse_erased(training: Training) -> None:
    """Checks that no users were erased from the rows of the training.

    Raises:
        MissingInputError: users were erased from rows that the training has read.
    """
    path = training.folder / ERASURES_FILE
    if not path.is_file():
        return
    for run_id, erasure in read_json(path, expected="a list of erasures").items():
        pinned = {name: pin.version for name, pin in training.pins.items()}
        gone = sorted(name for name, version in erasure["versions"].items() if pinned.get(name) == version)
        if gone:
            raise MissingInputError(
                what=f"the rows that the training of {training.day} has read ({', '.join(gone)})",
                where=training.settings.storage.root,
                needed_by="The job",
                remedy=f"Erasure {run_id} has taken users out of them since, and their versions are gone. Train again: "
                f"python -m models train --day {training.day}.",
            )


def _save_training(training: Training) -> None:
    write_json(training.folder / TRAINING_FILE, _describe(training))


def _describe(training: Training) -> dict[str, object]:
    return {
        "pins": {name: asdict(pin) for name, pin in training.pins.items()},
        "made_of": training.made_of,
        "skipped": training.skipped,
    }
