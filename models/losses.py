"""Losses of the stages, in nats, summed; the trainer divides by the number of targets."""

import torch
from torch import Tensor

from models.states import StepLogProbs


def next_poi_loss(log_probs: StepLogProbs) -> tuple[Tensor, int]:
    """Sums the cross-entropy of block and inner tokens over the loss targets (paper 3.2.2).

    Returns:
        The summed negative log-likelihood of the target POIs, and how many there are.
    """
    loss = -(log_probs.block_BQ.sum() + log_probs.inner_BQ.sum())
    return loss, int(torch.count_nonzero(log_probs.is_target_BQ))
