"""The models that a new one is compared with: the current champion and former ones.

A tolerance against the current champion alone would let quality decline a little every week. So a new model is compared
with the best of the last few champions on the same rows.
"""

import logging
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from conf.errors import SpacetimeError
from conf.settings import Settings
from models.serving.bundle import ModelBundle, load_bundle, resolve_model
from models.tracking import open_client

LOGGER = logging.getLogger(__name__)
CHAMPION, CHALLENGER = "champion", "challenger"
PROMOTED_TAG = "was_champion"
"""Tag of every version that has been champion."""
NUM_CHAMPIONS = 4
"""Number of compared champions, including the current one: a month's with one training a week."""

Champions = Mapping[str, ModelBundle]
"""Bundles by model version, the current champion first."""


def find_champions(settings: Settings, index_version: int) -> dict[str, ModelBundle]:
    """Returns the current and former champions of the index version; empty if there are none."""
    client, name = open_client(settings.mlflow), settings.mlflow.model_name
    champions = {}
    for number in _champion_numbers(client, name):
        version = f"{name}/{number}"
        try:
            bundle = load_bundle(resolve_model(f"models:/{version}", settings)[0])
        except SpacetimeError as error:
            LOGGER.warning("%s was champion and cannot be compared with: %s", version, error)
            continue
        if bundle.layout.index_version != index_version:
            LOGGER.warning(
                "%s was champion and knows index version %d, not %d",
                version, bundle.layout.index_version, index_version,
            )  # fmt: skip
            continue
        champions[version] = bundle
    return champions


def _champion_numbers(client: MlflowClient, name: str) -> list[str]:
    """Returns versions that are or were champion, the current one first, then the newest."""
    try:
        in_use = client.get_registered_model(name).aliases.get(CHAMPION)
        tagged = client.search_model_versions(f"name = '{name}'")
    except MlflowException:  # no model of this name yet
        return []
    numbers = sorted(
        (int(model.version) for model in tagged if PROMOTED_TAG in model.tags or model.version == in_use),
        key=lambda number: (str(number) != str(in_use), -number),
    )
    return [str(number) for number in numbers[:NUM_CHAMPIONS]]
