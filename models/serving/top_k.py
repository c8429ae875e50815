"""Exact top-k POIs and exact ranks from block x inner probabilities, without scoring every POI.

P(POI) = P(block) P(inner | block) is at most P(block). So blocks are opened best first:

- a top-k list is exact once its k-th POI is at least as probable as the best block not yet opened;
- the rank of a target is known once all blocks at least as probable as the target are opened.

Both equal brute force over all blocks. Requests of one call share one set of live slots, so every list holds live POIs
only. Log probabilities are the model's float32 values, added in float64. A shift towards new places
(`models.serving.new_places`) adds at most a constant per request, so the bounds hold with that constant added.
"""

# Shape letters: B = requests, V = blocks, K = blocks opened, I = inner ids of a block, N = POIs kept.

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.data.ranks import Ranks
from models.network.decoder import SpacetimeDecoder
from models.network.trunk import RequestState
from models.serving.new_places import NewShift

BLOCKS_PER_STEP = 8
"""Blocks opened at a time; the best 8 hold almost all probability of a trained model."""


class TopPois(NamedTuple):
    """The most probable POIs of each request, best first.

    Equally probable POIs are ordered by the opening of their blocks, then by inner id.

    Attributes:
        blocks_BN: int64, (B, N).
        inners_BN: int64, (B, N).
        log_probs_BN: float64, (B, N), nats; -inf where there are fewer live POIs than requested.
    """

    blocks_BN: Tensor
    inners_BN: Tensor
    log_probs_BN: Tensor


@torch.inference_mode()
def find_top_pois(
    model: SpacetimeDecoder, state: RequestState, *, top_k: int, shift: NewShift | None = None
) -> TopPois:
    """Finds the `top_k` most probable live POIs of each request, exactly.

    Args:
        model: model in evaluation mode.
        state: the requests, from `request_state` with the slots live at the requests.
        top_k: POIs per request.
        shift: shift of the odds of new places; None = the model's own.
    """
    log_blocks_BV, order_BV = _sort_blocks(model, state)
    # The most that a POI can gain is added to the bound of its block.
    bounds_BV = log_blocks_BV if shift is None else log_blocks_BV + shift.largest()[:, None]
    num_requests, num_blocks = log_blocks_BV.shape
    best = _empty_list(num_requests, top_k, device=order_BV.device)
    active = torch.arange(num_requests, device=order_BV.device)
    for start in range(0, num_blocks, BLOCKS_PER_STEP):
        bound = bounds_BV[active, start]
        # Strictly greater: a POI that ties with the last of the list comes after it, so it is not needed.
        active = active[(bound > best.log_probs_BN[active, -1]) & ~bound.isneginf()]
        if not len(active):
            break
        opened = slice(start, start + BLOCKS_PER_STEP)
        blocks_BK, log_block_BK = order_BV[active, opened], log_blocks_BV[active, opened]
        log_inner_BKI = model.inner_log_probs(state.take(active), blocks_BK).double()
        log_probs_BKI = log_block_BK[..., None] + log_inner_BKI
        if shift is not None:
            log_probs_BKI += shift.take(active).of_blocks(blocks_BK, log_probs_BKI.shape[2])
        merged = _merge(TopPois(*(part[active] for part in best)), blocks_BK, log_probs_BKI)
        for current, new in zip(best, merged, strict=True):
            current[active] = new
    return best


def rank_pois(model: SpacetimeDecoder, state: RequestState, blocks_B: Tensor, inners_B: Tensor) -> Ranks:
    """Ranks one target per request among all live POIs, exactly; arguments as `rank_shifted`."""
    return rank_shifted(model, state, blocks_B, inners_B, [None])[0]


@torch.inference_mode()
def rank_shifted(
    model: SpacetimeDecoder,
    state: RequestState,
    blocks_B: Tensor,
    inners_B: Tensor,
    shifts: Sequence[NewShift | None],
) -> list[Ranks]:
    """Ranks one target per request among all live POIs, exactly, under several shifts of the odds of new places.

    Targets that the model cannot produce (newer than its capacities) share the last place. If a probability is not a
    number, the target comes after all live POIs.

    Args:
        model: model in evaluation mode.
        state: the requests, from `request_state` with the slots live at the requests.
        blocks_B: int64, (B,), block of each target.
        inners_B: int64, (B,), inner id of each target.
        shifts: shifts of the odds of new places; None = the model's own.

    Returns:
        The ranks under each shift.
    """
    log_blocks_BV, order_BV = _sort_blocks(model, state)
    own_B = model.poi_log_probs(state, blocks_B[:, None], inners_B[:, None])[:, 0].double()
    targets, least_B = _shift_targets(own_B, blocks_B, inners_B, shifts)
    higher = [torch.zeros_like(blocks_B) for _ in shifts]
    equal = [torch.ones_like(blocks_B) for _ in shifts]
    for start in range(0, log_blocks_BV.shape[1], BLOCKS_PER_STEP):
        bound = log_blocks_BV[:, start]
        # Not strictly greater: a block as probable as the target may hold a POI that ties with it.
        active = torch.nonzero((bound >= least_B) & ~bound.isneginf())[:, 0]
        if not len(active):
            break
        opened = slice(start, start + BLOCKS_PER_STEP)
        blocks_BK, log_block_BK = order_BV[active, opened], log_blocks_BV[active, opened]
        log_inner_BKI = model.inner_log_probs(state.take(active), blocks_BK).double()
        log_probs_BKI = log_block_BK[..., None] + log_inner_BKI
        is_target = (blocks_BK == blocks_B[active, None])[..., None]
        is_target = is_target & (
            torch.arange(log_probs_BKI.shape[2], device=bound.device) == inners_B[active, None, None]
        )
        log_probs_BKI = log_probs_BKI.masked_fill(is_target, -torch.inf)  # counted once, in `equal`
        for place, (shift, target_B) in enumerate(zip(shifts, targets, strict=True)):
            shifted_BKI = log_probs_BKI
            if shift is not None:
                shifted_BKI = log_probs_BKI + shift.take(active).of_blocks(blocks_BK, log_probs_BKI.shape[2])
            target_log_probs = target_B[active, None, None]
            higher[place][active] += (~(shifted_BKI <= target_log_probs)).sum(dim=(1, 2))
            is_equal = (shifted_BKI == target_log_probs) & ~target_log_probs.isneginf()
            equal[place][active] += is_equal.sum(dim=(1, 2))
    # Comparisons with NaN are false, so a model with NaN scores would rank every target first.
    is_nan_B = own_B.isnan() | log_blocks_BV.isnan().any(dim=1)
    assert state.live is not None, "request states of ranking know what is live"
    for own in higher:
        own[is_nan_B] = len(state.live.keys_N)
    return [Ranks(more.cpu().numpy(), ties.cpu().numpy()) for more, ties in zip(higher, equal, strict=True)]


def _shift_targets(
    own_B: Tensor, blocks_B: Tensor, inners_B: Tensor, shifts: Sequence[NewShift | None]
) -> tuple[list[Tensor], Tensor]:
    """Returns log P of the targets under each shift, and what a block must reach to hold a POI above any of them."""
    targets = [
        own_B if shift is None else own_B + shift.of_pois(blocks_B[:, None], inners_B[:, None])[:, 0]
        for shift in shifts
    ]
    least = [
        target if shift is None else target - shift.largest()
        for shift, target in zip(shifts, targets, strict=True)
    ]
    return targets, torch.stack(least).amin(dim=0)


def _sort_blocks(model: SpacetimeDecoder, state: RequestState) -> tuple[Tensor, Tensor]:
    """Returns log probabilities in descending order, and their blocks, (B, V) each; ties by block id."""
    log_probs_BV = model.block_log_probs(state).double()
    sorted_BV, order_BV = torch.sort(log_probs_BV, dim=1, descending=True, stable=True)
    return sorted_BV, order_BV


def _empty_list(num_requests: int, top_k: int, *, device: torch.device) -> TopPois:
    ids = torch.full((num_requests, top_k), torch.iinfo(torch.int64).max, device=device)
    log_probs = torch.full((num_requests, top_k), -torch.inf, dtype=torch.float64, device=device)
    return TopPois(ids, ids.clone(), log_probs)


def _merge(best: TopPois, blocks_BK: Tensor, log_probs_BKI: Tensor) -> TopPois:
    """Keeps the best of the list so far and of the opened blocks; a stable sort, so ties keep their order."""
    num_inner = log_probs_BKI.shape[2]
    inners_BKI = torch.arange(num_inner, device=blocks_BK.device).expand_as(log_probs_BKI)
    blocks = torch.cat([best.blocks_BN, blocks_BK.repeat_interleave(num_inner, dim=1)], dim=1)
    inners = torch.cat([best.inners_BN, inners_BKI.flatten(1)], dim=1)
    log_probs = torch.cat([best.log_probs_BN, log_probs_BKI.flatten(1)], dim=1)
    order = torch.sort(log_probs, dim=1, descending=True, stable=True).indices[:, : best.blocks_BN.shape[1]]
    return TopPois(blocks.gather(1, order), inners.gather(1, order), log_probs.gather(1, order))
