"""POI vectors in the model: where they come from, where they go, and what happens without one."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake
from torch.testing import assert_close

from conf.errors import MissingInputError
from models.data.dataset import TableAt
from models.network.checkpoint import save_stage
from models.network.embedding import GivenVectors
from models.text_encoder import load_encoder
from models.training.multimodal import (
    NO_VECTORS,
    SlotVectors,
    join_vectors,
    read_slot_vectors,
    start_posttraining,
)
from models.training.sft_ranking import calibrate_click_head, score_rows
from tests.models.tiny import tiny_candidates, tiny_config, tiny_decoder, tiny_history, tiny_requests

SLOTS = SlotVectors(
    torch.tensor([3, 0, 1]), torch.tensor([2, 0, 5]), torch.tensor([[2.0, 0], [4, 1], [6, 2]])
)


def test_vectors_are_found_by_slot_standardised_and_zero_where_there_is_none():
    table = GivenVectors(tiny_config(multimodal_dim=2, multimodal_rows=4))
    table.set_vectors(*SLOTS)
    found = table(torch.tensor([[0, 3], [1, 4]]), torch.tensor([[0, 2], [6, 0]]))
    spread = np.sqrt(8 / 3)
    assert_close(found[0, 0], torch.tensor([0.0, 0.0]))  # it is the mean: (4, 1)
    assert_close(found[0, 1], torch.tensor([-2 / spread, -1 / np.sqrt(2 / 3)]).float())
    assert_close(found[1], torch.zeros(2, 2))


def test_more_vectors_than_rows_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        GivenVectors(tiny_config(multimodal_dim=2, multimodal_rows=2)).set_vectors(*SLOTS)


def _logits(model):
    history = tiny_history()
    return model.click_logits(
        model.candidate_states(model.encode_prefix(history), tiny_requests(history), tiny_candidates())
    )


@pytest.fixture
def pretrained(tmp_path):
    model = tiny_decoder()
    save_stage(tmp_path / "model", model)
    return tmp_path, model


def test_post_training_with_vectors_starts_as_the_pre_trained_model(pretrained):
    folder, model = pretrained
    fused = start_posttraining(folder, vectors=SLOTS).eval()
    assert_close(_logits(fused), _logits(model))
    torch.nn.init.ones_(fused.trunk.embedding.multimodal.weight)
    assert not torch.allclose(_logits(fused), _logits(model))


def test_a_fused_model_carries_its_vectors_through_a_checkpoint(pretrained, tmp_path):
    fused = start_posttraining(pretrained[0], vectors=SLOTS).eval()
    torch.nn.init.ones_(fused.trunk.embedding.multimodal.weight)
    save_stage(tmp_path / "fused" / "model", fused)
    assert_close(_logits(start_posttraining(tmp_path / "fused")), _logits(fused))


def test_from_scratch_keeps_the_geography_and_no_weight(pretrained):
    folder, model = pretrained
    fresh = start_posttraining(folder, from_scratch=True)
    before, after = model.state_dict(), fresh.state_dict()
    same = {name for name in before if torch.equal(before[name].nan_to_num(), after[name].nan_to_num())}
    assert {"trunk.embedding.block_centers_V2", "trunk.embedding.poi_vectors.starts_V1"} <= same
    assert "trunk.embedding.inners.weight" not in same


def test_the_newest_vector_of_a_poi_goes_to_all_its_slots(tmp_path):
    def write(name, rows):
        write_deltalake(str(tmp_path / name), pa.Table.from_pylist(rows))
        return TableAt(str(tmp_path / name))

    first, second, later = date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 9)
    made = [
        ("p1", first, "a", [1.0, 0]),
        ("p1", second, "a", [0.0, 1]),
        ("p2", first, "old", [9.0, 9]),
        ("p1", later, "a", [5.0, 5]),
    ]
    vectors = write(
        "v", [dict(zip(("poi_id", "day", "encoder", "vector"), row, strict=True)) for row in made]
    )
    slots = [("p1", 0, 1), ("p1", 4, 2), ("p2", 1, 1), ("p3", 1, 2)]
    index = write(
        "i",
        [
            {"poi_id": p, "block_id": b, "inner_id": i, "index_version": 1, "indexed_day": first}
            for p, b, i in slots
        ],
    )
    found = read_slot_vectors(vectors, index, day="2026-01-02", index_version=1)
    assert found.block_ids.tolist() == [0, 4]  # p2 has a vector of another encoder only, p3 has none
    assert found.vectors_NM.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert len(read_slot_vectors(vectors, index, day="2025-12-31", index_version=1).block_ids) == 0


def test_texts_and_pictures_are_joined_by_slot_and_what_is_missing_is_average():
    texts = SlotVectors(torch.tensor([1, 0]), torch.tensor([0, 5]), torch.tensor([[2.0], [4.0]]))
    pictures = SlotVectors(torch.tensor([2, 1]), torch.tensor([1, 0]), torch.tensor([[1.0, 1], [3, 5]]))
    found = join_vectors([texts, pictures])
    assert list(zip(found.block_ids.tolist(), found.inner_ids.tolist(), strict=True)) == [
        (0, 5),
        (1, 0),
        (2, 1),
    ]
    assert found.vectors_NM.tolist() == [[4.0, 2.0, 3.0], [2.0, 3.0, 5.0], [3.0, 1.0, 1.0]]

    assert join_vectors([texts, NO_VECTORS]).vectors_NM.tolist() == [[4.0], [2.0]]
    assert len(join_vectors([NO_VECTORS]).block_ids) == 0


def test_calibration_makes_mean_score_and_clicks_agree_and_keeps_the_order(make_decoder, requests_batch):
    model, rows = make_decoder(), pa.Table.from_batches([requests_batch])
    with torch.no_grad():
        model.click.state.weight.mul_(5.0)
        model.click.state.bias.fill_(3.0)
        before, labels = score_rows(model, rows)
        scale, _ = calibrate_click_head(model, [rows])
        after, _ = score_rows(model, rows)
    is_real = labels >= 0
    assert scale > 0
    assert after[is_real].sigmoid().mean().item() == pytest.approx(
        labels[is_real].float().mean().item(), abs=1e-3
    )
    assert torch.equal(before[is_real].argsort(), after[is_real].argsort())


def test_an_encoder_that_is_not_there_is_named():
    with pytest.raises(MissingInputError, match=r"no\.such:thing"):
        load_encoder("no.such:thing")


def test_the_default_encoder_tells_texts_apart_whatever_stands_beside_them():
    pytest.importorskip("wordllama")
    encoder = load_encoder()
    texts = ["A quiet place: bar.", "A lively place: bar.", "", "A quiet place: cafe."]
    vectors = encoder.encode(texts)
    assert vectors.shape == (4, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(encoder.encode(texts[:1])[0], vectors[0], atol=1e-6)
    assert vectors[0] @ vectors[3] > 0
