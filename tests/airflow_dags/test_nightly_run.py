"""The nightly DAG, really executed once by Airflow on a small city: the same command lines as in
production."""

from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from conf.settings import SparkSettings
from tests.airflow_dags.airflow_env import airflow_variables, is_installed, run_airflow
from tests.bench import small_city

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="no .venv-airflow; make test-airflow sets it up"),
]
BOOTSTRAP_DAY, NIGHT = "2026-01-19", "2026-01-20"
CITY = {"num_users": 60, "num_pois": 200, "num_actions": 1500, "num_requests": 200, "num_days": 20}
FEATURES = ("user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates")


def write_settings(folder: Path, spark: SparkSettings) -> Path:
    """A settings layer that keeps everything in one folder and starts Spark as the other tests do."""
    layer = folder / "settings.yaml"
    content = {
        "storage": {"root": str(folder / "warehouse"), "artifacts": str(folder / "artifacts")},
        "mlflow": {
            "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
            "artifact_root": str(folder / "mlruns"),
        },
        "spark": spark.model_dump(),
        "city": CITY,
        "samples": {"val_days": 3, "test_days": 3},
        "features": {"top_k": 10},
    }
    layer.write_text(yaml.safe_dump(content))
    return layer


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, spark: object, spark_settings: SparkSettings) -> Path:
    """A warehouse in which Airflow has executed one night; the model of the day before is made in this process."""
    folder = tmp_path_factory.mktemp("city")
    layer = write_settings(folder, spark_settings)
    for job in (("night", "--source", "synthetic"), ("samples",)):
        small_city.run(layer, "etl", *job, "--day", BOOTSTRAP_DAY)
    smaller = [word for key in small_city.RECIPE_KEYS for word in ("--set-recipe", key)]
    small_city.run(layer, "models", "train", "--day", BOOTSTRAP_DAY, *smaller)

    variables = airflow_variables(folder / "airflow", {"SPACETIME_CONF": str(layer)})
    migrated = run_airflow(variables, "db", "migrate")
    assert migrated.returncode == 0, migrated.stderr[-2000:]
    executed = run_airflow(variables, "dags", "test", "nightly_features", NIGHT, timeout_s=2400)
    assert executed.returncode == 0, (executed.stdout + executed.stderr)[-8000:]
    return folder / "warehouse"


def test_the_night_ends_in_a_release_of_that_day(night: Path) -> None:
    releases = DeltaTable(str(night / "releases")).to_pyarrow_table().to_pylist()

    assert [(row["release_id"], str(row["day"])) for row in releases] == [(1, NIGHT)]
    assert set(FEATURES) <= set(dict(releases[0]["table_versions"]))


@pytest.mark.parametrize("table", FEATURES)
def test_every_feature_table_has_rows_of_that_day_by_the_released_model(night: Path, table: str) -> None:
    release = DeltaTable(str(night / "releases")).to_pyarrow_table().to_pylist()[0]
    rows = DeltaTable(str(night / table)).to_pyarrow_table(columns=["day", "model_version"]).to_pylist()

    assert {(str(row["day"]), row["model_version"]) for row in rows} == {(NIGHT, release["model_version"])}


def test_rows_carry_the_run_of_airflow(night: Path) -> None:
    rows = DeltaTable(str(night / "user_embeddings")).to_pyarrow_table(columns=["run_id"]).to_pylist()

    assert all(row["run_id"].startswith("manual__") for row in rows)
