"""The layers of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; no biases.

Agrees with transformers' LlamaDecoderLayer to rounding (tests/models/test_layers.py).
"""

# Shape letters: B = sequences, T = new tokens, S = cached tokens, D = model width, H = heads,
# G = key/value heads, E = width of a head.

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyValues(NamedTuple):
    """Rotated keys and values of one layer, (B, G, S, E) each."""

    keys: Tensor
    values: Tensor


class Rotation(NamedTuple):
    """Cosine and sine of each token's position, (B or 1, T, E) each."""

    cos: Tensor
    sin: Tensor


def rotate_positions(positions_BT: Tensor, *, head_dim: int, theta: float) -> Rotation:
    """Returns the rotary factors of integer positions, in the layout of Llama (halves, not pairs)."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=positions_BT.device).float() / head_dim)
    angles = positions_BT.float()[..., None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return Rotation(angles.cos(), angles.sin())


def _apply_rotation(x_BHTE: Tensor, rotation: Rotation) -> Tensor:
    half = x_BHTE.shape[-1] // 2
    turned = torch.cat([-x_BHTE[..., half:], x_BHTE[..., :half]], dim=-1)
    cos, sin = rotation.cos[:, None].to(x_BHTE.dtype), rotation.sin[:, None].to(x_BHTE.dtype)
    return x_BHTE * cos + turned * sin


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention over cached and new tokens.

    Shape:
        x_BTD: new tokens.
        mask: bool, broadcastable to (B, H, T, S + T), True = may look; None = causal, only without a cache.
        returns: (B, T, D) and the keys and values of the new tokens.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = hidden_dim // num_heads
        self.query = nn.Linear(hidden_dim, num_heads * self.head_dim, bias=False)
        self.key = nn.Linear(hidden_dim, num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(hidden_dim, num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(num_heads * self.head_dim, hidden_dim, bias=False)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None, past: KeyValues | None
    ) -> tuple[Tensor, KeyValues]:
        B, T, _ = x_BTD.shape
        query = self.query(x_BTD).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.key(x_BTD).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        value = self.value(x_BTD).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        query, key = _apply_rotation(query, rotation), _apply_rotation(key, rotation)
        new = KeyValues(key, value)
        if past is not None:
            assert mask is not None, "a cache needs a mask: causal means nothing across it"
            key, value = torch.cat([past.keys, key], dim=2), torch.cat([past.values, value], dim=2)
        groups = self.num_heads // self.num_kv_heads
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.output(mixed.transpose(1, 2).reshape(B, T, -1)), new


class SwiGLU(nn.Module):
    """Gated feed-forward part: down(silu(gate(x)) * up(x))."""

    def __init__(self, *, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, ffn_dim, bias=False)
        self.up = nn.Linear(hidden_dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward part, each behind a norm and added to the stream."""

    def __init__(
        self,
        *,
        hidden_dim: int,
        ffn_dim: int,
        num_heads: int,
        num_kv_heads: int,
        norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(hidden_dim, norm_eps)
        self.attention = Attention(hidden_dim=hidden_dim, num_heads=num_heads, num_kv_heads=num_kv_heads)
        self.ffn_norm = RMSNorm(hidden_dim, norm_eps)
        self.ffn = SwiGLU(hidden_dim=hidden_dim, ffn_dim=ffn_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        attended, new = self.attention(self.attention_norm(x_BTD), rotation, mask, past)
        x_BTD = x_BTD + self.dropout(attended)
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD))), new


def start_weights(module: nn.Module) -> None:
    """Starts linear maps and embeddings at N(0, 0.02), as Llama does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
