"""What the post-training stages share: their splits, and the way from pre-trained weights to saved ones."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds

from conf.errors import NoTrainingDataError
from models.config import TrainConfig
from models.data.dataset import BatchPlan, SampleBatches, SampleQuery, TableAt, open_table, open_validation
from models.data.parallel import process_rank
from models.network.checkpoint import save_stage
from models.network.decoder import SpacetimeDecoder
from models.training.stage import Log, Stage, TrainResult
from models.training.trainer import Trained, train

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

    def query(self, split: str) -> SampleQuery:
        """Returns which rows a split has."""
        columns = tuple(dict.fromkeys((self.key, *self.columns)))
        return SampleQuery(self.table, self.day, split, columns, key=self.key)


class Splits:
    """Training and validation batches of a stage; training rows come in a new order every epoch."""

    def __init__(
        self, source: SampleSource, config: TrainConfig, scratch: Path, *, needs_validation: bool = True
    ) -> None:
        """Opens both; raises as `SampleBatches` and `open_validation`."""
        plan = BatchPlan(
            batch_size=config.batch_size,
            seed=config.seed,
            buffer_rows=config.buffer_rows,
            in_memory_rows=config.in_memory_rows,
        )
        self.train = SampleBatches(source.query("train"), plan, scratch / "train")
        val_plan = replace(plan, batch_size=2 * (config.micro_batch_size or config.batch_size), shuffle=False)
        self.val = open_validation(source.query("val"), val_plan, scratch / "val", is_needed=needs_validation)

    def num_batches(self) -> int:
        """Returns the batches of an epoch."""
        return self.train.num_batches

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on."""
        return self.train.read(epoch, start)

    def close(self) -> None:
        """Removes what was spilled to disk."""
        self.train.close()
        if self.val is not None:
            self.val.close()

    def val_batches(self) -> Iterator[pa.Table]:
        """Yields the validation batches; none if there are no such rows."""
        return iter(()) if self.val is None else self.val.read()


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


def require_clicks(samples: TableAt, day: str) -> None:
    """Checks that a training request of the day has a clicked POI: without one there is no taste to learn.

    Raises:
        MissingInputError: there is no such table.
        NoTrainingDataError: none has.
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
