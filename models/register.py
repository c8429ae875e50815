"""Registers a bundle as a model version and decides whether it becomes the champion.

    python -m models register --day D [--strict]

The bundle is logged to the training's run as it is (safetensors and JSON) with a signature, registered, and
becomes `challenger`. The gate then compares it on the same held-out validation rows with the popularity floor
and with the champion: it becomes `champion` if it beats the floor and is not below the champion by more than
a tolerance.
Otherwise the champion stays; `--strict` makes that an error.
"""

import logging
from dataclasses import asdict, dataclass
from importlib.metadata import version

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from conf.errors import PromotionRefusedError, SpacetimeError
from conf.settings import Settings
from models.bundle import ModelBundle, digest_folder, load_bundle, resolve_model
from models.click_scorer import SIGNATURE
from models.figures import rank_floors
from models.generator_choice import MAX_GATE_ROWS, GeneratorChoice, rank_by_stage, sample_rows
from models.metrics import bootstrap_mean, digest_rows, exact_mean, reciprocal_values
from models.release_split import EvaluationRows
from models.tracking import RunLog, open_client

LOGGER = logging.getLogger(__name__)
CHAMPION, CHALLENGER = "champion", "challenger"
TOLERANCE = 0.005
"""MRR that a challenger may lie below the champion: less than the noise between two seeds."""
UNJUDGED = "there are no validation rows, so nothing says whether it is better than popularity"
PACKAGES = ("torch", "safetensors", "numpy", "pyarrow", "pandas", "pydantic")


@dataclass(frozen=True)
class GateVerdict:
    """What the gate found on rows that all three were asked.

    Attributes:
        metric: what is compared.
        rows: rows compared on.
        digest: digest of the row ids.
        popularity: the floor's figure; None = there were no rows.
        challenger: the new bundle's; None = there were no rows.
        champion: the champion's; None = there is none that can answer.
        difference_low: lower end of the 95 % interval of challenger minus champion.
        reasons: why it is not promoted; empty = it is.
    """

    metric: str
    rows: int
    digest: str
    popularity: float | None
    challenger: float | None
    champion: float | None
    difference_low: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Registration:
    """A registered version: `name/3`, and whether it is the champion now."""

    model_version: str
    is_champion: bool
    verdict: GateVerdict


def judge_challenger(
    rows: EvaluationRows | None,
    challenger: ModelBundle,
    champion: ModelBundle | None,
    *,
    choice: GeneratorChoice | None = None,
) -> GateVerdict:
    """Compares generators by MRR on at most `MAX_GATE_ROWS` rows, chosen by their ids.

    Args:
        rows: held-out validation rows; without any nothing is compared, and the challenger stays one.
        challenger: the new bundle.
        champion: the one in use, if there is one for the same index version.
        choice: made of the same rows just before; spares ranking them by the challenger once more.
    """
    if rows is None or not len(rows.requests):
        return GateVerdict("mrr", 0, digest_rows([]), None, None, None, None, (UNJUDGED,))
    rows = sample_rows(rows, MAX_GATE_ROWS)
    requests = rows.requests
    floor = rank_floors(requests, rows.counts, catalogue=rows.catalogue)["popularity"]
    if choice is None:
        own = reciprocal_values(rank_by_stage(rows, challenger, challenger.generator_stage))
    else:
        own = choice.reciprocal_ranks
    figures = {"popularity": exact_mean(reciprocal_values(floor)), "challenger": exact_mean(own)}
    reasons = []
    if not figures["challenger"] > figures["popularity"]:
        reasons.append(
            f"MRR {figures['challenger']:.4f} does not beat popularity {figures['popularity']:.4f}"
        )
    champion_mrr, difference_low = None, None
    if champion is not None:
        theirs = reciprocal_values(rank_by_stage(rows, champion, champion.generator_stage))
        champion_mrr = exact_mean(theirs)
        difference_low = bootstrap_mean(own - theirs, requests.users).low
        if figures["challenger"] < champion_mrr - TOLERANCE:
            reasons.append(f"MRR {figures['challenger']:.4f} is below the champion's {champion_mrr:.4f}")
    return GateVerdict(
        metric="mrr",
        rows=len(requests),
        digest=digest_rows(requests.row_ids.tolist()),
        champion=champion_mrr,
        difference_low=difference_low,
        reasons=tuple(reasons),
        **figures,
    )


def find_champion(settings: Settings, index_version: int) -> ModelBundle | None:
    """Returns the champion's bundle; None if there is none, or it was trained on another index version."""
    uri = f"models:/{settings.mlflow.model_name}@{CHAMPION}"
    try:
        bundle = load_bundle(resolve_model(uri, settings)[0])
    except SpacetimeError as error:
        LOGGER.info("no champion to compare with: %s", error)
        return None
    if bundle.layout.index_version != index_version:
        LOGGER.warning(
            "the champion knows index version %d, not %d", bundle.layout.index_version, index_version
        )
        return None
    return bundle


def register_bundle(
    bundle: ModelBundle, verdict: GateVerdict, settings: Settings, log: RunLog, *, strict: bool = False
) -> Registration:
    """Registers a bundle, gives it the alias `challenger`, and `champion` if the gate let it pass.

    A bundle that is registered already keeps its version.

    Raises:
        PromotionRefusedError: `strict`, and the gate refused.
    """
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
    client.set_registered_model_alias(name, CHAMPION, number)
    LOGGER.info("%s is champion", model_version)
    return Registration(model_version, True, verdict)


def _find_version(client: MlflowClient, name: str, digest: str) -> str:
    """Number of the version that holds these very files; empty if there is none."""
    try:
        found = client.search_model_versions(f"name = '{name}'")
    except MlflowException:  # no model of this name yet
        return ""
    return next((str(model.version) for model in found if model.tags.get("bundle_digest") == digest), "")


def _log_version(client: MlflowClient, name: str, bundle: ModelBundle, digest: str, log: RunLog) -> str:
    with mlflow.start_run(run_id=log.run_id):
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


def _tag_version(
    client: MlflowClient, name: str, number: str, bundle: ModelBundle, verdict: GateVerdict
) -> None:
    tags = {
        "index_version": bundle.layout.index_version,
        "fingerprint": bundle.layout.fingerprint(),
        "stages": ",".join(bundle.stage_names),
        "day": bundle.content.get("day", ""),
        "simulated": str(bundle.is_simulated).lower(),
    }
    tags |= {f"gate_{key}": value for key, value in asdict(verdict).items() if value is not None}
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, str(value))


def _is_champion(client: MlflowClient, name: str, number: str) -> bool:
    aliases = client.get_registered_model(name).aliases
    return str(aliases.get(CHAMPION, "")) == number
