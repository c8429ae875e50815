"""A model is looked at once before it serves: six kinds of damage, each one named error."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.errors import DamagedModelError
from conf.tokens import TokenLayout
from models.network.checkpoint import CHECKSUM_FILE, digest_file, save_stage
from models.serving.bundle import load_bundle, save_bundle
from models.serving.probe import PROBE_FILE, ask_probe, check_bundle, make_probe, record_answers

pytestmark = pytest.mark.operations("14")


@pytest.fixture
def bundle(make_decoder, tmp_path):
    """A registered bundle of two stages."""
    model = make_decoder()
    stage = save_stage(tmp_path / "model", model)
    folder = save_bundle(
        tmp_path / "bundle",
        {"pretrain": stage, "sft_embedding": stage},
        layout=model.config.layout,
        content={"embedding_dim": 8, "is_simulated": True},
    )
    record_answers(load_bundle(folder))
    return folder


def rewrite(folder, change):
    """Changes the weights of a stage and makes their checksum right."""
    path = folder / "sft_embedding" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    seal(folder)


def seal(folder):
    path = folder / "sft_embedding" / CHECKSUM_FILE
    sums = json.loads(path.read_text())
    sums["model.safetensors"] = digest_file(path.with_name("model.safetensors"))
    path.write_text(json.dumps(sums))


def cut(folder):
    path = folder / "sft_embedding" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def cut_and_sealed(folder):
    cut(folder)
    seal(folder)


def with_nan(folder):
    rewrite(folder, lambda weights: weights["poi_projection.weight"].fill_(torch.nan))


def with_other_width(folder):
    rewrite(folder, lambda weights: weights.update({"poi_projection.weight": torch.zeros(8, 5)}))


def without_stage(folder):
    (folder / "sft_embedding" / "model.safetensors").unlink()


def with_unknown_stage(folder):
    content = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**content, "stages": ["pretrain", "sft_everything"]}))


def with_other_weights(folder):
    rewrite(folder, lambda weights: weights["user_projection.weight"].mul_(-1))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "differs from its checksum"),
        (cut_and_sealed, "it cannot be loaded"),
        (with_nan, "128 of 128 weights of poi_projection.weight are not finite numbers"),
        (with_other_width, "it cannot be loaded"),
        (without_stage, "model.safetensors is missing"),
        (with_unknown_stage, "there is no such stage"),
        (with_other_weights, "answers the probe otherwise than when it was registered (users"),
    ],
)
def test_a_damaged_model_is_one_named_error(bundle, damage, told):
    check_bundle(load_bundle(bundle), uri="models:/m/1")

    damage(bundle)

    with pytest.raises(DamagedModelError) as error:
        check_bundle(load_bundle(bundle), uri="models:/m/1")
    assert told in str(error.value)
    assert "No row was computed" in str(error.value)


def test_a_bundle_that_was_never_registered_has_no_answers_to_compare(bundle):
    (bundle / PROBE_FILE).unlink()
    with_other_weights(bundle)

    check_bundle(load_bundle(bundle), uri=str(bundle))


def test_answers_that_still_hold_are_kept_as_they_are(bundle):
    before = (bundle / PROBE_FILE).read_bytes()

    record_answers(load_bundle(bundle))

    assert (bundle / PROBE_FILE).read_bytes() == before


def test_the_probe_is_the_same_for_ever(make_decoder):
    rows = make_probe(TokenLayout(index_version=1, num_blocks=6, max_inner=10, num_categories=5))

    # The second request has the second to fifth number of (i * 2654435761 + 10 * 40503) mod 2^32 mod 6.
    assert rows["block_ids"][1].as_py() == [4, 5, 2, 5]
    assert rows["request_ts_ms"].to_pylist()[0] - rows["timestamps_ms"][0][-1].as_py() == 3_600_000
    assert set(ask_probe(make_decoder())) == {"users", "users_at_request", "pois", "clicks"}
