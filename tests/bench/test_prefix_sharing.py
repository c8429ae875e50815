"""The bench compares two ways to compute the same logits: here on a small model."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.config import DecoderConfig
from models.serving.bundle import ModelBundle
from models.serving.inference import score_candidates
from tests.bench import prefix_sharing
from tests.bench.serving_city import random_decoder, random_histories, random_requests


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_a_pass_for_each_pair_without_any_cache_gives_the_logits_of_the_shared_pass(
    monkeypatch, num_kv_heads
):
    monkeypatch.setattr(prefix_sharing, "NUM_ACTIONS", 12)
    monkeypatch.setattr(prefix_sharing, "NUM_CANDIDATES", 5)
    model = random_decoder(DecoderConfig(num_kv_heads=num_kv_heads, window_actions=9), num_pois=500)
    bundle = ModelBundle(Path(), model.config.layout, ("sft_ranking",), 64, True, {})
    bundle._loaded["sft_ranking", "cpu"] = model
    requests = pa.record_batch(random_histories([12] * 3) | random_requests(3, 5))

    shared = np.concatenate(score_candidates(bundle, requests))
    apart = prefix_sharing.score_all_pairs(model, prefix_sharing.make_pairs(requests), 4)

    np.testing.assert_allclose(shared, apart, atol=1e-5)
    assert np.unique(shared).size == 15
