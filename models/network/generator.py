"""Output heads of the generator: hidden states -> log P(block) and log P(inner | block), before any memory.

Output vectors are the input vectors (`tie_embeddings`), or tables of their own. An inner id's vector is the
shared one plus the POI's own, where the model has POI vectors; with `tie_side_information` it is the whole input vector
of the token, so that what is learned of a category or a place speaks for POIs that were hardly ever visited.
"""

# Shape letters: N = steps (any leading shape), D = model width, V = blocks, I = inner ids of a block,
# S = inner ids of several blocks.

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from conf.tokens import NUM_SPECIAL
from models.config import DecoderConfig
from models.data.live_slots import LiveSlots
from models.network.embedding import TokenEmbedding
from models.network.poi_vectors import PoiVectors


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
        logits = (states @ self._block_vectors(embedding).to(states.dtype).T).float()
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
        # A block without a live slot has a part of width 0; the padding makes it -inf throughout, not nan.
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
        order = torch.argsort(blocks_N, stable=True)
        blocks, counts = torch.unique_consecutive(blocks_N[order], return_counts=True)
        whole_I = torch.ones(self.config.max_inner, dtype=torch.bool, device=blocks_N.device)
        masks = [whole_I if live is None else live.mask_block(block) for block in blocks]
        vectors = self._inner_vectors(blocks, [len(mask) for mask in masks], embedding, live)
        parts = []
        for states, is_live_I, vectors_ID in zip(
            states_ND[order].split(counts.tolist()), masks, vectors, strict=True
        ):
            logits = (states @ vectors_ID.to(states.dtype).T).float()
            parts.append(logits.masked_fill(~is_live_I, -torch.inf).log_softmax(dim=-1))
        return order, parts

    def _block_vectors(self, embedding: TokenEmbedding) -> Tensor:
        """Returns the output vectors of all blocks, (V, D)."""
        if not self.is_tied:
            return self.blocks.weight
        own: Tensor = embedding.blocks.weight[NUM_SPECIAL:]
        if not self.config.tie_side_information:
            return own
        return embedding.embed_blocks(torch.arange(len(own), device=own.device))

    def _inner_vectors(
        self, blocks: Tensor, sizes: list[int], embedding: TokenEmbedding, live: LiveSlots | None
    ) -> Iterable[Tensor]:
        """Returns the output vectors of the first inner ids of each block, (size, D) each."""
        if self.config.tie_side_information:
            return self._whole_vectors(blocks, sizes, embedding, live)
        weight = embedding.inners.weight[NUM_SPECIAL:] if self.is_tied else self.inners.weight
        poi_vectors = embedding.poi_vectors if self.is_tied else self.poi_vectors
        if poi_vectors is None:
            return [weight[:size] for size in sizes]
        inners = torch.arange(max(sizes, default=0), device=blocks.device)
        # One block at a time: together they may be as many as there are POIs.
        return (
            weight[:size] + poi_vectors(block.expand(size), inners[:size])
            for block, size in zip(blocks, sizes, strict=True)
        )

    def _whole_vectors(
        self, blocks: Tensor, sizes: list[int], embedding: TokenEmbedding, live: LiveSlots | None
    ) -> tuple[Tensor, ...]:
        """Returns input vectors of inner tokens, category and place included; in one pass, which is faster."""
        if live is None:
            raise ValueError("output vectors take in category and place, so live slots must be given")
        if not sizes:
            return ()
        about = [live.about_block(block) for block in blocks]
        categories_S, lonlat_S2 = (torch.cat(values) for values in zip(*about, strict=True))
        inners_S = torch.cat([torch.arange(size, device=blocks.device) for size in sizes])
        blocks_S = blocks.repeat_interleave(torch.tensor(sizes, device=blocks.device))
        return embedding.embed_inners(blocks_S, inners_S, categories_S, lonlat_S2).split(sizes)
