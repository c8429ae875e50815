"""Probes: planted directions are read off vectors, noise is not, and texts name what the city has planted."""

import numpy as np
import pyarrow as pa
from torch.testing import assert_close

from models.config import InterestMatchConfig
from models.data.batch import collate_candidates
from models.evaluation.probes import embed_pois, find_attributes, probe_attribute, probe_classes
from tests.models.tiny import tiny_decoder


def test_texts_name_the_attribute_or_none() -> None:
    texts = ["Cafe 3. A family friendly place: cafe.", "Home 2", None, "A quiet place: bar."]
    assert find_attributes(texts).tolist() == ["family friendly", "", "", "quiet"]


def test_a_planted_direction_is_read_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    classes = np.repeat(["a", "b", "c"], 100)
    noise = random.normal(size=(300, 8))
    planted = noise + np.repeat(np.eye(8)[:3] * 4, 100, axis=0)

    assert probe_classes(planted, classes) > 0.95
    assert abs(probe_classes(noise, classes) - 1 / 3) < 0.1
    assert np.isnan(probe_classes(noise[:3], np.array(["a", "b", "c"])))


def test_pois_are_embedded_as_the_match_compares_them_whatever_else_is_asked() -> None:
    model = tiny_decoder(interest_match=InterestMatchConfig(enabled=True))
    columns = {
        "block_id": [0, 1, 2], "inner_id": [3, 0, 1], "poi_lon": [4.8, 4.9, 5.0], "poi_lat": [52.1, 52.2, 52.3],
        "category_id": [1, 2, 1],
    }  # fmt: skip
    pois = pa.record_batch(columns)
    row = {
        "candidate_block_ids": [columns["block_id"]], "candidate_inner_ids": [columns["inner_id"]],
        "candidate_lons": [columns["poi_lon"]], "candidate_lats": [columns["poi_lat"]],
        "candidate_category_ids": [columns["category_id"]],
    }  # fmt: skip
    together = model.interest_match.norm(model.trunk.embed_candidates(collate_candidates(pa.table(row))))[0]

    found = embed_pois(model, pois)

    assert_close(found, together.detach().double().numpy(), rtol=1e-5, atol=1e-6)
    assert_close(embed_pois(model, pois.slice(1, 1)), found[1:2], rtol=1e-5, atol=1e-6)


def test_an_index_without_attributes_has_no_probe() -> None:
    model = tiny_decoder(interest_match=InterestMatchConfig(enabled=True))
    index = pa.table(
        {
            "block_id": [0],
            "inner_id": [1],
            "poi_lon": [4.8],
            "poi_lat": [52.1],
            "category_id": [1],
            "text": ["Home"],
        }
    )
    assert np.isnan(probe_attribute(model, index))
