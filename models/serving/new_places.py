"""P(new): the probability that the next POI is new to the user, and its shift on request of the consumer.

A POI is new if it is not among the user's past actions. P(new) is the sum of the model's P(POI) over all new POIs,
1 - the sum over the user's own; no other head is trained for it. A consumer who wants more new places than the model
expects adds a logit t to the log-odds of new: with Z = 1 - P(new) + P(new) e^t,

    P'(POI) = P(POI) e^t / Z for a new POI, and P(POI) / Z for the others

so the order within the new POIs, and within the others, stays, and the sum over all POIs is 1. t = 0 is the model.
"""

# Shape letters: B = requests, L = past actions, K = blocks opened, I = inner ids of a block.

from typing import NamedTuple

import torch
from torch import Tensor

from models.data.batch import HistoryBatch
from models.data.slots import pack_slots, unpack_slots
from models.network.decoder import SpacetimeDecoder
from models.network.trunk import RequestState

BLOCKS_PER_STEP = 8
"""Blocks of a past opened at a time."""
SURE = 1e-6
"""Probabilities are cut this far from 0 and 1 before their log-odds are taken."""
NO_SLOT = torch.iinfo(torch.int64).max
"""Key of the padding; it sorts last."""


class Visited(NamedTuple):
    """The distinct slots of each user's past.

    Attributes:
        keys_BL: packed slots, int64, (B, L), in rising order; `NO_SLOT` = padding.
    """

    keys_BL: Tensor

    def take(self, rows: Tensor) -> "Visited":
        """Returns some of the requests."""
        return Visited(self.keys_BL[rows])

    def contains(self, blocks_BC: Tensor, inners_BC: Tensor) -> Tensor:
        """Returns elementwise which POIs the user has been to, (B, C) bool."""
        if not self.keys_BL.shape[1]:
            return torch.zeros_like(blocks_BC, dtype=torch.bool)
        keys = pack_slots(blocks_BC, inners_BC)
        place = torch.searchsorted(self.keys_BL, keys).clamp(max=self.keys_BL.shape[1] - 1)
        return self.keys_BL.gather(1, place) == keys

    def mark(self, blocks_BK: Tensor, num_inner: int) -> Tensor:
        """Returns which inner ids of some blocks the user has been to, (B, K, I) bool."""
        (num_requests, num_opened), keys_BL = blocks_BK.shape, self.keys_BL
        visited = torch.zeros(num_requests, num_opened, num_inner, dtype=torch.bool, device=keys_BL.device)
        blocks_BL, inners_BL = unpack_slots(keys_BL)
        fits_BL = (keys_BL != NO_SLOT) & (inners_BL < num_inner)
        is_same_BKL = (blocks_BK[:, :, None] == blocks_BL[:, None]) & fits_BL[:, None]
        rows, opened, places = is_same_BKL.nonzero(as_tuple=True)
        visited[rows, opened, inners_BL[rows, places]] = True
        return visited


class LogitMap(NamedTuple):
    """A calibration: the log-odds of the result are scale x log-odds + offset (Platt's scaling)."""

    scale: float = 1.0
    offset: float = 0.0

    def apply(self, probabilities: Tensor) -> Tensor:
        """Returns calibrated probabilities, float64; those of the identity are the given ones."""
        if self == LogitMap():
            return probabilities
        return torch.sigmoid(self.scale * torch.logit(probabilities.double(), eps=SURE) + self.offset)


class NewShift(NamedTuple):
    """What a shift of the log-odds of new adds to log P of every POI.

    Attributes:
        visited: the users' past POIs.
        to_new_B: float64, (B,), added to new POIs.
        to_visited_B: float64, (B,), added to the others.
    """

    visited: Visited
    to_new_B: Tensor
    to_visited_B: Tensor

    def take(self, rows: Tensor) -> "NewShift":
        """Returns some of the requests."""
        return NewShift(self.visited.take(rows), self.to_new_B[rows], self.to_visited_B[rows])

    def largest(self) -> Tensor:
        """Returns the most that a POI of each request can gain, (B,)."""
        return torch.maximum(self.to_new_B, self.to_visited_B)

    def of_blocks(self, blocks_BK: Tensor, num_inner: int) -> Tensor:
        """Returns what is added to each inner id of some blocks, (B, K, I) float64."""
        is_visited = self.visited.mark(blocks_BK, num_inner)
        return torch.where(is_visited, self.to_visited_B[:, None, None], self.to_new_B[:, None, None])

    def of_pois(self, blocks_BC: Tensor, inners_BC: Tensor) -> Tensor:
        """Returns what is added to each POI, (B, C) float64."""
        is_visited = self.visited.contains(blocks_BC, inners_BC)
        return torch.where(is_visited, self.to_visited_B[:, None], self.to_new_B[:, None])


def list_visited(history: HistoryBatch) -> Visited:
    """Lists the slots of each user's past."""
    places = torch.arange(history.blocks_BL.shape[1], device=history.blocks_BL.device)
    keys = pack_slots(history.blocks_BL, history.inners_BL)
    keys = keys.masked_fill(places >= history.lengths_B[:, None], NO_SLOT).sort(dim=1).values
    is_repeated = torch.zeros_like(keys, dtype=torch.bool)
    is_repeated[:, 1:] = keys[:, 1:] == keys[:, :-1]
    return Visited(keys.masked_fill(is_repeated, NO_SLOT).sort(dim=1).values.contiguous())


@torch.inference_mode()
def find_p_new(model: SpacetimeDecoder, state: RequestState, visited: Visited) -> Tensor:
    """Returns P(new) of each request, (B,) float64: 1 - the sum of P(POI) over the live POIs of the user's past."""
    log_blocks_BV = model.block_log_probs(state).double()
    blocks_BK = _list_blocks(visited, num_blocks=log_blocks_BV.shape[1])
    returned_B = torch.zeros(len(blocks_BK), dtype=torch.float64, device=blocks_BK.device)
    for start in range(0, blocks_BK.shape[1], BLOCKS_PER_STEP):
        # Padding comes last, so a request without a block here has none later either.
        active = torch.nonzero(blocks_BK[:, start] >= 0)[:, 0]
        part_BK = blocks_BK[active, start : start + BLOCKS_PER_STEP]
        opened_BK = part_BK.clamp(min=0)
        log_inner_BKI = model.inner_log_probs(state.take(active), opened_BK).double()
        probs_BKI = (log_blocks_BV[active].gather(1, opened_BK)[..., None] + log_inner_BKI).exp()
        is_counted = visited.take(active).mark(part_BK, probs_BKI.shape[2])
        returned_B[active] += torch.where(is_counted, probs_BKI, 0.0).sum(dim=(1, 2))
    # Rounding may carry the sum of a sure return a little above 1.
    return (1.0 - returned_B).clamp(min=0.0, max=1.0)


def shift_new(visited: Visited, p_new_B: Tensor, new_logit: float) -> NewShift:
    """Returns what adding `new_logit` to the log-odds of new does to log P of every POI."""
    log_total_B = torch.log1p(p_new_B * torch.expm1(torch.tensor(new_logit, dtype=torch.float64)))
    return NewShift(visited, new_logit - log_total_B, -log_total_B)


def leave_out_visited(visited: Visited, leaves_out_B: Tensor) -> NewShift:
    """Returns what leaves the POIs of their past out of some requests, (B,) bool: the order of the new POIs alone."""
    to_visited_B = torch.zeros(len(leaves_out_B), dtype=torch.float64, device=leaves_out_B.device)
    return NewShift(visited, to_visited_B, to_visited_B.masked_fill(leaves_out_B, -torch.inf))


def _list_blocks(visited: Visited, *, num_blocks: int) -> Tensor:
    """Returns the distinct blocks of each user's past within the model's capacity, (B, K); -1 = padding."""
    blocks_BL = unpack_slots(visited.keys_BL)[0]
    blocks_BL = torch.where((visited.keys_BL != NO_SLOT) & (blocks_BL < num_blocks), blocks_BL, -1)
    blocks_BL = blocks_BL.sort(dim=1, descending=True).values
    is_repeated = torch.zeros_like(blocks_BL, dtype=torch.bool)
    is_repeated[:, 1:] = blocks_BL[:, 1:] == blocks_BL[:, :-1]
    blocks_BL = blocks_BL.masked_fill(is_repeated, -1).sort(dim=1, descending=True).values
    longest = int((blocks_BL >= 0).sum(dim=1).max()) if blocks_BL.numel() else 0
    return blocks_BL[:, :longest]
