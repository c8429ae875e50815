"""SpacetimeDecoder: one decoder for next-POI probabilities, generation, ranking and embeddings.

Pre-training learns a distribution over the next POI (paper 3.2): the state at an action token predicts the block, and
the state at a block token predicts the inner id. Training runs over whole windows. Serving encodes the user part once
(`encode_prefix`), adds the request's spacetime and action tokens (`request_state`), and appends blocks or candidates
that do not see each other. Both ways agree to rounding (docs/design.md, trap 4): a step being predicted always sees the
last `window_actions` - 1 actions of its window.

Post-training (paper 3.3) adds click logits of candidates that are isolated from each other, and the two towers.
"""

# Shape letters: B = sequences, L = actions, W = actions of the window, D = model width, V = blocks,
# I = inner ids, C = candidates, K = blocks looked into, Q = steps being predicted, N = POIs, E = width of vectors.

import torch
from torch import Tensor, nn

from conf.tokens import TOKENS_PER_ACTION
from models.config import DecoderConfig
from models.data.batch import (
    CandidateBatch,
    CrowdSlots,
    HistoryBatch,
    RequestBatch,
    Steps,
    mark_first_visits,
    predicting_tokens,
    steps_of,
    target_steps,
    window_index,
)
from models.data.slots import LiveSlots
from models.network.click import ClickHead, gather_evidence
from models.network.copies import CrowdCopy, Sources
from models.network.embedding import Generator, TokenEmbedding
from models.network.history_copy import (
    BLOCK,
    INNER,
    NUM_MEMORY_FEATURES,
    Copies,
    HistoryCopy,
    HistoryMemory,
    Which,
    mix_all,
)
from models.network.interest_match import InterestMatch, match
from models.network.layers import KeyValues, lay_out_candidates, start_weights
from models.network.trunk import (
    Cache,
    CandidateStates,
    Prefix,
    RequestState,
    StepLogProbs,
    TargetStates,
    Trunk,
    keep_last,
    neutral_request,
    past_of,
    request_steps,
    valid_user,
)

REQUEST_TOKENS, CANDIDATE_TOKENS = 2, 2


class SpacetimeDecoder(nn.Module):
    """The model (paper 3.2 and 3.3, docs/design.md 4); some of its parts are optional.

    Attributes:
        trunk: tokens and transformer.
        generator: heads of the next POI.
        history_copy: copies the user's past POIs into the distribution; None = off.
        crowd_copy: copies crowd candidates into the distribution; None = off.
        user_projection, poi_projection: the two towers.
        click: head for the log-odds of a click.
        interest_match: compares candidates with the user's past; None = off.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if not (config.num_blocks and config.max_inner):
            raise ValueError(
                "the configuration has no vocabulary sizes; fill them in with DecoderConfig.with_layout"
            )
        self.config = config
        self.trunk = Trunk(config)
        self.generator = Generator(config)
        self.history_copy = HistoryCopy(config) if config.memory.enabled else None
        self.crowd_copy = CrowdCopy(config) if config.crowd.enabled else None
        self.user_projection = nn.Linear(config.hidden_dim, config.embedding_dim, bias=False)
        self.poi_projection = nn.Linear(config.hidden_dim, config.embedding_dim, bias=False)
        self.click = ClickHead(config)
        self.interest_match = InterestMatch(config) if config.interest_match.enabled else None
        # This initialises every linear map and embedding, so parts with another start are reset after it.
        self.apply(start_weights)
        for part in (self.embedding, self.click, self.interest_match, self.history_copy, self.crowd_copy):
            if part is not None:
                part.reset_start()

    @property
    def embedding(self) -> TokenEmbedding:
        """Input vectors of all tokens; the generator's output vectors too, where they are tied."""
        return self.trunk.embedding

    def set_block_centers(self, block_ids: Tensor, lonlat: Tensor) -> None:
        """Sets block centres: ids (N,) int64 and places (N, 2) in degrees; other blocks keep an unknown place."""
        self.embedding.set_block_centers(block_ids, lonlat)

    def assign_poi_rows(self, slots: LiveSlots) -> None:
        """Assigns the rows of exact POI vectors to blocks by their number of slots; call it before training only."""
        for part in (self.embedding, self.generator):
            part.assign_poi_rows(slots.count_inners())

    # --- training ---------------------------------------------------------------------------------------

    def next_poi_log_probs(self, history: HistoryBatch, live: LiveSlots | None = None) -> StepLogProbs:
        """Returns log P(block) and log P(inner | true block) at every loss target, (B, Q) each.

        Args:
            history: the users' actions; targets in `is_targets_BL` outside the window or in the context do not count.
            live: slots that are live; None = all within the capacities.
        """
        return self.score_targets(self.read_targets(history, live), live)

    def read_targets(self, history: HistoryBatch, live: LiveSlots | None = None) -> TargetStates:
        """Reads the windows once and returns what predicts each loss target; arguments as `next_poi_log_probs`."""
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
        # Ids that are not targets become 0, which every gather can take; their values are masked at the end.
        blocks_BQ, inners_BQ = blocks_BQ * is_target_BQ, inners_BQ * is_target_BQ
        steps = steps_of(history, index_BQ, hide_time=self.config.hide_request_time)
        # `spacetime`, not `shown`: a past action's time is known even where that of a request is hidden.
        memory = (
            None
            if self.history_copy is None
            else self.history_copy.remember(past_of(history), spacetime, inner)
        )
        slots = None if history.crowd is None else history.crowd.take_steps(window_BQ)
        sources = self._look_up(memory, history, steps, slots, live)
        return TargetStates(
            history, inner, index_BQ, blocks_BQ, inners_BQ, is_target_BQ, at_action, at_block, sources
        )

    def score_targets(self, targets: TargetStates, live: LiveSlots | None = None) -> StepLogProbs:
        """Returns log P(block) and log P(inner | true block) of what `read_targets` has read."""
        blocks_BQ, inners_BQ, is_target_BQ = targets.blocks_BQ, targets.inners_BQ, targets.is_target_BQ
        log_blocks = self.generator.block_log_probs(targets.at_action_BQD, self.embedding, live)
        log_block = log_blocks.gather(2, blocks_BQ[..., None])[..., 0]
        real = is_target_BQ.nonzero(as_tuple=True)
        chosen = self.generator.target_log_probs(
            targets.at_block_BQD[real], blocks_BQ[real], inners_BQ[real], self.embedding, live
        )
        log_inner = torch.zeros_like(log_block).index_put(real, chosen)
        copies = self._copies(BLOCK, targets.at_action_BQD, targets.sources)
        if copies is not None:
            log_block = copies.mix_target(log_block, copies.blocks_BQX == blocks_BQ[..., None])
        copies = self._copies(INNER, targets.at_block_BQD, targets.sources)
        if copies is not None:
            same_inner = copies.inners_BQX == inners_BQ[..., None]
            log_inner = copies.inside(blocks_BQ).mix_target(log_inner, same_inner)
        among_new, crowd = None, targets.sources.slots
        if self.crowd_copy is not None and crowd is not None and self.training:
            states = targets.at_action_BQD, targets.at_block_BQD
            among_new = self.crowd_copy.log_probs_among_new(states, crowd, blocks_BQ, inners_BQ)
            among_new = among_new.masked_fill(~is_target_BQ, 0.0)
        is_padding = ~is_target_BQ
        return StepLogProbs(
            log_block.masked_fill(is_padding, 0.0),
            log_inner.masked_fill(is_padding, 0.0),
            is_target_BQ,
            among_new,
        )

    def user_vectors(self, targets: TargetStates) -> Tensor:
        """Returns unit vectors of the user tower at every loss target, from what lies before it, (B, Q, E)."""
        interest = None
        if self.interest_match is not None:
            content, is_real_BL = self.trunk.history_content(targets.history, targets.inner_BLD)
            places = torch.arange(is_real_BL.shape[1], device=is_real_BL.device)
            is_past_BQL = is_real_BL[:, None] & (places < targets.index_BQ[..., None])
            interest = self.interest_match.read_pasts(content, is_past_BQL)
        return self._user_vectors(targets.at_action_BQD, targets.sources, interest)

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
        memory = (
            None
            if self.history_copy is None
            else self.history_copy.remember(past_of(history), spacetime, inner)
        )
        cache = Cache(layers, valid_BT, next_positions_B)
        return Prefix(cache, history, memory, *self._read_interest(history, inner))

    def request_state(
        self, prefix: Prefix, request: RequestBatch | None, live: LiveSlots | None = None
    ) -> RequestState:
        """Reads the request's spacetime and action tokens; `request` None = no request (neutral tokens)."""
        request_B2D, sources = self._ask(prefix, request, live)
        states, new = self._read_request(prefix, request_B2D)
        return RequestState(prefix.cache.grow(new), states[:, -1], *sources, live)

    def block_log_probs(self, state: RequestState) -> Tensor:
        """Returns log P(block), (B, V)."""
        return self._block_log_probs(state.state_BD, state.sources, state.live)

    def inner_log_probs(self, state: RequestState, blocks_BK: Tensor) -> Tensor:
        """Returns log P(inner | block) for some blocks, independent of each other, (B, K) -> (B, K, I)."""
        states_BKD = self.look_into(state, blocks_BK)
        log_probs = self.generator.inner_log_probs(states_BKD, blocks_BK, self.embedding, state.live)
        copies = self._copies(INNER, states_BKD, state.sources)
        if copies is None:
            return log_probs
        return mix_all(log_probs, copies.inside(blocks_BK).scores_BQX, copies.inners_BQX)

    def poi_log_probs(self, state: RequestState, blocks_BC: Tensor, inners_BC: Tensor) -> Tensor:
        """Returns log P(POI), (B, C); -inf where a POI is newer than the model or not live."""
        fits = self._has_token(blocks_BC, inners_BC, state.live)
        at_block = self.look_into(state, blocks_BC * fits)
        parts = self._poi_log_probs(state.state_BD, at_block, blocks_BC, inners_BC, state.sources, state.live)
        return parts[0] + parts[1]

    # --- shared -----------------------------------------------------------------------------------------

    def _read_interest(self, history: HistoryBatch, inner_BLD: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the user's sides of the interest match, over the past and over its distinct POIs, (B, 2, E) each."""
        if self.interest_match is None:
            return None, None
        content, is_real_BL = self.trunk.history_content(history, inner_BLD)
        interest = self.interest_match.read_past(content, is_real_BL)
        if not self.config.interest_match.distinct:
            return interest, None
        return interest, self.interest_match.sum_distinct(content, mark_first_visits(history))

    def _block_log_probs(self, state_BD: Tensor, sources: Sources, live: LiveSlots | None) -> Tensor:
        log_probs = self.generator.block_log_probs(state_BD, self.embedding, live)
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
        """Returns log P(block) and log P(inner | block), (B, C) each, from states at action and block tokens."""
        fits = self._has_token(blocks_BC, inners_BC, live)
        blocks, inners = blocks_BC * fits, inners_BC * fits
        log_block = self._block_log_probs(at_action_BD, sources, live).gather(1, blocks)
        log_inner = self.generator.target_log_probs(
            at_block_BCD.flatten(0, 1), blocks.flatten(), inners.flatten(), self.embedding, live
        ).view_as(log_block)
        copies = self._copies(INNER, at_block_BCD, sources)
        if copies is not None:
            log_inner = copies.inside(blocks).mix_target(log_inner, copies.inners_BQX == inners[..., None])
        return log_block.masked_fill(~fits, -torch.inf), log_inner.masked_fill(~fits, -torch.inf)

    def _ask(
        self, prefix: Prefix, request: RequestBatch | None, live: LiveSlots | None = None
    ) -> tuple[Tensor, Sources]:
        """Embeds the request's tokens, (B, 2, D), and looks up the sources that it can copy from."""
        history = prefix.history
        request = request if request is not None else neutral_request(history)
        neutral_B = request.is_neutral_B
        steps = request_steps(history, request, hide_time=self.config.hide_request_time)
        request_tokens = (
            self.trunk.embed_request(history, steps),
            self.embedding.embed_actions(request.action_types_B),
        )
        nothing = self.embedding.embed_no_request(neutral_B.shape)
        tokens = [
            torch.where(neutral_B[:, None], none, token)
            for none, token in zip(nothing, request_tokens, strict=True)
        ]
        return torch.stack(tokens, 1), self._look_up(prefix.memory, history, steps, request.crowd, live)

    def _read_request(self, prefix: Prefix, request_B2D: Tensor) -> tuple[Tensor, tuple[KeyValues, ...]]:
        offsets = torch.arange(REQUEST_TOKENS, device=request_B2D.device)
        return self.trunk.read_below(prefix.cache, request_B2D, offsets, offsets[:, None] >= offsets)

    def _needed(self, history: HistoryBatch) -> HistoryBatch:
        """Cuts the history to what the model reads: all of it with a copy head, else the window and two actions more.

        The window's first gap reaches to the two actions before it.
        """
        is_all = self.history_copy is not None or self.crowd_copy is not None
        return history if is_all else keep_last(history, self.config.window_actions + 2)

    def _has_token(self, block_ids: Tensor, inner_ids: Tensor, live: LiveSlots | None) -> Tensor:
        fits = (block_ids < self.config.num_blocks) & (inner_ids < self.config.max_inner)
        return fits if live is None else fits & live.contains(block_ids, inner_ids)

    def _look_up(
        self,
        memory: HistoryMemory | None,
        history: HistoryBatch,
        steps: Steps,
        slots: CrowdSlots | None,
        live: LiveSlots | None,
    ) -> Sources:
        """Looks up the part of the copies that does not depend on states: the user's past and the crowd candidates."""
        pairs = (
            None
            if self.history_copy is None or memory is None
            else self.history_copy.compare(memory, steps, live)
        )
        if self.crowd_copy is None or slots is None:
            return Sources(memory, pairs, None)
        crowd = self.crowd_copy.look_up(slots, past_of(history), steps, self.embedding, live)
        return Sources(memory, pairs, crowd)

    def _copies(self, which: Which, states_BQD: Tensor, sources: Sources) -> Copies | None:
        return gather_copies(self.history_copy, self.crowd_copy, which, states_BQD, sources)

    def look_into(self, state: RequestState, blocks_BK: Tensor) -> Tensor:
        """Returns the states at block tokens that each follow the request, (B, K, D); blocks do not see each other."""
        # Blocks are alternatives, not a sequence: all stand at the first free position and see only themselves.
        visible_KK = torch.eye(blocks_BK.shape[1], dtype=torch.bool, device=blocks_BK.device)
        offsets = torch.zeros_like(blocks_BK[0])
        embedded = self.embedding.embed_blocks(blocks_BK)
        return self.trunk.read_below(state.cache, embedded, offsets, visible_KK)[0]

    def candidate_states(
        self,
        prefix: Prefix,
        request: RequestBatch | None,
        candidates: CandidateBatch,
        live: LiveSlots | None = None,
    ) -> CandidateStates:
        """Reads each candidate's block and inner tokens after the request, isolated from the other candidates."""
        request_B2D, sources = self._ask(prefix, request, live)
        memory, pairs, _ = sources
        blocks, inners = candidates.blocks_BC, candidates.inners_BC
        tokens = (self.embedding.embed_blocks(blocks), self.trunk.embed_candidates(candidates))
        both_BC2D = torch.stack(tokens, dim=2)
        offsets, mask = lay_out_candidates(
            REQUEST_TOKENS, blocks.shape[1], CANDIDATE_TOKENS, request_B2D.device
        )
        # The request and all its candidates in one pass: the cache is read once and never copied.
        embedded = torch.cat([request_B2D, both_BC2D.flatten(1, 2)], dim=1)
        states, _ = self.trunk.read_below(prefix.cache, embedded, offsets, mask)
        at_block, at_inner = states[:, REQUEST_TOKENS:].view_as(both_BC2D).unbind(2)
        at_action = states[:, REQUEST_TOKENS - 1 : REQUEST_TOKENS]
        features = at_block.new_zeros(*blocks.shape, NUM_MEMORY_FEATURES)
        if self.history_copy is not None and memory is not None and pairs is not None:
            features = self.history_copy.log_shares((at_action, at_block), blocks, inners, memory, pairs)
        if self.interest_match is None or prefix.interest_B2E is None:
            return CandidateStates(at_inner, features)
        log_probs = self._poi_log_probs(at_action[:, 0], at_block, blocks, inners, sources, live)
        interest_BC2E = self.interest_match.read_candidates(
            self.trunk.candidate_content(candidates, tokens[1])
        )
        matches = [match(prefix.interest_B2E, interest_BC2E)]
        if prefix.distinct_B2E is not None:
            matches.append(match(prefix.distinct_B2E, interest_BC2E))
        if self.config.interest_match.towers:
            users_B1E = self._user_vectors(at_action, sources, prefix.interest_B2E[:, None])
            matches.append((users_B1E * self.poi_state(candidates)).sum(dim=-1, keepdim=True))
        return CandidateStates(at_inner, features, gather_evidence(*log_probs, matches, self.config))

    def click_logits(self, candidates: CandidateStates) -> Tensor:
        """Returns log-odds of a click, (B, C)."""
        logits: Tensor = self.click(candidates)
        return logits

    def user_state(self, prefix: Prefix, request: RequestBatch | None = None) -> Tensor:
        """Returns unit vectors of the user tower, (B, embedding_dim); `request` None = as of the last action."""
        request_B2D, sources = self._ask(prefix, request)
        at_action = self._read_request(prefix, request_B2D)[0][:, -1:]
        interest = None if prefix.interest_B2E is None else prefix.interest_B2E[:, None]
        return self._user_vectors(at_action, sources, interest)[:, 0]

    def _user_vectors(self, at_action_BQD: Tensor, sources: Sources, interest_BQ2E: Tensor | None) -> Tensor:
        """Returns unit vectors of the user tower, (B, Q, E), from states at action tokens."""
        memory, pairs, _ = sources
        pooled = at_action_BQD
        if self.history_copy is not None and memory is not None and pairs is not None:
            scores = self.history_copy.score(BLOCK, at_action_BQD, memory, pairs)
            pooled = pooled + self.history_copy.pool(scores, memory)
        vectors = self.user_projection(pooled)
        if interest_BQ2E is not None:
            vectors = vectors + interest_BQ2E.sum(dim=2)
        return nn.functional.normalize(vectors.float(), dim=-1)

    def poi_state(self, candidates: CandidateBatch) -> Tensor:
        """Returns unit vectors of the POI tower, (B, C, embedding_dim), from the POIs' tokens alone."""
        blocks, inners = (
            self.embedding.embed_blocks(candidates.blocks_BC),
            self.trunk.embed_candidates(candidates),
        )
        # One sequence per POI: its vector must not depend on the rest of the batch.
        x_NTD = torch.stack([blocks, inners], dim=2).flatten(0, 1)
        states, _ = self.trunk.run(
            x_NTD, torch.arange(CANDIDATE_TOKENS, device=x_NTD.device)[None], None, None
        )
        vectors = self.poi_projection(states[:, -1]).view(*candidates.blocks_BC.shape, -1)
        if self.interest_match is not None:
            interest_BC2E = self.interest_match.read_candidates(
                self.trunk.candidate_content(candidates, inners)
            )
            vectors = vectors + interest_BC2E.sum(dim=2)
        return nn.functional.normalize(vectors.float(), dim=-1)


def gather_copies(
    history_copy: HistoryCopy | None,
    crowd_copy: CrowdCopy | None,
    which: Which,
    states_BQD: Tensor,
    sources: Sources,
) -> Copies | None:
    """Scores all copies of the steps; returns None if there is no source of copies."""
    (B, Q, _), (memory, pairs, crowd) = states_BQD.shape, sources
    parts: list[Copies] = []
    if history_copy is not None and memory is not None and pairs is not None:
        blocks, inners = (
            ids[:, None].expand(B, Q, -1) for ids in (memory.past.blocks_BL, memory.past.inners_BL)
        )
        parts.append(Copies(history_copy.score(which, states_BQD, memory, pairs), blocks, inners))
    if crowd_copy is not None and crowd is not None:
        blocks, inners = (ids.expand(B, Q, -1) for ids in (crowd.blocks_BQC, crowd.inners_BQC))
        parts.append(Copies(crowd_copy.score(which, states_BQD, crowd), blocks, inners))
    if len(parts) < 2:
        return parts[0] if parts else None
    return Copies(*(torch.cat(fields, dim=-1) for fields in zip(*parts, strict=True)))
