"""SpacetimeDecoder: one decoder for next-POI probabilities, generation, ranking and embeddings.

Generation is `GenerativeDecoder`; here are the heads of post-training (paper 3.3): candidates hung below a request and
isolated from each other, their click logits, and the two towers.

GenerativeDecoder: the decoder as a distribution over the next POI, which is what pre-training learns (paper 3.2).

The state at an action token predicts the block, the state at a block token the inner id. Training runs over
whole windows; serving encodes the user part once (`encode_prefix`), adds the request's spacetime and action
tokens (`request_state`), and hangs blocks or candidates below it, each for itself. Both ways agree to rounding
(docs/design.md, trap 4): a step being predicted always sees the last `window_actions` - 1 actions of its window.
"""

# Shape letters: B = sequences, L = actions, D = model width, C = candidates, N = POIs, E = width of vectors.
# Shape letters: B = sequences, L = actions, W = actions of the window, D = model width, V = blocks,
# I = inner ids, C = candidates, K = blocks looked into, Q = steps being predicted.

import torch
from torch import Tensor, nn

from conf.tokens import TOKENS_PER_ACTION
from models.config import DecoderConfig
from models.data.batch import (
    CandidateBatch,
    HistoryBatch,
    OtherSlots,
    RequestBatch,
    Steps,
    predicting_tokens,
    steps_of,
    target_steps,
    window_index,
)
from models.data.slots import LiveSlots
from models.network.click import ClickHead, gather_evidence
from models.network.copies import OthersMemory, Sources
from models.network.embedding import Generator
from models.network.history_copy import (
    BLOCK,
    INNER,
    NUM_MEMORY_FEATURES,
    Bank,
    Copies,
    PlaceMemory,
    Which,
    mix_all,
)
from models.network.interest_match import TasteMatch, match
from models.network.layers import KeyValues, lay_out_candidates, start_weights
from models.network.trunk import (
    Cache,
    CandidateStates,
    Prefix,
    RequestState,
    StepLogProbs,
    Trunk,
    keep_last,
    neutral_request,
    past_of,
    request_steps,
    valid_user,
)

REQUEST_TOKENS = 2


class GenerativeDecoder(nn.Module):
    """Trunk, generator and memories: log P(block) and log P(inner | block)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if not (config.num_blocks and config.max_inner):
            raise ValueError(
                "the configuration has no vocabulary sizes; fill them in with DecoderConfig.with_layout"
            )
        self.config = config
        self.trunk = Trunk(config)
        self.generator = Generator(config)
        self.memory = PlaceMemory(config) if config.memory.enabled else None
        self.others = OthersMemory(config) if config.others.enabled else None

    def set_block_centers(self, block_ids: Tensor, lonlat: Tensor) -> None:
        """Tells where blocks lie, (N,) and (N, 2) degrees; blocks not told of have an unknown place."""
        self.trunk.embedding.set_block_centers(block_ids, lonlat)

    def assign_poi_rows(self, slots: LiveSlots) -> None:
        """Shares the rows of exact POI vectors out to blocks by their slots; before training only."""
        for vectors in (self.trunk.embedding.poi_vectors, getattr(self.generator, "poi_vectors", None)):
            if vectors is not None:
                vectors.assign_rows(slots.count_inners())

    # --- training ---------------------------------------------------------------------------------------

    def next_poi_log_probs(self, history: HistoryBatch, live: LiveSlots | None = None) -> StepLogProbs:
        """Returns log P(block) and log P(inner | true block) at every loss target.

        Args:
            history: with `is_targets_BL`; targets outside the window or among the context do not count.
            live: slots that exist; None = all within the capacities.
        """
        history = self._needed(history)
        spacetime, inner = self.trunk.embed_history(history)
        index_BW, window_BQ, is_target_BQ = target_steps(history, self.config.window_actions)
        shown = self.trunk.embed_requests(history, spacetime)
        predicting = predicting_tokens(window_BQ)
        states, _ = self.trunk.read_window(history, shown, inner, index_BW, predicting)
        at_action, at_block = states.chunk(2, dim=1)
        index_BQ = index_BW.gather(1, window_BQ)
        blocks_BQ, inners_BQ = history.blocks_BL.gather(1, index_BQ), history.inners_BL.gather(1, index_BQ)
        # A target newer than the model, or not live, has no token: it cannot be learned.
        is_target_BQ = is_target_BQ & self._has_token(blocks_BQ, inners_BQ, live)
        # Ids that are not targets become 0, which every gather can take; what it finds is masked at the end.
        blocks_BQ, inners_BQ = blocks_BQ * is_target_BQ, inners_BQ * is_target_BQ
        embedding = self.trunk.embedding
        log_blocks = self.generator.block_log_probs(at_action, embedding, live)
        log_block = log_blocks.gather(2, blocks_BQ[..., None])[..., 0]
        targets = is_target_BQ.nonzero(as_tuple=True)
        chosen = self.generator.target_log_probs(
            at_block[targets], blocks_BQ[targets], inners_BQ[targets], embedding, live
        )
        log_inner = torch.zeros_like(log_block).index_put(targets, chosen)
        steps = steps_of(history, index_BQ, hide_time=self.config.hide_request_time)
        # `spacetime`, not `shown`: a past action's time is known even where that of a request is hidden.
        bank = None if self.memory is None else self.memory.remember(past_of(history), spacetime, inner)
        slots = None if history.others is None else history.others.take_steps(window_BQ)
        sources = self._look_up(bank, history, steps, slots, live)
        copies = self._copies(BLOCK, at_action, sources)
        if copies is not None:
            log_block = copies.mix_target(log_block, copies.blocks_BQX == blocks_BQ[..., None])
        copies = self._copies(INNER, at_block, sources)
        if copies is not None:
            same_inner = copies.inners_BQX == inners_BQ[..., None]
            log_inner = copies.inside(blocks_BQ).mix_target(log_inner, same_inner)
        is_padding = ~is_target_BQ
        return StepLogProbs(
            log_block.masked_fill(is_padding, 0.0), log_inner.masked_fill(is_padding, 0.0), is_target_BQ
        )

    # --- serving ----------------------------------------------------------------------------------------

    def encode_prefix(self, history: HistoryBatch) -> Prefix:
        """Reads the user part: user and profile tokens, and the last `window_actions` - 1 actions."""
        history = self._needed(history)
        spacetime, inner = self.trunk.embed_history(history)
        # In training the action being predicted takes the window's last place, so here there is one less.
        index_BW, valid_BW = window_index(
            history.lengths_B, history.timestamps_BL.shape[1], self.config.window_actions - 1
        )
        shown = self.trunk.embed_requests(history, spacetime)
        layers = self.trunk.remember_window(history, shown, inner, index_BW)
        valid_BT = torch.cat(
            [valid_user(history), valid_BW.repeat_interleave(TOKENS_PER_ACTION, dim=1)], dim=1
        )
        # Padding takes no positions: the request goes on where it would in a training window (trap 4).
        next_positions_B = 1 + TOKENS_PER_ACTION * valid_BW.sum(dim=1)
        bank = None if self.memory is None else self.memory.remember(past_of(history), spacetime, inner)
        cache = Cache(layers, valid_BT, next_positions_B)
        return Prefix(cache, history, bank, self._read_taste(history, inner))

    def request_state(
        self, prefix: Prefix, request: RequestBatch | None, live: LiveSlots | None = None
    ) -> RequestState:
        """Reads the request's spacetime and action tokens; None = nothing was asked (neutral tokens)."""
        asked_B2D, sources = self._ask(prefix, request, live)
        states, new = self._read_request(prefix, asked_B2D)
        return RequestState(prefix.cache.grow(new), states[:, -1], *sources, live)

    def block_log_probs(self, state: RequestState) -> Tensor:
        """Returns log P(block), (B, V)."""
        return self._block_log_probs(state.state_BD, state.sources, state.live)

    def inner_log_probs(self, state: RequestState, blocks_BK: Tensor) -> Tensor:
        """Returns log P(inner | block) for some blocks, each looked into for itself, (B, K) -> (B, K, I)."""
        states_BKD = self.look_into(state, blocks_BK)
        log_probs = self.generator.inner_log_probs(states_BKD, blocks_BK, self.trunk.embedding, state.live)
        copies = self._copies(INNER, states_BKD, state.sources)
        if copies is None:
            return log_probs
        return mix_all(log_probs, copies.inside(blocks_BK).scores_BQX, copies.inners_BQX)

    def poi_log_probs(self, state: RequestState, blocks_BC: Tensor, inners_BC: Tensor) -> Tensor:
        """Returns log P(POI) of given POIs, (B, C); -inf where a POI is newer than the model or not live."""
        fits = self._has_token(blocks_BC, inners_BC, state.live)
        at_block = self.look_into(state, blocks_BC * fits)
        found = self._poi_log_probs(state.state_BD, at_block, blocks_BC, inners_BC, state.sources, state.live)
        return found[0] + found[1]

    # --- shared -----------------------------------------------------------------------------------------

    def _read_taste(self, history: HistoryBatch, inner_BLD: Tensor) -> Tensor | None:
        """What heads want to know of the whole past; generation wants nothing."""
        return None

    def _block_log_probs(self, state_BD: Tensor, sources: Sources, live: LiveSlots | None) -> Tensor:
        log_probs = self.generator.block_log_probs(state_BD, self.trunk.embedding, live)
        copies = self._copies(BLOCK, state_BD[:, None], sources)
        if copies is None:
            return log_probs
        return mix_all(log_probs[:, None], copies.scores_BQX, copies.blocks_BQX)[:, 0]

    def _poi_log_probs(
        self,
        at_action_BD: Tensor,
        at_block_BCD: Tensor,
        blocks_BC: Tensor,
        inners_BC: Tensor,
        sources: Sources,
        live: LiveSlots | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns log P(block) and log P(inner | block) of POIs whose block tokens were read, (B, C) each."""
        fits = self._has_token(blocks_BC, inners_BC, live)
        blocks, inners = blocks_BC * fits, inners_BC * fits
        log_block = self._block_log_probs(at_action_BD, sources, live).gather(1, blocks)
        log_inner = self.generator.target_log_probs(
            at_block_BCD.flatten(0, 1), blocks.flatten(), inners.flatten(), self.trunk.embedding, live
        ).view_as(log_block)
        copies = self._copies(INNER, at_block_BCD, sources)
        if copies is not None:
            log_inner = copies.inside(blocks).mix_target(log_inner, copies.inners_BQX == inners[..., None])
        return log_block.masked_fill(~fits, -torch.inf), log_inner.masked_fill(~fits, -torch.inf)

    def _ask(
        self, prefix: Prefix, request: RequestBatch | None, live: LiveSlots | None = None
    ) -> tuple[Tensor, Sources]:
        """Embeds the request's tokens, (B, 2, D), and looks up what can be copied for it."""
        history = prefix.history
        request = request if request is not None else neutral_request(history)
        neutral_B = request.is_neutral_B
        steps = request_steps(history, request, hide_time=self.config.hide_request_time)
        asked = (
            self.trunk.embed_request(history, steps),
            self.trunk.embedding.embed_actions(request.action_types_B),
        )
        nothing = self.trunk.embedding.embed_no_request(neutral_B.shape)
        tokens = [
            torch.where(neutral_B[:, None], none, own) for none, own in zip(nothing, asked, strict=True)
        ]
        return torch.stack(tokens, 1), self._look_up(prefix.bank, history, steps, request.others, live)

    def _read_request(self, prefix: Prefix, asked_B2D: Tensor) -> tuple[Tensor, tuple[KeyValues, ...]]:
        offsets = torch.arange(REQUEST_TOKENS, device=asked_B2D.device)
        return self.trunk.read_below(prefix.cache, asked_B2D, offsets, offsets[:, None] >= offsets)

    def _needed(self, history: HistoryBatch) -> HistoryBatch:
        """Without a memory nothing reads beyond the window and the two actions that its first gap reaches to."""
        is_all = self.memory is not None or self.others is not None
        return history if is_all else keep_last(history, self.config.window_actions + 2)

    def _has_token(self, block_ids: Tensor, inner_ids: Tensor, live: LiveSlots | None) -> Tensor:
        fits = (block_ids < self.config.num_blocks) & (inner_ids < self.config.max_inner)
        return fits if live is None else fits & live.contains(block_ids, inner_ids)

    def _look_up(
        self,
        bank: Bank | None,
        history: HistoryBatch,
        steps: Steps,
        slots: OtherSlots | None,
        live: LiveSlots | None,
    ) -> Sources:
        """Looks up what does not depend on states: the own past, and the slots of others."""
        pairs = None if self.memory is None or bank is None else self.memory.compare(bank, steps, live)
        if self.others is None or slots is None:
            return Sources(bank, pairs, None)
        found = self.others.look_up(slots, past_of(history), steps, self.trunk.embedding, live)
        return Sources(bank, pairs, found)

    def _copies(self, which: Which, states_BQD: Tensor, sources: Sources) -> Copies | None:
        return gather_copies(self.memory, self.others, which, states_BQD, sources)

    def look_into(self, state: RequestState, blocks_BK: Tensor) -> Tensor:
        """Returns the states at block tokens hung below the request, each for itself, (B, K, D)."""
        # Blocks are alternatives, no sequence: all stand at the first free position and see only themselves.
        own_KK = torch.eye(blocks_BK.shape[1], dtype=torch.bool, device=blocks_BK.device)
        offsets = torch.zeros_like(blocks_BK[0])
        embedded = self.trunk.embedding.embed_blocks(blocks_BK)
        return self.trunk.read_below(state.cache, embedded, offsets, own_KK)[0]


CANDIDATE_TOKENS = 2


class SpacetimeDecoder(GenerativeDecoder):
    """The model (paper 3.2 and 3.3, docs/design.md 4)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        D = config.hidden_dim
        self.user_projection = nn.Linear(D, config.embedding_dim, bias=False)
        self.poi_projection = nn.Linear(D, config.embedding_dim, bias=False)
        self.click = ClickHead(config)
        self.taste = TasteMatch(config) if config.taste.enabled else None
        # This starts every linear map and embedding, so those that start otherwise are set after it.
        self.apply(start_weights)
        self.trunk.embedding.start_places()
        self.click.reset_start()
        if self.taste is not None:
            self.taste.reset_start()
        if self.memory is not None:
            self.memory.reset_gates()
        if self.others is not None:
            self.others.reset_start()

    @property
    def rate_scales(self) -> dict[str, float]:
        """Modules and parameters, by their names, whose learning rate is scaled; only those that the model has."""
        scales = {}
        if self.config.place_std:
            scales["trunk.embedding.geo.fourier"] = self.trunk.embedding.geo.wave_rate
        small, large = self.config.memory.table_rate, self.config.memory.large_table_rate
        if self.memory is not None:
            scales |= {"memory.small": small, "memory.large": large}
            if self.memory.routines is not None:
                scales["memory.routines"] = small
        if self.others is not None:
            scales |= {"others.small": small, "others.large": large, "others.poi": large}
        if self.taste is not None:
            scales |= {"click.evidence": self.config.taste.head_rate, "taste": self.config.taste.match_rate}
        return scales

    def candidate_states(
        self,
        prefix: Prefix,
        request: RequestBatch | None,
        candidates: CandidateBatch,
        live: LiveSlots | None = None,
    ) -> CandidateStates:
        """Reads each candidate's block and inner tokens below the request, isolated from the others."""
        asked_B2D, sources = self._ask(prefix, request, live)
        bank, pairs, _ = sources
        blocks, inners = candidates.blocks_BC, candidates.inners_BC
        own = (self.trunk.embedding.embed_blocks(blocks), self.trunk.embed_candidates(candidates))
        both_BC2D = torch.stack(own, dim=2)
        offsets, mask = lay_out_candidates(
            REQUEST_TOKENS, blocks.shape[1], CANDIDATE_TOKENS, asked_B2D.device
        )
        # The request and all its candidates in one pass: the cache is read once and never copied.
        embedded = torch.cat([asked_B2D, both_BC2D.flatten(1, 2)], dim=1)
        states, _ = self.trunk.read_below(prefix.cache, embedded, offsets, mask)
        at_block, at_inner = states[:, REQUEST_TOKENS:].view_as(both_BC2D).unbind(2)
        at_action = states[:, REQUEST_TOKENS - 1 : REQUEST_TOKENS]
        features = at_block.new_zeros(*blocks.shape, NUM_MEMORY_FEATURES)
        if self.memory is not None and bank is not None and pairs is not None:
            features = self.memory.log_shares((at_action, at_block), blocks, inners, bank, pairs)
        if self.taste is None or prefix.taste_B2E is None:
            return CandidateStates(at_inner, features)
        log_probs = self._poi_log_probs(at_action[:, 0], at_block, blocks, inners, sources, live)
        taste_BC2E = self.taste.read_candidates(self.trunk.candidate_content(candidates, own[1]))
        return CandidateStates(
            at_inner, features, gather_evidence(*log_probs, match(prefix.taste_B2E, taste_BC2E), self.config)
        )

    def click_logits(self, candidates: CandidateStates) -> Tensor:
        """Returns log-odds of a click, (B, C)."""
        logits: Tensor = self.click(candidates)
        return logits

    def user_state(self, prefix: Prefix, request: RequestBatch | None = None) -> Tensor:
        """Returns unit vectors of the user tower, (B, embedding_dim); None = as of the last action."""
        asked_B2D, (bank, pairs, _) = self._ask(prefix, request)
        at_action = self._read_request(prefix, asked_B2D)[0][:, -1:]
        pooled = at_action
        if self.memory is not None and bank is not None and pairs is not None:
            scores = self.memory.score(BLOCK, at_action, bank, pairs)
            pooled = pooled + self.memory.pool(scores, bank)
        vectors = self.user_projection(pooled[:, 0])
        if prefix.taste_B2E is not None:
            vectors = vectors + prefix.taste_B2E.sum(dim=1)
        return nn.functional.normalize(vectors.float(), dim=-1)

    def poi_state(self, candidates: CandidateBatch) -> Tensor:
        """Returns unit vectors of the POI tower, (B, C, embedding_dim), from the POIs' tokens alone."""
        blocks, inners = (
            self.trunk.embedding.embed_blocks(candidates.blocks_BC),
            self.trunk.embed_candidates(candidates),
        )
        # One sequence per POI: its vector must not depend on which others are in the batch.
        x_NTD = torch.stack([blocks, inners], dim=2).flatten(0, 1)
        states, _ = self.trunk.run(
            x_NTD, torch.arange(CANDIDATE_TOKENS, device=x_NTD.device)[None], None, None
        )
        vectors = self.poi_projection(states[:, -1]).view(*candidates.blocks_BC.shape, -1)
        if self.taste is not None:
            taste_BC2E = self.taste.read_candidates(self.trunk.candidate_content(candidates, inners))
            vectors = vectors + taste_BC2E.sum(dim=2)
        return nn.functional.normalize(vectors.float(), dim=-1)

    def _read_taste(self, history: HistoryBatch, inner_BLD: Tensor) -> Tensor | None:
        if self.taste is None:
            return None
        return self.taste.read_past(*self.trunk.history_content(history, inner_BLD))


def gather_copies(
    memory: PlaceMemory | None,
    others: OthersMemory | None,
    which: Which,
    states_BQD: Tensor,
    sources: Sources,
) -> Copies | None:
    """Scores everything that may be copied; None if there is no source of copies."""
    (B, Q, _), (bank, pairs, slots) = states_BQD.shape, sources
    parts: list[Copies] = []
    if memory is not None and bank is not None and pairs is not None:
        blocks, inners = (ids[:, None].expand(B, Q, -1) for ids in (bank.past.blocks_BL, bank.past.inners_BL))
        parts.append(Copies(memory.score(which, states_BQD, bank, pairs), blocks, inners))
    if others is not None and slots is not None:
        blocks, inners = (ids.expand(B, Q, -1) for ids in (slots.blocks_BQC, slots.inners_BQC))
        parts.append(Copies(others.score(which, states_BQD, slots), blocks, inners))
    if len(parts) < 2:
        return parts[0] if parts else None
    return Copies(*(torch.cat(fields, dim=-1) for fields in zip(*parts, strict=True)))
