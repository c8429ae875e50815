"""Stage 1: pre-training on windows of actions with next-POI cross-entropy (paper 3.2), and interests if asked for.

The stage reads `pretrain_samples` at a pinned version, and `poi_index` and `blocks` for slots and block centres.
Validation is the mean negative log-likelihood per target of the split `val`, in nats.

    python -m models pretrain --day 2026-01-31 --recipe conf/models/tiny.yaml
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, cast

import pyarrow as pa
import pyarrow.dataset as pds
import torch
from torch import Tensor, nn

from conf.tables import HISTORY_NAMES
from conf.tokens import TokenLayout
from models.config import DecoderConfig, InterestConfig, Recipe, TrainConfig, size_layout
from models.copying.crowd_batches import add_to_history
from models.copying.crowd_candidates import SlotFinder
from models.data.batch import HistoryBatch, collate_history
from models.data.dataset import BatchPlan, SampleBatches, SampleQuery, TableAt, open_validation, read_table
from models.data.parallel import process_rank
from models.data.slots import AboutSlots, LiveSlots
from models.network.checkpoint import load_stage, save_stage
from models.network.decoder import SpacetimeDecoder
from models.network.trunk import StepLogProbs
from models.training.interests import InterestLearner, InterestObjective
from models.training.losses import next_poi_loss, rank_new_loss
from models.training.stage import Log, TrainResult
from models.training.trainer import train

PRETRAIN_COLUMNS = (
    "sample_id", "user_id", "seq_len", "pattern", "num_context", "is_targets", "profile_ids",
    *(name for name in HISTORY_NAMES if name not in ("poi_ids", "is_interests", "is_travels")),
)  # fmt: skip


@dataclass(frozen=True)
class PretrainTables:
    """Tables that pre-training reads, each at a pinned version."""

    samples: TableAt
    poi_index: TableAt
    blocks: TableAt


class NextPoiModel(Protocol):
    """A model that can be pre-trained: the decoder, or a baseline that shares its trainer."""

    config: DecoderConfig

    def next_poi_log_probs(self, history: HistoryBatch, live: LiveSlots | None = None) -> StepLogProbs:
        """Returns the log probabilities of the loss targets, (B, Q) each."""
        ...


class PretrainStage:
    """Batches and loss of pre-training."""

    name = "pretrain"

    def __init__(
        self,
        samples: TableAt,
        day: str,
        config: TrainConfig,
        slots: LiveSlots,
        scratch: Path,
        finder: SlotFinder | None = None,
        needs_validation: bool = True,
        interests: InterestConfig | None = None,
    ) -> None:
        """Opens the splits `train` and `val`; raises the errors of `SampleBatches` and `open_validation`.

        With `interests` the model is an `InterestLearner`, and the terms of interest pre-training are added.
        """
        self.slots, self.finder = slots, finder
        plan = BatchPlan(
            batch_size=config.batch_size,
            seed=config.seed,
            buffer_rows=config.buffer_rows,
            in_memory_rows=config.in_memory_rows,
            curriculum=config.curriculum,
        )
        forward_size = config.micro_batch_size or config.batch_size
        val_plan = BatchPlan(batch_size=2 * forward_size, in_memory_rows=config.in_memory_rows, shuffle=False)
        self.train = SampleBatches(
            SampleQuery(samples, day, "train", PRETRAIN_COLUMNS), plan, scratch / "train"
        )
        self.val = open_validation(
            SampleQuery(samples, day, "val", PRETRAIN_COLUMNS),
            val_plan,
            scratch / "val",
            is_needed=needs_validation,
        )

        self.interests = None
        if interests is not None and interests.enabled:
            self.interests = InterestObjective(interests, slots, self.train.read(0, 0))

    def num_batches(self) -> int:
        """Returns the number of batches of an epoch."""
        return self.train.num_batches

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on."""
        return self.train.read(epoch, start)

    def loss(self, model: nn.Module, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed loss, the number of targets, and the separate losses of block and inner tokens."""
        if self.interests is not None:
            learner = cast(InterestLearner, model)
            return self.interests.loss(learner, self.collate(rows, learner.decoder), self.slots)
        next_poi = cast(NextPoiModel, model)
        history = self.collate(rows, next_poi)
        log_probs = next_poi.next_poi_log_probs(history, self.slots)
        loss, num_targets = next_poi_loss(log_probs)
        loss = loss + rank_new_loss(log_probs, next_poi.config.crowd.ranking_weight)
        sums = {
            "train/loss_block": -float(log_probs.block_BQ.detach().sum()),
            "train/loss_inner": -float(log_probs.inner_BQ.detach().sum()),
        }
        return loss, num_targets, sums

    def collate(self, rows: pa.Table, model: NextPoiModel) -> HistoryBatch:
        """Collates rows on the model's device, with crowd candidates if the model copies them."""
        device = next(cast(nn.Module, model).parameters()).device
        history = collate_history(rows)
        if model.config.crowd.enabled:
            history = add_to_history(history, rows, self.finder, model.config)
        self.slots = self.slots.to(device)  # stored, since each move sorts them again
        return history.to(device)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Returns `val/loss`, nats per target POI, and its two parts; empty without validation rows."""
        if self.val is None:
            return {}
        if self.interests is not None:
            return self.interests.average(self.loss(model, rows) for rows in self.val.read())
        sums, num_targets = {"block": 0.0, "inner": 0.0}, 0
        for rows in self.val.read():
            _, count, parts = self.loss(model, rows)
            num_targets += count
            for part in sums:
                sums[part] += parts[f"train/loss_{part}"]
        means = {f"val/loss_{part}": value / max(num_targets, 1) for part, value in sums.items()}
        return {"val/loss": sum(means.values()), **means}


def run_pretrain(
    tables: PretrainTables,
    *,
    day: str,
    recipe: Recipe,
    layout: TokenLayout | None,
    folder: Path,
    log: Log,
    finder: SlotFinder | None = None,
    needs_validation: bool = True,
) -> TrainResult:
    """Pre-trains a decoder; leaves it in `folder/model`, and what a resume needs in `folder/checkpoints`.

    Args:
        tables: tables with pinned versions.
        day: day as of which the samples were made, YYYY-MM-DD.
        recipe: settings of decoder and training.
        layout: capacities; None = the current index with the recipe's headroom.
        folder: folder of the stage.
        log: function that logs metrics at a step.
        finder: finder of crowd candidates, for a decoder that copies them.
        needs_validation: True = an empty validation split is an error; False = the last weights are kept.

    Raises:
        MissingInputError, NoTrainingDataError: a table or its rows are missing.
        LossNotFiniteError, DamagedCheckpointError, FingerprintError: see `models.training.trainer.train`.
    """
    # The same seed in every process: gradients are summed, but initial weights are never broadcast.
    torch.manual_seed(recipe.pretrain.seed)
    model, slots = build_decoder(recipe, tables.poi_index, tables.blocks, layout)
    config = recipe.pretrain
    stage = PretrainStage(
        tables.samples, day, config, slots, folder / "scratch", finder, needs_validation, config.interests
    )
    learner = InterestLearner(model, config.interests) if config.interests.enabled else model
    fingerprint = json.dumps([model.config.describe(), asdict(tables), day], sort_keys=True)
    try:
        result = train(stage, learner, config, folder, log, fingerprint=fingerprint)
    finally:
        stage.train.close()
        if stage.val is not None:
            stage.val.close()
    if process_rank() == 0:
        save_stage(folder / "model", model, {"stage": stage.name, "day": day, "val_loss": result.best_value})
    return result


def build_decoder(
    recipe: Recipe, poi_index: TableAt, blocks: TableAt, layout: TokenLayout | None = None
) -> tuple[SpacetimeDecoder, LiveSlots]:
    """Builds an untrained decoder for an index, and the set of all slots of the index, live or not.

    Raises:
        MissingInputError: there is no such table.
    """
    version = layout.index_version if layout else last_index_version(poi_index)
    is_version = pds.field("index_version") == version
    index = read_table(poi_index, ("block_id", "inner_id", "category_id", "poi_lon", "poi_lat"), is_version)
    block_ids, inner_ids, categories = (
        torch.from_numpy(index.column(name).to_numpy().astype("int64"))
        for name in ("block_id", "inner_id", "category_id")
    )
    layout = layout or size_layout(
        index_version=version,
        num_blocks=int(block_ids.max()) + 1,
        max_inner=int(inner_ids.max()) + 1,
        num_categories=int(categories.max()) + 1,
        headroom=recipe.decoder.headroom,
    )
    places = [
        torch.from_numpy(index.column(f"poi_{axis}").to_numpy().astype("float32")) for axis in ("lon", "lat")
    ]
    slots = LiveSlots(
        block_ids,
        inner_ids,
        num_blocks=layout.num_blocks,
        max_inner=layout.max_inner,
        about=AboutSlots(categories, torch.stack(places, dim=-1)),
    )
    model = SpacetimeDecoder(recipe.decoder.with_layout(layout, num_pois=index.num_rows))
    model.assign_poi_rows(slots)
    centers = read_table(blocks, ("block_id", "center_lon", "center_lat"), is_version)
    lonlat = torch.stack(
        [torch.from_numpy(centers.column(f"center_{axis}").to_numpy().copy()) for axis in ("lon", "lat")], 1
    )
    model.set_block_centers(torch.from_numpy(centers.column("block_id").to_numpy().astype("int64")), lonlat)
    return model, slots


def load_pretrained(folder: Path, layout: TokenLayout | None = None) -> SpacetimeDecoder:
    """Reads the model that `run_pretrain` saved; raises the errors of `load_stage`."""
    return load_stage(folder / "model", layout=layout)


def last_index_version(poi_index: TableAt) -> int:
    """Returns the newest version of an index, which a training uses."""
    versions = read_table(poi_index, ("index_version",)).column("index_version").to_numpy()
    return int(versions.max(initial=1))
