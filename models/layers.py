"""The layers of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; no biases.

Agrees with transformers' LlamaDecoderLayer to rounding (tests/models/test_layers.py).
"""

# Shape letters: B = sequences, T = new tokens, S = cached tokens, N = tokens whose output is wanted,
# D = model width, H = heads, G = key/value heads, E = width of a head.

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


def _apply_rotation(x_BTHE: Tensor, rotation: Rotation) -> Tensor:
    half = x_BTHE.shape[-1] // 2
    turned = torch.cat([-x_BTHE[..., half:], x_BTHE[..., :half]], dim=-1)
    cos, sin = rotation.cos[:, :, None].to(x_BTHE.dtype), rotation.sin[:, :, None].to(x_BTHE.dtype)
    return x_BTHE * cos + turned * sin


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
        wanted_BN: int64, tokens whose output is needed; None = all.
        returns: (B, T or N, D) and the keys and values of all new tokens.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = hidden_dim // num_heads
        # One product for queries, keys and values is quicker than three, forward and backward.
        self.query_key_value = nn.Linear(
            hidden_dim, (num_heads + 2 * num_kv_heads) * self.head_dim, bias=False
        )
        self.output = nn.Linear(num_heads * self.head_dim, hidden_dim, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        past: KeyValues | None,
        wanted_BN: Tensor | None = None,
    ) -> tuple[Tensor, KeyValues]:
        B, T, _ = x_BTD.shape
        H, G = self.num_heads, self.num_kv_heads
        together = self.query_key_value(x_BTD).view(B, T, H + 2 * G, self.head_dim)
        turned = _apply_rotation(together[:, :, : H + G], rotation).transpose(1, 2)
        query, key, value = turned[:, :H], turned[:, H:], together[:, :, H + G :].transpose(1, 2)
        new = KeyValues(key, value)
        if past is not None:
            assert mask is not None, "a cache needs a mask: causal means nothing across it"
            key, value = torch.cat([past.keys, key], dim=2), torch.cat([past.values, value], dim=2)
        if H > G:
            key, value = (part.repeat_interleave(H // G, dim=1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.output(take_rows(mixed.transpose(1, 2).reshape(B, T, -1), wanted_BN)), new


class SwiGLU(nn.Module):
    """Gated feed-forward part: down(silu(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, *, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


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
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        past: KeyValues | None = None,
        wanted_BN: Tensor | None = None,
    ) -> tuple[Tensor, KeyValues]:
        attended, new = self.attention(self.attention_norm(x_BTD), rotation, mask, past, wanted_BN)
        x_BND = take_rows(x_BTD, wanted_BN) + self.dropout(attended)
        return x_BND + self.dropout(self.ffn(self.ffn_norm(x_BND))), new


def take_rows(x_BTD: Tensor, wanted_BN: Tensor | None) -> Tensor:
    """Returns some rows of each sequence, (B, N, D); None = all."""
    if wanted_BN is None:
        return x_BTD
    return x_BTD.gather(1, wanted_BN[..., None].expand(-1, -1, x_BTD.shape[-1]))


def start_weights(module: nn.Module) -> None:
    """Starts linear maps and embeddings at N(0, 0.02), as Llama does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
