"""The match of taste (ours, beside the paper): is a POI like those that the user went to before?

The user's past as one vector: input embeddings of all past POIs, averaged by a learned salience. A POI as one vector:
its input embedding. Both maps start as the same rotation, so the dot product begins as "alike", not as noise; what the
pre-trained embeddings know of POIs (who else goes there) tells from the first step of post-training on. POI vectors of
texts or images (`models.multimodal`) have maps of their own, which start at their principal components with equal
spread: what few words tell counts as much as what all texts share.

It serves the generator (an addend to the state that predicts the inner id, so that POIs are drawn to those that the
same users visit: a factorised item similarity), both towers of embedding SFT (an addend) and the click head of ranking
SFT (evidence).
"""

# Shape letters: B = sequences, L = past actions, Q = steps, C = candidates, D = model width, M = length of given
# vectors, E = width of the match, N = POIs.

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.config import DecoderConfig
from models.layers import RMSNorm, take_rows

PLACE, TEXT = 0, 1
"""What is matched: embeddings of POIs, and their given vectors."""
NUM_MATCHES = 2
LEAST_WEIGHT = 0.1
"""Less than any action weighs: keeps the mean of nothing at zero."""


class Content(NamedTuple):
    """What is known of POIs: input embeddings (..., D), and given vectors (..., M) or None."""

    inner: Tensor
    given: Tensor | None


class PastTaste(NamedTuple):
    """What is kept of a user's whole past.

    Attributes:
        match_B2E: the user's side of the match, by POIs and by texts.
        state_BD: addend to the states at block tokens.
    """

    match_B2E: Tensor
    state_BD: Tensor


class TasteMatch(nn.Module):
    """Maps of both sides of the match, and of the past to the generator's state."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, M, self.dim = config.hidden_dim, config.multimodal_dim, config.embedding_dim
        self.norm, self.dropout = RMSNorm(D, config.norm_eps), nn.Dropout(config.taste.dropout)
        self.salience = nn.Linear(D, 1)
        self.past = nn.Linear(D, self.dim, bias=False)
        self.candidate = nn.Linear(D, self.dim, bias=False)
        self.state = nn.Linear(D, D, bias=False)
        self.past_text = nn.Linear(M, self.dim, bias=False) if M else None
        self.candidate_text = nn.Linear(M, self.dim, bias=False) if M else None

    def reset_start(self) -> None:
        """Starts both sides as the same rotation, every past action equally salient, texts unused."""
        nn.init.orthogonal_(self.past.weight)
        nn.init.eye_(self.state.weight)
        nn.init.zeros_(self.salience.weight)
        with torch.no_grad():
            self.candidate.weight.copy_(self.past.weight)
            for text in (self.past_text, self.candidate_text):
                if text is not None:
                    text.weight.zero_()

    def start_texts(self, vectors_NM: Tensor) -> None:
        """Starts the maps of given vectors at their principal components, standardised vectors in."""
        if self.past_text is None or self.candidate_text is None:
            return
        components = principal_components(vectors_NM, self.dim)
        with torch.no_grad():
            for text in (self.past_text, self.candidate_text):
                text.weight[: len(components)] = components.to(text.weight)

    def read_past(self, content: Content, is_past_BL: Tensor) -> PastTaste:
        """Pools the past; zero without one."""
        normed = self.dropout(self.norm(content.inner))
        weights_BL = self._weigh(normed, is_past_BL)
        weights_BL = weights_BL / weights_BL.sum(dim=1, keepdim=True).clamp(min=LEAST_WEIGHT)
        pooled_BD = pool(weights_BL, normed)
        place, text = self.past(pooled_BD), torch.zeros_like(pooled_BD[:, :1]).expand(-1, self.dim)
        if content.given is not None and self.past_text is not None:
            text = self.past_text(pool(weights_BL, content.given.to(normed.dtype)))
        return PastTaste(torch.stack([place, text], dim=1), self.state(pooled_BD))

    def read_steps(self, inner_BLD: Tensor, is_past_BL: Tensor, index_BQ: Tensor) -> Tensor:
        """Returns the addend for each step, (B, Q, D), of the actions before the step's own; as `read_past` would."""
        normed = self.dropout(self.norm(inner_BLD))
        weights_BL1 = self._weigh(normed, is_past_BL)[..., None]
        sums = (weights_BL1 * normed).cumsum(dim=1) / weights_BL1.cumsum(dim=1).clamp(min=LEAST_WEIGHT)
        before = nn.functional.pad(sums, (0, 0, 1, 0))
        added: Tensor = self.state(take_rows(before, index_BQ))
        return added

    def read_candidates(self, content: Content) -> Tensor:
        """Returns the POIs' side, (B, C, 2, E)."""
        place = self.candidate(self.dropout(self.norm(content.inner)))
        text = torch.zeros_like(place)
        if content.given is not None and self.candidate_text is not None:
            text = self.candidate_text(content.given.to(place.dtype))
        return torch.stack([place, text], dim=-2)

    def _weigh(self, normed_BLD: Tensor, is_past_BL: Tensor) -> Tensor:
        """Returns the salience of past actions, (B, L), within e^-1 and e; 0 for padding."""
        return self.salience(normed_BLD)[..., 0].tanh().exp() * is_past_BL


def pool(weights_BL: Tensor, values_BLD: Tensor) -> Tensor:
    """Returns the weighted sum over actions, (B, D)."""
    return (weights_BL[:, None].to(values_BLD) @ values_BLD)[:, 0]


def match(past_B2E: Tensor, candidates_BC2E: Tensor) -> Tensor:
    """Returns how alike past and candidates are, by POIs and by texts, (B, C, 2)."""
    return (past_B2E[:, None] * candidates_BC2E).sum(dim=-1) / math.sqrt(past_B2E.shape[-1])


def principal_components(vectors_NM: Tensor, most: int) -> Tensor:
    """Returns a map onto the first principal components, (at most `most`, M), each of spread 1 over the vectors.

    Directions with next to no spread are left out: they would be noise made large.
    """
    centred = vectors_NM.double() - vectors_NM.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / max(len(centred), 1))
    order = variances.argsort(descending=True)[:most]
    order = order[variances[order] > 1e-6 * variances.max()]
    # A direction's sign is the solver's choice: make its largest entry positive.
    chosen = directions[:, order].T
    signs = chosen.gather(1, chosen.abs().argmax(dim=1, keepdim=True)).sign()
    return signs * chosen / variances[order].sqrt()[:, None]
