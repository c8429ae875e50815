"""The interest match (ours, not in the paper): is a POI similar to the POIs that the user visited before?

The user's past is one vector: the input embeddings of all past POIs, averaged by a learned salience. A POI is one
vector: its input embedding. Both maps start as the same rotation, so the dot product starts as a similarity, not as
noise, and post-training can use the pre-trained embeddings of POIs from its first step. POI vectors of texts or images
(`models.training.multimodal`) have separate maps. These start at the principal components of the vectors with equal
spread, so that a rare feature of the texts counts as much as a common one.

The match is added to both towers of embedding SFT and is evidence for the click head of ranking SFT. The click head may
also read the match with the distinct past POIs, summed over the root of their number as in interest pre-training: there
many POIs weigh more than a few.
"""

# Shape letters: B = sequences, L = past actions, C = candidates, D = model width, M = length of given vectors,
# E = width of the match, N = POIs.

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.config import DecoderConfig

NUM_MATCHES = 2
"""One match of POI embeddings, and one of given vectors."""


class Content(NamedTuple):
    """Content of POIs: input embeddings (..., D), and given vectors (..., M) or None."""

    inner: Tensor
    given: Tensor | None


class InterestMatch(nn.Module):
    """Maps of both sides of the match."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, M, self.dim = config.hidden_dim, config.multimodal_dim, config.embedding_dim
        self.norm, self.dropout = nn.RMSNorm(D, config.norm_eps), nn.Dropout(config.interest_match.dropout)
        self.rate_scales = {"": 1.0}
        """The rate of the rest, without weight decay (`models.training.optimizer.collect_rate_scales`)."""
        self.salience = nn.Linear(D, 1)
        self.past = nn.Linear(D, self.dim, bias=False)
        self.candidate = nn.Linear(D, self.dim, bias=False)
        self.past_text = nn.Linear(M, self.dim, bias=False) if M else None
        self.candidate_text = nn.Linear(M, self.dim, bias=False) if M else None

    def reset_start(self) -> None:
        """Starts both maps as the same rotation; all past actions are equally salient, and texts are unused."""
        nn.init.orthogonal_(self.past.weight)
        nn.init.zeros_(self.salience.weight)
        with torch.no_grad():
            self.candidate.weight.copy_(self.past.weight)
            for text in (self.past_text, self.candidate_text):
                if text is not None:
                    text.weight.zero_()

    def start_texts(self, vectors_NM: Tensor) -> None:
        """Starts the maps of given vectors at the principal components of standardised vectors, (N, M)."""
        if self.past_text is None or self.candidate_text is None:
            return
        components = principal_components(vectors_NM, self.dim)
        with torch.no_grad():
            for text in (self.past_text, self.candidate_text):
                text.weight[: len(components)] = components.to(text.weight)

    def read_past(self, content: Content, is_past_BL: Tensor) -> Tensor:
        """Returns the user's vectors for POIs and texts, (B, 2, E); zero without a past."""
        return self.read_pasts(content, is_past_BL[:, None])[:, 0]

    def read_pasts(self, content: Content, is_past_BQL: Tensor) -> Tensor:
        """Returns the user's vectors at several steps, (B, Q, 2, E).

        Args:
            content: of all actions, (B, L).
            is_past_BQL: bool, marks each step's past.
        """
        normed = self.norm(content.inner)
        scores_BL = self.salience(normed)[..., 0]
        scores_BQL = scores_BL[:, None].masked_fill(~is_past_BQL, -torch.inf)
        weights_BQL = torch.nan_to_num(scores_BQL.softmax(dim=-1))  # nan = nothing but padding
        return self._project(normed, content.given, (self.past, self.past_text), weights_BQL)

    def sum_distinct(self, content: Content, is_first_BL: Tensor) -> Tensor:
        """Returns the user's vectors of first visits, summed over the root of their number, (B, 2, E)."""
        weights_BL = is_first_BL / is_first_BL.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
        maps = self.past, self.past_text
        return self._project(self.norm(content.inner), content.given, maps, weights_BL[:, None])[:, 0]

    def read_candidates(self, content: Content) -> Tensor:
        """Returns the candidates' vectors for POIs and texts, (B, C, 2, E)."""
        return self._project(self.norm(content.inner), content.given, (self.candidate, self.candidate_text))

    def _project(
        self,
        normed: Tensor,
        vectors: Tensor | None,
        maps: tuple[nn.Linear, nn.Linear | None],
        weights_BQL: Tensor | None = None,
    ) -> Tensor:
        def pool(values: Tensor) -> Tensor:
            return values if weights_BQL is None else weights_BQL.to(values) @ values

        place = maps[0](pool(self.dropout(normed)))
        if vectors is None or maps[1] is None:
            return torch.stack([place, torch.zeros_like(place)], dim=-2)
        return torch.stack([place, maps[1](pool(vectors.to(normed.dtype)))], dim=-2)


def match(past_B2E: Tensor, candidates_BC2E: Tensor) -> Tensor:
    """Returns the similarity of past, (B, 2, E), and candidates, (B, C, 2, E), by POIs and by texts, (B, C, 2)."""
    return (past_B2E[:, None] * candidates_BC2E).sum(dim=-1) / math.sqrt(past_B2E.shape[-1])


def principal_components(vectors_NM: Tensor, most: int) -> Tensor:
    """Returns a map onto the first principal components, (at most `most`, M), each of spread 1 over the vectors.

    Directions with almost no spread are left out: scaling would amplify their noise.
    """
    # In float32 the rounding error of the largest variance would be close to the cut at 1e-6.
    centred = vectors_NM.double() - vectors_NM.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / max(len(centred), 1))
    order = variances.argsort(descending=True)[:most]
    order = order[variances[order] > 1e-6 * variances.max()]
    # The solver chooses a direction's sign; make its largest entry positive.
    chosen = directions[:, order].T
    signs = chosen.gather(1, chosen.abs().argmax(dim=1, keepdim=True)).sign()
    return signs * chosen / variances[order].sqrt()[:, None]
