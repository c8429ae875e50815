"""A finished warehouse with a model of random weights, for cases that ask the feature jobs."""

from pathlib import Path

from pyspark.sql import SparkSession

from conf.settings import FeatureSettings, Settings, StorageSettings
from conf.tables import TABLES
from etl.delta.storage import create_if_missing
from tests.udfs.feature_city import DAY_1, FeatureCity, make_bundle, sequence

ASKING_USERS = ("u0000370", "u0000014")
"""Users of the requests in the cases, who came from the demo's city."""


def build_case_city(spark: SparkSession, settings: Settings, folder: Path) -> Path:
    """Fills a folder with `warehouse` and `bundle`, and returns it."""
    storage = StorageSettings(root=str(folder / "warehouse"), artifacts=str(folder / "artifacts"))
    features = FeatureSettings(top_k=3, micro_batch=4)
    make_bundle(folder, seed=1)
    for contract in TABLES.values():
        create_if_missing(spark, contract, storage.root)
    city = FeatureCity(
        spark, settings.model_copy(update={"storage": storage, "features": features}), folder / "bundle"
    )
    city.deliver_first_night()
    asking = [sequence(user_id, DAY_1, [0, 1, 4]) for user_id in ASKING_USERS]
    known = [
        sequence("u1", DAY_1, [0, 1, 0]),
        sequence("u2", DAY_1, [4, 5, 4, 6]),
        sequence("u3", DAY_1, [7]),
    ]
    city.deliver(DAY_1, action_sequences=known + asking)
    return folder
