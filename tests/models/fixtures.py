"""The planted city as fixtures: Arrow tables, Delta tables, settings."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from conf.settings import MlflowSettings, Settings, StorageSettings
from conf.tables import TABLES
from tests.models.planted_city import (
    block_rows,
    other_rows,
    pair_rows,
    poi_rows,
    pretrain_rows,
    request_rows,
    to_arrow,
)


@pytest.fixture(scope="session")
def city_tables() -> dict[str, pa.Table]:
    """The planted city by table name."""
    return {
        "poi_index": to_arrow("poi_index", poi_rows()),
        "blocks": to_arrow("blocks", block_rows()),
        "categories": to_arrow(
            "categories",
            [
                {
                    "index_version": 1,
                    "category_id": c,
                    "category": f"c{c}",
                    "category_path": f"c{c}",
                    "is_interest": True,
                    "first_day": date(2025, 1, 1),
                }
                for c in (1, 2, 3)
            ],
        ),
        "pretrain_samples": to_arrow("pretrain_samples", pretrain_rows()),
        "ranking_samples": to_arrow("ranking_samples", request_rows(48)),
        "preference_pairs": to_arrow("preference_pairs", pair_rows(48)),
        **{name: to_arrow(name, rows) for name, rows in other_rows().items()},
    }


@pytest.fixture(scope="session")
def city_root(tmp_path_factory: pytest.TempPathFactory, city_tables: dict[str, pa.Table]) -> Path:
    """The planted city as Delta tables."""
    root = tmp_path_factory.mktemp("city") / "warehouse"
    for name, table in city_tables.items():
        write_deltalake(str(root / name), table, partition_by=list(TABLES[name].partition_by) or None)
    return root


@pytest.fixture(scope="session")
def tracking_settings(tmp_path_factory: pytest.TempPathFactory) -> MlflowSettings:
    """One MLflow store for the whole run: making its database takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowSettings(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_root=str(folder / "mlruns"))


@pytest.fixture(scope="session")
def city_settings(city_root: Path, tracking_settings: MlflowSettings) -> Settings:
    """Settings whose tables are the planted city."""
    storage = StorageSettings(root=str(city_root), artifacts=str(city_root.parent / "artifacts"))
    return Settings(storage=storage, mlflow=tracking_settings)
