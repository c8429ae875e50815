"""Weights on disk: whole or not at all, damage is found, the checkpoint before is used."""

import json
import re

import pytest
import torch
from torch.testing import assert_close

from conf.errors import DamagedCheckpointError, FingerprintError, MissingInputError
from conf.tokens import TokenLayout
from models.config import CrowdConfig, InterestMatchConfig
from models.network.checkpoint import (
    CONFIG_FILE,
    MODEL_FILE,
    CheckpointStore,
    FolderWriter,
    Snapshot,
    TrainState,
    load_stage,
    save_stage,
)
from tests.models.tiny import LAYOUT, tiny_candidates, tiny_decoder


def snapshot(step: int, best_step: int = 0) -> Snapshot:
    best = {"best_value": 1.0, "best_step": best_step} if best_step else {}
    return Snapshot(TrainState(step=step, **best), *({"x": torch.full((2,), float(step))} for _ in range(3)))


def test_a_saved_model_gives_the_same_vectors(tmp_path):
    model = tiny_decoder()
    save_stage(tmp_path / "m", model, {"stage": "pretrain"})

    loaded = load_stage(tmp_path / "m", layout=LAYOUT)

    assert_close(loaded.poi_state(tiny_candidates()), model.poi_state(tiny_candidates()), rtol=0, atol=0)
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "checksums.json", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_a_model_of_another_layout_is_refused(tmp_path):
    save_stage(tmp_path / "m", tiny_decoder())

    with pytest.raises(FingerprintError):
        load_stage(tmp_path / "m", layout=TokenLayout(2, 5, 7, 4))


def test_weights_of_another_version_of_the_model_are_refused_by_name(tmp_path):
    model = tiny_decoder()
    model.old_part = torch.nn.Linear(1, 1)
    save_stage(tmp_path / "m", model)

    with pytest.raises(
        DamagedCheckpointError, match=r"another version of the model \(2 names, first 'old_part.bias'"
    ):
        load_stage(tmp_path / "m")


def test_a_model_saved_before_its_parts_had_their_names_still_loads(tmp_path):
    model = tiny_decoder(crowd=CrowdConfig(enabled=True), interest_match=InterestMatchConfig(enabled=True))
    then = {"history_copy.": "memory.", "crowd_copy.": "others.", "interest_match.": "taste."}
    weights = model.state_dict()
    for now, before in then.items():
        assert any(name.startswith(now) for name in weights)
        weights = {re.sub(f"^{re.escape(now)}", before, name): value for name, value in weights.items()}
    decoder = model.config.model_dump(mode="json")
    decoder["others"], decoder["taste"] = decoder.pop("crowd"), decoder.pop("interest_match")
    with FolderWriter(tmp_path / "m") as writer:
        writer.write_tensors(MODEL_FILE, weights)
        content = {"decoder": decoder, "fingerprint": model.config.layout.fingerprint(), "notes": {}}
        writer.write_json(CONFIG_FILE, content)

    loaded = load_stage(tmp_path / "m", layout=LAYOUT)

    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert_close(loaded.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)


def test_a_missing_model_says_how_to_train_one(tmp_path):
    with pytest.raises(MissingInputError, match="models train"):
        load_stage(tmp_path / "none")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no checksums"])
def test_a_damaged_model_is_refused(tmp_path, damage):
    path = save_stage(tmp_path / "m", tiny_decoder()) / MODEL_FILE
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-10])
    elif damage == "remove":
        path.unlink()
    else:
        (path.parent / "checksums.json").write_text("{")

    with pytest.raises(DamagedCheckpointError):
        load_stage(tmp_path / "m")


def test_saving_again_replaces_the_model_whole(tmp_path):
    save_stage(tmp_path / "m", tiny_decoder(seed=0), {"n": 1})
    save_stage(tmp_path / "m", tiny_decoder(seed=1), {"n": 2})

    assert json.loads((tmp_path / "m" / "config.json").read_text())["notes"] == {"n": 2}
    assert_close(
        load_stage(tmp_path / "m").poi_state(tiny_candidates()),
        tiny_decoder(seed=1).poi_state(tiny_candidates()),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    save_stage(tmp_path / "m", tiny_decoder())

    with pytest.raises(TypeError), FolderWriter(tmp_path / "m") as writer:
        writer.write_json("config.json", {"not JSON": object()})

    load_stage(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path):
    store = CheckpointStore(tmp_path, "f")
    assert store.load_last() is None
    for step in (10, 20, 30):
        store.save(snapshot(step))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000020", "step-000000030"]
    last = store.load_last()
    assert last.state == TrainState(step=30)
    assert last.optimizer["x"].tolist() == [30.0, 30.0]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog):
    store = CheckpointStore(tmp_path, "f")
    store.save(snapshot(10))
    store.save(snapshot(20))
    (tmp_path / "step-000000020" / MODEL_FILE).write_bytes(b"half")

    assert store.load_last().state.step == 10
    assert "differs from its checksum" in caplog.text


def test_if_all_are_damaged_the_training_does_not_start_over_silently(tmp_path):
    store = CheckpointStore(tmp_path, "f")
    store.save(snapshot(10))
    (tmp_path / "step-000000010" / "state.json").unlink()

    with pytest.raises(DamagedCheckpointError, match=r"state\.json is missing"):
        store.load_last()


def test_best_weights_are_kept_as_long_as_a_checkpoint_refers_to_them(tmp_path):
    store = CheckpointStore(tmp_path, "f")
    for step, best_step in ((10, 10), (20, 10), (30, 30), (40, 30)):
        if step == best_step:
            store.save_best(step, {"x": torch.tensor([float(step)])})
        store.save(snapshot(step, best_step))

    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-000000030"]
    assert store.load_best(30)["x"].tolist() == [30.0]


def test_a_partial_folder_of_a_killed_process_is_not_a_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, "f")
    store.save(snapshot(10))
    (tmp_path / "step-000000020.partial").mkdir()

    assert store.load_last().state.step == 10


def test_a_training_of_another_recipe_is_refused(tmp_path):
    CheckpointStore(tmp_path, "one").save(snapshot(10))

    with pytest.raises(FingerprintError):
        CheckpointStore(tmp_path, "other").load_last()
