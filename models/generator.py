"""Output heads of the generator: hidden states -> log P(block) and log P(inner | block), before any memory.

Output vectors are the input vectors (`tie_embeddings`), or tables of their own. An inner id's vector is the
shared one plus the POI's own, where the model has POI vectors.
"""

# Shape letters: N = steps (any leading shape), D = model width, V = blocks, I = inner ids of a block.

import torch
from torch import Tensor, nn

from conf.tokens import NUM_SPECIAL
from models.config import DecoderConfig
from models.embedding import PoiVectors, TokenEmbedding
from models.slots import LiveSlots


class Generator(nn.Module):
    """The two softmax heads; both give no probability to slots that are not live."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.is_tied = config.tie_embeddings
        if not self.is_tied:
            self.blocks = nn.Linear(config.hidden_dim, config.num_blocks, bias=False)
            self.inners = nn.Linear(config.hidden_dim, config.max_inner, bias=False)
            self.poi_vectors = None if config.poi_vectors == "off" else PoiVectors(config)

    def block_log_probs(self, states: Tensor, embedding: TokenEmbedding, live: LiveSlots | None) -> Tensor:
        """Returns log P(block), (..., D) -> (..., V), float32."""
        weight = embedding.blocks.weight[NUM_SPECIAL:] if self.is_tied else self.blocks.weight
        logits = (states @ weight.to(states.dtype).T).float()
        if live is not None:
            logits = logits.masked_fill(~live.mask_blocks(), -torch.inf)
        return logits.log_softmax(dim=-1)

    def inner_log_probs(
        self, states: Tensor, block_ids: Tensor, embedding: TokenEmbedding, live: LiveSlots | None
    ) -> Tensor:
        """Returns log P(inner | block), (..., D) and (...) -> (..., I), float32.

        In a block without a live slot every inner id has log probability -inf.
        """
        weight = embedding.inners.weight[NUM_SPECIAL:] if self.is_tied else self.inners.weight
        poi_vectors = embedding.poi_vectors if self.is_tied else self.poi_vectors
        logits = (states @ weight.to(states.dtype).T).float()
        if poi_vectors is not None:
            flat = self._poi_logits(states.reshape(-1, states.shape[-1]), block_ids.reshape(-1), poi_vectors)
            logits = logits + flat.view_as(logits)
        if live is None:
            return logits.log_softmax(dim=-1)
        is_live = live.mask_inners(block_ids)
        is_empty = ~is_live.any(dim=-1, keepdim=True)
        log_probs = logits.masked_fill(~is_live & ~is_empty, -torch.inf).log_softmax(dim=-1)
        return log_probs.masked_fill(is_empty, -torch.inf)

    def _poi_logits(self, states_ND: Tensor, blocks_N: Tensor, poi_vectors: PoiVectors) -> Tensor:
        """Multiplies each state with the POI vectors of its block, one product per distinct block; (N, I)."""
        order = torch.argsort(blocks_N, stable=True)
        blocks, counts = torch.unique_consecutive(blocks_N[order], return_counts=True)
        inners_I = torch.arange(self.config.max_inner, device=states_ND.device)
        products = []
        for block, states in zip(blocks, states_ND[order].split(counts.tolist()), strict=True):
            vectors_ID = poi_vectors(block.expand_as(inners_I), inners_I)
            products.append(states @ vectors_ID.to(states.dtype).T)
        if not products:
            return states_ND.new_zeros(0, self.config.max_inner, dtype=torch.float32)
        return torch.cat(products).float()[torch.argsort(order)]
