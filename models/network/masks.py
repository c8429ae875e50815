"""Who sees whom: the causal mask over a padded user part, and candidates isolated from each other.

True = may look. Rows that stand for padding see at least themselves, so that no softmax is over nothing.
"""

# Shape letters: B = sequences, T = tokens of the user part, N = new tokens after it, C = candidates.

import torch
from torch import Tensor


def build_causal_mask(valid_BT: Tensor) -> Tensor:
    """Returns (B, 1, T, T): a token sees itself and the valid tokens before it."""
    T = valid_BT.shape[1]
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=valid_BT.device).tril()
    itself_TT = torch.eye(T, dtype=torch.bool, device=valid_BT.device)
    return ((causal_TT & valid_BT[:, None, :]) | itself_TT)[:, None]


def build_extension_mask(valid_BT: Tensor, own_NN: Tensor) -> Tensor:
    """Returns (B, 1, N, T + N): new tokens see the user part's valid tokens, and one another by `own_NN`."""
    B, T = valid_BT.shape
    N = own_NN.shape[0]
    past_BNT = valid_BT[:, None, :].expand(B, N, T)
    return torch.cat([past_BNT, own_NN.expand(B, N, N)], dim=2)[:, None]


def lay_out_candidates(
    num_shared: int, num_candidates: int, tokens_each: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Lays out the shared tokens (the request's), then those of the candidates, each candidate for itself.

    Returns:
        The tokens' positions from the first shared one, (N,): candidates all start behind the shared tokens
        (docs/design.md, trap 3). Who sees whom, (N, N): causal, and nothing between two candidates.
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
