"""What the post-training stages share: their splits, and the way from pre-trained weights to saved ones."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import nn

from models.checkpoint import save_stage
from models.config import TrainConfig
from models.dataset import BatchPlan, SampleBatches, SampleQuery, TableAt
from models.decoder import SpacetimeDecoder
from models.parallel import process_rank
from models.stage import Log, Stage, TrainResult
from models.trainer import train

REQUEST_INPUTS = ("request_ts_ms", "tz_offset_min", "user_lon", "user_lat", "action_type_id")
CANDIDATE_INPUTS = tuple(
    f"candidate_{name}" for name in ("block_ids", "inner_ids", "lons", "lats", "category_ids")
)
NO_LABEL = -1
"""Label of padding."""


@dataclass(frozen=True)
class SampleSource:
    """A sample table at a pinned version, as of a day, with what names its rows."""

    table: TableAt
    day: str
    key: str
    columns: tuple[str, ...]

    def open_split(self, split: str, config: TrainConfig, scratch: Path) -> SampleBatches:
        """Opens a split, `train` in a new order every epoch; raises as `SampleBatches`."""
        columns = tuple(dict.fromkeys((self.key, *self.columns)))
        query = SampleQuery(self.table, self.day, split, columns, key=self.key)
        plan = BatchPlan(
            batch_size=config.batch_size
            if split == "train"
            else 2 * (config.micro_batch_size or config.batch_size),
            seed=config.seed,
            buffer_rows=config.buffer_rows,
            in_memory_rows=config.in_memory_rows,
            shuffle=split == "train",
        )
        return SampleBatches(query, plan, scratch / split)


class Splits:
    """Training and validation batches of a stage."""

    def __init__(self, source: SampleSource, config: TrainConfig, scratch: Path) -> None:
        """Opens both; raises as `SampleBatches`."""
        self.train = source.open_split("train", config, scratch)
        self.val = source.open_split("val", config, scratch)

    def num_batches(self) -> int:
        """Returns the batches of an epoch."""
        return self.train.num_batches

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on."""
        return self.train.read(epoch, start)

    def close(self) -> None:
        """Removes what was spilled to disk."""
        self.train.close()
        self.val.close()


def run_stage(
    stage: Stage,
    splits: Splits,
    model: nn.Module,
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
        splits: closed at the end.
        model: the decoder, or a module that holds it as `decoder`.
        config: of the stage.
        folder: of the stage; a training found there goes on.
        log: takes metrics and their step.
        made_of: whatever must be equal for a resume to make sense, as JSON takes it.
        finish: changes the trained decoder before it is saved; what it returns is saved as notes.
    """
    decoder = model if isinstance(model, SpacetimeDecoder) else model.decoder
    assert isinstance(decoder, SpacetimeDecoder)
    fingerprint = json.dumps([decoder.config.model_dump(mode="json"), made_of], sort_keys=True)
    try:
        result = train(stage, model, config, folder, log, fingerprint=fingerprint)
        notes = finish(decoder) if finish else {}
    finally:
        splits.close()
    if process_rank() == 0:
        save_stage(folder / "model", decoder, {"stage": stage.name, "val_loss": result.best_value, **notes})
    return result


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
