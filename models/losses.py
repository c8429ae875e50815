"""Losses of the stages, from what the decoder returns. Sums of logs in nats; the trainer divides by the targets."""

import torch
from torch import Tensor

from models.states import StepLogProbs


def next_poi_loss(log_probs: StepLogProbs) -> tuple[Tensor, int]:
    """Sums the cross-entropy of block and inner tokens over loss targets (paper 3.2.2; functional actions
    masked).

    Returns:
        The summed negative log-likelihood of the target POIs, and how many there are.
    """
    loss = -(log_probs.block_BQ.sum() + log_probs.inner_BQ.sum())
    return loss, int(torch.count_nonzero(log_probs.is_target_BQ))
