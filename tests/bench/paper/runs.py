"""One cell of the paper's tables: a variant trained with a seed on a set of check-ins, and the ranks of its test rows.

A cell is a JSON file named after set, variant and seed and keyed by a digest of everything it depends on (recipe,
training rows, scored rows): it is computed once, a changed recipe makes new cells, and a training that was killed goes
on from its checkpoint. So a table that takes hours is made in as many sittings as one likes.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from conf.files import digest_json
from models.config import Recipe
from models.data.arrays import IntArray
from models.data.ranks import Ranks
from models.data.slots import LiveSlots
from models.evaluation.metrics import digest_rows
from models.evaluation.release_split import EvaluationRows
from models.protocols.run import (
    build_finder,
    rank_in_batches,
    rank_rows,
    samples_folder,
    train_on_protocol,
)
from models.protocols.splits import PROTOCOLS, ProtocolRows, build_rows
from models.protocols.tables import DAY, ProtocolTables, build_evaluation_rows, build_tables, write_samples
from models.training.pretrain import PretrainStage
from models.training.stage import TrainResult
from models.training.trainer import train
from tests.bench.paper.sequence_baselines import Kind, SequenceBaseline, rank_targets_by_baseline
from tests.bench.paper.variants import VARIANTS

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckinSet:
    """Check-ins on which the tables are made.

    Attributes:
        name: short, part of file names.
        title: for pages.
        protocol: whose training rows, and scored rows, are used.
        last_protocol: the same training, only the last check-in of each trajectory scored; empty = none.
        is_simulated: from the synthetic city.
    """

    name: str
    title: str
    protocol: str
    last_protocol: str = ""
    is_simulated: bool = False


CHECKIN_SETS = {
    "nyc": CheckinSet("nyc", "Foursquare New York", "nyc-table6-all", "nyc-table6"),
    "city": CheckinSet(
        "city", "synthetic city (conf/paper_city.yaml, simulated)", "synthetic-city", is_simulated=True
    ),
}


@dataclass(frozen=True)
class Cell:
    """What a cell holds.

    Attributes:
        variant: name of the row.
        seed: of training and order of the data.
        rows_digest: of the scored rows.
        ranks: of the scored rows, in the order of the protocol.
        seconds: of the training.
        steps: optimiser steps done.
        best_step: the one of the lowest validation loss.
        val_loss: nats per target.
        num_parameters: weights of the model.
        threads: CPU threads of torch.
    """

    variant: str
    seed: int
    rows_digest: str
    ranks: Ranks
    seconds: float
    steps: int
    best_step: int
    val_loss: float
    num_parameters: int
    threads: int


class CellMaker:
    """Makes the cells of one set of check-ins; rows and indexes are built once."""

    def __init__(self, checkins: CheckinSet, folder: Path, work: Path) -> None:
        """Remembers where the check-ins are, and where cells and trainings are kept."""
        self.checkins, self.folder, self.work = checkins, folder, work
        self.rows: ProtocolRows = build_rows(PROTOCOLS[checkins.protocol], folder)
        self._tables: dict[bool, ProtocolTables] = {}

    def tables(self, *, is_hashed: bool) -> ProtocolTables:
        """Returns the rows under one of the two indexes."""
        if is_hashed not in self._tables:
            self._tables[is_hashed] = build_tables(self.rows, self.folder, is_hashed=is_hashed)
        return self._tables[is_hashed]

    def file(self, variant: str, seed: int, recipe: Recipe) -> Path:
        """Returns the file of a cell."""
        tables = self.tables(is_hashed=VARIANTS[variant].is_hashed)
        content = [
            variant,
            recipe.decoder.model_dump(mode="json"),
            recipe.pretrain.model_dump(mode="json", exclude={"device", "checkpoint_every"}),
            tables.digest,
            self._rows_digest(),
        ]
        key = digest_json(content, 12)
        return self.work / "cells" / f"{self.checkins.name}-{variant}-{seed}-{key}.json"

    def find(self, variant: str, seed: int, recipe: Recipe) -> Cell | None:
        """Reads a cell; None if it has not been made."""
        path = self.file(variant, seed, recipe)
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        ranks = Ranks(np.array(content.pop("num_higher")), np.array(content.pop("num_equal")))
        return Cell(ranks=ranks, **content)

    def make(self, variant: str, seed: int, recipe: Recipe) -> Cell:
        """Trains and ranks, unless the cell is there; raises as `models.training.trainer.train`."""
        found = self.find(variant, seed, recipe)
        if found is not None:
            return found
        path, chosen = self.file(variant, seed, recipe), VARIANTS[variant]
        tables = self.tables(is_hashed=chosen.is_hashed)
        rows = build_evaluation_rows(tables, "test")
        started = time.perf_counter()
        if chosen.baseline is None:
            result, ranks, model = self._make_decoder(tables, rows, recipe)
        else:
            result, ranks, model = self._make_baseline(tables, rows, recipe, chosen.baseline, path.stem)
        assert result.best_value is not None, "a protocol has validation rows"
        cell = Cell(
            variant, seed, self._rows_digest(), ranks, result.seconds, result.steps, result.best_step,
            result.best_value, sum(own.numel() for own in model.parameters()), torch.get_num_threads(),
        )  # fmt: skip
        _write(cell, path)
        LOGGER.info(
            "%s: %.0f s, of them training %.0f", path.stem, time.perf_counter() - started, cell.seconds
        )
        return cell

    def _rows_digest(self) -> str:
        return digest_rows(self.rows.requests["test"].row_ids.tolist())

    def _make_decoder(
        self, tables: ProtocolTables, rows: EvaluationRows, recipe: Recipe
    ) -> tuple[TrainResult, Ranks, nn.Module]:
        finder = build_finder(tables, recipe)
        trained = train_on_protocol(tables, recipe, seed=recipe.pretrain.seed, work=self.work, finder=finder)
        result = TrainResult(trained.steps, trained.val_loss, trained.best_step, seconds=trained.seconds)
        return result, rank_rows(rows, trained.model, finder), trained.model

    def _make_baseline(
        self, tables: ProtocolTables, rows: EvaluationRows, recipe: Recipe, kind: Kind, name: str
    ) -> tuple[TrainResult, Ranks, nn.Module]:
        window, folder = recipe.decoder.window_actions, self.work / "trainings" / name
        samples = write_samples(tables, samples_folder(tables, recipe, self.work), window_actions=window)
        slots = all_slots(tables)
        torch.manual_seed(recipe.pretrain.seed)
        model = SequenceBaseline(recipe.decoder, kind, slots)
        stage = PretrainStage(samples.samples, DAY.isoformat(), recipe.pretrain, slots, folder / "scratch")
        result = train(stage, model, recipe.pretrain, folder, lambda metrics, step: None, fingerprint=name)

        def rank(batch: pa.RecordBatch, targets: IntArray) -> Ranks:
            return rank_targets_by_baseline(model, batch, targets)

        return result, rank_in_batches(rows, rank, window_actions=window), model


def all_slots(tables: ProtocolTables) -> LiveSlots:
    """Returns the slots of a protocol's catalogue; in their order they are its rows."""
    catalogue = tables.index.catalogue
    blocks, inners = (torch.from_numpy(ids) for ids in (catalogue.block_ids, catalogue.inner_ids))
    return LiveSlots(blocks, inners, num_blocks=int(blocks.max()) + 1, max_inner=int(inners.max()) + 1)


def _write(cell: Cell, path: Path) -> None:
    content = {name: value for name, value in vars(cell).items() if name != "ranks"}
    content |= {name: values.tolist() for name, values in asdict(cell.ranks).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    draft.replace(path)
