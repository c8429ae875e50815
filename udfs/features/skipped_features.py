"""Records why a feature job skipped its table: the model cannot compute it. The audit reads the record.

The record is one JSON file per day and table, `{storage.artifacts}/skipped_features/{day}/{table}.json`. It exists only
while the last run of the table skipped it. An empty commit cannot replace it: Delta makes none where nothing changes.
"""

import logging
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from conf.cli import JobSummary
from conf.files import read_json, write_json
from etl.delta.storage import replace_day
from udfs.features.run_context import FeatureRun

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkippedFeature:
    """A feature table that was left out on a day.

    Attributes:
        reason: the reason that the training recorded.
        model_version: the model that cannot compute the table.
        index_version: index version of that model.
        is_simulated: whether that model was trained on simulated rows.
    """

    reason: str
    model_version: str
    index_version: int
    is_simulated: bool


def skip_feature(run: FeatureRun, name: str, *, stage: str) -> JobSummary:
    """Empties the day of a table whose stage the model lacks; summary and record give the reason."""
    model, reason = run.model, run.model.missing_stages[stage]
    LOGGER.warning("%s %s is not made: the model has no stage %s (%s)", name, run.day, stage, reason)
    summary = JobSummary(notes={f"{name}_skipped": reason})
    if not run.dry_run:
        # The day is emptied first: with the record in place, the audit would skip rows of an earlier run.
        no_rows, root = run.read_output(name).limit(0), run.settings.storage.root
        summary.tables[name] = replace_day(no_rows, name, root, day=run.day, run_id=run.run_id, job=name)
        skipped = SkippedFeature(reason, model.model_version, model.index_version, model.is_simulated)
        save_skipped(skipped, run.settings.storage.artifacts, name, day=run.day)
    return summary


def save_skipped(skipped: SkippedFeature | None, artifacts: str, name: str, *, day: date) -> None:
    """Writes the record of a table, or removes it if the table was computed."""
    path = _folder(artifacts, day) / f"{name}.json"
    if skipped is None:
        path.unlink(missing_ok=True)
        return
    write_json(path, asdict(skipped))


def load_skipped(artifacts: str, *, day: date) -> dict[str, SkippedFeature]:
    """Returns the records of the tables that were skipped on a day, by table."""
    files = sorted(_folder(artifacts, day).glob("*.json"))
    return {
        path.stem: SkippedFeature(**read_json(path, expected="the record of a table left out"))
        for path in files
    }


def _folder(artifacts: str, day: date) -> Path:
    return Path(artifacts) / "skipped_features" / str(day)
