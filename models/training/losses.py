"""Losses of the stages, in nats, summed; the trainer divides by the number of targets."""

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from models.config import PreferenceKind
from models.network.trunk import StepLogProbs


def info_nce_loss(
    users_BE: Tensor,
    pois_BCE: Tensor,
    labels_BC: Tensor,
    poi_keys_BC: Tensor,
    temperature: Tensor | float,
    *,
    own: slice = slice(None),
) -> tuple[Tensor, int]:
    """Sums InfoNCE: each clicked POI against the unclicked POIs of its request and the batch's other clicks.

    A click of another request is not a negative if this request shows the same POI. A POI that several other requests
    clicked counts once.

    Args:
        users_BE: float, (B, E), unit vectors of the requests; with `own`, of those only.
        pois_BCE: float, (B, C, E), unit vectors of the exposed POIs.
        labels_BC: int64, (B, C), 1 clicked, 0 shown, negative = padding.
        poi_keys_BC: int64, (B, C), a number per POI, equal for equal POIs.
        temperature: tau; similarities are divided by it.
        own: requests whose clicks are summed, if several processes share a batch; negatives come from all requests.

    Returns:
        The summed negative log-likelihood of the clicks, and their number.
    """
    own_BC = (users_BE[:, None] * pois_BCE[own]).sum(dim=-1) / temperature
    is_click_BC = labels_BC == 1
    first_N, other_keys_N = _distinct(poi_keys_BC[is_click_BC])
    others_NE = pois_BCE[is_click_BC][first_N]
    own_labels_BC = labels_BC[own]
    is_shown_BC = (own_labels_BC >= 0)[..., None]
    is_shown_here_BN = ((poi_keys_BC[own][..., None] == other_keys_N) & is_shown_BC).any(dim=1)
    others_BN = users_BE @ others_NE.T / temperature
    others_BN = others_BN.masked_fill(is_shown_here_BN, -torch.inf)
    unclicked_BC = own_BC.masked_fill(own_labels_BC != 0, -torch.inf)
    negatives_B = torch.cat([unclicked_BC, others_BN], dim=1).logsumexp(dim=1)
    clicks = (own_labels_BC == 1).nonzero(as_tuple=True)
    positives, against = own_BC[clicks], negatives_B[clicks[0]]
    # -log(e^p / (e^p + e^n)) without the exponentials: a cosine of 1 at the lowest temperature, 0.01,
    # is e^100, more than float32 holds.
    return (torch.logaddexp(positives, against) - positives).sum(), len(positives)


def click_loss(logits_BC: Tensor, labels_BC: Tensor) -> tuple[Tensor, int]:
    """Sums the binary cross-entropy of clicks over candidates, (B, C) each; negative labels are padding."""
    is_real_BC = labels_BC >= 0
    logits, labels = logits_BC[is_real_BC], labels_BC[is_real_BC]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="sum"
    )
    return loss, int(is_real_BC.sum())


class PreferenceLogProbs(NamedTuple):
    """log P(POI) of chosen and rejected POIs by one model.

    Attributes:
        chosen_B: (B,), nats.
        rejected_BC: (B, C), nats; undefined where `is_rejected_BC` of the loss is False.
    """

    chosen_B: Tensor
    rejected_BC: Tensor


class PreferenceLoss(NamedTuple):
    """Sums over pairs of a request with its rejected POIs.

    Attributes:
        loss: summed loss.
        num_pairs: number of requests that count: the reference can produce the chosen POI and at least one
            rejected one.
        margin: sum over requests of the mean beta-scaled reward of chosen minus rejected.
        accuracy: summed share of rejected POIs with a smaller reward than the chosen one.
    """

    loss: Tensor
    num_pairs: int
    margin: Tensor
    accuracy: Tensor


def preference_loss(
    policy: PreferenceLogProbs,
    reference: PreferenceLogProbs,
    is_rejected_BC: Tensor,
    *,
    beta: float,
    kind: PreferenceKind,
) -> PreferenceLoss:
    """Sums the losses of requests over pairs of chosen and rejected POIs.

    - `dpo`: each rejected POI is a pair, averaged per request (paper 3.4);
    - `s-dpo`: all rejected POIs of a request in one softmax;
    - `ipo`: squared distance of a pair's log ratio from 1 / (2 beta), averaged per request (arXiv 2310.12036,
      equation 17). Its pull at a ratio of 0 is as strong as elsewhere, so opposite pairs hold ratios that they do not
      determine; DPO's flat start does not.

    POIs that the reference cannot produce (newer than its capacities) have no log ratio and are left out.

    Args:
        policy: log probabilities of the model in training.
        reference: log probabilities of the frozen model.
        is_rejected_BC: bool, (B, C), False = padding.
        beta: strength of the pull towards the reference.
        kind: kind of loss.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in get_args(PreferenceKind):
        raise ValueError(f"preference loss {kind!r} is none of {get_args(PreferenceKind)}")
    can_choose_B = reference.chosen_B.isfinite()
    counts_BC = is_rejected_BC & reference.rejected_BC.isfinite() & can_choose_B[:, None]
    counts_B = counts_BC.any(dim=1)
    chosen_B = beta * _log_ratio(policy.chosen_B, reference.chosen_B, counts_B)
    rejected_BC = beta * _log_ratio(policy.rejected_BC, reference.rejected_BC, counts_BC)
    gaps_BC = chosen_B[:, None] - rejected_BC
    shares_BC = counts_BC / counts_BC.sum(dim=1, keepdim=True).clamp(min=1)
    if kind == "s-dpo":
        worst_B = (-gaps_BC).masked_fill(~counts_BC, -torch.inf)[counts_B].logsumexp(dim=1)
        loss = -torch.nn.functional.logsigmoid(-worst_B).sum()
    elif kind == "ipo":
        loss = ((gaps_BC / beta - 1 / (2 * beta)).square() * shares_BC).sum()
    else:
        loss = -(torch.nn.functional.logsigmoid(gaps_BC) * shares_BC).sum()
    return PreferenceLoss(
        loss=loss,
        num_pairs=int(counts_B.sum()),
        margin=(gaps_BC * shares_BC).sum().detach(),
        accuracy=((gaps_BC > 0) * shares_BC).sum().detach(),
    )


def _log_ratio(policy: Tensor, reference: Tensor, counts: Tensor) -> Tensor:
    """Returns the log ratio where it counts, else 0, so that infinities do not reach the gradient."""
    return torch.where(counts, policy, 0.0) - torch.where(counts, reference, 0.0)


def _distinct(keys_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first position of each distinct key, and the distinct keys."""
    keys, inverse = torch.unique(keys_N, return_inverse=True)
    first = torch.full_like(keys, len(keys_N)).scatter_reduce_(
        0, inverse, torch.arange(len(keys_N), device=keys_N.device), reduce="amin"
    )
    return first, keys


def next_poi_loss(log_probs: StepLogProbs) -> tuple[Tensor, int]:
    """Sums the cross-entropy of block and inner tokens over the loss targets (paper 3.2.2).

    Returns:
        The summed negative log-likelihood of the target POIs, and their number.
    """
    loss = -(log_probs.block_BQ.sum() + log_probs.inner_BQ.sum())
    return loss, int(torch.count_nonzero(log_probs.is_target_BQ))


def rank_new_loss(log_probs: StepLogProbs, weight: float) -> Tensor | float:
    """Sums the cross-entropy of new targets among the new crowd candidates, times its weight (`decoder.crowd`)."""
    if log_probs.among_new_BQ is None or not weight:
        return 0.0
    return -weight * log_probs.among_new_BQ.sum()
