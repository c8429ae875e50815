"""The crowd copy: scores POIs that other users' training rows suggest, next to copies of the user's past.

Block and inner id have separate scores of a candidate c: f_c = start + gate(h) + q(h) . k_c / sqrt(d) + tables.
e^{f_c} enters the mixture of `models.network.history_copy` as one more copy. The crowd candidates come from
`models.copying.crowd_candidates`.
"""

# Shape letters: B = sequences, Q = steps, C = crowd candidates of a step, L = past actions,
# X = copies (L + C), D = model width, K = key width, U = distinct candidates, R = table rows.

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.units import EARTH_RADIUS_KM, HOURS_PER_DAY
from models.config import DecoderConfig
from models.copying.crowd_candidates import NUM_AMOUNTS, NUM_BUCKETS, NUM_LISTS
from models.copying.pairs import NUM_DISTANCES, NUM_GAPS, Past, bucket_distance, bucket_step_gap
from models.data.batch import CrowdSlots, Steps, take_actions
from models.data.features import is_known_place, place_on_sphere, split_time
from models.data.slots import LiveSlots, pack_slots
from models.network.embedding import TokenEmbedding
from models.network.history_copy import (
    BLOCK,
    INNER,
    LARGE_TABLE_RATE,
    TABLE_RATE,
    HistoryMemory,
    PairBias,
    SumRows,
    Which,
)

NUM_OWN_VISITS = 4
NUM_NOVELTIES, NOVELTY_ACTIONS = 12, 40
"""Buckets of a user's share of first visits, and the number of last actions that it is measured on."""
NUM_MEASURES = 7
AMOUNT_SCALE = 0.5
"""Brings the logarithms near unit variance."""
UNKNOWN_KM = 10.0
"""Distance where a place is unknown."""
NUM_AFFINITIES = 12
"""Buckets of a user's visits to a category."""


class CrowdMemory(NamedTuple):
    """Crowd candidates of steps, and the part of their scores that does not depend on hidden states.

    Attributes:
        blocks_BQC, inners_BQC: int64, (B, Q, C).
        may_copy_BQC: bool, (B, Q, C): a candidate is there, within the model's capacities, and live.
        is_new_BQC: bool, (B, Q, C): the user has not been to it.
        keys_BQC2K: float, (B, Q, C, 2, K), keys for both predictions.
        bias_BQC2: float, (B, Q, C, 2), sum of the tables.
    """

    blocks_BQC: Tensor
    inners_BQC: Tensor
    may_copy_BQC: Tensor
    is_new_BQC: Tensor
    keys_BQC2K: Tensor
    bias_BQC2: Tensor


class Sources(NamedTuple):
    """The sources of copies: the user's past with its pair features for the steps, and the crowd candidates."""

    memory: HistoryMemory | None
    pairs: PairBias | None
    slots: CrowdMemory | None


class CrowdCopy(nn.Module):
    """Scores of the crowd candidates."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        crowd = config.crowd
        self.num_blocks, self.max_inner = config.num_blocks, config.max_inner
        self.num_categories, self.num_slots = max(config.num_categories, 1), crowd.num_slots
        self.start, self.key_dim = crowd.start, config.memory.key_dim
        D = config.hidden_dim
        self.norm, self.dropout = nn.RMSNorm(D, config.norm_eps), nn.Dropout(config.memory.dropout)
        self.key = nn.Linear(D, 2 * self.key_dim, bias=False)
        self.query = nn.ModuleList(nn.Linear(D, self.key_dim, bias=False) for _ in (BLOCK, INNER))
        self.gate = nn.ModuleList(nn.Linear(D, 1) for _ in (BLOCK, INNER))
        self.small = nn.Parameter(torch.zeros(sum(self._small_sizes), 2))
        self.large = nn.Parameter(torch.zeros(sum(self._large_sizes), 2))
        self.poi = nn.Parameter(torch.zeros(max(config.poi_rows, 1), 2))
        self.amounts = AmountScores(crowd.mlp_dim) if crowd.mlp_dim else None

    @property
    def rate_scales(self) -> dict[str, float]:
        """Factors on the learning rate (`models.training.optimizer.collect_rate_scales`)."""
        scales = {"small": TABLE_RATE, "large": LARGE_TABLE_RATE, "poi": LARGE_TABLE_RATE}
        return scales if self.amounts is None else {**scales, "amounts": TABLE_RATE}

    def reset_start(self) -> None:
        """Starts with candidates that hardly count: gates are 0, and all candidates have the same constant."""
        if self.amounts is not None:
            self.amounts.reset_start()
        for gate in self.gate:
            assert isinstance(gate, nn.Linear)
            nn.init.zeros_(gate.weight)
            nn.init.constant_(gate.bias, self.start)

    @property
    def _small_sizes(self) -> tuple[int, ...]:
        """Rows of each table, in the order of `_rows`; tables of buckets have separate rows for each list."""
        return (
            self.num_slots,
            NUM_BUCKETS,
            NUM_BUCKETS,
            NUM_BUCKETS * NUM_LISTS,
            NUM_BUCKETS * NUM_LISTS,
            NUM_BUCKETS * NUM_LISTS,
            NUM_OWN_VISITS * NUM_LISTS,
            NUM_DISTANCES * NUM_GAPS * NUM_LISTS,
            NUM_NOVELTIES * NUM_GAPS,
            NUM_AFFINITIES * NUM_AFFINITIES * NUM_LISTS,
        )

    @property
    def _large_sizes(self) -> tuple[int, ...]:
        """Rows: category x hour, category x category of the current POI."""
        return (self.num_categories * HOURS_PER_DAY, self.num_categories**2)

    def look_up(
        self,
        candidates: CrowdSlots,
        past: Past,
        steps: Steps,
        embedding: TokenEmbedding,
        live: LiveSlots | None,
    ) -> CrowdMemory:
        """Computes keys from the candidates' input embeddings and looks up all tables."""
        with torch.no_grad():
            small, large = self._rows(candidates, past, steps)
            rows, has_row = self._poi_rows(candidates, embedding)
        shape = candidates.blocks_BQC.shape
        bias = SumRows.apply(self.small, small.flatten(0, -2)) + SumRows.apply(
            self.large, large.flatten(0, -2)
        )
        bias = bias.view(*shape, 2) + (
            SumRows.apply(self.poi, rows.view(-1, 1)).view(*shape, 2) * has_row[..., None]
        )
        if self.amounts is not None:
            bias = bias + self.amounts(candidates, self._measure(candidates, past, steps))
        may_copy = (
            candidates.is_real_BQC
            & (candidates.blocks_BQC < self.num_blocks)
            & (candidates.inners_BQC < self.max_inner)
        )
        if live is not None:
            may_copy = may_copy & live.contains(candidates.blocks_BQC, candidates.inners_BQC)
        names_BL = pack_slots(past.blocks_BL, past.inners_BL)
        names_BQC = pack_slots(candidates.blocks_BQC, candidates.inners_BQC)
        is_new = count_before(names_BL, names_BQC, steps.num_past_BQ) == 0
        keys = self._keys(candidates, embedding)
        return CrowdMemory(candidates.blocks_BQC, candidates.inners_BQC, may_copy, is_new, keys, bias)

    def score(self, which: Which, states_BQD: Tensor, memory: CrowdMemory) -> Tensor:
        """Returns f_c, (B, Q, C) float32; -inf where there is nothing to copy. the memory's Q may be 1."""
        query = self.query[which](states_BQD)
        keys = memory.keys_BQC2K[..., which, :]
        content = (query[:, :, None] * keys).sum(dim=-1) / math.sqrt(self.key_dim)
        scores = (content + self.gate[which](states_BQD)).float() + memory.bias_BQC2[..., which]
        return scores.masked_fill(~memory.may_copy_BQC, -torch.inf)

    def log_probs_among_new(
        self, states: tuple[Tensor, Tensor], memory: CrowdMemory, blocks_BQ: Tensor, inners_BQ: Tensor
    ) -> Tensor:
        """Returns log P(target | one of the crowd candidates that are new to the user), (B, Q) float32.

        It is 0 where the target is not among them.

        Args:
            states: states that predict the block and the inner id, (B, Q, D) each.
            memory: the candidates.
            blocks_BQ: int64, (B, Q), block of each target.
            inners_BQ: int64, (B, Q), inner id of each target.
        """
        score_block, score_inner = (
            scores.masked_fill(~memory.is_new_BQC, -torch.inf)
            for scores in (self.score(BLOCK, states[0], memory), self.score(INNER, states[1], memory))
        )
        in_block = memory.blocks_BQC == blocks_BQ[..., None]
        is_target = in_block & (memory.inners_BQC == inners_BQ[..., None])
        has_target = (is_target & ~score_block.isneginf()).any(dim=-1)
        # Rows without the target get zeros: the gradient of an empty logsumexp is nan.
        score_block, score_inner = (
            torch.where(has_target[..., None], scores, 0.0) for scores in (score_block, score_inner)
        )
        in_block, is_target = (flags | ~has_target[..., None] for flags in (in_block, is_target))
        log_block = masked_logsumexp(score_block, in_block) - score_block.logsumexp(dim=-1)
        log_inner = masked_logsumexp(score_inner, is_target) - masked_logsumexp(score_inner, in_block)
        return (log_block + log_inner) * has_target

    def _keys(self, candidates: CrowdSlots, embedding: TokenEmbedding) -> Tensor:
        """Returns keys, (B, Q, C, 2, K); embeds every distinct candidate of the batch once."""
        names = pack_slots(candidates.blocks_BQC, candidates.inners_BQC).flatten()
        _, place = torch.unique(names, return_inverse=True)
        # torch.unique returns no first occurrences, and a plain scatter has no defined winner; amin picks the first.
        first = names.new_full((int(place.max()) + 1 if len(place) else 0,), len(names))
        first.scatter_reduce_(0, place, torch.arange(len(names), device=names.device), reduce="amin")
        embedded = embedding.embed_inners(
            candidates.blocks_BQC.flatten()[first],
            candidates.inners_BQC.flatten()[first],
            candidates.categories_BQC.flatten()[first],
            candidates.lonlat_BQC2.flatten(0, -2)[first],
        )
        keys_U2K = self.key(self.dropout(self.norm(embedded))).unflatten(-1, (2, self.key_dim))
        return F.embedding(place, keys_U2K.flatten(1)).view(*candidates.blocks_BQC.shape, 2, self.key_dim)

    def _rows(self, candidates: CrowdSlots, past: Past, steps: Steps) -> tuple[Tensor, Tensor]:
        """Returns the rows of the small and of the large tables, (B, Q, C, tables)."""
        lists = candidates.lists_BQC
        gap = bucket_step_gap(past, steps)[..., None]
        visits = self._count_own(candidates, past, steps)
        near = bucket_distance(steps.user_lonlat_BQ2[:, :, None], candidates.lonlat_BQC2)
        place = torch.arange(lists.shape[-1], device=lists.device).clamp(max=self.num_slots - 1)
        small = (
            place.expand_as(lists),
            candidates.count_BQC,
            candidates.share_BQC,
            candidates.lift_BQC * NUM_LISTS + lists,
            candidates.popularity_BQC * NUM_LISTS + lists,
            candidates.similarity_BQC * NUM_LISTS + lists,
            visits * NUM_LISTS + lists,
            (near * NUM_GAPS + gap) * NUM_LISTS + lists,
            (bucket_novelty(past, steps)[..., None] * NUM_GAPS + gap).expand_as(lists),
            self._bucket_affinity(candidates, past, steps) * NUM_LISTS + lists,
        )
        last = self._known_category(take_actions(past.categories_BL, steps.num_past_BQ - 1, fill=0))
        category = self._known_category(candidates.categories_BQC)
        hour = split_time(steps.timestamps_BQ, steps.tz_offsets_BQ).hour[..., None]
        large = (category * HOURS_PER_DAY + hour, category * self.num_categories + last[..., None])
        return _offset(small, self._small_sizes), _offset(large, self._large_sizes)

    def _known_category(self, categories: Tensor) -> Tensor:
        return torch.where(categories < self.num_categories, categories, 0)

    def _count_own(self, candidates: CrowdSlots, past: Past, steps: Steps) -> Tensor:
        """Returns the log bucket of the user's earlier visits to each candidate's POI, (B, Q, C)."""
        names_BL = pack_slots(past.blocks_BL, past.inners_BL)
        counts = count_before(
            names_BL, pack_slots(candidates.blocks_BQC, candidates.inners_BQC), steps.num_past_BQ
        )
        return (counts + 1).float().log2().long().clamp(max=NUM_OWN_VISITS - 1)

    def _bucket_affinity(self, candidates: CrowdSlots, past: Past, steps: Steps) -> Tensor:
        """Returns the joint bucket of earlier visits to the candidate's category and of all visits, (B, Q, C)."""
        counts = count_before(past.categories_BL, candidates.categories_BQC, steps.num_past_BQ)
        counts = counts * (candidates.categories_BQC > 0)
        buckets = [
            (1.5 * (values + 1).float().log2()).long().clamp(max=NUM_AFFINITIES - 1)
            for values in (counts, steps.num_past_BQ[..., None])
        ]
        return buckets[0] * NUM_AFFINITIES + buckets[1]

    def _measure(self, candidates: CrowdSlots, past: Past, steps: Steps) -> Tensor:
        """Returns what the network reads beside the candidates' amounts, (B, Q, C, `NUM_MEASURES`) float32.

        They are logarithms of distance, gap, past actions, visits to the candidate's category and their share, and POIs
        of the category that the user has been to and their share.
        """
        users_BQ12, pois_BQC2 = steps.user_lonlat_BQ2[:, :, None], candidates.lonlat_BQC2
        chord = (place_on_sphere(users_BQ12) - place_on_sphere(pois_BQC2)).norm(dim=-1).float()
        is_known = is_known_place(users_BQ12) & is_known_place(pois_BQC2)
        km = torch.where(is_known, chord * EARTH_RADIUS_KM, UNKNOWN_KM)
        is_first_BL = mark_first(past)
        firsts_BL = torch.where(is_first_BL, past.categories_BL, -1)
        own, own_pois = (
            (
                count_before(names, candidates.categories_BQC, steps.num_past_BQ)
                * (candidates.categories_BQC > 0)
            ).float()
            for names in (past.categories_BL, firsts_BL)
        )
        num_past = steps.num_past_BQ[..., None].float()
        num_pois = count_until(is_first_BL, steps.num_past_BQ)[..., None].float()
        gap = bucket_step_gap(past, steps)[..., None].float()
        parts = (
            (km + 0.1).log(),
            gap - NUM_GAPS / 2,
            (num_past + 1).log() - 4.0,
            (own + 0.3).log(),
            ((own + 0.3) / (num_past + 10.0)).log() + 3.0,
            (own_pois + 0.3).log(),
            ((own_pois + 0.3) / (num_pois + 10.0)).log() + 3.0,
        )
        return torch.stack([part.expand(candidates.lists_BQC.shape) for part in parts], dim=-1)

    def _poi_rows(self, candidates: CrowdSlots, embedding: TokenEmbedding) -> tuple[Tensor, Tensor]:
        """Returns the row of each POI's constant and whether it has one, (B, Q, C) each."""
        if embedding.poi_vectors is None:
            nothing = torch.zeros_like(candidates.blocks_BQC)
            return nothing, nothing.bool()
        return embedding.poi_vectors.rows(candidates.blocks_BQC, candidates.inners_BQC)


class AmountScores(nn.Module):
    """A small network from the numbers behind a candidate's buckets to its two scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_AMOUNTS + NUM_MEASURES + NUM_LISTS, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 2, bias=False)

    def reset_start(self) -> None:
        """Starts without an effect."""
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, candidates: CrowdSlots, measured_BQCM: Tensor) -> Tensor:
        """Returns what is added to both scores, (B, Q, C, 2)."""
        lists = F.one_hot(candidates.lists_BQC, NUM_LISTS).float()
        x = torch.cat([candidates.amounts_BQCF, measured_BQCM, lists], dim=-1)
        hidden = F.silu(self.first(x * AMOUNT_SCALE))
        scores: Tensor = self.last(F.silu(self.second(hidden)))
        return scores


def masked_logsumexp(scores_BQC: Tensor, mask_BQC: Tensor) -> Tensor:
    """Returns the logsumexp of the scores under the mask, (B, Q)."""
    return scores_BQC.masked_fill(~mask_BQC, -torch.inf).logsumexp(dim=-1)


def count_before(names_BL: Tensor, wanted_BQC: Tensor, num_past_BQ: Tensor) -> Tensor:
    """Counts how often each wanted id (from 0), (B, Q, C), occurs among the ids, (B, L), before each step."""
    L = names_BL.shape[1]
    # Sorted by id, then time, so that two look-ups bracket the actions before the step.
    keys_BL = (names_BL * (L + 1) + torch.arange(L, device=names_BL.device)).sort(dim=1).values
    first_BQC = wanted_BQC * (L + 1)
    last_BQC = first_BQC + num_past_BQ[..., None]
    stops, starts = (torch.searchsorted(keys_BL, part.flatten(1)) for part in (last_BQC, first_BQC))
    return (stops - starts).view(first_BQC.shape)


def mark_first(past: Past) -> Tensor:
    """Returns which actions are the user's first visit to their POI, (B, L) bool."""
    # Stable, so that the first of equal slots is the earliest visit.
    ordered, order = pack_slots(past.blocks_BL, past.inners_BL).sort(dim=1, stable=True)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered.diff(dim=1) != 0
    return torch.zeros_like(is_new).scatter_(1, order, is_new)


def count_until(flags_BL: Tensor, stops_BQ: Tensor) -> Tensor:
    """Returns the number of flags among the actions before each stop, (B, Q) int64."""
    return F.pad(flags_BL.long().cumsum(dim=1), (1, 0)).gather(1, stops_BQ)


def bucket_novelty(past: Past, steps: Steps) -> Tensor:
    """Returns the bucket of the share of first visits among the last actions before each step, (B, Q).

    Steps without a past have the last bucket.
    """
    is_first_BL = mark_first(past)
    stops = steps.num_past_BQ
    starts = (stops - NOVELTY_ACTIONS).clamp(min=0)
    counts = count_until(is_first_BL, stops) - count_until(is_first_BL, starts)
    # The + 1 keeps even a share of one below the last bucket, which means no past.
    bucket = counts * (NUM_NOVELTIES - 1) // (stops - starts + 1)
    return torch.where(stops > 0, bucket, NUM_NOVELTIES - 1)


def _offset(rows: tuple[Tensor, ...], sizes: tuple[int, ...]) -> Tensor:
    """Stacks the row numbers of several tables, shifted for tables that lie one after the other."""
    first, moved = 0, []
    for row, size in zip(rows, sizes, strict=True):
        moved.append(row + first)
        first += size
    return torch.stack(moved, dim=-1)
