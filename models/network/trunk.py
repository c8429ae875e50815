"""The transformer itself: embedded tokens -> states, over whole windows or below a cache.

A sequence is a user token and profile tokens (all at position 0), then four tokens per action from position 1.
The module also defines the caches and states that pass between the steps of the decoder.
"""

# Shape letters: B = sequences, L = actions, W = actions of the window, T = tokens, N = new tokens, D = model width,
# G = key/value heads, E = width of a head, C = candidates, Q = steps being predicted.

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conf.tokens import TOKENS_PER_ACTION
from models.config import DecoderConfig
from models.copying.pairs import Past
from models.data.batch import (
    CandidateBatch,
    HistoryBatch,
    RequestBatch,
    Steps,
    hide_times,
    last_steps,
    take_actions,
    take_rows,
)
from models.data.slots import LiveSlots
from models.network.copies import CrowdMemory, Sources
from models.network.embedding import TokenEmbedding
from models.network.history_copy import HistoryMemory, PairBias
from models.network.interest_match import Content
from models.network.layers import (
    DecoderLayer,
    KeyValues,
    Rotation,
    build_causal_mask,
    build_extension_mask,
    rotate_positions,
)


class Cache(NamedTuple):
    """Keys and values of the tokens that were read before.

    Attributes:
        layers: keys and values of each layer, (B, G, T, E) each.
        valid_BT: bool, (B, T), False = padding.
        next_positions_B: int64, (B,), position of the next token.
    """

    layers: tuple[KeyValues, ...]
    valid_BT: Tensor
    next_positions_B: Tensor

    def grow(self, new: tuple[KeyValues, ...]) -> "Cache":
        """Returns a new cache with the tokens appended, visible to all later tokens; copies the old tensors."""
        layers = tuple(
            KeyValues(torch.cat([old.keys, added.keys], 2), torch.cat([old.values, added.values], 2))
            for old, added in zip(self.layers, new, strict=True)
        )
        num_new = new[0].keys.shape[2]
        valid = nn.functional.pad(self.valid_BT, (0, num_new), value=True)
        return Cache(layers, valid, self.next_positions_B + num_new)


class Prefix(NamedTuple):
    """The encoded user part; it is read once and serves every request of the user.

    Attributes:
        cache: keys and values of the user's tokens.
        history: the user's actions.
        memory: what the history copy compares with; None = off.
        interest_B2E: the user's side of the interest match, an average over the past; None = off.
        distinct_B2E: the same of distinct POIs, which add up; None = off.
    """

    cache: Cache
    history: HistoryBatch
    memory: HistoryMemory | None
    interest_B2E: Tensor | None = None
    distinct_B2E: Tensor | None = None


class RequestState(NamedTuple):
    """The user part and one request.

    Attributes:
        cache: the user part with the request's spacetime and action tokens.
        state_BD: float, (B, D), state at the action token; it predicts the block and feeds the user tower.
        memory, pairs: the history copy's memory and its pair features for the request; None if it is off.
        slots: crowd candidates; None if the crowd copy is off or none were given.
        live: slots that are live at the request; None = all within the capacities.
    """

    cache: Cache
    state_BD: Tensor
    memory: HistoryMemory | None
    pairs: PairBias | None
    slots: CrowdMemory | None
    live: LiveSlots | None

    @property
    def sources(self) -> Sources:
        """The sources that the request can copy from."""
        return Sources(self.memory, self.pairs, self.slots)

    def take(self, rows: Tensor) -> "RequestState":
        """Returns some of the requests, int64; live slots are shared."""
        if torch.equal(rows, torch.arange(len(self.state_BD), device=rows.device)):
            return self  # no copy of the cache
        cache, state_BD, memory, pairs, slots = (take_sequences(part, rows) for part in self[:-1])
        return RequestState(cache, state_BD, memory, pairs, slots, self.live)


class CandidateStates(NamedTuple):
    """What the click head reads of each candidate.

    Attributes:
        states_BCD: float, (B, C, D), states at the candidates' inner tokens.
        memory_BC2: float, (B, C, 2), log shares of POI and block in the memory.
        evidence_BCF: float, (B, C, 4 to 7), or None. log P(block) and log P(POI) over chance under the generator, then
            the similarity of the POI to the user's past by embedding and by text; where they are read, the same to the
            distinct past POIs, and the towers' cosine.
    """

    states_BCD: Tensor
    memory_BC2: Tensor
    evidence_BCF: Tensor | None = None


class TargetStates(NamedTuple):
    """What predicts the loss targets of a batch of windows.

    Attributes:
        history: the users' actions, cut to what the model reads.
        inner_BLD: float, (B, L, D), input embeddings of the actions' POIs.
        index_BQ: int64, (B, Q), the action that each target is.
        blocks_BQ, inners_BQ: int64, (B, Q), ids of the targets; 0 for padding.
        is_target_BQ: bool, (B, Q), False = padding, or a POI that has no token.
        at_action_BQD, at_block_BQD: float, (B, Q, D), states that predict the block and the inner id.
        sources: what the targets can be copied from.
    """

    history: HistoryBatch
    inner_BLD: Tensor
    index_BQ: Tensor
    blocks_BQ: Tensor
    inners_BQ: Tensor
    is_target_BQ: Tensor
    at_action_BQD: Tensor
    at_block_BQD: Tensor
    sources: Sources


class StepLogProbs(NamedTuple):
    """Log probabilities at the loss targets, (B, Q) each, in nats; 0 where `is_target_BQ` is False (padding).

    `among_new_BQ` is log P(target | a crowd candidate that is new to the user), 0 for other targets; None = no crowd.
    """

    block_BQ: Tensor
    inner_BQ: Tensor
    is_target_BQ: Tensor
    among_new_BQ: Tensor | None = None


def take_sequences(part: Any, rows: Tensor) -> Any:
    """Returns the given rows of a tensor, or of all tensors of a (named) tuple; `rows`, int64, may repeat."""
    if isinstance(part, Tensor):
        return part[rows]
    if isinstance(part, tuple):
        parts = [take_sequences(field, rows) for field in part]
        return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
    return part


def valid_user(history: HistoryBatch) -> Tensor:
    """Returns which user-part tokens are real: the user token, then the profile tokens, (B, 1 + P) bool."""
    return nn.functional.pad(history.profile_ids_BP > 0, (1, 0), value=True)


def keep_last(history: HistoryBatch, num_actions: int) -> HistoryBatch:
    """Cuts each past to its last `num_actions`; crowd candidates belong to the window and stay."""
    longest = history.timestamps_BL.shape[1]
    if longest <= num_actions:
        return history
    dropped_B = (history.lengths_B - num_actions).clamp(min=0)
    index_BK = dropped_B[:, None] + torch.arange(num_actions, device=dropped_B.device)
    rows = torch.arange(len(dropped_B), device=dropped_B.device)[:, None]
    # Fields along the actions are recognised by the shape letters in their names.
    cut = {
        name: field[rows, index_BK]
        for name, field in history._asdict().items()
        if name.endswith(("_BL", "_BL2", "_BLM")) and field is not None
    }
    lengths_B = history.lengths_B - dropped_B
    return history._replace(
        lengths_B=lengths_B, num_context_B=(history.num_context_B - dropped_B).clamp(min=0), **cut
    )


def past_of(history: HistoryBatch) -> Past:
    return Past(
        history.timestamps_BL,
        history.tz_offsets_BL,
        history.blocks_BL,
        history.inners_BL,
        history.categories_BL,
        history.poi_lonlat_BL2,
    )


def neutral_request(history: HistoryBatch) -> RequestBatch:
    last = last_steps(history)
    is_neutral = torch.ones_like(history.lengths_B, dtype=torch.bool)
    return RequestBatch(
        last.timestamps_BQ[:, 0],
        last.tz_offsets_BQ[:, 0],
        last.user_lonlat_BQ2[:, 0],
        torch.zeros_like(history.lengths_B),
        is_neutral,
    )


def request_steps(history: HistoryBatch, request: RequestBatch, *, hide_time: bool) -> Steps:
    """Returns the steps to predict (Q = 1); a neutral request takes the step of the user's last action."""
    requested = Steps(
        history.lengths_B[:, None],
        request.timestamps_B[:, None],
        request.tz_offsets_B[:, None],
        request.user_lonlat_B2[:, None],
    )
    if hide_time:
        requested = hide_times(requested, history)
    fields = zip(requested, last_steps(history), strict=True)
    return Steps(*(torch.where(_like(request.is_neutral_B, step), last, step) for step, last in fields))


def _like(mask_B: Tensor, other: Tensor) -> Tensor:
    return mask_B.view(-1, *(1 for _ in other.shape[1:]))


def build_layers(config: DecoderConfig) -> nn.ModuleList:
    """Builds the decoder's layers, in order."""
    return nn.ModuleList(
        DecoderLayer(
            hidden_dim=config.hidden_dim,
            ffn_dim=config.ffn_dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
        )
        for _ in range(config.num_layers)
    )


class Trunk(nn.Module):
    """Token embeddings, layers, final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = build_layers(config)
        self.norm = nn.RMSNorm(config.hidden_dim, config.norm_eps)

    def embed_history(self, history: HistoryBatch) -> tuple[Tensor, Tensor]:
        """Embeds the spacetime and inner tokens of all actions, (B, L, D) each; the memory reads beyond the window."""
        gaps, has_previous = _gaps(history)
        spacetime = self.embedding.embed_spacetime(
            history.timestamps_BL, history.tz_offsets_BL, gaps, has_previous, history.user_lonlat_BL2
        )
        inner = self.embedding.embed_inners(
            history.blocks_BL,
            history.inners_BL,
            history.categories_BL,
            history.poi_lonlat_BL2,
            history.vectors_BLM,
        )
        return spacetime, inner

    def embed_requests(self, history: HistoryBatch, spacetime_BLD: Tensor) -> Tensor:
        """Returns the spacetime tokens that predict the actions, (B, L, D).

        Each is the action's spacetime token (docs/design.md, trap 2). If the request time is hidden, clock and gap come
        from the previous action.
        """
        if not self.config.hide_request_time:
            return spacetime_BLD
        gaps, has_previous = _gaps(history)
        return self.embedding.embed_spacetime(
            _shift_right(history.timestamps_BL),
            _shift_right(history.tz_offsets_BL),
            _shift_right(gaps),
            _shift_right(has_previous),
            history.user_lonlat_BL2,
        )

    def embed_request(self, history: HistoryBatch, steps: Steps) -> Tensor:
        """Embeds the spacetime token of one request per user, (B, D); the caller has hidden its time if needed."""
        num_past_B = history.lengths_B
        known, back = 1, steps.timestamps_BQ[:, 0]
        if self.config.hide_request_time:  # the gap comes from the previous action, too
            known, back = 2, take_actions(history.timestamps_BL, num_past_B[:, None] - 1, fill=0)[:, 0]
        previous = take_actions(history.timestamps_BL, num_past_B[:, None] - known, fill=0)[:, 0]
        return self.embedding.embed_spacetime(
            steps.timestamps_BQ[:, 0],
            steps.tz_offsets_BQ[:, 0],
            back - previous,
            num_past_B >= known,
            steps.user_lonlat_BQ2[:, 0],
        )

    def embed_candidates(self, candidates: CandidateBatch) -> Tensor:
        """Embeds the candidates' inner tokens, (B, C, D)."""
        return self.embedding.embed_inners(
            candidates.blocks_BC,
            candidates.inners_BC,
            candidates.categories_BC,
            candidates.lonlat_BC2,
            candidates.vectors_BCM,
        )

    def history_content(self, history: HistoryBatch, inner_BLD: Tensor) -> tuple[Content, Tensor]:
        """Returns the content of all actions' POIs from their embeddings, and which actions are real, (B, L) bool."""
        vectors = self.embedding.look_up_vectors(history.blocks_BL, history.inners_BL, history.vectors_BLM)
        steps = torch.arange(inner_BLD.shape[1], device=inner_BLD.device)
        return Content(inner_BLD, vectors), steps < history.lengths_B[:, None]

    def candidate_content(self, candidates: CandidateBatch, inner_BCD: Tensor) -> Content:
        """Returns the content of the candidates' POIs from their embeddings, (B, C, D)."""
        vectors = self.embedding.look_up_vectors(
            candidates.blocks_BC, candidates.inners_BC, candidates.vectors_BCM
        )
        return Content(inner_BCD, vectors)

    def read_window(
        self,
        history: HistoryBatch,
        spacetime_BLD: Tensor,
        inner_BLD: Tensor,
        index_BW: Tensor,
        wanted_BN: Tensor | None = None,
    ) -> tuple[Tensor, tuple[KeyValues, ...]]:
        """Runs the layers over user tokens and window; returns the window's states, (B, 4 W, D), and keys and values.

        `wanted_BN` (int64, positions among the window's tokens) limits the states to (B, N, D); the last layer then
        skips the rest.
        """
        embedded, positions, mask = self._embed_window(history, spacetime_BLD, inner_BLD, index_BW)
        num_user = embedded.shape[1] - TOKENS_PER_ACTION * index_BW.shape[1]
        if wanted_BN is not None:
            return self.run(embedded, positions, mask, None, wanted_BN + num_user)
        states, layers = self.run(embedded, positions, mask, None)
        return states[:, num_user:], layers

    def remember_window(
        self, history: HistoryBatch, spacetime_BLD: Tensor, inner_BLD: Tensor, index_BW: Tensor
    ) -> tuple[KeyValues, ...]:
        """Returns keys and values of user tokens and window; skips the last layer's states, which are not needed."""
        embedded, positions, mask = self._embed_window(history, spacetime_BLD, inner_BLD, index_BW)
        rotation, x, caches = self._rotate(positions), self.embedding_dropout(embedded), []
        for layer in self.layers[:-1]:
            x, cache = layer(x, rotation, mask)
            caches.append(cache)
        last = self.layers[-1]
        assert isinstance(last, DecoderLayer)
        return (*caches, last.key_values(x, rotation))

    def _embed_window(
        self, history: HistoryBatch, spacetime_BLD: Tensor, inner_BLD: Tensor, index_BW: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the embedded user tokens and window, (B, T, D), their positions, and the mask (None = causal)."""
        user = self.embedding.embed_user(history.profile_ids_BP)
        tokens = [
            take_rows(spacetime_BLD, index_BW),
            self.embedding.embed_actions(history.action_types_BL.gather(1, index_BW)),
            self.embedding.embed_blocks(history.blocks_BL.gather(1, index_BW)),
            take_rows(inner_BLD, index_BW),
        ]
        embedded = torch.cat([user, torch.stack(tokens, dim=2).flatten(1, 2)], dim=1)
        num_user, num_window = user.shape[1], embedded.shape[1] - user.shape[1]
        steps = torch.arange(1, num_window + 1, device=embedded.device)
        positions = torch.cat([steps.new_zeros(num_user), steps])[None]
        mask = None
        if num_user > 1:  # profile tokens are padded in the middle; without them a causal mask is enough
            # Padding of the window is on the right, where causality hides it, so it may count as valid.
            valid = torch.cat([valid_user(history), valid_user(history)[:, :1].expand(-1, num_window)], dim=1)
            mask = build_causal_mask(valid)
        return embedded, positions, mask

    def read_below(
        self, cache: Cache, embedded_BND: Tensor, offsets_N: Tensor, visible_NN: Tensor
    ) -> tuple[Tensor, tuple[KeyValues, ...]]:
        """Runs new tokens on top of a cache, which stays unchanged.

        Args:
            cache: tokens that all new tokens see.
            embedded_BND: float, (B, N, D), the new tokens.
            offsets_N: int64, (N,), their positions, counted from the first free one.
            visible_NN: bool, (N, N), True = the row's token sees the column's.
        """
        mask = build_extension_mask(cache.valid_BT, visible_NN)
        return self.run(embedded_BND, cache.next_positions_B[:, None] + offsets_N, mask, cache.layers)

    def run(
        self,
        embedded: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        past: tuple[KeyValues, ...] | None,
        wanted_BN: Tensor | None = None,
    ) -> tuple[Tensor, tuple[KeyValues, ...]]:
        """Runs tokens, (B, T, D), through the layers; returns normed states, and keys and values of the new tokens.

        With `wanted_BN` only these tokens get states, (B, N, D): no later layer reads the last layer's output of the
        rest.
        """
        rotation, x, caches = self._rotate(positions), self.embedding_dropout(embedded), []
        for number, layer in enumerate(self.layers):
            wanted = wanted_BN if number + 1 == len(self.layers) else None
            x, cache = layer(x, rotation, mask, None if past is None else past[number], wanted)
            caches.append(cache)
        return self.norm(x), tuple(caches)

    def _rotate(self, positions: Tensor) -> Rotation:
        head_dim = self.config.hidden_dim // self.config.num_heads
        return rotate_positions(positions, head_dim=head_dim, theta=self.config.rope_theta)


def _gaps(history: HistoryBatch) -> tuple[Tensor, Tensor]:
    """Returns the time from the previous action to each action, and whether there is a previous one, (B, L) each."""
    num_actions = history.timestamps_BL.shape[1]
    gaps = nn.functional.pad(history.timestamps_BL.diff(dim=1), (1, 0))[:, :num_actions]
    return gaps, (torch.arange(num_actions, device=gaps.device) > 0).expand_as(gaps)


def _shift_right(values_BL: Tensor) -> Tensor:
    """Returns the value of the previous action, (B, L); 0 at the first."""
    return nn.functional.pad(values_BL, (1, 0))[:, : values_BL.shape[1]]
