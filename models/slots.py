"""Which (block, inner) slots there are, as of a request or a training: masks for generator and memory."""

# Shape letters: N = slots, V = blocks, I = inner ids of a block.

import torch
from torch import Tensor

_INNER_BITS = 24
_INNER_MASK = (1 << _INNER_BITS) - 1


class LiveSlots:
    """A set of (block, inner) slots; costs memory in proportion to the slots, not to blocks x inner ids."""

    def __init__(self, block_ids: Tensor, inner_ids: Tensor, *, num_blocks: int, max_inner: int) -> None:
        """Sorts the slots.

        Args:
            block_ids: (N,) int64; ids beyond the capacity are left out, since no model can produce them.
            inner_ids: (N,) int64.
            num_blocks: capacity V.
            max_inner: capacity I.
        """
        fits = (block_ids < num_blocks) & (inner_ids < max_inner)
        self.num_blocks, self.max_inner = num_blocks, max_inner
        self.keys_N = torch.unique((block_ids[fits].long() << _INNER_BITS) | inner_ids[fits].long())
        edges = torch.arange(num_blocks + 1, device=self.keys_N.device) << _INNER_BITS
        self.starts_V1 = torch.searchsorted(self.keys_N, edges)

    def to(self, device: torch.device | str) -> "LiveSlots":
        """Returns the set on another device."""
        if self.keys_N.device == torch.device(device):
            return self
        keys = self.keys_N.to(device)
        mask = (1 << _INNER_BITS) - 1
        return LiveSlots(
            keys >> _INNER_BITS, keys & mask, num_blocks=self.num_blocks, max_inner=self.max_inner
        )

    def count_inners(self) -> Tensor:
        """Returns the slots of each block, (V,) int64."""
        return self.starts_V1.diff()

    def mask_blocks(self) -> Tensor:
        """Returns the blocks with at least one slot, (V,) bool."""
        return self.count_inners() > 0

    def mask_block(self, block_id: Tensor) -> Tensor:
        """Returns which inner ids exist in a block, (largest + 1,) bool; empty if there is no slot."""
        if block_id >= self.num_blocks:
            return torch.zeros(0, dtype=torch.bool, device=self.keys_N.device)
        inners = self.keys_N[self.starts_V1[block_id] : self.starts_V1[block_id + 1]] & _INNER_MASK
        size = int(inners[-1]) + 1 if len(inners) else 0
        mask = torch.zeros(size, dtype=torch.bool, device=inners.device)
        mask[inners] = True
        return mask

    def contains(self, block_ids: Tensor, inner_ids: Tensor) -> Tensor:
        """Tells elementwise whether (block, inner) is in the set."""
        return self.find(block_ids, inner_ids)[1]

    def find(self, block_ids: Tensor, inner_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns elementwise the place of (block, inner) in the sorted set, and whether it is in it."""
        if len(self.keys_N) == 0:
            return torch.zeros_like(block_ids), torch.zeros_like(block_ids, dtype=torch.bool)
        key = (block_ids.long() << _INNER_BITS) | inner_ids.long()
        place = torch.searchsorted(self.keys_N, key).clamp(max=len(self.keys_N) - 1)
        return place, self.keys_N[place] == key
