"""The weekly and the nightly DAG, really executed by Airflow on a small city: the command lines of production.

The scheduler was down for three nights between the first delivery and the night that is executed.
"""

import json
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from conf.settings import Settings, SparkSettings, load_model
from models.serving.bundle import load_bundle, resolve_model
from tests import small_city
from tests.airflow_dags.airflow_env import airflow_variables, is_installed, run_airflow

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="no .venv-airflow; make test-airflow sets it up"),
]
BOOTSTRAP_DAY, TRAINING_DAY, NIGHT = "2026-01-19", "2026-01-20", "2026-01-23"
MISSED = ("2026-01-20", "2026-01-21", "2026-01-22")
CITY = {"num_users": 60, "num_pois": 200, "num_actions": 1500, "num_requests": 200, "num_days": 23}
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
        # So brief a training stays challenger: the gate sees that it has learnt nothing.
        "features": {"top_k": 10, "model": "models:/spacetime-gr@challenger"},
    }
    layer.write_text(yaml.safe_dump(content))
    return layer


def write_recipe(folder: Path) -> Path:
    """The smallest recipe that copies from the crowd, as a file: a DAG gives no further words to the training."""
    recipe = yaml.safe_load(Path("conf/models/tiny.yaml").read_text())
    for key in small_city.RECIPE_KEYS:
        names, value = key.split("=")
        stage, name = names.split(".")
        recipe[stage][name] = int(value)
    recipe["decoder"]["others"] = {"enabled": True, "num_followers": 4, "num_near": 8}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, spark: object, spark_settings: SparkSettings) -> Path:
    """A warehouse in which Airflow has trained a model on the first day and executed the night after it."""
    folder = tmp_path_factory.mktemp("city")
    layer = write_settings(folder, spark_settings)
    small_city.run(layer, "etl", "night", "--source", "synthetic", "--day", BOOTSTRAP_DAY)

    recipe = {"SPACETIME_RECIPE": str(write_recipe(folder))}
    variables = airflow_variables(folder / "airflow", {"SPACETIME_CONF": str(layer), **recipe})
    for words in (
        ("db", "migrate"),
        ("dags", "test", "weekly_training", TRAINING_DAY),  # trains on the day before
        ("dags", "test", "nightly_features", NIGHT),
    ):
        ended = run_airflow(variables, *words, timeout_s=2400)
        assert ended.returncode == 0, f"{words}: {(ended.stdout + ended.stderr)[-8000:]}"
    return folder / "warehouse"


def test_the_night_after_three_missed_ones_delivers_their_rows_and_all_of_them_reach_the_sequences(
    night: Path,
) -> None:
    raw = DeltaTable(str(night / "raw_actions")).to_pyarrow_table(columns=["day"]).to_pylist()
    cleaned = DeltaTable(str(night / "cleaned_actions")).to_pyarrow_table().to_pylist()
    sequences = DeltaTable(str(night / "action_sequences")).to_pyarrow_table().to_pylist()

    delivered = {str(row["day"]) for row in raw}
    happened = {str(row["event_date"]) for row in cleaned if str(row["day"]) == NIGHT}
    users = {row["user_id"] for row in cleaned if str(row["day"]) == NIGHT}
    assert delivered == {BOOTSTRAP_DAY, NIGHT}
    assert happened >= {*MISSED, NIGHT}
    assert {row["user_id"] for row in sequences if str(row["day"]) == NIGHT} == users


def test_the_week_trains_a_model_on_the_samples_of_the_day_before(night: Path) -> None:
    settings = load_model(Settings, [night.parent / "settings.yaml"])
    _, model_version = resolve_model(settings.features.model, settings)
    samples = DeltaTable(str(night / "pretrain_samples")).to_pyarrow_table(columns=["day"])
    release = DeltaTable(str(night / "releases")).to_pyarrow_table().to_pylist()[0]

    assert {str(day) for day in samples["day"].to_pylist()} == {BOOTSTRAP_DAY}
    assert release["model_version"] == model_version


def test_the_night_ends_in_a_release_of_that_day(night: Path) -> None:
    releases = DeltaTable(str(night / "releases")).to_pyarrow_table().to_pylist()

    assert [(row["release_id"], str(row["day"])) for row in releases] == [(1, NIGHT)]
    assert set(FEATURES) <= set(dict(releases[0]["table_versions"]))


@pytest.mark.parametrize("table", FEATURES)
def test_every_feature_table_has_rows_of_that_day_by_the_released_model(night: Path, table: str) -> None:
    release = DeltaTable(str(night / "releases")).to_pyarrow_table().to_pylist()[0]
    rows = DeltaTable(str(night / table)).to_pyarrow_table(columns=["day", "model_version"]).to_pylist()

    assert {(str(row["day"]), row["model_version"]) for row in rows} == {(NIGHT, release["model_version"])}


def test_the_model_copies_from_what_others_did_in_its_training_period(night: Path) -> None:
    settings = load_model(Settings, [night.parent / "settings.yaml"])
    bundle = load_bundle(resolve_model(settings.features.model, settings)[0])
    visits = DeltaTable(str(night / "training_visits")).to_pyarrow_table(columns=["day"])
    commit = DeltaTable(str(night / "poi_candidates")).history(1)[0]

    assert bundle.copies_from_crowd
    assert bundle.content["data"]["training_visits"]["num_rows"] == visits.num_rows
    assert {str(day) for day in visits["day"].to_pylist()} == {BOOTSTRAP_DAY}
    assert {"training_visits", "training_transitions"} <= set(json.loads(commit["userMetadata"])["read"])


def test_rows_carry_the_run_of_airflow(night: Path) -> None:
    rows = DeltaTable(str(night / "user_embeddings")).to_pyarrow_table(columns=["run_id"]).to_pylist()

    assert all(row["run_id"].startswith("manual__") for row in rows)
