"""The click head of ranking SFT (paper 3.3.2): log-odds of a click from the state at a candidate's inner token.

In addition to the paper, it has linear terms for the features of the history copy and the interest match, where the
model has them. They start at zero.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.config import DecoderConfig
from models.network.history_copy import NUM_MEMORY_FEATURES
from models.network.interest_match import NUM_MATCHES
from models.network.trunk import CandidateStates

NUM_LOGS = 2
"""log P(block) and log P(POI)."""
EVIDENCE_RATE = 10.0
"""Learning rate of the few weights of evidence, times that of the rest."""
LEAST_LOG = -20.0
"""Lower bound of log probabilities: a POI newer than the generator has -inf, which a linear map cannot use."""


class ClickHead(nn.Module):
    """One linear map over all features of a candidate.

    Shape:
        returns: float32, (B, C).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.state = nn.Linear(config.hidden_dim, 1)
        self.memory = nn.Linear(NUM_MEMORY_FEATURES, 1, bias=False)
        of_match = config.interest_match
        num_evidence = NUM_LOGS + NUM_MATCHES * (1 + of_match.distinct) + of_match.towers
        self.evidence = nn.Linear(num_evidence, 1, bias=False) if of_match.enabled else None

    @property
    def rate_scales(self) -> dict[str, float]:
        """Factors on the learning rate (`models.training.optimizer.collect_rate_scales`)."""
        return {} if self.evidence is None else {"evidence": EVIDENCE_RATE}

    def reset_start(self) -> None:
        """Starts with the state as the only input: the other weights are 0."""
        nn.init.zeros_(self.memory.weight)
        if self.evidence is not None:
            nn.init.zeros_(self.evidence.weight)

    def features(self, candidates: CandidateStates) -> Tensor:
        """Returns the features other than the state, (B, C, F): memory shares, then evidence if any."""
        if self.evidence is None or candidates.evidence_BCF is None:
            return candidates.memory_BC2
        return torch.cat([candidates.memory_BC2, candidates.evidence_BCF.to(candidates.memory_BC2)], dim=-1)

    @torch.no_grad()
    def start_from(self, weights_F: Tensor, bias: float) -> None:
        """Starts with these weights of `features`, (F,), and the state unused."""
        nn.init.zeros_(self.state.weight)
        self.state.bias.fill_(bias)
        self.memory.weight.copy_(weights_F[None, :NUM_MEMORY_FEATURES])
        if self.evidence is not None:
            self.evidence.weight.copy_(weights_F[None, NUM_MEMORY_FEATURES:])

    def forward(self, candidates: CandidateStates) -> Tensor:
        logits = self.state(candidates.states_BCD) + self.memory(candidates.memory_BC2)
        if self.evidence is not None and candidates.evidence_BCF is not None:
            logits = logits + self.evidence(candidates.evidence_BCF.to(logits.dtype))
        return logits[..., 0].float()

    @torch.no_grad()
    def rescale(self, scale: float, shift: float) -> None:
        """Makes every logit `scale` times what it was, plus `shift`."""
        for part in (self.state, self.memory, self.evidence):
            if part is not None:
                part.weight.mul_(scale)
        self.state.bias.mul_(scale).add_(shift)


def gather_evidence(
    log_block_BC: Tensor, log_inner_BC: Tensor, matches: Sequence[Tensor], config: DecoderConfig
) -> Tensor:
    """Returns the evidence of interest, (B, C, 4 to 7): log P(block) and log P(POI) over chance, then the matches."""
    block = log_block_BC.clamp(min=LEAST_LOG) + torch.tensor(float(config.num_blocks)).log()
    inner = log_inner_BC.clamp(min=LEAST_LOG) + torch.tensor(float(config.max_inner)).log()
    logs = torch.stack([block, block + inner], dim=-1)
    return torch.cat([logs, *(part.float() for part in matches)], dim=-1)
