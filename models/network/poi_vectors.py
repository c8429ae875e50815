"""Vectors that belong to one POI: learned ones, and given ones of text or images; both looked up by (block, inner)."""

# Shape letters: ... = any shape, D = model width, V = blocks, R = rows, M = length of given vectors, N = slots.

import torch
from torch import Tensor, nn

from models.config import DecoderConfig
from models.data.features import hash_slots
from models.data.slot_keys import pack_slots


class PoiVectors(nn.Module):
    """A vector of its own for each (block, inner): exact rows per block, or hashed rows.

    Exact: block b owns the rows `starts[b]` to `starts[b + 1]` - 1, one per inner id, with room to grow;
    POIs beyond have no vector (zero). The vectors start at zero, so that a POI that training never met is its
    inner id, category and place; with `place_std` they start apart (`TokenEmbedding.start_places`).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.is_hashed = config.poi_vectors == "hashed"
        self.num_rows, self.num_blocks = max(config.poi_rows, 2), config.num_blocks
        self.weight = nn.Parameter(torch.zeros(self.num_rows, config.hidden_dim))
        even = torch.arange(self.num_blocks + 1) * (self.num_rows // max(self.num_blocks, 1))
        self.register_buffer("starts_V1", even)
        self.starts_V1: Tensor

    def assign_rows(self, num_inners_V: Tensor) -> None:
        """Shares the rows out to blocks in proportion to their POIs; before training only."""
        # A row per block is set aside first: no block is without, and rounding down keeps the sum within.
        room = self.num_rows - len(num_inners_V)
        scale = max(room, 0) / max(int(num_inners_V.sum()), 1)
        shares = (num_inners_V.double() * scale).floor().long() + 1
        self.starts_V1 = torch.cat([torch.zeros_like(shares[:1]), shares.cumsum(0)])

    def rows(self, block_ids: Tensor, inner_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the row of each slot and whether there is one."""
        known = (block_ids < self.num_blocks) & (block_ids >= 0)
        if self.is_hashed:
            return torch.where(known, hash_slots(block_ids, inner_ids, self.num_rows), 0), known
        block = torch.where(known, block_ids, 0)
        row = self.starts_V1[block] + inner_ids
        known = known & (row < self.starts_V1[block + 1])
        return torch.where(known, row, 0), known

    def forward(self, block_ids: Tensor, inner_ids: Tensor) -> Tensor:
        row, known = self.rows(block_ids, inner_ids)
        return nn.functional.embedding(row, self.weight) * known[..., None]


class GivenVectors(nn.Module):
    """Vectors of POIs that a frozen encoder made of text or images, looked up by (block, inner).

    Buffers: saved with the weights, never trained. So a model carries the vectors that it was fused with, and
    training, scoring and generation find the same ones. They are standardised over the catalogue they were
    set with; a POI without one is zero, which is the average POI.

    Shape:
        block_ids, inner_ids: int64, (...).
        returns: float, (..., M).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        rows, dim = max(config.multimodal_rows, 1), config.multimodal_dim
        # Unused keys are the largest there are, so that the table stays sorted for searchsorted.
        self.register_buffer("keys_R", torch.full((rows,), torch.iinfo(torch.int64).max))
        self.register_buffer("vectors_RM", torch.zeros(rows, dim))
        self.register_buffer("mean_M", torch.zeros(dim))
        self.register_buffer("scale_M", torch.ones(dim))
        self.keys_R: Tensor
        self.vectors_RM: Tensor
        self.mean_M: Tensor
        self.scale_M: Tensor

    def set_vectors(self, block_ids: Tensor, inner_ids: Tensor, vectors_NM: Tensor) -> None:
        """Takes the vectors of slots, at most as many as there are rows; mean and scale become theirs."""
        if len(vectors_NM) > len(self.keys_R) or vectors_NM.shape[1] != len(self.mean_M):
            raise ValueError(
                f"vectors {tuple(vectors_NM.shape)} do not fit the table {tuple(self.vectors_RM.shape)}"
            )
        keys, order = pack_slots(block_ids.long(), inner_ids.long()).sort()
        vectors = vectors_NM.double()[order]
        self.mean_M.copy_(vectors.mean(dim=0))
        # With correction a single vector's spread is nan. The floor is for dimensions without any spread.
        self.scale_M.copy_(vectors.std(dim=0, correction=0).clamp(min=1e-6))
        self.keys_R[: len(keys)] = keys
        self.vectors_RM[: len(keys)] = ((vectors - self.mean_M) / self.scale_M).to(self.vectors_RM)

    def forward(self, block_ids: Tensor, inner_ids: Tensor) -> Tensor:
        keys = pack_slots(block_ids.long(), inner_ids.long())
        rows = torch.searchsorted(self.keys_R, keys).clamp(max=len(self.keys_R) - 1)
        is_given = self.keys_R[rows] == keys
        return nn.functional.embedding(rows, self.vectors_RM) * is_given[..., None]
