"""Interests: the nearest POIs by brute force, categories that stand out, and only what is live and near."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from models.explain import interests
from models.explain.attribution import explain_request
from models.explain.interests import find_interests
from models.explain.job import build_request, read_history
from models.serving.bundle import ModelBundle
from models.serving.inference import encode_pois, encode_user_requests

CENTERS = {block: (4.8 + 0.07 * block, 52.31) for block in range(5)}


@pytest.fixture
def request_row(city_root) -> pa.RecordBatch:
    return build_request(read_history(str(city_root), "u3", date(2026, 3, 1)), None, None, action_type_id=0)


@pytest.fixture
def bundle(make_decoder, tmp_path) -> ModelBundle:
    model = make_decoder()
    stages = ("pretrain", "sft_embedding")
    loaded = {(stage, "cpu"): model for stage in stages}
    return ModelBundle(tmp_path, model.config.layout, stages, 8, True, {}, loaded)


@pytest.fixture
def explanation(bundle, catalogue, request_row):
    return explain_request(bundle.model("pretrain", "cpu"), request_row, catalogue, CENTERS, top_k=3)


def test_the_nearest_pois_are_those_of_brute_force(bundle, catalogue, request_row, explanation):
    found = find_interests(bundle, request_row, catalogue, explanation, top_k=4)

    live = np.flatnonzero(catalogue.live_mask(np.array([explanation.timestamp_ms]))[0])
    columns = {
        "block_id": catalogue.block_ids, "inner_id": catalogue.inner_ids, "poi_lon": catalogue.lons,
        "poi_lat": catalogue.lats, "category_id": catalogue.category_ids,
    }  # fmt: skip
    vectors = encode_pois(bundle, pa.record_batch({name: values[live] for name, values in columns.items()}))
    cosines = vectors @ encode_user_requests(bundle, request_row)[0]
    best = live[np.argsort(-cosines)[:4]]
    assert [poi.poi_id for poi in found.pois] == catalogue.poi_ids[best].tolist()
    assert [poi.cosine for poi in found.pois] == pytest.approx(sorted(cosines)[::-1][:4], abs=1e-5)
    assert found.num_compared == len(live) == 35
    visits = [explanation.past.poi_ids.count(poi.poi_id) for poi in found.pois]
    assert [poi.num_visits for poi in found.pois] == visits


def test_the_category_that_stands_out_comes_first(bundle, catalogue, request_row, explanation, monkeypatch):
    monkeypatch.setattr(interests, "NUM_NEAREST", 5)
    liked = int(catalogue.category_ids[0])

    def encode(bundle, slots):
        is_liked = slots.column("category_id").to_numpy() == liked
        return np.stack([is_liked, ~is_liked], axis=1).astype(np.float32)

    monkeypatch.setattr(interests, "encode_user_requests", lambda *_: np.array([[1.0, 0.0]], np.float32))
    monkeypatch.setattr(interests, "encode_pois", encode)

    first = find_interests(bundle, request_row, catalogue, explanation, top_k=3).categories[0]

    assert (first.category_id, first.share) == (liked, 1.0)
    assert first.usual < 1


def test_pois_far_away_are_not_compared(bundle, catalogue, request_row, explanation, monkeypatch):
    monkeypatch.setattr(interests, "MAX_COMPARED", 6)
    found = find_interests(bundle, request_row, catalogue, explanation, top_k=9)
    near = {poi.poi_id for poi in found.pois}
    lons = dict(zip(catalogue.poi_ids.tolist(), catalogue.lons, strict=True))
    lats = dict(zip(catalogue.poi_ids.tolist(), catalogue.lats, strict=True))
    place = explanation.place
    apart = {
        poi: interests.distance_km(*(np.array([value]) for value in (*place, lons[poi], lats[poi])))[0]
        for poi in catalogue.poi_ids[catalogue.live_mask(np.array([explanation.timestamp_ms]))[0]].tolist()
    }
    assert len(near) == found.num_compared == 6
    assert max(apart[poi] for poi in near) <= min(km for poi, km in apart.items() if poi not in near)


def test_a_bundle_without_the_embedding_stage_tells_no_interests(
    bundle, catalogue, request_row, explanation, tmp_path
):
    alone = ModelBundle(tmp_path, bundle.layout, ("pretrain",), 8, True, {}, {})
    assert find_interests(alone, request_row, catalogue, explanation, top_k=3) is None
