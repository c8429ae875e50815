"""Attention by age and distance: rows of weights are those that the layer mixes by, and shares add up to 1."""

from datetime import date

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.explain.attention import map_attention
from models.explain.attribution import explain_request
from models.explain.job import build_request, read_history
from models.network.layers import Attention, rotate_positions

CENTERS = {block: (4.8 + 0.07 * block, 52.31) for block in range(5)}


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@torch.inference_mode()
def test_weights_are_those_that_the_layer_mixes_values_by(num_kv_heads):
    torch.manual_seed(0)
    attention = Attention(hidden_dim=16, num_heads=4, num_kv_heads=num_kv_heads)
    x, rotation = torch.randn(2, 5, 16), rotate_positions(torch.arange(5)[None], head_dim=4, theta=100.0)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()

    weights = attention.weights(x, rotation, mask, None)
    mixed, new = attention(x, rotation, mask, None)

    values = new.values.repeat_interleave(4 // num_kv_heads, dim=1)
    assert_close(attention.output((weights @ values).transpose(1, 2).flatten(2)), mixed)
    assert_close(weights.sum(dim=-1), torch.ones(2, 4, 5))
    assert not weights[..., ~mask].any()


def test_shares_add_up_to_one_and_only_actions_in_the_window_have_some(make_decoder, catalogue, city_root):
    model = make_decoder()
    window = model.config.window_actions
    request = build_request(
        read_history(str(city_root), "u3", date(2026, 3, 1)), None, None, action_type_id=0
    )
    explanation = explain_request(model, request, catalogue, CENTERS, top_k=3)

    found = map_attention(model, request, explanation)

    assert found.on_actions.sum() + found.on_user + found.on_request == pytest.approx(1, abs=1e-5)
    assert min(found.on_user, found.on_request, found.on_actions.min()) >= 0
    assert found.num_actions.sum() == window - 1 < len(explanation.past)
    assert not found.on_actions[found.num_actions == 0].any()
    times = explanation.past.timestamps_ms[-(window - 1) :]
    assert found.num_actions[3].sum() == np.sum(explanation.timestamp_ms - times > 7 * 86_400_000)


def test_without_a_past_or_a_place_there_is_no_map(make_decoder, catalogue, city_root):
    model, history = make_decoder(), read_history(str(city_root), "u3", date(2026, 3, 1))
    first = int(history["timestamps_ms"][0].as_py()[0])
    request = build_request(history, first, None, action_type_id=0)
    explanation = explain_request(model, request, catalogue, CENTERS, top_k=3)
    assert map_attention(model, request, explanation) is None
