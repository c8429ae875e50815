"""MLflow: one parent run per training, a nested child per stage, and the resolution of model URIs.

A training keeps the id of its parent run in `mlflow_run.json` in its folder, so that a training that was killed, or
whose stages are run one by one, continues in the same run. Nothing is logged under an active global run: the run is
always explicit. Telemetry is off.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import, which reads it

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from conf.errors import MissingInputError
from conf.files import read_json, write_json
from conf.settings import MlflowSettings

RUN_FILE = "mlflow_run.json"
MODEL_SCHEME = "models:/"
BUFFERED_METRICS = 200
"""Metric values per write to the tracking store."""
MAX_PARAM_LENGTH = 500
MAX_PARAMS_PER_WRITE = 100


@dataclass(frozen=True)
class TableInput:
    """A Delta table that a run reads, at a version.

    Attributes:
        name: table name.
        location: folder or URI.
        version: Delta version.
        num_rows: rows read.
        digest: digest of the keys of the rows read.
    """

    name: str
    location: str
    version: int
    num_rows: int
    digest: str


@dataclass
class RunLog:
    """Writes parameters, metrics and inputs of one run; metric values are buffered."""

    client: MlflowClient
    run_id: str
    _metrics: list[Metric] = field(default_factory=list)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs figures at a step; names hold no `@` (say `val/hr_at_10`)."""
        now = int(time.time() * 1000)
        self._metrics += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if len(self._metrics) >= BUFFERED_METRICS:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered metric values."""
        if self._metrics:
            self.client.log_batch(self.run_id, metrics=self._metrics)
            self._metrics = []

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs parameters; nested mappings become dotted names. A resumed run keeps its earlier parameters."""
        known = self.client.get_run(self.run_id).data.params
        flat = {name: str(value)[:MAX_PARAM_LENGTH] for name, value in flatten_params(params).items()}
        new = [Param(name, value) for name, value in flat.items() if name not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_WRITE):
            self.client.log_batch(self.run_id, params=new[start : start + MAX_PARAMS_PER_WRITE])

    def log_tables(self, tables: list[TableInput]) -> None:
        """Logs the tables that a run reads: as dataset inputs, and their versions as parameters."""
        inputs = [
            DatasetInput(
                Dataset(
                    name=table.name,
                    digest=table.digest,
                    source_type="delta",
                    source=json.dumps({"location": table.location, "version": table.version}),
                    profile=json.dumps({"num_rows": table.num_rows}),
                ),
                [InputTag("mlflow.data.context", "training")],
            )
            for table in tables
        ]
        self.client.log_inputs(self.run_id, inputs)
        self.log_params(
            {"tables": {table.name: {"version": table.version, "digest": table.digest} for table in tables}}
        )

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    def log_file(self, path: Path) -> None:
        """Stores a file as an artefact of the run."""
        self.client.log_artifact(self.run_id, str(path))


def open_client(settings: MlflowSettings) -> MlflowClient:
    """Returns a client of the tracking store; creates the experiment at first use."""
    mlflow.set_tracking_uri(settings.tracking_uri)
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    if client.get_experiment_by_name(settings.experiment) is None:
        root = settings.artifact_root
        location = root if "://" in root else Path(root).resolve().as_uri()
        try:
            client.create_experiment(settings.experiment, artifact_location=location)
        except (
            MlflowException
        ):  # created by another process in the meantime; otherwise it does not exist and the error is real
            if client.get_experiment_by_name(settings.experiment) is None:
                raise
    return client


@contextmanager
def open_training_run(
    settings: MlflowSettings, folder: Path, *, name: str, tags: Mapping[str, str] | None = None
) -> Iterator[RunLog]:
    """Opens the parent run of a training; continues the run in the folder if there is one."""
    client = open_client(settings)
    path = folder / RUN_FILE
    run_id = read_json(path, expected="the run of a training")["run_id"] if path.is_file() else ""
    if not run_id or not _has_run(client, run_id):
        run_id = _create_run(client, settings, name, tags or {})
        write_json(path, {"run_id": run_id})
    with _closing(RunLog(client, run_id)) as log:
        yield log


@contextmanager
def open_stage_run(settings: MlflowSettings, parent: RunLog, *, stage: str) -> Iterator[RunLog]:
    """Opens a run of one stage nested in the training's run."""
    tags = {"mlflow.parentRunId": parent.run_id, "stage": stage}
    with _closing(RunLog(parent.client, _create_run(parent.client, settings, stage, tags))) as log:
        yield log


def resolve_model_uri(uri: str, settings: MlflowSettings) -> tuple[Path, str] | None:
    """Resolves `models:/name@alias` or `models:/name/3` to (local folder, `name/3`); None for other URIs.

    Raises:
        MissingInputError: there is no such model, version or alias.
    """
    if not uri.startswith(MODEL_SCHEME):
        return None
    client = open_client(settings)
    name, alias, version = _split_model_uri(uri)
    try:
        if alias:
            version = client.get_model_version_by_alias(name, alias).version
        model_version = client.get_model_version(name, version)
        folder = mlflow.artifacts.download_artifacts(
            f"{MODEL_SCHEME}{name}/{version}", tracking_uri=settings.tracking_uri
        )
    except MlflowException as error:
        raise MissingInputError(
            what=f"the model {uri}",
            where=settings.tracking_uri,
            needed_by="The job",
            remedy=f"Train and register one with: python -m models train --day DAY. ({error.message})",
        ) from error
    return Path(folder), f"{name}/{model_version.version}"


def flatten_params(params: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Returns nested mappings as one with dotted names."""
    flat: dict[str, object] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten_params(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _split_model_uri(uri: str) -> tuple[str, str, str]:
    rest = uri.removeprefix(MODEL_SCHEME)
    name, sign, alias = rest.partition("@")
    if sign:
        return name, alias, ""
    name, _, version = rest.partition("/")
    return name, "", version


def _create_run(client: MlflowClient, settings: MlflowSettings, name: str, tags: Mapping[str, str]) -> str:
    experiment = client.get_experiment_by_name(settings.experiment)
    assert experiment is not None, "open_client makes the experiment"
    run = client.create_run(experiment.experiment_id, run_name=name, tags=dict(tags))
    return str(run.info.run_id)


def _has_run(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


@contextmanager
def _closing(log: RunLog) -> Iterator[RunLog]:
    """Ends a run as FINISHED, or as FAILED if an error leaves it."""
    log.client.update_run(log.run_id, status="RUNNING")
    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        log.flush()
        log.client.set_terminated(log.run_id, status=status)
