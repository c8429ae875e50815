"""The layers: agreement with transformers' Llama, cached against uncached, grouped heads."""

import pytest
import torch
from torch.testing import assert_close

from models.network.layers import (
    Attention,
    DecoderLayer,
    GatedSilu,
    Rotate,
    build_extension_mask,
    rotate_positions,
)

D, H, G, E = 32, 4, 2, 8


def make_layer() -> DecoderLayer:
    torch.manual_seed(0)
    layer = DecoderLayer(hidden_dim=D, ffn_dim=48, num_heads=H, num_kv_heads=G, norm_eps=1e-6, dropout=0.0)
    return layer.eval()


def test_a_layer_agrees_with_transformers_llama_to_rounding():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=D, intermediate_size=48, num_attention_heads=H, num_key_value_heads=G, rms_norm_eps=1e-6,
        rope_theta=10_000.0, attn_implementation="sdpa",
    )  # fmt: skip
    ours, theirs = make_layer(), llama.LlamaDecoderLayer(config, 0).eval()
    names = {
        "self_attn.o_proj": "attention.output", "mlp.down_proj": "ffn.down",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    weights = ours.state_dict()
    same = {f"{their}.weight": weights[f"{our}.weight"] for their, our in names.items()}
    query, key, value = weights["attention.query_key_value.weight"].split([H * E, G * E, G * E])
    gate, up = weights["ffn.gate_up.weight"].chunk(2)
    attention = {
        "self_attn.q_proj.weight": query,
        "self_attn.k_proj.weight": key,
        "self_attn.v_proj.weight": value,
    }
    theirs.load_state_dict(same | attention | {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up})
    x, positions = torch.randn(2, 9, D), torch.arange(9)[None]
    turn = llama.LlamaRotaryEmbedding(config)(x, positions)

    result = theirs(x, position_embeddings=turn, attention_mask=None, position_ids=positions)

    result = result[0] if isinstance(result, tuple) else result
    assert_close(ours(x, rotate_positions(positions, head_dim=E, theta=10_000.0), None)[0], result)


def test_reading_below_a_cache_equals_reading_at_once():
    layer, x = make_layer(), torch.randn(2, 9, D)
    turn = rotate_positions(torch.arange(9)[None], head_dim=E, theta=10_000.0)
    whole, _ = layer(x, turn, None)

    first, cache = layer(x[:, :6], type(turn)(*(part[:, :6] for part in turn)), None)
    mask = build_extension_mask(torch.ones(2, 6, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool).tril())
    rest, _ = layer(x[:, 6:], type(turn)(*(part[:, 6:] for part in turn)), mask, cache)

    assert_close(torch.cat([first, rest], dim=1), whole)


def test_rotated_dot_products_depend_on_the_difference_of_positions_alone():
    torch.manual_seed(0)
    attention = Attention(hidden_dim=D, num_heads=H, num_kv_heads=G)
    x = torch.randn(1, 5, D)

    near = attention(x, rotate_positions(torch.arange(5)[None], head_dim=E, theta=100.0), None, None)[0]
    far = attention(x, rotate_positions(50 + torch.arange(5)[None], head_dim=E, theta=100.0), None, None)[0]

    assert_close(near, far, atol=1e-5, rtol=1e-5)


def test_outputs_of_some_tokens_are_those_of_all():
    layer, x = make_layer(), torch.randn(2, 9, D)
    turn = rotate_positions(torch.arange(9)[None], head_dim=E, theta=10_000.0)
    wanted = torch.tensor([[1, 4, 8], [0, 4, 5]])

    some, cache = layer(x, turn, None, wanted_BN=wanted)

    whole, whole_cache = layer(x, turn, None)
    assert_close(some, torch.stack([whole[0, wanted[0]], whole[1, wanted[1]]]))
    assert_close(cache, whole_cache)  # what is not wanted is still looked at


def test_hand_written_gradients_are_those_of_autograd():
    turn = rotate_positions(torch.arange(5)[None], head_dim=E, theta=100.0)
    cos, sin = (part[:, :, None].double() for part in turn)
    x = torch.randn(2, 5, 3, E, dtype=torch.float64, requires_grad=True)
    gate_up = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda own: Rotate.apply(own, cos, sin), x)
    assert torch.autograd.gradcheck(GatedSilu.apply, gate_up)
