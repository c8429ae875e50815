"""Training curves of every stage of the release's model, from MLflow.

In: the tracking store of the settings and the model version of a release. Out: one section.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conf.files import read_json
from conf.releases import Release
from conf.settings import MlflowSettings, Settings
from models.data.arrays import Float64Array
from models.report.data import NothingToShowError
from models.report.page import Figure, Section, TableView, Tile, Topic, format_figure
from models.report.plots import SERIES, draw_curves

if TYPE_CHECKING:
    from mlflow import MlflowClient

STAGES = ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
TITLES = {
    "pretrain": "Pre-training",
    "sft_embedding": "Embedding SFT",
    "sft_ranking": "Ranking SFT",
    "align_dpo": "DPO",
}
LOSSES = ("train/loss", "val/loss")
PREFERRED = (
    "val/hr_at_10",
    "val/hr_at_1",
    "val/auc",
    "val/gauc",
    "val/rewards_accuracy",
    "val/rewards_margin",
    "val/loss_block",
    "val/loss_inner",
)
"""Metrics with a separate drawing, the most important first."""
MAX_SHOWN = 2

TRAINING = Topic(
    "training",
    "Training",
    sees=(
        "Loss and the validation metrics that count over optimiser steps, for every stage of the training "
        "behind this release."
    ),
    alarm=(
        "A validation loss that turns up while the training loss falls on, or a curve that is still steep "
        "at its end."
    ),
)


@dataclass(frozen=True)
class StageCurves:
    """Metrics over steps of one stage.

    Attributes:
        metrics: name -> (steps, values), steps ascending.
    """

    stage: str
    metrics: Mapping[str, tuple[Float64Array, Float64Array]]

    def last(self, name: str) -> float | None:
        """Returns the last value of a metric; None if it was not logged."""
        return float(self.metrics[name][1][-1]) if name in self.metrics else None


def find_training(settings: Settings, release: Release) -> Path:
    """Finds the folder of the training behind a release: by its MLflow run, else the latest until its day.

    Raises:
        NothingToShowError: there is no training under the artifacts.
    """
    root = Path(settings.storage.artifacts) / "training"
    folders = sorted(
        path for path in root.glob("????-??-??") if path.is_dir() and path.name <= str(release.day)
    )
    run_id = _find_parent_run(settings.mlflow, release.model_version)
    for folder in reversed(folders):
        if run_id and read_run_id(folder) == run_id:
            return folder
    if not folders:
        raise NothingToShowError(f"No training has been run up to {release.day}.")
    return folders[-1]


def read_run_id(folder: Path) -> str:
    """Returns the id of a training's MLflow run; empty if it has none."""
    path = folder / "mlflow_run.json"
    return str(read_json(path, expected="the run of a training")["run_id"]) if path.is_file() else ""


def build_curves(settings: Settings, release: Release) -> Section:
    """Builds the section."""
    run_id = _find_parent_run(settings.mlflow, release.model_version) or read_run_id(
        find_training(settings, release)
    )
    if not run_id:
        raise NothingToShowError("The training was not logged to MLflow.")
    if not _has_store(settings.mlflow):
        raise NothingToShowError("The MLflow store of the settings is not there (mlflow.tracking_uri).")
    from mlflow import MlflowClient  # takes a second, and only this section needs it
    from mlflow.exceptions import MlflowException

    try:
        stages = load_stages(MlflowClient(tracking_uri=settings.mlflow.tracking_uri), run_id)
    except MlflowException as error:
        raise NothingToShowError(f"MLflow cannot say anything of run {run_id}: {error.message}") from error
    if not stages:
        raise NothingToShowError(f"MLflow knows no stage of the training run {run_id}.")
    return Section(
        TRAINING,
        tiles=(
            Tile("stages", str(len(stages))),
            Tile("model", release.model_version),
            Tile("MLflow run", run_id[:8], run_id),
        ),
        figures=tuple(figure for stage in stages for figure in draw_stage(stage)),
        tables=(_last_values(stages),),
        notes=tuple(list_skipped(settings, release)),
    )


def list_skipped(settings: Settings, release: Release) -> list[str]:
    """Returns notes on the stages that the training skipped, with reasons."""
    try:
        path = find_training(settings, release) / "training.json"
    except NothingToShowError:
        return []
    content = read_json(path, expected="the record of a training") if path.is_file() else {}
    skipped = content.get("skipped", {})
    return [f"{TITLES.get(stage, stage)} was left out: {why}" for stage, why in skipped.items()]


def _last_values(stages: Sequence[StageCurves]) -> TableView:
    rows = tuple(
        (
            TITLES.get(stage.stage, stage.stage),
            *(format_figure(stage.last(name)) for name in LOSSES),
            ", ".join(
                f"{name.removeprefix('val/')} {format_figure(stage.last(name))}" for name in _headline(stage)
            ),
        )
        for stage in stages
    )
    header = ("stage", "training loss", "validation loss", "validation metrics")
    return TableView("Last values", header, rows, (0, 3))


def load_stages(client: "MlflowClient", run_id: str) -> list[StageCurves]:
    """Reads the metrics of all stages of a training; the later run of a stage wins.

    Args:
        client: client of the tracking store.
        run_id: the parent run.
    """
    experiment = client.get_run(run_id).info.experiment_id
    children = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["start_time ASC"]
    )
    collected: dict[str, dict[str, dict[int, float]]] = {}
    for child in children:
        stage = collected.setdefault(child.data.tags.get("stage", child.info.run_name), {})
        for name in child.data.metrics:
            values = stage.setdefault(name, {})
            values.update(
                {metric.step: metric.value for metric in client.get_metric_history(child.info.run_id, name)}
            )
    ordered = sorted(
        collected, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name)
    )
    return [
        StageCurves(name, {metric: _as_curve(values) for metric, values in collected[name].items()})
        for name in ordered
    ]


def draw_stage(stage: StageCurves) -> list[Figure]:
    """Draws the losses of a stage, and its main metrics."""
    title = TITLES.get(stage.stage, stage.stage)
    figures = []
    for names, label in ((LOSSES, "loss"), (_headline(stage), "validation")):
        curves = {
            name: stage.metrics[name]
            for name in names
            if name in stage.metrics and len(stage.metrics[name][0]) > 1
        }
        if curves:
            legend = tuple(zip(curves, SERIES, strict=False))
            figures.append(Figure(draw_curves(curves, ylabel=label), f"{title}: {label}", legend))
    return figures


def _headline(stage: StageCurves) -> Sequence[str]:
    return [name for name in PREFERRED if name in stage.metrics][:MAX_SHOWN]


def _as_curve(values: dict[int, float]) -> tuple[Float64Array, Float64Array]:
    steps = sorted(step for step, value in values.items() if np.isfinite(value))
    return np.array(steps, dtype=np.float64), np.array([values[step] for step in steps], dtype=np.float64)


def _find_parent_run(settings: MlflowSettings, model_version: str) -> str:
    """Returns the run that registered `name/3`; empty if the release's model is not a registered one."""
    name, sign, version = model_version.rpartition("/")
    if not sign or not version.isdigit() or not _has_store(settings):
        return ""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return str(
            MlflowClient(tracking_uri=settings.tracking_uri).get_model_version(name, version).run_id or ""
        )
    except MlflowException:  # the registry of these settings does not know it: the folders of trainings may
        return ""


def _has_store(settings: MlflowSettings) -> bool:
    """Returns whether the store exists: a client would silently create a new SQLite file."""
    path = settings.tracking_uri.removeprefix("sqlite:///")
    return path == settings.tracking_uri or Path(path).is_file()
