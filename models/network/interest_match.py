"""The interest match (ours, beside the paper): is a POI like those that the user went to before?

The user's past as one vector: input embeddings of all past POIs, averaged by a learned salience. A POI as one vector:
its input embedding. Both maps start as the same rotation, so the dot product begins as "alike", not as noise; what the
pre-trained embeddings know of POIs (who else goes there) tells from the first step of post-training on. POI vectors of
texts or images (`models.training.multimodal`) have maps of their own, which start at their principal components with
equal spread: what few words tell counts as much as what all texts share.

It serves both towers of embedding SFT as an addend and the click head of ranking SFT as evidence.
"""

# Shape letters: B = sequences, L = past actions, C = candidates, D = model width, M = length of given vectors,
# E = width of the match, N = POIs.

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.config import DecoderConfig

NUM_MATCHES = 2
"""Embeddings of POIs, and their given vectors."""


class Content(NamedTuple):
    """What is known of POIs: input embeddings (..., D), and given vectors (..., M) or None."""

    inner: Tensor
    given: Tensor | None


class InterestMatch(nn.Module):
    """Maps of both sides of the match."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, M, self.dim = config.hidden_dim, config.multimodal_dim, config.embedding_dim
        self.norm, self.dropout = nn.RMSNorm(D, config.norm_eps), nn.Dropout(config.interest_match.dropout)
        self.rate_scales = {"": config.interest_match.match_rate}
        """Factor on the learning rate of all of it (`models.training.optimizer.collect_rate_scales`)."""
        self.salience = nn.Linear(D, 1)
        self.past = nn.Linear(D, self.dim, bias=False)
        self.candidate = nn.Linear(D, self.dim, bias=False)
        self.past_text = nn.Linear(M, self.dim, bias=False) if M else None
        self.candidate_text = nn.Linear(M, self.dim, bias=False) if M else None

    def reset_start(self) -> None:
        """Starts both sides as the same rotation, every past action equally salient, texts unused."""
        nn.init.orthogonal_(self.past.weight)
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

    def read_past(self, content: Content, is_past_BL: Tensor) -> Tensor:
        """Returns the user's side, (B, 2, E): POIs and texts; zero without a past."""
        normed = self.norm(content.inner)
        scores_BL = self.salience(normed)[..., 0].masked_fill(~is_past_BL, -torch.inf)
        weights_BL = torch.nan_to_num(scores_BL.softmax(dim=-1))  # nan = nothing but padding
        return self._project(normed, content.given, (self.past, self.past_text), weights_BL)

    def read_candidates(self, content: Content) -> Tensor:
        """Returns the POIs' side, (B, C, 2, E)."""
        return self._project(self.norm(content.inner), content.given, (self.candidate, self.candidate_text))

    def _project(
        self,
        normed: Tensor,
        given: Tensor | None,
        maps: tuple[nn.Linear, nn.Linear | None],
        weights_BL: Tensor | None = None,
    ) -> Tensor:
        def pool(values: Tensor) -> Tensor:
            return values if weights_BL is None else (weights_BL[:, None].to(values) @ values)[:, 0]

        place = maps[0](pool(self.dropout(normed)))
        if given is None or maps[1] is None:
            return torch.stack([place, torch.zeros_like(place)], dim=-2)
        return torch.stack([place, maps[1](pool(given.to(normed.dtype)))], dim=-2)


def match(past_B2E: Tensor, candidates_BC2E: Tensor) -> Tensor:
    """Returns how alike past and candidates are, by POIs and by texts, (B, C, 2)."""
    return (past_B2E[:, None] * candidates_BC2E).sum(dim=-1) / math.sqrt(past_B2E.shape[-1])


def principal_components(vectors_NM: Tensor, most: int) -> Tensor:
    """Returns a map onto the first principal components, (at most `most`, M), each of spread 1 over the vectors.

    Directions with next to no spread are left out: they would be noise made large.
    """
    # In float32 the rounding of the largest variance would come near the 1e-6 at which directions are cut.
    centred = vectors_NM.double() - vectors_NM.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / max(len(centred), 1))
    order = variances.argsort(descending=True)[:most]
    order = order[variances[order] > 1e-6 * variances.max()]
    # A direction's sign is the solver's choice: make its largest entry positive.
    chosen = directions[:, order].T
    signs = chosen.gather(1, chosen.abs().argmax(dim=1, keepdim=True)).sign()
    return signs * chosen / variances[order].sqrt()[:, None]
