"""SpacetimeDecoder: one decoder for next-POI probabilities, generation, ranking and embeddings.

Generation is `GenerativeDecoder`; here are the heads of post-training (paper 3.3): candidates hung below a request and
isolated from each other, their click logits, and the two towers.
"""

# Shape letters: B = sequences, L = actions, D = model width, C = candidates, N = POIs, E = width of vectors.

import torch
from torch import Tensor, nn

from models.config import DecoderConfig
from models.data.batch import CandidateBatch, HistoryBatch, RequestBatch
from models.data.live_slots import LiveSlots
from models.network.click import ClickHead, gather_evidence
from models.network.generative import REQUEST_TOKENS, GenerativeDecoder
from models.network.history_copy import BLOCK, NUM_MEMORY_FEATURES
from models.network.interest_match import TasteMatch, match
from models.network.layers import start_weights
from models.network.masks import lay_out_candidates
from models.network.states import CandidateStates, Prefix

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
