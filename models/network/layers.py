"""The layers of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; no biases.

Agrees with transformers' LlamaDecoderLayer to rounding (tests/models/network/test_layers.py).

The masks: causal over a padded user part, and candidates isolated from each other. True = may attend. Padding rows
attend at least to themselves, so that no softmax is empty.
"""

# Shape letters: B = sequences, T = new tokens (masks: tokens of the user part), S = cached tokens, N = tokens whose
# output is wanted (masks: new tokens after the user part), C = candidates, D = model width, H = heads,
# G = key/value heads, E = width of a head.

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.batch import take_rows


def build_causal_mask(valid_BT: Tensor) -> Tensor:
    """Returns (B, 1, T, T): a token sees itself and the valid tokens before it."""
    T = valid_BT.shape[1]
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=valid_BT.device).tril()
    itself_TT = torch.eye(T, dtype=torch.bool, device=valid_BT.device)
    return ((causal_TT & valid_BT[:, None, :]) | itself_TT)[:, None]


def build_extension_mask(valid_BT: Tensor, visible_NN: Tensor) -> Tensor:
    """Returns (B, 1, N, T + N): new tokens see the user part's valid tokens, and each other by `visible_NN`."""
    B, T = valid_BT.shape
    N = visible_NN.shape[0]
    past_BNT = valid_BT[:, None, :].expand(B, N, T)
    return torch.cat([past_BNT, visible_NN.expand(B, N, N)], dim=2)[:, None]


def lay_out_candidates(
    num_shared: int, num_candidates: int, tokens_each: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Lays out the shared tokens (the request's), then the tokens of each candidate.

    Returns:
        Positions from the first shared token, (N,) int64; all candidates start right after the shared tokens
        (docs/design.md, trap 3). The mask, (N, N) bool: causal, and no candidate sees another one.
    """
    shared_S = torch.arange(num_shared, device=device)
    offsets_N = torch.cat(
        [shared_S, num_shared + torch.arange(tokens_each, device=device).repeat(num_candidates)]
    )
    owner_N = torch.arange(num_candidates, device=device).repeat_interleave(tokens_each)
    owner_N = torch.cat([torch.full_like(shared_S, -1), owner_N])
    causal_NN = torch.ones(len(owner_N), len(owner_N), dtype=torch.bool, device=device).tril()
    is_visible_NN = (owner_N[:, None] == owner_N[None, :]) | (owner_N[None, :] < 0)
    return offsets_N, is_visible_NN & causal_NN


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


class Rotate(torch.autograd.Function):
    """Rotates queries or keys, (B, T, H, E); the backward pass rotates back, so only the angles are saved."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BTHE, cos, sin)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_BTHE: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _turn(grad_BTHE, cos, -sin), None, None


def _turn(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x_BTHE.shape[-1] // 2
    turned = x_BTHE * cos
    turned[..., :half].addcmul_(x_BTHE[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x_BTHE[..., :half], sin[..., half:])
    return turned


class Attention(nn.Module):
    """Grouped-query attention over cached and new tokens.

    Shape:
        x_BTD: float, (B, T, D), new tokens.
        mask: bool, broadcastable to (B, H, T, S + T), True = may attend; None = causal, only without a cache.
        wanted_BN: int64, (B, N), tokens whose output is needed; None = all.
        returns: (B, T or N, D) and the keys and values of all new tokens.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = hidden_dim // num_heads
        # One matrix product for queries, keys and values is faster than three, forward and backward.
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
        T, H = x_BTD.shape[1], self.num_heads
        query, key, value, new = self._project(x_BTD, rotation, past)
        assert past is None or mask is not None, "a cache needs a mask: causal means nothing across it"
        if wanted_BN is not None:
            assert past is None, "wanted tokens are places among all tokens"
            # With fewer queries than keys `is_causal` would align its triangle to the first keys.
            mask = _take_mask(mask, wanted_BN, T)
            query = query.gather(2, wanted_BN[:, None, :, None].expand(-1, H, -1, self.head_dim))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.output(mixed.transpose(1, 2).flatten(2)), new

    def weights(self, x_BTD: Tensor, rotation: Rotation, mask: Tensor, past: KeyValues | None) -> Tensor:
        """Returns the attention of new tokens on cached and new ones, (B, H, T, S + T); rows add up to 1."""
        query, key, _, _ = self._project(x_BTD, rotation, past)
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim)
        return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)

    def _project(
        self, x_BTD: Tensor, rotation: Rotation, past: KeyValues | None
    ) -> tuple[Tensor, Tensor, Tensor, KeyValues]:
        """Returns queries of the new tokens, keys and values of all, each for every head, and the new ones' own."""
        B, T, _ = x_BTD.shape
        H, G = self.num_heads, self.num_kv_heads
        together = self.query_key_value(x_BTD).view(B, T, H + 2 * G, self.head_dim)
        cos, sin = (part[:, :, None].to(together.dtype) for part in rotation)
        query_key, value = together.split([H + G, G], dim=2)
        query, key = Rotate.apply(query_key, cos, sin).split([H, G], dim=2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        new = KeyValues(key, value)
        if past is not None:
            key, value = torch.cat([past.keys, key], dim=2), torch.cat([past.values, value], dim=2)
        if H > G:
            key, value = (part.repeat_interleave(H // G, dim=1) for part in (key, value))
        return query, key, value, new

    def key_values(self, x_BTD: Tensor, rotation: Rotation) -> KeyValues:
        """Returns only the keys and values of new tokens, (B, G, T, E) each, for a layer whose output is not needed."""
        B, T, _ = x_BTD.shape
        weight = self.query_key_value.weight[self.num_heads * self.head_dim :]
        key, value = F.linear(x_BTD, weight).view(B, T, 2 * self.num_kv_heads, self.head_dim).chunk(2, dim=2)
        cos, sin = (part[:, :, None].to(key.dtype) for part in rotation)
        return KeyValues(Rotate.apply(key, cos, sin).transpose(1, 2), value.transpose(1, 2))


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up of [gate, up], (..., 2 F) -> (..., F); the gradient is written into one tensor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        gate_up = ctx.saved_tensors[0]  # type: ignore[attr-defined]
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return grad_gate_up


class SwiGLU(nn.Module):
    """Gated feed-forward part: down(silu(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, *, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(GatedSilu.apply(self.gate_up(x)))


class DecoderLayer(nn.Module):
    """Attention and feed-forward part, each with a norm before it and a residual connection around it."""

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
        self.attention_norm = nn.RMSNorm(hidden_dim, norm_eps)
        self.attention = Attention(hidden_dim=hidden_dim, num_heads=num_heads, num_kv_heads=num_kv_heads)
        self.ffn_norm = nn.RMSNorm(hidden_dim, norm_eps)
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

    def key_values(self, x_BTD: Tensor, rotation: Rotation) -> KeyValues:
        """Returns the keys and values that later tokens attend to in this layer."""
        return self.attention.key_values(self.attention_norm(x_BTD), rotation)


def _take_mask(mask: Tensor | None, wanted_BN: Tensor, num_tokens: int) -> Tensor:
    """Returns the rows of a mask that belong to some of the tokens, (B, 1, N, T); None = causal."""
    if mask is None:
        return (torch.arange(num_tokens, device=wanted_BN.device) <= wanted_BN[..., None])[:, None]
    rows = wanted_BN[:, None, :, None].expand(-1, -1, -1, num_tokens)
    return mask.expand(len(wanted_BN), 1, num_tokens, num_tokens).gather(2, rows)


def start_weights(module: nn.Module) -> None:
    """Initialises linear maps and embeddings from N(0, 0.02), as Llama does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
