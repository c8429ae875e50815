"""Held-out rows of a training's day from its pinned tables: requests, statistics of the crowd, impressions."""

import logging
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pds

from conf.errors import MissingInputError, NoTrainingDataError
from models.copying.crowd_tables import CROWD_TABLES, CrowdAt, open_finder, read_catalogue
from models.data.dataset import TableAt, read_table
from models.data.pins import locate_table
from models.evaluation.release_split import MODEL_COLUMNS, EvaluationRows, build_rows
from models.lift.held_out import ACTION_NAMES, SHOWN_NAMES, HeldOut, gather_held_out
from models.serving.bundle import ModelBundle
from models.training.pipeline import Training
from models.training.posttraining import SFT_COLUMNS

LOGGER = logging.getLogger(__name__)


def read_evaluation_rows(training: Training, split: str, bundle: ModelBundle) -> EvaluationRows:
    """Reads the requests of a split of the day's samples, with all inputs that the bundle needs.

    Raises:
        NoTrainingDataError: the split has no row.
        MissingInputError: a table does not exist.
    """
    samples = _table(training, "pretrain_samples")
    of_day = pds.field("day") == date.fromisoformat(training.day)
    names = ("user_id", "num_context", "is_targets", "poi_ids", "is_simulated", "profile_ids", *MODEL_COLUMNS)
    train, held_out = (
        read_table(samples, names, of_day & (pds.field("split") == name)) for name in ("train", split)
    )
    if held_out.num_rows == 0:
        raise _no_rows(training, split)
    catalogue = read_catalogue(_table(training, "poi_index"), bundle.layout.index_version)
    rows = build_rows(train, held_out, catalogue, action_type_id=bundle.action_type_id)
    if not len(rows.requests):  # none of the targets was live on its day
        raise _no_rows(training, f"live {split}")
    return add_finder(rows, training, bundle)


def find_evaluation_rows(training: Training, split: str, bundle: ModelBundle) -> EvaluationRows | None:
    """Reads as `read_evaluation_rows`; returns None if the split has no row and the training does not need it."""
    try:
        return read_evaluation_rows(training, split, bundle)
    except NoTrainingDataError:
        if training.needs_validation:
            raise
        return None


def add_finder(rows: EvaluationRows, training: Training, bundle: ModelBundle | None) -> EvaluationRows:
    """Adds the statistics of the crowd, if the bundle copies from it and the rows do not have them yet.

    Raises:
        MissingInputError: the tables of the crowd do not exist, or have no row of the day.
    """
    if rows.finder is not None or bundle is None or not bundle.copies_from_crowd:
        return rows
    visits, transitions = (_table(training, name) for name in CROWD_TABLES)
    crowd = CrowdAt(visits, transitions, training.day, bundle.layout.index_version)
    return replace(rows, finder=open_finder(crowd, rows.catalogue))


def read_impressions(training: Training, split: str) -> pa.Table | None:
    """Reads the ranking samples of a split; returns None if there are none."""
    condition = (pds.field("day") == date.fromisoformat(training.day)) & (pds.field("split") == split)
    try:
        table = _table(training, "ranking_samples")
        columns = ("request_id", "candidate_poi_ids", "is_simulated", *SFT_COLUMNS)
        samples = read_table(table, columns, condition)
    except MissingInputError as error:
        LOGGER.warning("clicks are not evaluated: %s", error)
        return None
    return samples if samples.num_rows else None


def find_lift_rows(training: Training, bundle: ModelBundle, own_columns: Path | None = None) -> HeldOut | str:
    """Reads the held-out requests for the lift; returns the reason if there are none.

    Args:
        training: the training that held them out: those of its validation and test days.
        bundle: any bundle of the index version.
        own_columns: the ranking team's own features of the rows.

    Raises:
        MissingInputError, SchemaError: the file of own columns does not exist or fit.
    """
    of_day = pds.field("day") == date.fromisoformat(training.day)
    columns = ("request_id", "candidate_poi_ids", "is_simulated", *SFT_COLUMNS)
    is_held_out = pds.field("split").isin(["val", "test"])
    version = pds.field("index_version") == bundle.layout.index_version
    try:
        requests = _table(training, "ranking_samples")
        samples = read_table(requests, columns, of_day & is_held_out)
        earlier = read_table(requests, SHOWN_NAMES, of_day & ~is_held_out)
        until = pds.field("day") <= date.fromisoformat(training.day)
        actions = read_table(_table(training, "cleaned_actions"), ACTION_NAMES, version & until)
    except MissingInputError as error:
        return str(error)
    if not samples.num_rows:
        return f"ranking_samples of {training.day} hold no request of the validation and test days"
    catalogue = read_catalogue(_table(training, "poi_index"), bundle.layout.index_version)
    return gather_held_out(samples, earlier, actions, catalogue, own_columns)


def _no_rows(training: Training, split: str) -> NoTrainingDataError:
    return NoTrainingDataError(
        table="pretrain_samples", split=split, day=training.day,
        remedy=f"Raise samples.{split.split()[-1]}_days or deliver more days; or, if the model need not be judged, "
        "train with --allow-unvalidated.",
    )  # fmt: skip


def _table(training: Training, name: str) -> TableAt:
    """Returns the pinned version of a table, else its newest version."""
    if name in training.pins:
        return training.table(name)
    return TableAt(locate_table(training.settings.storage.root, name))
