"""The history copy (docs/design.md 4, ours): copies the user's past POIs into the generator's distribution.

For a step being predicted, each past action j of the user has a score s_j = c + gate(h) + q(h) . k_j / sqrt(d) +
tables over pair features. The generator is normalised first; then

    P(block)         = (P_gen(block) + sum_j e^{s_j} [block_j = block]) / (1 + sum_j e^{s_j})
    P(inner | block) = the same over the past actions inside that block

so the result is an exact distribution. Block and inner id have separate maps and table columns.
"""

# Shape letters: B = sequences, Q = steps, L = past actions, D = model width, K = key width, V = ids of a
# vocabulary, R = table rows, P = pairs, F = tables.

import math
from collections.abc import Sequence
from typing import Final, Generic, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import DecoderConfig
from models.copying.pairs import Features, PairTable, Past, compare_pairs, select_tables, start_table
from models.copying.routines import ROUTINE_TABLES, compare_routines
from models.data.batch import Steps
from models.data.slots import LiveSlots

LARGE_TABLE_ROWS = 1000
TABLE_RATE, LARGE_TABLE_RATE = 10.0, 2.0
"""Learning rates of the tables of pair features, the large ones apart, times that of the rest."""
BLOCK: Final = 0
INNER: Final = 1
"""The prediction that a score serves: a column of the tables and of the content maps."""

NUM_MEMORY_FEATURES = 2
_SMALLEST_SHARE = 1e-4

Which = Literal[0, 1]
Pair = tuple[Tensor, Tensor]
"""A tensor for the block, and the same for the inner id."""


class HistoryMemory(NamedTuple):
    """The memory of a user's past.

    Attributes:
        past: raw features of the actions.
        can_copy_BL: bool, (B, L): the action's slot is within the model's capacities.
        content_BLE: float, (B, L, 3 D), normed input embeddings of the action and of the previous POI.
        keys_BL2K: float, (B, L, 2, K), keys for both predictions.
    """

    past: Past
    can_copy_BL: Tensor
    content_BLE: Tensor
    keys_BL2K: Tensor


class PairBias(NamedTuple):
    """The part of the scores that does not depend on hidden states.

    Attributes:
        bias_BQL2: float, (B, Q, L, 2), sum of the tables for each prediction.
        may_copy_BQL: bool, (B, Q, L): the action is strictly before the step, and its slot is live.
    """

    bias_BQL2: Tensor
    may_copy_BQL: Tensor


class HistoryCopy(nn.Module):
    """Scores past actions as copies."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_blocks, self.max_inner = config.num_blocks, config.max_inner
        self.key_dim = config.memory.key_dim
        D = config.hidden_dim
        self.spacetime_norm, self.inner_norm = nn.RMSNorm(D, config.norm_eps), nn.RMSNorm(D, config.norm_eps)
        self.dropout = nn.Dropout(config.memory.dropout)
        self.key = nn.Linear(3 * D, 2 * self.key_dim, bias=False)
        self.query = nn.ModuleList(nn.Linear(D, self.key_dim, bias=False) for _ in (BLOCK, INNER))
        self.gate = nn.ModuleList(nn.Linear(D, 1) for _ in (BLOCK, INNER))
        self.value = nn.Linear(3 * D, D, bias=False)
        tables = select_tables(
            clock_tables=config.memory.clock_tables, hide_request_time=config.hide_request_time
        )
        # Two modules, since the large tables have a separate learning rate.
        self.small = PairTables([table for table in tables if table.num_rows <= LARGE_TABLE_ROWS])
        self.large = PairTables([table for table in tables if table.num_rows > LARGE_TABLE_ROWS])
        self.routines = PairTables(ROUTINE_TABLES) if config.memory.routine_tables else None

    @property
    def rate_scales(self) -> dict[str, float]:
        """Factors on the learning rate (`models.training.optimizer.collect_rate_scales`)."""
        scales = {"small": TABLE_RATE, "large": LARGE_TABLE_RATE}
        return scales if self.routines is None else {**scales, "routines": TABLE_RATE}

    def reset_start(self) -> None:
        """Starts at the recency-weighted visit baseline: gates 0, constant 1."""
        for gate in self.gate:
            assert isinstance(gate, nn.Linear)
            nn.init.zeros_(gate.weight)
            nn.init.ones_(gate.bias)

    def remember(self, past: Past, spacetime_BLD: Tensor, inner_BLD: Tensor) -> HistoryMemory:
        """Computes keys from the *input* embeddings, (B, L, D) each, without a pass through the transformer."""
        inner = self.inner_norm(inner_BLD)
        before = F.pad(inner, (0, 0, 1, 0))[:, : inner.shape[1]]
        content = torch.cat([self.spacetime_norm(spacetime_BLD), inner, before], dim=-1)
        content = self.dropout(content)
        keys = self.key(content).unflatten(-1, (2, self.key_dim))
        can_copy = (past.blocks_BL < self.num_blocks) & (past.inners_BL < self.max_inner)
        return HistoryMemory(past, can_copy, content, keys)

    def compare(self, memory: HistoryMemory, steps: Steps, live: LiveSlots | None) -> PairBias:
        """Looks up all tables for all pairs of a step and an action."""
        features = compare_pairs(memory.past, steps)
        shape = (*steps.num_past_BQ.shape, memory.past.blocks_BL.shape[1])
        bias = self.small(features, shape) + self.large(features, shape)
        if self.routines is not None:
            bias = bias + self.routines(compare_routines(memory.past, steps), shape)
        # A training history holds the target and later actions: without this mask a step would copy its target.
        is_past = (
            torch.arange(memory.past.blocks_BL.shape[1], device=bias.device) < steps.num_past_BQ[..., None]
        )
        can_copy = memory.can_copy_BL
        if live is not None:
            can_copy = can_copy & live.contains(memory.past.blocks_BL, memory.past.inners_BL)
        return PairBias(bias, is_past & can_copy[:, None])

    def score(self, which: Which, states_BQD: Tensor, memory: HistoryMemory, pairs: PairBias) -> Tensor:
        """Returns s_j, (B, Q, L) float32; -inf where the action may not be copied. the Q of `pairs` may be 1."""
        query = self.query[which](states_BQD)
        content = query @ memory.keys_BL2K[:, :, which].transpose(1, 2) / math.sqrt(self.key_dim)
        scores = (content + self.gate[which](states_BQD)).float() + pairs.bias_BQL2[..., which]
        return scores.masked_fill(~pairs.may_copy_BQL, -torch.inf)

    def score_inside(
        self, states_BKD: Tensor, blocks_BK: Tensor, memory: HistoryMemory, pairs: PairBias
    ) -> Tensor:
        """Returns inner scores of past actions for each of K blocks, (B, K, L); -inf outside the block."""
        scores = self.score(INNER, states_BKD, memory, pairs)
        return scores.masked_fill(memory.past.blocks_BL[:, None] != blocks_BK[..., None], -torch.inf)

    def log_shares(
        self, states: Pair, blocks_BC: Tensor, inners_BC: Tensor, memory: HistoryMemory, pairs: PairBias
    ) -> Tensor:
        """Returns the log share of each candidate's POI and block in the memory, (B, C, 2).

        Args:
            states: states at the request's action token, (B, 1, D), and at each candidate's block token, (B, C, D).
            blocks_BC: int64, (B, C), blocks of the candidates.
            inners_BC: int64, (B, C), inner ids of the candidates.
            memory: the user's past.
            pairs: pair features of the request and the past.
        """
        same_block = memory.past.blocks_BL[:, None] == blocks_BC[..., None]
        same_poi = same_block & (memory.past.inners_BL[:, None] == inners_BC[..., None])
        block_scores = self.score(BLOCK, states[BLOCK], memory, pairs)
        inner_scores = self.score_inside(states[INNER], blocks_BC, memory, pairs)
        block_share = (block_scores - log_mass(block_scores)[..., None]).exp()
        inner_share = (inner_scores - log_mass(inner_scores)[..., None]).exp()
        of_block = (block_share * same_block).sum(dim=-1)
        of_poi = of_block * (inner_share * same_poi).sum(dim=-1)
        # A candidate that is not in the past has a share of 0, which would be an infinite feature.
        return torch.stack([of_poi, of_block], dim=-1).add(_SMALLEST_SHARE).log()

    def pool(self, scores_BQL: Tensor, memory: HistoryMemory) -> Tensor:
        """Returns the memory's values, averaged by a softmax over the actions and an empty entry, (B, Q, D)."""
        # The empty entry also keeps a user without a past from a softmax over -inf alone, which is nan.
        weights = F.pad(scores_BQL, (1, 0)).softmax(dim=-1)[..., 1:]
        return weights.to(memory.content_BLE.dtype) @ self.value(memory.content_BLE)


class PairTables(nn.Module, Generic[Features]):
    """Several pair tables in one parameter, (R, 2), with a column for each prediction."""

    def __init__(self, tables: Sequence[PairTable[Features]]) -> None:
        super().__init__()
        self.tables = tables
        starts = [start_table(table) for table in tables]
        rows = torch.cat(starts) if starts else torch.zeros(0)
        self.weight = nn.Parameter(rows[:, None].repeat(1, 2))

    def forward(self, features: Features, shape: tuple[int, int, int]) -> Tensor:
        """Returns the sum of one row of each table, (B, Q, L, 2); `shape` is (B, Q, L)."""
        first, chosen = 0, []
        for table in self.tables:
            chosen.append((table.row(features) + first).expand(shape))
            first += table.num_rows
        if not chosen:
            return self.weight.new_zeros(*shape, 2)
        rows_PF = torch.stack(chosen, dim=-1).view(-1, len(chosen))
        summed: Tensor = SumRows.apply(self.weight, rows_PF)
        return summed.view(*shape, 2)


class SumRows(torch.autograd.Function):
    """Sum of table rows, (R, 2) and (P, F) -> (P, 2); the gradient is a fast histogram."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight_R2: Tensor, rows_PF: Tensor) -> Tensor:
        ctx.save_for_backward(weight_R2, rows_PF)
        return F.embedding_bag(rows_PF, weight_R2, mode="sum")

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_P2: Tensor) -> tuple[Tensor, None]:
        weight_R2, rows_PF = ctx.saved_tensors  # type: ignore[attr-defined]
        rows, tables = rows_PF.flatten(), rows_PF.shape[1]
        columns = [
            torch.bincount(rows, g.repeat_interleave(tables), len(weight_R2)) for g in grad_P2.unbind(1)
        ]
        return torch.stack(columns, dim=-1).to(grad_P2.dtype), None


def mix_target(log_gen_BQ: Tensor, scores_BQL: Tensor, is_target_BQL: Tensor) -> Tensor:
    """Returns the mixture's log probability of one id per step, (B, Q); `is_target` = the action has that id."""
    hits = scores_BQL.masked_fill(~is_target_BQL, -torch.inf)
    numerator = torch.cat([log_gen_BQ[..., None], hits], dim=-1).logsumexp(dim=-1)
    return numerator - log_mass(scores_BQL)


def mix_all(log_gen_BQV: Tensor, scores_BQL: Tensor, ids: Tensor) -> Tensor:
    """Returns the mixture's log probability of every id, (B, Q, V); scores of -inf copy nothing.

    Args:
        log_gen_BQV: float, (B, Q, V), the generator's normalised log probabilities.
        scores_BQL: float, (B, Q, L), scores of the copies.
        ids: int64 ids of the copies, (B, L) if they are the same for all steps, or (B, Q, L).
    """
    largest = F.pad(scores_BQL, (1, 0)).amax(dim=-1, keepdim=True)  # the generator's own score is 0
    mass = (scores_BQL - largest).exp()
    # Ids beyond the capacity have no mass; they are clamped only so that scatter_add can take them.
    ids = (ids[:, None] if ids.dim() == 2 else ids).clamp(max=log_gen_BQV.shape[-1] - 1)
    ids = ids.expand_as(scores_BQL)
    numerator = (log_gen_BQV - largest).exp().scatter_add(2, ids, mass)
    # Ids without copies keep the generator's log probability: a round trip through exp would lose small ones.
    copied = torch.zeros_like(numerator).scatter_add(2, ids, mass)
    is_copied = copied > 0
    # The log of an unused 0 has an infinite gradient, which torch.where would turn into nan.
    log_mixed = torch.where(is_copied, numerator, 1.0).log() + largest
    mixed = torch.where(is_copied, log_mixed, log_gen_BQV)
    return mixed - log_mass(scores_BQL)[..., None]


def log_mass(scores_BQL: Tensor) -> Tensor:
    """Returns log(1 + sum_j e^{s_j}), (B, Q); the 1 is the generator."""
    return F.pad(scores_BQL, (1, 0)).logsumexp(dim=-1)


class Copies(NamedTuple):
    """All copies that may enter the distribution of a step: the user's past, then crowd candidates.

    Attributes:
        scores_BQX: float32, (B, Q, X), -inf where the copy is not allowed.
        blocks_BQX, inners_BQX: int64, (B, Q, X).
    """

    scores_BQX: Tensor
    blocks_BQX: Tensor
    inners_BQX: Tensor

    def inside(self, blocks_BQ: Tensor) -> "Copies":
        """Returns the copies with scores of -inf outside one block per step, (B, Q)."""
        outside = self.blocks_BQX != blocks_BQ[..., None]
        return self._replace(scores_BQX=self.scores_BQX.masked_fill(outside, -torch.inf))

    def mix_target(self, log_gen_BQ: Tensor, is_target_BQX: Tensor) -> Tensor:
        """Returns the mixture's log probability of one id per step, (B, Q); `is_target` = the copy has that id."""
        return mix_target(log_gen_BQ, self.scores_BQX, is_target_BQX)
