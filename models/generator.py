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
        max_inner = self.config.max_inner
        order, parts = self._each_block(states.flatten(0, -2), block_ids.flatten(), embedding, live)
        whole = [nn.functional.pad(part, (0, max_inner - part.shape[1]), value=-torch.inf) for part in parts]
        log_probs = torch.cat([states.new_zeros(0, max_inner, dtype=torch.float32), *whole])
        return log_probs[torch.argsort(order)].view(*block_ids.shape, max_inner)

    def target_log_probs(
        self,
        states_ND: Tensor,
        blocks_N: Tensor,
        inners_N: Tensor,
        embedding: TokenEmbedding,
        live: LiveSlots | None,
    ) -> Tensor:
        """Returns log P(inner | block) of one live slot per state, (N,): never holds (N, I) at once."""
        order, parts = self._each_block(states_ND, blocks_N, embedding, live)
        inners = inners_N[order].split([len(part) for part in parts])
        chosen = [part.gather(1, inner[:, None])[:, 0] for part, inner in zip(parts, inners, strict=True)]
        return torch.cat([states_ND.new_zeros(0, dtype=torch.float32), *chosen])[torch.argsort(order)]

    def _each_block(
        self, states_ND: Tensor, blocks_N: Tensor, embedding: TokenEmbedding, live: LiveSlots | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Sorts states by block and returns the order and each block's log probabilities, (n, inner ids)."""
        weight = embedding.inners.weight[NUM_SPECIAL:] if self.is_tied else self.inners.weight
        poi_vectors = embedding.poi_vectors if self.is_tied else self.poi_vectors
        order = torch.argsort(blocks_N, stable=True)
        blocks, counts = torch.unique_consecutive(blocks_N[order], return_counts=True)
        parts = []
        for block, states in zip(blocks, states_ND[order].split(counts.tolist()), strict=True):
            is_live_I = (
                torch.ones_like(weight[:, 0], dtype=torch.bool) if live is None else live.mask_block(block)
            )
            vectors = weight[: len(is_live_I)]
            if poi_vectors is not None and len(is_live_I):
                inners = torch.arange(len(is_live_I), device=blocks.device)
                vectors = vectors + poi_vectors(block.expand_as(inners), inners)
            logits = (states @ vectors.to(states.dtype).T).float()
            parts.append(logits.masked_fill(~is_live_I, -torch.inf).log_softmax(dim=-1))
        return order, parts
