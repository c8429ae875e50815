"""Interest pre-training (ours, docs/design.md 4): two terms added to the next-POI loss of stage 1.

Returns explain most of the next-POI loss long before the vectors of POIs tell who likes what. Two terms ask for that:

- towers: at every loss target the user tower's vector against the POI tower's vectors of all slots, a softmax with a
  learned temperature. So both towers are pre-trained, and embedding SFT improves on them.
- interest match, leave one out: each POI of a window against the POIs of its own category and block, given the user's
  other POIs. Place and category are equal there, so only interests and popularity separate the POIs.

Softmaxes over more slots than a limit are sampled, with a correction for what the sample stands for.
"""

# Shape letters: B = sequences, L = actions, Q = steps being predicted, T = targets of a term, N = slots,
# S = slots of a softmax, K = alternatives of a POI, D = model width, E = width of vectors, U = distinct slots.

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn

from models.config import InterestConfig
from models.data.batch import CandidateBatch, HistoryBatch, collate_history, mark_first_visits
from models.data.slots import LiveSlots, pack_slots
from models.network.decoder import SpacetimeDecoder
from models.network.trunk import TargetStates
from models.training.losses import next_poi_loss, rank_new_loss

FIRST_TEMPERATURE, LOWEST_TEMPERATURE = 0.07, 0.01
PRIOR_VISITS = 0.5
"""Added to the visits of every POI, so that one without has a finite log."""
VALIDATION_SEED = 0
"""Validation draws the same slots every time."""


class InterestLearner(nn.Module):
    """The decoder and the scales of both terms; only the decoder is saved."""

    def __init__(self, decoder: SpacetimeDecoder, config: InterestConfig) -> None:
        super().__init__()
        self.decoder = decoder
        self.log_temperature = nn.Parameter(torch.tensor(math.log(FIRST_TEMPERATURE)))
        self.match_scale = nn.Parameter(torch.ones(()))
        self.rate_scales = {"decoder.trunk.embedding.poi_vectors": config.poi_rate}
        """Faster and without weight decay (`models.training.optimizer.collect_rate_scales`)."""

    @property
    def temperature(self) -> Tensor:
        """Temperature of the towers' softmax, at least `LOWEST_TEMPERATURE`."""
        return self.log_temperature.exp().clamp(min=LOWEST_TEMPERATURE)


class SlotGroups:
    """The slots of an index, grouped by category and block, with their visits in the training split."""

    def __init__(self, slots: LiveSlots) -> None:
        """Groups the slots; raises ValueError if they come without side information."""
        if slots.about is None:
            raise ValueError("interest pre-training needs the category and place of every slot")
        self.keys_N, self.about = slots.keys_N, slots.about
        self.blocks_N, self.inners_N = slots.ids()
        group_N = self.about.categories_N * slots.num_blocks + self.blocks_N
        self.order_N = torch.argsort(group_N, stable=True)
        _, place_N, sizes = torch.unique(group_N, return_inverse=True, return_counts=True)
        self.sizes_N = sizes[place_N]
        self.starts_N = (sizes.cumsum(0) - sizes)[place_N]
        self.visits_N = torch.zeros(len(self.keys_N), device=self.keys_N.device)

    def to(self, slots: LiveSlots) -> "SlotGroups":
        """Returns the groups on the device of the same slots."""
        if slots.keys_N.device == self.keys_N.device:
            return self
        moved = SlotGroups(slots)
        moved.visits_N = self.visits_N.to(slots.keys_N.device)
        return moved

    def find(self, blocks: Tensor, inners: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the number of each slot, (...) int64, and whether it is in the index, (...) bool."""
        keys = pack_slots(blocks, inners)
        place = torch.searchsorted(self.keys_N, keys).clamp(max=len(self.keys_N) - 1)
        return place, self.keys_N[place] == keys

    def count_visits(self, history: HistoryBatch) -> None:
        """Adds the actions of windows to the visits; the context before a window belongs to earlier windows."""
        slots_BL, is_known_BL = self.find(history.blocks_BL, history.inners_BL)
        visited = slots_BL[is_known_BL & mark_window(history)]
        self.visits_N += torch.bincount(visited, minlength=len(self.visits_N))

    def as_candidates(self, chosen_S: Tensor) -> CandidateBatch:
        """Returns slots as one row of candidates, C = S."""
        return CandidateBatch(
            lengths_B=torch.tensor([len(chosen_S)], device=chosen_S.device),
            blocks_BC=self.blocks_N[chosen_S][None],
            inners_BC=self.inners_N[chosen_S][None],
            lonlat_BC2=self.about.lonlat_N2[chosen_S][None],
            categories_BC=self.about.categories_N[chosen_S][None],
        )


class Drawn(NamedTuple):
    """The slots of a softmax.

    Attributes:
        slots: int64, numbers of slots: (S,) for all targets together, or (T, K) for each.
        correction: float, added to the logits: the log of how many slots each one stands for; -inf = left out.
        places_T: int64, (T,), place of each target among the slots.
    """

    slots: Tensor
    correction: Tensor
    places_T: Tensor


def draw_slots(chosen_T: Tensor, num_slots: int, limit: int, generator: torch.Generator | None) -> Drawn:
    """Returns all slots, (N,), or the targets' slots and `limit` uniform draws, of which other slots count."""
    device = chosen_T.device
    if num_slots <= limit:
        every = torch.arange(num_slots, device=device)
        return Drawn(every, torch.zeros(num_slots, device=device), chosen_T)
    targets_S, places_T = chosen_T.unique(return_inverse=True)
    drawn = torch.randint(num_slots, (limit,), generator=generator).to(device)
    drawn = drawn[~torch.isin(drawn, targets_S)]
    share = (num_slots - len(targets_S)) / max(len(drawn), 1)
    correction = torch.zeros(len(targets_S) + len(drawn), device=device)
    correction[len(targets_S) :] = math.log(max(share, 1e-9))
    return Drawn(torch.cat([targets_S, drawn]), correction, places_T)


def draw_alternatives(
    chosen_T: Tensor, groups: SlotGroups, limit: int, generator: torch.Generator | None
) -> Drawn:
    """Returns for each slot itself, at place 0, and at most `limit` others of its category and block."""
    device = chosen_T.device
    sizes_T, starts_T = groups.sizes_N[chosen_T], groups.starts_N[chosen_T]
    num = min(limit, int(sizes_T.max()))
    random_TK = torch.rand(len(chosen_T), num, generator=generator).to(device)
    is_sampled_T1 = (sizes_T > num)[:, None]
    places_TK = torch.where(
        is_sampled_T1, (random_TK * sizes_T[:, None]).long(), torch.arange(num, device=device)
    )
    is_real_TK = places_TK < sizes_T[:, None]
    others_TK = groups.order_N[(starts_T[:, None] + places_TK).clamp(max=len(groups.order_N) - 1)]
    is_other_TK = is_real_TK & (others_TK != chosen_T[:, None])
    num_drawn_T1 = is_other_TK.sum(dim=1, keepdim=True).clamp(min=1)
    share_T1 = torch.where(is_sampled_T1, (sizes_T[:, None] - 1) / num_drawn_T1, 1.0)
    correction_TK = share_T1.log().expand_as(others_TK).masked_fill(~is_other_TK, -torch.inf)
    return Drawn(
        torch.cat([chosen_T[:, None], others_TK], dim=1),
        nn.functional.pad(correction_TK, (1, 0)),
        torch.zeros_like(chosen_T),
    )


def tower_loss(
    learner: InterestLearner, targets: TargetStates, groups: SlotGroups, limit: int,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Sums the cross-entropy of the target POIs under the two towers, nats."""
    is_target_BQ = targets.is_target_BQ
    chosen_T, _ = groups.find(targets.blocks_BQ[is_target_BQ], targets.inners_BQ[is_target_BQ])
    if not len(chosen_T):
        return targets.at_action_BQD.sum() * 0
    drawn = draw_slots(chosen_T, len(groups.keys_N), limit, generator)
    users_TE = learner.decoder.user_vectors(targets)[is_target_BQ]
    pois_SE = learner.decoder.poi_state(groups.as_candidates(drawn.slots))[0]
    # Low temperatures enlarge the rounding of bfloat16 to tenths of a nat.
    with torch.autocast(users_TE.device.type, enabled=False):
        logits_TS = users_TE.float() @ pois_SE.float().T / learner.temperature + drawn.correction
        return nn.functional.cross_entropy(logits_TS, drawn.places_T, reduction="sum")


def match_loss(
    learner: InterestLearner, targets: TargetStates, groups: SlotGroups, limit: int,
    generator: torch.Generator | None = None, *, centre_weight: float = 0.0,
) -> tuple[Tensor, int]:  # fmt: skip
    """Sums the cross-entropy of each POI of a window among the POIs of its category and block, nats.

    With a `centre_weight` the weighted square of the mean match of a group is added.

    The user side of a POI is the sum of the user's other POIs, those of the context included, over the root of their
    number. Only POIs that first occur in the window are asked about: a validation window is thus held out, and every
    visit is asked about once.

    Returns:
        The sum, and the number of POIs asked about: with an alternative, and not the user's only one.
    """
    history, match = targets.history, learner.decoder.interest_match
    assert match is not None, "the recipe has checked that the match is on"
    slots_BL, is_known_BL = groups.find(history.blocks_BL, history.inners_BL)
    is_known_BL = is_known_BL & mark_real(history)
    is_first_BL, times_BL = mark_first_visits(history) & is_known_BL, count_times(slots_BL, is_known_BL)
    num_B1 = is_first_BL.sum(dim=1, keepdim=True)
    is_asked_BL = is_first_BL & mark_window(history) & (num_B1 > 1) & (groups.sizes_N[slots_BL] > 1)
    if not (is_asked_BL.any() and targets.is_target_BQ.any()):
        return targets.inner_BLD.sum() * 0, 0
    normed_BLD = match.dropout(match.norm(targets.inner_BLD))
    total_B1D = (normed_BLD * is_first_BL[..., None]).sum(dim=1, keepdim=True)
    others_BLD = (total_B1D - normed_BLD) / (num_B1 - 1).clamp(min=1).sqrt()[..., None]
    users_TE, chosen_T = match.past(others_BLD[is_asked_BL]), slots_BL[is_asked_BL]
    drawn = draw_alternatives(chosen_T, groups, limit, generator)
    distinct_U, place_TK = drawn.slots.unique(return_inverse=True)
    embedded_UD = learner.decoder.trunk.embed_candidates(groups.as_candidates(distinct_U))[0]
    pois_UE = match.candidate(match.dropout(match.norm(embedded_UD)))
    visits_TK = groups.visits_N[drawn.slots]
    if learner.training:
        # The counts hold the very visits that are left out, which would tell the answer of rare POIs.
        own_T = times_BL[is_asked_BL].to(visits_TK)
        visits_TK = torch.cat([(visits_TK[:, 0] - own_T).clamp(min=0)[:, None], visits_TK[:, 1:]], dim=1)
    with torch.autocast(users_TE.device.type, enabled=False):
        dots_TK = (users_TE.float()[:, None] * pois_UE.float()[place_TK]).sum(dim=-1) / math.sqrt(match.dim)
        logits_TK = learner.match_scale * dots_TK + (visits_TK + PRIOR_VISITS).log() + drawn.correction
        loss = nn.functional.cross_entropy(logits_TK, drawn.places_T, reduction="sum")
        if centre_weight:
            # The softmax does not see what all alternatives share, but a dot product across groups does.
            stands_for_TK = drawn.correction.exp()
            mean_T = (dots_TK * stands_for_TK).sum(dim=1) / stands_for_TK.sum(dim=1)
            loss = loss + centre_weight * (mean_T**2).sum()
    return loss, len(chosen_T)


def mark_real(history: HistoryBatch) -> Tensor:
    """Marks the actions that are no padding, (B, L) bool."""
    places = torch.arange(history.blocks_BL.shape[1], device=history.blocks_BL.device)
    return places < history.lengths_B[:, None]


def mark_window(history: HistoryBatch) -> Tensor:
    """Marks the actions after the context, (B, L) bool."""
    places = torch.arange(history.blocks_BL.shape[1], device=history.blocks_BL.device)
    return mark_real(history) & (places >= history.num_context_B[:, None])


def count_times(slots_BL: Tensor, is_known_BL: Tensor) -> Tensor:
    """Returns how often the slot of each action occurs in its row, (B, L); unknown slots do not count."""
    return ((slots_BL[:, :, None] == slots_BL[:, None]) & is_known_BL[:, None]).sum(dim=2)


def mark_new(targets: TargetStates) -> Tensor:
    """Marks the targets whose POI the user has not visited before, (B, Q) bool."""
    history = targets.history
    keys_BL = pack_slots(history.blocks_BL, history.inners_BL)
    keys_BQ1 = pack_slots(targets.blocks_BQ, targets.inners_BQ)[..., None]
    is_before_BQL = torch.arange(keys_BL.shape[1], device=keys_BL.device) < targets.index_BQ[..., None]
    return targets.is_target_BQ & ~((keys_BL[:, None] == keys_BQ1) & is_before_BQL).any(dim=2)


class InterestObjective:
    """Loss of pre-training with both terms."""

    def __init__(self, config: InterestConfig, slots: LiveSlots, train_batches: Iterable[pa.Table]) -> None:
        """Groups the slots and counts their visits in the training split."""
        self.config, self.groups = config, SlotGroups(slots)
        for rows in train_batches:
            self.groups.count_visits(collate_history(rows).to(slots.keys_N.device))

    def loss(
        self, learner: InterestLearner, history: HistoryBatch, slots: LiveSlots
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed loss with both terms, the number of next-POI targets, and the parts.

        The terms are sums over all rows, like the next-POI loss. As long as no softmax is sampled, a batch may thus be
        cut into micro-batches or shared by processes; each part draws another sample.
        """
        self.groups = self.groups.to(slots)
        generator = None if learner.training else torch.Generator().manual_seed(VALIDATION_SEED)
        targets = learner.decoder.read_targets(history, slots)
        log_probs = learner.decoder.score_targets(targets, slots)
        loss, num_targets = next_poi_loss(log_probs)
        loss = loss + rank_new_loss(log_probs, learner.decoder.config.crowd.ranking_weight)
        towers = tower_loss(learner, targets, self.groups, self.config.max_slots, generator)
        matched, num_matched = match_loss(
            learner, targets, self.groups, self.config.max_alternatives, generator,
            centre_weight=self.config.centre_weight,
        )  # fmt: skip
        sums = {
            "train/loss_block": -float(log_probs.block_BQ.detach().sum()),
            "train/loss_inner": -float(log_probs.inner_BQ.detach().sum()),
            "train/loss_towers": float(towers.detach()),
            "train/loss_match": float(matched.detach()),
            "train/share_matched": float(num_matched),
        }
        if not learner.training:
            is_new_BQ = mark_new(targets)
            nats_BQ = -(log_probs.block_BQ + log_probs.inner_BQ)
            sums |= {"new_nats": float(nats_BQ[is_new_BQ].sum()), "new": float(is_new_BQ.sum())}
        total = loss + self.config.tower_weight * towers + self.config.match_weight * matched
        return total, num_targets, sums

    def average(self, losses: Iterable[tuple[Tensor, int, dict[str, float]]]) -> dict[str, float]:
        """Returns validation metrics of all batches' losses.

        `val/loss`, nats per target, is the whole objective. It chooses the weights, since the next-POI loss alone
        reaches its minimum earlier than the loss on POIs that are new to their users. Its parts are per target, too;
        `val/nats_new` and `val/nats_match` are per new target and per POI asked about.
        """
        total, num_targets, sums = 0.0, 0, Counter[str]()
        for loss, count, parts in losses:
            total, num_targets = total + float(loss), num_targets + count
            sums.update(parts)
        names = ("block", "inner", "towers", "match")
        mean = {f"val/loss_{name}": sums[f"train/loss_{name}"] / max(num_targets, 1) for name in names}
        return {
            "val/loss": total / max(num_targets, 1),
            "val/loss_next_poi": mean["val/loss_block"] + mean["val/loss_inner"],
            **mean,
            "val/nats_new": sums["new_nats"] / max(sums["new"], 1.0),
            "val/nats_match": sums["train/loss_match"] / max(sums["train/share_matched"], 1.0),
        }
