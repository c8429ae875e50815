"""Registers a bundle as a model version and decides whether it becomes the champion.

    python -m models register --day D [--strict]

The bundle is logged to the training's run as it is (safetensors and JSON) with a signature, registered, and becomes
`challenger`. The gate (`models/registry/gate.py`) compares all its outputs with baselines and the last champions on the
same held-out validation rows. A bundle without objections becomes `champion`. Otherwise the champion stays; `--strict`
makes that an error.
"""

import logging
import warnings
from dataclasses import dataclass
from importlib.metadata import version

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from conf.errors import PromotionRefusedError
from conf.settings import Settings
from models.registry.champions import CHALLENGER, CHAMPION, PROMOTED_TAG
from models.registry.click_scorer import SIGNATURE
from models.registry.gate import Verdict
from models.serving.bundle import ModelBundle, digest_folder
from models.serving.probe import record_answers
from models.tracking import RunLog, open_client

LOGGER = logging.getLogger(__name__)
PACKAGES = ("torch", "safetensors", "numpy", "pyarrow", "pandas", "pydantic")


@dataclass(frozen=True)
class Registration:
    """A registered version (`name/3`), whether it is the champion now, and the verdict of the gate."""

    model_version: str
    is_champion: bool
    verdict: Verdict


def register_bundle(
    bundle: ModelBundle, verdict: Verdict, settings: Settings, log: RunLog, *, strict: bool = False
) -> Registration:
    """Registers a bundle, gives it the alias `challenger`, and `champion` if it passed the gate.

    A bundle that is already registered keeps its version. Its answers to a fixed probe are stored with it, so that
    every later load can check that it is still the same model.

    Raises:
        PromotionRefusedError: `strict`, and the gate refused.
    """
    record_answers(bundle)
    client, name = open_client(settings.mlflow), settings.mlflow.model_name
    digest = digest_folder(bundle.folder)
    number = _find_version(client, name, digest) or _log_version(client, name, bundle, digest, log)
    _tag_version(client, name, number, bundle, verdict)
    client.set_registered_model_alias(name, CHALLENGER, number)
    model_version = f"{name}/{number}"
    if verdict.reasons:
        LOGGER.warning("%s stays challenger: %s", model_version, "; ".join(verdict.reasons))
        if strict:
            raise PromotionRefusedError(model_version=model_version, reasons=verdict.reasons)
        return Registration(model_version, _is_champion(client, name, number), verdict)
    # The alias is set before the tag: after a kill in between, the version in use counts as a champion anyway.
    client.set_registered_model_alias(name, CHAMPION, number)
    client.set_model_version_tag(name, number, PROMOTED_TAG, "true")
    LOGGER.info("%s is champion", model_version)
    return Registration(model_version, True, verdict)


def _find_version(client: MlflowClient, name: str, digest: str) -> str:
    """Returns the number of the version with the same files; empty if there is none."""
    try:
        versions = client.search_model_versions(f"name = '{name}'")
    except MlflowException:  # no model of this name yet
        return ""
    return next((str(model.version) for model in versions if model.tags.get("bundle_digest") == digest), "")


def _log_version(client: MlflowClient, name: str, bundle: ModelBundle, digest: str, log: RunLog) -> str:
    with mlflow.start_run(run_id=log.run_id), warnings.catch_warnings():
        # The signature is given, so MLflow needs no example to derive it from.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        logged = mlflow.pyfunc.log_model(
            name="bundle",
            loader_module="models.click_scorer",
            data_path=str(bundle.folder),
            signature=SIGNATURE,
            pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
            registered_model_name=name,
        )
    number = str(logged.registered_model_version)
    client.set_model_version_tag(name, number, "bundle_digest", digest)
    return number


def _tag_version(client: MlflowClient, name: str, number: str, bundle: ModelBundle, verdict: Verdict) -> None:
    tags = {
        "index_version": bundle.layout.index_version,
        "fingerprint": bundle.layout.fingerprint(),
        "stages": ",".join(bundle.stage_names),
        "day": bundle.content.get("day", ""),
        "simulated": str(bundle.is_simulated).lower(),
    }
    tags |= verdict.tags()
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, str(value))


def _is_champion(client: MlflowClient, name: str, number: str) -> bool:
    aliases = client.get_registered_model(name).aliases
    return str(aliases.get(CHAMPION, "")) == number
