"""Trains the decoder on a public protocol and ranks its scored rows by the decoder and the baselines.

    python -m models evaluate --protocol nyc-table6 --data FOLDER --seeds 0,1,2

Each seed is one pre-training with the common trainer; the checkpoint with the lowest validation loss is used. A trained
model stays in the work folder under a digest of recipe, seed and training rows. Protocols that score other rows of the
same training share it, and a second run only ranks.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from conf.files import digest_json, write_json
from models.config import Recipe
from models.copying.crowd_candidates import SlotFinder
from models.data.arrays import IntArray
from models.data.ranks import Ranks
from models.evaluation.baselines import count_training
from models.evaluation.figures import (
    Figures,
    average_methods,
    compare_next_poi,
    describe_next_poi,
    rank_baselines,
)
from models.evaluation.new_places import NEW_LOGITS, describe_new_places, rank_rows_shifted
from models.evaluation.release_split import EvaluationRows
from models.network.checkpoint import load_stage
from models.network.decoder import SpacetimeDecoder
from models.protocols.splits import PROTOCOLS, Protocol, build_rows
from models.protocols.tables import (
    DAY,
    ProtocolTables,
    build_evaluation_rows,
    build_tables,
    count_training_crowd,
    keep_memory,
    write_samples,
)
from models.serving.inference import ShiftedRanks, rank_targets_by_model, rank_targets_shifted
from models.training.pretrain import run_pretrain

LOGGER = logging.getLogger(__name__)
ROWS_PER_BATCH = 2_048
MEAN = "model_mean"
"""Name of the mean over seeds among the methods."""


@dataclass(frozen=True)
class TrainedModel:
    """A model trained on the training rows of a protocol.

    Attributes:
        model: model in evaluation mode, with the weights of the best validation.
        seconds: training time.
        val_loss: lowest validation loss, nats per target.
        best_step: its step.
        steps: optimiser steps of the training.
    """

    model: SpacetimeDecoder
    seconds: float
    val_loss: float
    best_step: int
    steps: int


def evaluate_protocol(
    name: str,
    folder: Path,
    *,
    split: str = "test",
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (),
    work: Path = Path("work"),
) -> Figures:
    """Builds the rows of a public protocol and scores its baselines, and one model per seed.

    Args:
        name: name of the protocol.
        folder: folder with `checkins.parquet`, and for models `pois.parquet`.
        split: rows to score; select on `val` only.
        recipe: settings of decoder and pre-training; needed with seeds.
        seeds: seed of each model; none = baselines only.
        work: folder of samples and trained models.

    Raises:
        MissingInputError: the folder lacks a file.
        CorruptInputError: a file cannot be read.
    """
    protocol = PROTOCOLS[name]
    built = build_rows(protocol, folder)
    requests = built.requests[split]
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    ranks = rank_baselines(requests, counts, hide_request_time=protocol.hides_request_time)
    trainings: dict[str, object] = {}
    shifted: list[ShiftedRanks] = []
    if seeds:
        assert recipe is not None, "a model needs a recipe"
        recipe = fit_recipe(recipe, protocol)
        tables = build_tables(built, folder)
        finder = build_finder(tables, recipe)
        rows = replace(build_evaluation_rows(tables, split), finder=finder)
        for seed in seeds:
            trained = train_on_protocol(tables, recipe, seed=seed, work=work, finder=finder)
            shifted.append(rank_shifted_rows(rows, trained.model))
            ranks[f"model_seed_{seed}"] = shifted[-1].by_logit[0.0]
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
        figures["new_places"] = describe_new_places(rows, shifted)
        figures["minus_kernel_counter"] = {MEAN: compare_next_poi(requests, models, ranks["kernel_counter"])}
    return figures


def fit_recipe(recipe: Recipe, protocol: Protocol) -> Recipe:
    """Returns the recipe with the protocol's setting for the request time."""
    decoder = recipe.decoder.model_copy(update={"hide_request_time": protocol.hides_request_time})
    return recipe.model_copy(update={"decoder": decoder})


def build_finder(tables: ProtocolTables, recipe: Recipe) -> SlotFinder | None:
    """Counts the training rows of all users; returns None if the model does not copy from the crowd."""
    if not recipe.decoder.crowd.enabled:
        return None
    return SlotFinder(count_training_crowd(tables), tables.index.catalogue)


def train_on_protocol(
    tables: ProtocolTables, recipe: Recipe, *, seed: int, work: Path, finder: SlotFinder | None
) -> TrainedModel:
    """Trains one model, or reads it if it was trained before."""
    recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"seed": seed})})
    folder = work / "trainings" / f"{tables.digest}-{_fingerprint(recipe)}"
    result_file = folder / "result.json"
    if not result_file.is_file():
        samples = samples_folder(tables, recipe, work)
        LOGGER.info("training seed %d in %s", seed, folder)
        result = run_pretrain(
            write_samples(tables, samples, window_actions=recipe.decoder.window_actions),
            day=DAY.isoformat(),
            recipe=recipe,
            layout=None,
            folder=folder,
            log=lambda metrics, step: None,
            finder=finder,
        )
        write_json(result_file, asdict(result))
    stored = json.loads(result_file.read_text())
    return TrainedModel(
        load_stage(folder / "model"),
        stored["seconds"],
        stored["best_value"],
        stored["best_step"],
        stored["steps"],
    )


def samples_folder(tables: ProtocolTables, recipe: Recipe, work: Path) -> Path:
    """Returns the folder of the samples that a training reads; trainings of equal rows share it."""
    return work / "samples" / f"{tables.digest}-{recipe.decoder.window_actions}-patterns"


def rank_rows(rows: EvaluationRows, model: SpacetimeDecoder, finder: SlotFinder | None) -> Ranks:
    """Ranks every target among all POIs of the catalogue."""

    def rank(batch: pa.RecordBatch, targets: IntArray) -> Ranks:
        return rank_targets_by_model(model, batch, targets, rows.catalogue, finder=finder)

    return rank_in_batches(rows, rank, window_actions=model.config.window_actions)


def rank_shifted_rows(rows: EvaluationRows, model: SpacetimeDecoder) -> ShiftedRanks:
    """Ranks every target among all POIs of the catalogue, as expected and shifted towards new places."""

    def rank(batch: pa.RecordBatch, targets: IntArray) -> ShiftedRanks:
        return rank_targets_shifted(
            model, batch, targets, rows.catalogue, logits=NEW_LOGITS, finder=rows.finder
        )

    return rank_rows_shifted(keep_memory(rows, window_actions=model.config.window_actions), rank)


def rank_in_batches(
    rows: EvaluationRows, rank: Callable[[pa.RecordBatch, IntArray], Ranks], *, window_actions: int
) -> Ranks:
    """Ranks every target by a function of requests and targets, with as much history as in training."""
    higher, equal = np.zeros(len(rows.requests), np.int64), np.ones(len(rows.requests), np.int64)
    for positions, batch in keep_memory(rows, window_actions=window_actions).batches(ROWS_PER_BATCH):
        ranks = rank(batch, rows.requests.targets[positions])
        higher[positions], equal[positions] = ranks.num_higher, ranks.num_equal
    return Ranks(higher, equal)


def _fingerprint(recipe: Recipe) -> str:
    """Returns a digest of all parts of the recipe that pre-training reads."""
    pretrain = recipe.pretrain.describe()
    kept = {name: value for name, value in pretrain.items() if name not in ("device", "checkpoint_every")}
    return digest_json({"decoder": recipe.decoder.describe(), "pretrain": kept})
