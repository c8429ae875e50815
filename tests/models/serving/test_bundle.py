"""Bundles: what is written is what is read; what is missing or broken is named."""

import json

import pytest
import torch

from conf.errors import CorruptInputError, DamagedCheckpointError, MissingInputError
from conf.settings import Settings
from models.network.checkpoint import save_stage
from models.serving.bundle import digest_folder, load_bundle, resolve_model, save_bundle

CONTENT = {"embedding_dim": 8, "is_simulated": True, "action_type_id": 2}


@pytest.fixture
def saved(make_decoder, tmp_path):
    """A bundle with one stage, and its model."""
    model = make_decoder()
    stage = save_stage(tmp_path / "pretrain" / "model", model)
    folder = save_bundle(
        tmp_path / "bundle", {"pretrain": stage}, layout=model.config.layout, content=CONTENT
    )
    return folder, model


def test_a_bundle_gives_back_layout_stages_and_weights(saved):
    folder, model = saved
    bundle = load_bundle(folder)
    assert bundle.layout == model.config.layout
    assert bundle.content["fingerprint"] == model.config.layout.fingerprint()
    assert bundle.stage_names == ("pretrain",)
    assert bundle.generator_stage == "pretrain"
    assert bundle.action_type_id == 2
    for name, value in bundle.model("pretrain").state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=0, rtol=0, equal_nan=True)
    assert bundle.model("pretrain") is bundle.model("pretrain")
    assert not bundle.model("pretrain").training


def test_a_bundle_is_found_inside_the_folder_mlflow_gives(saved, tmp_path):
    folder, _ = saved
    (tmp_path / "mlflow" / "data").mkdir(parents=True)
    folder.rename(tmp_path / "mlflow" / "data" / "bundle")
    assert load_bundle(tmp_path / "mlflow").stage_names == ("pretrain",)


def test_the_version_of_a_folder_follows_its_content(saved):
    folder, _ = saved
    before = resolve_model(str(folder), Settings())[1]
    assert before == f"folder-{digest_folder(folder)}"
    content = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(content | {"day": "2026-01-01"}))
    assert resolve_model(str(folder), Settings())[1] != before


def test_a_folder_without_a_bundle_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"bundle\.json"):
        load_bundle(tmp_path)


def test_a_broken_description_is_named(saved):
    folder, _ = saved
    (folder / "bundle.json").write_text("{")
    with pytest.raises(CorruptInputError, match=r"bundle\.json"):
        load_bundle(folder)


def test_damaged_weights_are_not_used(saved):
    folder, _ = saved
    path = folder / "pretrained" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedCheckpointError):
        load_bundle(folder).model("pretrain")


def test_writing_again_replaces_the_bundle_as_a_whole(saved, tmp_path):
    folder, model = saved
    (folder / "old").write_text("")
    save_bundle(
        folder, {"pretrain": tmp_path / "pretrain" / "model"}, layout=model.config.layout, content=CONTENT
    )
    assert not (folder / "old").exists()
