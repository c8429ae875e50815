"""The whole training on the planted city: stages, evaluation, registration, and starting again."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deltalake import write_deltalake
from mlflow import MlflowClient

from conf.cli import main
from conf.settings import Settings
from models import jobs
from models.__main__ import JOBS
from models.serving.bundle import load_bundle, resolve_model
from models.serving.inference import score_candidates
from tests.models.planted_city import RECIPE

Run = Callable[..., tuple[int, dict]]


@pytest.fixture(scope="module")
def run(city_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `python -m models` in this process and returns the exit code and the summary line."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "recipe.yaml").write_text(RECIPE)
    overrides = [
        f"--set=storage.root={city_settings.storage.root}",
        f"--set=storage.artifacts={folder}/artifacts",
        f"--set=mlflow.tracking_uri={city_settings.mlflow.tracking_uri}",
        f"--set=mlflow.artifact_root={city_settings.mlflow.artifact_root}",
        "--set=mlflow.model_name=city",
    ]

    def start(job: str, *more: str) -> tuple[int, dict]:
        arguments = [
            job,
            "--day",
            "2026-03-01",
            *overrides,
            "--recipe",
            str(folder / "recipe.yaml"),
            "--threads",
            "1",
            *more,
        ]
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            code = main("models", "", JOBS, arguments)
        return code, json.loads(stdout.getvalue().splitlines()[-1])

    start.folder = folder / "artifacts" / "training" / "2026-03-01"  # type: ignore[attr-defined]
    return start


@pytest.fixture(scope="module")
def trained(run: Run) -> dict:
    """The summary of one `train` that several tests look at."""
    code, summary = run("train")
    assert code == 0, summary
    return summary


def test_train_makes_a_bundle_of_all_stages_that_is_the_first_champion(run, trained):
    bundle = load_bundle(run.folder / "bundle")
    assert bundle.stage_names == ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
    assert bundle.is_simulated
    assert bundle.content["data"]["ranking_samples"]["num_rows"] == 48
    assert trained["notes"]["model_version"] == "city/1"
    assert trained["notes"]["is_champion"]
    assert not [path for path in bundle.folder.rglob("*") if path.suffix in (".pkl", ".pt", ".bin")]


def test_evaluation_prints_model_and_baselines_on_the_same_rows(run, trained):
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    methods = evaluation["next_poi"]["methods"]
    assert list(methods) == sorted(["popularity", "visit_counter", "kernel_counter", "pretrain", "align_dpo"])
    assert evaluation["next_poi"]["rows"] == 120  # 12 users, 10 test actions each
    assert evaluation["is_simulated"]
    assert evaluation["next_poi"]["action_type"] == "click"
    assert methods["pretrain"]["all"]["hr_at_1"] > 0.4 > methods["popularity"]["all"]["hr_at_1"]
    assert set(evaluation["ranking"]["methods"]) == {"distance", "popularity", "sft_embedding", "sft_ranking"}
    assert evaluation["ranking"]["rows"] == sum(evaluation["ranking"]["calibration"]["counts"])


def test_mlflow_holds_a_parent_run_a_child_per_stage_and_the_data_read(run, trained, city_settings):
    client = MlflowClient(city_settings.mlflow.tracking_uri)
    parent = json.loads((run.folder / "mlflow_run.json").read_text())["run_id"]
    experiment = client.get_experiment_by_name(city_settings.mlflow.experiment)
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    by_stage = {child.data.tags["stage"]: child for child in children}
    assert {"pretrain", "sft_embedding", "sft_ranking", "align_dpo"} <= set(by_stage)
    pretrain = by_stage["pretrain"]
    assert {entry.dataset.name for entry in pretrain.inputs.dataset_inputs} == {
        "pretrain_samples",
        "poi_index",
        "blocks",
        "training_visits",  # the recipe copies from the crowd
        "training_transitions",
    }
    assert pretrain.data.params["tables.pretrain_samples.version"] == "0"
    assert pretrain.info.status == "FINISHED"
    assert len(client.get_metric_history(pretrain.info.run_id, "val/loss")) >= 2
    assert "val/rewards_accuracy" in by_stage["align_dpo"].data.metrics
    parent_run = client.get_run(parent)
    assert parent_run.data.tags["simulated"] == "true"
    assert "test/kernel_counter/hr_at_1" in parent_run.data.metrics
    assert "evaluation.json" in [file.path for file in client.list_artifacts(parent)]


def test_a_registered_version_leads_back_to_the_same_bundle(run, trained, city_settings):
    named = city_settings.model_copy(
        update={"mlflow": city_settings.mlflow.model_copy(update={"model_name": "city"})}
    )
    by_alias, by_number = (resolve_model(uri, named) for uri in ("models:/city@champion", "models:/city/1"))
    assert by_alias == by_number
    assert by_alias[1] == "city/1"
    plain, version = resolve_model(str(run.folder / "bundle"), named)
    assert version.startswith("folder-")
    assert plain != by_alias[0]
    files = [sorted(path.name for path in folder.rglob("*")) for folder in (plain, by_alias[0])]
    assert files[0] == files[1]


def test_mlflow_serves_the_bundle_with_its_signature(run, trained, city_settings, requests_batch):
    import mlflow

    mlflow.set_tracking_uri(city_settings.mlflow.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/city/1")
    frame = requests_batch.select(model.metadata.signature.inputs.input_names()).to_pandas()
    served = model.predict(frame)["click_logits"]
    direct = score_candidates(load_bundle(run.folder / "bundle"), requests_batch)
    for own, expected in zip(served, direct, strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-5)


def test_a_finished_training_started_again_trains_nothing_and_registers_nothing_new(run, trained):
    before = (run.folder / "bundle" / "pretrained" / "model.safetensors").read_bytes()
    code, summary = run("train")
    assert code == 0
    assert summary["notes"]["model_version"] == "city/1"
    assert (run.folder / "bundle" / "pretrained" / "model.safetensors").read_bytes() == before


def test_a_single_stage_with_another_recipe_is_trained_anew_and_becomes_a_second_version(run, trained):
    code, _ = run("sft_ranking", "--set-recipe", "sft_ranking.seed=2")
    assert code == 0
    code, summary = run("register", "--set-recipe", "sft_ranking.seed=2")
    assert code == 0
    assert summary["notes"]["model_version"] == "city/2"
    assert summary["notes"]["gate"]["champion"] == pytest.approx(summary["notes"]["gate"]["challenger"])


def test_evaluate_may_look_at_validation(run, trained):
    code, summary = run("evaluate", "--split", "val")
    assert code == 0
    assert "pretrain_acc1" in summary["notes"]


def test_the_attribute_of_a_simulated_city_is_probed(run, trained, monkeypatch):
    monkeypatch.setattr(jobs, "probe_attribute", lambda decoder, index: index.num_rows / 100)
    code, summary = run("evaluate")
    assert code == 0
    assert 0 < summary["notes"]["attribute_probe"] < 1
    assert json.loads((run.folder / "evaluation.json").read_text())["attribute_probe"] > 0
    assert "attribute_probe" not in trained["notes"], "the planted city's texts name no attribute"


def test_dry_run_writes_nothing(run, tmp_path):
    code, summary = run("train", "--dry-run", f"--set=storage.artifacts={tmp_path}/dry")
    assert code == 0
    assert summary["rows_in"] == 36 + 48 + 48
    assert not (tmp_path / "dry").exists()


def test_a_stage_without_its_table_says_what_to_run(run, tmp_path):
    empty = f"--set=storage.root={tmp_path}/empty"
    code, summary = run("pretrain", empty, f"--set=storage.artifacts={tmp_path}/a")
    assert code == 2
    assert "python -m etl pretrain_samples" in summary["message"]


def test_a_training_without_the_tables_of_others_says_what_to_run(run, tmp_path, city_tables):
    for name in ("pretrain_samples", "poi_index", "blocks"):
        write_deltalake(str(tmp_path / name), city_tables[name])

    code, summary = run("pretrain", f"--set=storage.root={tmp_path}", f"--set=storage.artifacts={tmp_path}/a")

    assert code == 2
    assert "python -m etl training_others --day 2026-03-01" in summary["message"]


def test_a_champion_that_copies_is_judged_with_the_tables_of_the_new_day(run, trained):
    """The challenger copies nothing, so its own rows come without what the crowd did."""
    code, summary = run("pretrain", "--set-recipe", "decoder.crowd.enabled=false")
    assert code == 0, summary

    code, summary = run("register", "--dry-run", "--set-recipe", "decoder.crowd.enabled=false")

    assert code == 0, summary
    assert summary["notes"]["gate"]["champion"] is not None


def test_a_stage_before_pretraining_says_so(run, tmp_path):
    code, summary = run("sft_ranking", f"--set=storage.artifacts={tmp_path}/b")
    assert code == 2
    assert "python -m models pretrain" in summary["message"]


def test_a_day_without_samples_has_nothing_to_learn_from(run, tmp_path):
    arguments = ["--day", "2026-03-02", f"--set=storage.artifacts={tmp_path}/c"]
    code, summary = run("pretrain", *arguments, "--set-recipe", "decoder.crowd.enabled=false")
    assert code == 3
    assert "NoTrainingDataError" in summary["error"]


def test_a_protocol_without_data_asks_for_the_folder(run):
    code, summary = run("evaluate", "--protocol", "nyc-table6")
    assert code == 2
    assert "--data" in summary["message"]


def test_a_protocol_prints_its_baselines_and_logs_them(run, tmp_path, city_settings):
    import pandas as pd

    times = pd.Timestamp("2012-06-01", tz="UTC") + pd.to_timedelta(range(30), unit="h")
    frame = pd.DataFrame({"user_id": "u", "poi_id": [f"p{n % 3}" for n in range(30)], "utc_time": times})
    frame.assign(tz_offset_min=0).to_parquet(Path(tmp_path) / "checkins.parquet")
    code, summary = run("evaluate", "--protocol", "calgary", "--data", str(tmp_path), "--seeds", "")
    assert code == 0
    assert summary["rows_in"] == 3
    assert {"popularity_acc1", "visit_counter_acc1", "kernel_counter_acc1"} <= set(summary["notes"])
    client = MlflowClient(tracking_uri=city_settings.mlflow.tracking_uri)
    experiment = client.get_experiment_by_name(city_settings.mlflow.experiment)
    logged = client.search_runs([experiment.experiment_id], "tags.protocol = 'calgary'")[0]
    assert logged.data.metrics["test/kernel_counter/hr_at_1"] == summary["notes"]["kernel_counter_acc1"]
    assert logged.data.params["decoder.hidden_dim"] == "16"
    assert [file.path for file in client.list_artifacts(logged.info.run_id)] == ["calgary-test.json"]
