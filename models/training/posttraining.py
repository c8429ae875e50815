"""Shared parts of the post-training stages: their splits, and the run from pre-trained to saved weights.

`run_sft` runs a stage of supervised fine-tuning (paper 3.3) with any loss.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Generic, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import torch
from torch import Tensor

from conf.errors import NoTrainingDataError
from models.config import Recipe, TrainConfig
from models.data.batch import HISTORY_INPUTS
from models.data.dataset import BatchPlan, SampleBatches, SampleQuery, TableAt, open_table, open_validation
from models.data.parallel import process_rank
from models.evaluation.metrics import auc, gauc
from models.network.checkpoint import save_stage
from models.network.decoder import SpacetimeDecoder
from models.training.multimodal import SlotVectors, start_posttraining
from models.training.stage import Log, Stage, Taught, TrainResult
from models.training.trainer import Trained, train

REQUEST_INPUTS = ("request_ts_ms", "tz_offset_min", "user_lon", "user_lat", "action_type_id")
CANDIDATE_INPUTS = tuple(
    f"candidate_{name}" for name in ("block_ids", "inner_ids", "lons", "lats", "category_ids")
)
SFT_COLUMNS = ("user_id", "labels", *REQUEST_INPUTS, *CANDIDATE_INPUTS, *HISTORY_INPUTS)
"""Columns of `ranking_samples` that fine-tuning reads."""
NO_LABEL = -1
"""Label of padding."""


@dataclass(frozen=True)
class SampleSource:
    """A sample table at a pinned version and day, with its key and columns."""

    table: TableAt
    day: str
    key: str
    columns: tuple[str, ...]

    def query(self, split: str) -> SampleQuery:
        """Returns the query of a split's rows."""
        columns = tuple(dict.fromkeys((self.key, *self.columns)))
        return SampleQuery(self.table, self.day, split, columns, key=self.key)


class Splits:
    """Training and validation batches of a stage; training rows come in a new order every epoch."""

    def __init__(
        self, source: SampleSource, config: TrainConfig, scratch: Path, *, needs_validation: bool = True
    ) -> None:
        """Opens both splits; raises the errors of `SampleBatches` and `open_validation`."""
        plan = BatchPlan(
            batch_size=config.batch_size,
            seed=config.seed,
            buffer_rows=config.buffer_rows,
            in_memory_rows=config.in_memory_rows,
        )
        self.train = SampleBatches(source.query("train"), plan, scratch / "train")
        val_plan = replace(plan, batch_size=2 * (config.micro_batch_size or config.batch_size), shuffle=False)
        self.val = open_validation(source.query("val"), val_plan, scratch / "val", is_needed=needs_validation)

    def close(self) -> None:
        """Removes shards that were spilled to disk."""
        self.train.close()
        if self.val is not None:
            self.val.close()

    def val_batches(self) -> Iterator[pa.Table]:
        """Yields the validation batches; none if there are no validation rows."""
        return iter(()) if self.val is None else self.val.read()


class SplitStage:
    """Batches of a stage that trains on one split and is validated on another."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits

    def num_batches(self) -> int:
        """Returns the number of batches of an epoch."""
        return self.splits.train.num_batches

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on."""
        return self.splits.train.read(epoch, start)


class ScoredBatch(NamedTuple):
    """Loss and scores of a batch of requests.

    Attributes:
        loss: loss, summed over the targets.
        num_targets: number of targets.
        scores_BC: float, (B, C), scores of the candidates; higher = more likely clicked.
        labels_BC: int64, (B, C), 1 = clicked, 0 = shown, `NO_LABEL` = padding.
    """

    loss: Tensor
    num_targets: int
    scores_BC: Tensor
    labels_BC: Tensor


class ClickStage(SplitStage, ABC, Generic[Taught]):
    """A stage that learns from clicked and unclicked POIs of a request."""

    @abstractmethod
    def score(self, model: Taught, rows: pa.Table) -> ScoredBatch:
        """Scores the candidates of a batch for validation."""

    def validate(self, model: Taught) -> dict[str, float]:
        """Returns mean loss, AUC, 1 - AUC and GAUC; empty without validation rows."""
        if self.splits.val is None:
            return {}
        total, count, scored = 0.0, 0, []
        for rows in self.splits.val_batches():
            batch = self.score(model, rows)
            total, count = total + float(batch.loss), count + batch.num_targets
            arrays = (batch.scores_BC.float().cpu().numpy(), batch.labels_BC.cpu().numpy())
            scored.append((*arrays, rows["user_id"].to_pylist()))
        scores, labels, users = flatten_by_label(scored)
        found = auc(scores, labels)
        metrics = {"val/loss": total / max(count, 1), "val/auc": found, "val/misranked": 1 - found,
                   "val/gauc": gauc(scores, labels, users)}  # fmt: skip
        return {name: value for name, value in metrics.items() if not np.isnan(value)}


@dataclass(frozen=True)
class SftRun:
    """The inputs of a stage of supervised fine-tuning.

    Attributes:
        samples: `ranking_samples` at a pinned version.
        day: day as of which the samples were made, YYYY-MM-DD.
        recipe: settings of decoder and stages.
        pretrained: folder of the pre-training stage.
        folder: folder of this stage; the model is saved in `folder/model`.
        log: function that logs metrics at a step.
        vectors: POI vectors to be fused; None = no vectors.
        from_scratch: True = start from new weights, for comparison.
        needs_validation: True = an empty validation split is an error; False = the last weights are kept.
    """

    samples: TableAt
    day: str
    recipe: Recipe
    pretrained: Path
    folder: Path
    log: Log
    vectors: SlotVectors | None = None
    from_scratch: bool = False
    needs_validation: bool = True


def run_sft(
    run: SftRun,
    config: TrainConfig,
    build: Callable[[SpacetimeDecoder, Splits], tuple[Stage[Trained], Trained]],
    finish: Callable[[SpacetimeDecoder, Splits], Mapping[str, object]] | None = None,
) -> TrainResult:
    """Fine-tunes pre-trained weights on shown and clicked POIs.

    Args:
        run: rows, weights and folders.
        config: configuration of the stage.
        build: function that builds the stage, and the module that it trains, from the decoder.
        finish: function that changes the trained decoder before it is saved; its result is saved as notes.

    Raises:
        NoTrainingDataError: a split has no sample, or no training request has a click.
    """
    source = SampleSource(run.samples, run.day, "request_id", SFT_COLUMNS)
    require_clicks(run.samples, run.day)
    splits = Splits(source, config, run.folder / "scratch", needs_validation=run.needs_validation)
    torch.manual_seed(config.seed)
    decoder = start_posttraining(run.pretrained, vectors=run.vectors, from_scratch=run.from_scratch)
    stage, model = build(decoder, splits)
    return run_stage(
        stage,
        splits,
        model,
        config,
        folder=run.folder,
        log=run.log,
        made_of=[asdict(run.samples), run.day, run.from_scratch],
        finish=None if finish is None else lambda trained: finish(trained, splits),
    )


def run_stage(
    stage: Stage[Trained],
    splits: Splits,
    model: Trained,
    config: TrainConfig,
    *,
    folder: Path,
    log: Log,
    made_of: object,
    finish: Callable[[SpacetimeDecoder], Mapping[str, object]] | None = None,
) -> TrainResult:
    """Trains a stage and saves its decoder in `folder/model`.

    Args:
        stage: data and loss.
        splits: training and validation batches; closed at the end.
        model: the decoder, or a module that holds it as `decoder`.
        config: configuration of the stage.
        folder: folder of the stage; a training in it is resumed.
        log: function that logs metrics at a step.
        made_of: JSON-serialisable inputs that must be equal for a resume.
        finish: function that changes the trained decoder before it is saved; its result is saved as notes.
    """
    decoder = model if isinstance(model, SpacetimeDecoder) else model.decoder
    assert isinstance(decoder, SpacetimeDecoder)
    fingerprint = json.dumps([decoder.config.describe(), made_of], sort_keys=True)
    try:
        result = train(stage, model, config, folder, log, fingerprint=fingerprint)
        notes = finish(decoder) if finish else {}
    finally:
        splits.close()
    if process_rank() == 0:
        save_stage(
            folder / "model",
            decoder,
            {"stage": stage.name, f"val_{config.criterion}": result.best_value, **notes},
        )
    return result


def require_clicks(samples: TableAt, day: str) -> None:
    """Checks that at least one training request of the day has a clicked POI to learn from.

    Raises:
        MissingInputError: there is no such table.
        NoTrainingDataError: no training request has a click.
    """
    opened = open_table(samples, needed_by="The training", remedy=f"Run: python -m etl samples --day {day}.")
    of_training = (pds.field("day") == date.fromisoformat(day)) & (pds.field("split") == "train")
    for batch in opened.to_pyarrow_dataset().to_batches(columns=["labels"], filter=of_training):
        if pc.any(pc.equal(batch.column("labels").flatten(), 1)).as_py():
            return
    raise NoTrainingDataError(
        table="ranking_samples", split="clicked train", day=day,
        remedy="Deliver impressions with label 1 of days before samples.val_days and samples.test_days.",
    )  # fmt: skip


def flatten_by_label(
    rows: list[tuple[np.ndarray, np.ndarray, list[str]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins (scores, labels, users) of batches with padded candidates into flat arrays of real candidates."""
    scores, labels, users = [], [], []
    for score, label, user in rows:
        is_real = label != NO_LABEL
        scores.append(score[is_real])
        labels.append(label[is_real])
        users.append(np.repeat(np.asarray(user, dtype=str), is_real.sum(axis=1)))
    return np.concatenate(scores).astype(np.float64), np.concatenate(labels), np.concatenate(users)
