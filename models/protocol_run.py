"""Trains the decoder on a public protocol and ranks its scored rows beside the floors.

    python -m models evaluate --protocol nyc-table6 --data FOLDER --seeds 0,1,2

One training per seed, pre-training only, through the one trainer; the checkpoint is the one of the lowest
validation loss. Where a protocol scores the last check-ins of trajectories alone, a short second training on
the last check-ins of the training trajectories may follow (`pretrain_last` of the recipe). A trained model
stays in the work folder under a name made of its recipe, seed and training rows, so that protocols which
score other rows of the same training share it, and a second run ranks only.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from models.baselines import count_training
from models.checkpoint import load_stage
from models.config import Recipe, TrainConfig
from models.decoder import SpacetimeDecoder
from models.figures import (
    Figures,
    average_methods,
    compare_next_poi,
    describe_next_poi,
    rank_floors,
)
from models.inference import rank_targets_by_model
from models.metrics import Ranks
from models.other_slots import SlotFinder
from models.pretrain import run_pretrain
from models.protocol_tables import (
    DAY,
    ProtocolTables,
    build_evaluation_rows,
    build_tables,
    count_training_others,
    keep_memory,
    write_samples,
)
from models.protocols import PROTOCOLS, Protocol, build_rows
from models.release_split import EvaluationRows

LOGGER = logging.getLogger(__name__)
ROWS_PER_BATCH = 2_048
MEAN = "model_mean"
"""Name of the mean over seeds among the methods."""


@dataclass(frozen=True)
class TrainedModel:
    """A model trained on the training rows of a protocol.

    Attributes:
        model: in evaluation mode, with the weights of the best validation.
        seconds: of the training.
        val_loss: lowest validation loss, nats per target.
        best_step: its step.
    """

    model: SpacetimeDecoder
    seconds: float
    val_loss: float
    best_step: int


def evaluate_protocol(
    name: str,
    folder: Path,
    *,
    split: str = "test",
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (),
    work: Path = Path("work"),
) -> Figures:
    """Builds the rows of a public protocol and scores its floors, and one model per seed.

    Args:
        name: of the protocol.
        folder: with `checkins.parquet`, and for models `pois.parquet`.
        split: rows to score; select on `val` only.
        recipe: decoder and pre-training; needed with seeds.
        seeds: one model each; none = floors only.
        work: where samples and trained models are kept.

    Raises:
        MissingInputError: the folder lacks a file.
        CorruptInputError: a file cannot be read.
    """
    protocol = PROTOCOLS[name]
    built = build_rows(protocol, folder)
    requests = built.requests[split]
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    ranks = rank_floors(requests, counts, hide_request_time=protocol.hides_request_time)
    trainings: dict[str, object] = {}
    if seeds:
        assert recipe is not None, "a model needs a recipe"
        recipe = fit_recipe(recipe, protocol)
        tables = build_tables(built, folder)
        rows, finder = build_evaluation_rows(tables, split), build_finder(tables, recipe)
        for seed in seeds:
            trained = train_on_protocol(tables, recipe, seed=seed, work=work, finder=finder)
            if protocol.is_last_only and recipe.pretrain_last is not None:
                trained = train_on_last(tables, recipe, trained, seed=seed, work=work, finder=finder)
            ranks[f"model_seed_{seed}"] = rank_rows(rows, trained.model, finder)
            trainings[f"model_seed_{seed}"] = {
                "seconds": trained.seconds,
                "val_loss": trained.val_loss,
                "best_step": trained.best_step,
            }
    figures = describe_next_poi(requests, ranks)
    figures["rows_by_split"] = dict(built.num_rows)
    figures["published_digest"] = protocol.digest if split == "test" else ""
    if seeds:
        models = [ranks[method] for method in trainings]
        average_methods(figures, list(trainings), MEAN)
        figures["trainings"] = trainings
        figures["minus_kernel_counter"] = {MEAN: compare_next_poi(requests, models, ranks["kernel_counter"])}
    return figures


def fit_recipe(recipe: Recipe, protocol: Protocol) -> Recipe:
    """Returns the recipe with what the protocol says about the request."""
    decoder = recipe.decoder.model_copy(update={"hide_request_time": protocol.hides_request_time})
    return recipe.model_copy(update={"decoder": decoder})


def build_finder(tables: ProtocolTables, recipe: Recipe) -> SlotFinder | None:
    """Counts the training rows of others; None if the model does not copy from others."""
    others = recipe.decoder.others
    if not others.enabled:
        return None
    return SlotFinder(
        count_training_others(tables),
        tables.index.catalogue,
        num_followers=others.num_followers,
        num_near=others.num_near,
    )


def train_on_protocol(
    tables: ProtocolTables, recipe: Recipe, *, seed: int, work: Path, finder: SlotFinder | None
) -> TrainedModel:
    """Trains one model on all training check-ins, or reads it where it was trained before."""
    recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"seed": seed})})
    folder = work / "trainings" / f"{tables.digest}-{_fingerprint(recipe, recipe.pretrain)}"
    return _train_once(tables, recipe, folder, work=work, finder=finder)


def train_on_last(
    tables: ProtocolTables,
    recipe: Recipe,
    trained: TrainedModel,
    *,
    seed: int,
    work: Path,
    finder: SlotFinder | None,
) -> TrainedModel:
    """Trains a model further on the last check-ins of trajectories, for protocols that score those alone.

    The start is validated too: where nothing is gained the model stays as it is.
    """
    assert recipe.pretrain_last is not None
    all_rows = recipe.pretrain.model_copy(update={"seed": seed})
    config = recipe.pretrain_last.model_copy(update={"seed": seed, "validate_start": True})
    name = f"{tables.digest}-{_fingerprint(recipe, all_rows)}-last-{_fingerprint(recipe, config)}"
    further = recipe.model_copy(update={"pretrain": config})
    folder = work / "trainings" / name
    found = _train_once(tables, further, folder, work=work, finder=finder, start=trained.model)
    return replace(found, seconds=trained.seconds + found.seconds)


def _train_once(
    tables: ProtocolTables,
    recipe: Recipe,
    folder: Path,
    *,
    work: Path,
    finder: SlotFinder | None,
    start: SpacetimeDecoder | None = None,
) -> TrainedModel:
    """Trains in a folder; with a start on last check-ins only. Reads what is there where it is finished."""
    result_file, window = folder / "result.json", recipe.decoder.window_actions
    if not result_file.is_file():
        kind = "all" if start is None else "last"
        samples = work / "samples" / f"{tables.digest}-{window}-{kind}"
        LOGGER.info("training seed %d on %s check-ins in %s", recipe.pretrain.seed, kind, folder)
        result = run_pretrain(
            write_samples(tables, samples, window_actions=window, is_last_only=start is not None),
            day=DAY.isoformat(),
            recipe=recipe,
            layout=None,
            folder=folder,
            log=lambda metrics, step: None,
            finder=finder,
            start=start,
        )
        result_file.write_text(json.dumps(asdict(result), indent=1))
    found = json.loads(result_file.read_text())
    return TrainedModel(
        load_stage(folder / "model"), found["seconds"], found["best_value"], found["best_step"]
    )


def rank_rows(rows: EvaluationRows, model: SpacetimeDecoder, finder: SlotFinder | None) -> Ranks:
    """Ranks every target among all POIs of the catalogue."""
    kept = keep_memory(rows, window_actions=model.config.window_actions)
    higher, equal = np.zeros(len(rows.requests), np.int64), np.ones(len(rows.requests), np.int64)
    for own, batch in kept.batches(ROWS_PER_BATCH):
        found = rank_targets_by_model(model, batch, rows.requests.targets[own], rows.catalogue, finder=finder)
        higher[own], equal[own] = found.num_higher, found.num_equal
    return Ranks(higher, equal)


def _fingerprint(recipe: Recipe, config: TrainConfig) -> str:
    """Names a training: everything in the recipe that it reads."""
    content = {
        "decoder": recipe.decoder.model_dump(mode="json"),
        "pretrain": config.model_dump(mode="json", exclude={"device", "checkpoint_every"}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
