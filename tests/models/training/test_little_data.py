"""Trainings on too little: what cannot be done is skipped by name if that was allowed, and is an error if not."""

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from deltalake import write_deltalake
from mlflow import MlflowClient

from conf.cli import main
from conf.settings import Settings
from models.__main__ import JOBS
from models.evaluation.generator_choice import choose_generator
from models.network.checkpoint import read_config
from models.registry.next_poi_gate import UNJUDGED, judge_next_poi
from models.serving.bundle import load_bundle
from models.training.trainer import train
from tests.models.training.small_stage import CONFIG, TinyStage, ignore, make_model, weights

RECIPE = """
name: little
decoder: {hidden_dim: 16, ffn_dim: 32, num_layers: 1, num_heads: 2, num_kv_heads: 2, window_actions: 20,
          embedding_dim: 8, geo_buckets: 64}
pretrain: {epochs: 1, batch_size: 4, warmup_steps: 2}
sft_embedding: {epochs: 1, batch_size: 8, warmup_steps: 2}
sft_ranking: {epochs: 1, batch_size: 8, warmup_steps: 2}
align_dpo: {epochs: 1, batch_size: 8, warmup_steps: 2}
"""
TABLES = ("poi_index", "blocks", "pretrain_samples", "ranking_samples", "preference_pairs")
Run = Callable[..., tuple[int, dict, Path]]


class UnvalidatedStage(TinyStage):
    """Has no validation rows."""

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return {}


@pytest.fixture
def run(city_settings: Settings, city_tables: dict[str, pa.Table], tmp_path: Path) -> Run:
    """Trains on the city with some tables changed; returns exit code, summary and the training's folder."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(job: str, *options: str, **changed: pa.Table) -> tuple[int, dict, Path]:
        for name in TABLES:
            write_deltalake(
                str(tmp_path / "warehouse" / name), changed.get(name, city_tables[name]), mode="overwrite"
            )
        arguments = [
            job, "--day", "2026-03-01", "--recipe", str(tmp_path / "recipe.yaml"), "--threads", "1",
            f"--set=storage.root={tmp_path}/warehouse", f"--set=storage.artifacts={tmp_path}/artifacts",
            f"--set=mlflow.tracking_uri={city_settings.mlflow.tracking_uri}",
            f"--set=mlflow.artifact_root={city_settings.mlflow.artifact_root}",
            f"--set=mlflow.model_name=little-{tmp_path.name}", *options,
        ]  # fmt: skip
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            code = main("models", "", JOBS, arguments)
        summary = json.loads(
            stdout.getvalue().splitlines()[-1], parse_constant=lambda word: pytest.fail(word)
        )
        return code, summary, tmp_path / "artifacts" / "training" / "2026-03-01"

    return start


def only(table: pa.Table, *splits: str) -> pa.Table:
    return table.filter(pc.is_in(table["split"], value_set=pa.array(splits)))


def test_without_validation_rows_the_last_weights_stay(tmp_path):
    validated, plain = make_model(), make_model()
    last = CONFIG.model_copy(update={"val_every": 1_000})  # validates once, at the end
    train(TinyStage(), validated, last, tmp_path / "a", ignore)

    result = train(UnvalidatedStage(), plain, last, tmp_path / "b", ignore)

    assert torch.equal(weights(plain), weights(validated))
    assert (result.best_value, result.best_step, result.steps) == (None, 18, 18)
    assert result.validations == []


def test_an_unvalidated_training_goes_on_where_it_stopped(tmp_path):
    whole, resumed = make_model(), make_model()
    train(UnvalidatedStage(), whole, CONFIG, tmp_path / "whole", ignore)

    class Dying(UnvalidatedStage):
        steps = 0

        def loss(self, model, rows):
            self.steps += 1
            if self.steps == 8:
                raise InterruptedError
            return super().loss(model, rows)

    with pytest.raises(InterruptedError):
        train(Dying(), make_model(), CONFIG, tmp_path / "cut", ignore)
    result = train(UnvalidatedStage(), resumed, CONFIG, tmp_path / "cut", ignore)

    assert result.is_resumed
    assert torch.equal(weights(resumed), weights(whole))


def test_an_empty_validation_split_is_an_error_that_names_the_settings(run, city_tables):
    code, summary, _ = run("train", pretrain_samples=only(city_tables["pretrain_samples"], "train", "test"))
    assert (code, summary["error"]) == (3, "NoTrainingDataError")
    assert "no val rows" in summary["message"]
    assert "samples.val_days" in summary["message"]
    assert "--allow-unvalidated" in summary["message"]


@pytest.mark.parametrize("allowed", [(), ("--allow-unvalidated",)])
def test_no_training_rows_are_an_error_whatever_is_allowed(run, city_tables, allowed):
    nothing = only(city_tables["pretrain_samples"], "val", "test")
    code, summary, folder = run("train", *allowed, pretrain_samples=nothing)
    assert (code, summary["error"]) == (3, "NoTrainingDataError")
    for key in ("samples.val_days", "samples.test_days", "samples.min_richness", "samples.interest_only"):
        assert key in summary["message"]
    assert not (folder / "bundle").exists()


def test_without_held_out_rows_everything_is_trained_and_nothing_is_judged(run, city_tables, city_settings):
    names = ("pretrain_samples", "ranking_samples", "preference_pairs")
    changed = {name: only(city_tables[name], "train") for name in names}

    code, summary, folder = run("train", "--allow-unvalidated", **changed)

    assert code == 0, summary
    notes, bundle = summary["notes"], load_bundle(folder / "bundle")
    assert bundle.stage_names == ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
    assert bundle.missing_stages == {}
    assert bundle.generator_stage == "pretrain"
    assert {notes[f"{stage}_val_loss"] for stage in bundle.stage_names} == {"no validation rows"}
    assert notes["is_champion"] is False
    no_rows = "no verdict, there is no validation row of"
    assert notes["gate"]["reasons"] == [
        UNJUDGED, f"clicks: {no_rows} ranking_samples", f"embeddings: {no_rows} ranking_samples"
    ]  # fmt: skip
    assert set(notes["not_evaluated"]) == {"next_poi", "ranking"}
    assert json.loads((folder / "evaluation.json").read_text())["skipped"] == notes["not_evaluated"]
    run_id = json.loads((folder / "mlflow_run.json").read_text())["run_id"]
    client = MlflowClient(city_settings.mlflow.tracking_uri)
    assert "no test row" in client.get_run(run_id).data.tags["not_evaluated.next_poi"]
    children = client.search_runs(
        [client.get_run(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    assert {child.data.tags["validated"] for child in children} == {"false"}


def test_requests_without_a_click_and_without_pairs_leave_their_stages_out_by_name(
    run, city_tables, city_settings
):
    shown = city_tables["ranking_samples"]
    labels = pa.array(
        [[0] * len(own) for own in shown["labels"].to_pylist()], shown.schema.field("labels").type
    )
    unclicked = shown.set_column(shown.schema.get_field_index("labels"), "labels", labels)

    code, summary, folder = run(
        "train", ranking_samples=unclicked, preference_pairs=city_tables["preference_pairs"].slice(0, 0)
    )

    assert code == 0, summary
    bundle = load_bundle(folder / "bundle")
    assert bundle.stage_names == ("pretrain",)
    assert (
        set(bundle.missing_stages)
        == {"sft_embedding", "sft_ranking", "align_dpo"}
        == set(summary["notes"]["skipped"])
    )
    assert "no clicked train rows" in bundle.missing_stages["sft_ranking"]
    assert "preference_pairs holds no train rows" in bundle.missing_stages["align_dpo"]
    run_id = json.loads((folder / "mlflow_run.json").read_text())["run_id"]
    tags = MlflowClient(city_settings.mlflow.tracking_uri).get_run(run_id).data.tags
    assert "no clicked train rows" in tags["skipped.sft_embedding"]


def test_a_bundle_of_old_says_of_a_missing_stage_that_it_was_not_trained(run, city_tables):
    nothing = {name: city_tables[name].slice(0, 0) for name in ("ranking_samples", "preference_pairs")}
    _, _, folder = run("train", **nothing)
    path = folder / "bundle" / "bundle.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "skipped"}))
    assert load_bundle(folder / "bundle").missing_stages["sft_ranking"] == "the stage was not trained"


def test_a_day_of_one_kind_of_action_asks_for_it_though_nothing_is_held_out(run, city_tables):
    train_rows = only(city_tables["pretrain_samples"], "train")
    kinds = pa.array(
        [[3] * len(own) for own in train_rows["action_type_ids"].to_pylist()], pa.list_(pa.int32())
    )
    place = train_rows.schema.get_field_index("action_type_ids")
    nothing = {name: city_tables[name].slice(0, 0) for name in ("ranking_samples", "preference_pairs")}
    code, summary, folder = run(
        "train", "--allow-unvalidated", **nothing,
        pretrain_samples=train_rows.set_column(place, "action_type_ids", kinds),
    )  # fmt: skip
    assert code == 0, summary
    assert load_bundle(folder / "bundle").action_type_id == 3
    assert read_config(folder / "pretrain" / "model").index_version == 1


def test_nothing_to_compare_on_is_no_verdict_for_the_model(tmp_path, make_decoder):
    from models.network.checkpoint import save_stage
    from models.serving.bundle import save_bundle

    model = make_decoder()
    stage = save_stage(tmp_path / "model", model)
    content = {"embedding_dim": 8, "is_simulated": True}
    folder = save_bundle(
        tmp_path / "bundle",
        {"pretrain": stage, "align_dpo": stage},
        layout=model.config.layout,
        content=content,
    )
    choice = choose_generator(None, load_bundle(folder))
    verdict = judge_next_poi(None, load_bundle(folder), {}, choice=choice)
    assert (choice.stage, choice.mrr) == ("pretrain", {})
    assert (verdict.rows, verdict.challenger, verdict.reasons) == (0, None, (UNJUDGED,))
    assert not any(isinstance(value, float) and math.isnan(value) for value in vars(verdict).values())
