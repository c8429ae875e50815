"""Slots (block, inner) that are live at a request or training; they mask generator and memory.

A slot is packed into one int64 that sorts by block and then inner id, for arrays and tensors.
"""

# Shape letters: N = slots, V = blocks, I = inner ids of a block.

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INNER_BITS = 32
"""Low bits of a key, for the inner id. Checkpoints hold keys (`POIVectors.keys_R`), so this must not change."""
Ids = TypeVar("Ids", Tensor, NDArray[np.int64])


def pack_slots(block_ids: Ids, inner_ids: Ids) -> Ids:
    """Returns the int64 key of each slot, (...); both ids are int64 of one shape."""
    return (block_ids << INNER_BITS) | inner_ids


def unpack_slots(keys: Ids) -> tuple[Ids, Ids]:
    """Returns block and inner ids of keys, (...) int64 each."""
    return keys >> INNER_BITS, keys & ((1 << INNER_BITS) - 1)


class AboutSlots(NamedTuple):
    """Side information of slots.

    Attributes:
        categories_N: int64, (N,), leaf categories; 0 = unknown.
        lonlat_N2: float, (N, 2), degrees; NaN = unknown.
    """

    categories_N: Tensor
    lonlat_N2: Tensor


class LiveSlots:
    """A set of (block, inner) slots; its memory grows with the slots, not with blocks x inner ids."""

    def __init__(
        self,
        block_ids: Tensor,
        inner_ids: Tensor,
        *,
        num_blocks: int,
        max_inner: int,
        about: AboutSlots | None = None,
    ) -> None:
        """Sorts the slots.

        Args:
            block_ids: (N,) int64; ids beyond the capacity are left out, since no model can produce them.
            inner_ids: (N,) int64.
            num_blocks: capacity V.
            max_inner: capacity I.
            about: side information of the slots, in the given order; only models that use it in output vectors read it.
        """
        fits = (block_ids < num_blocks) & (inner_ids < max_inner)
        self.num_blocks, self.max_inner = num_blocks, max_inner
        keys = pack_slots(block_ids[fits].long(), inner_ids[fits].long())
        self.keys_N, place = torch.unique(keys, return_inverse=True)
        self.about: AboutSlots | None = None
        if about is not None:
            first = torch.full_like(self.keys_N, len(keys))
            first.scatter_reduce_(0, place, torch.arange(len(keys), device=keys.device), reduce="amin")
            self.about = AboutSlots(*(values[fits][first] for values in about))
        # The key of (b, 0) is b shifted, so block b starts at its place among the sorted keys.
        edges = torch.arange(num_blocks + 1, device=self.keys_N.device) << INNER_BITS
        self.starts_V1 = torch.searchsorted(self.keys_N, edges)

    def to(self, device: torch.device | str) -> "LiveSlots":
        """Returns the set on another device."""
        if self.keys_N.device == torch.device(device):
            return self
        blocks, inners = (ids.to(device) for ids in self.ids())
        return LiveSlots(
            blocks,
            inners,
            num_blocks=self.num_blocks,
            max_inner=self.max_inner,
            about=None if self.about is None else AboutSlots(*(values.to(device) for values in self.about)),
        )

    def ids(self) -> tuple[Tensor, Tensor]:
        """Returns blocks and inner ids of all slots, in order, (N,) each."""
        return unpack_slots(self.keys_N)

    def count_inners(self) -> Tensor:
        """Returns the number of slots of each block, (V,) int64."""
        return self.starts_V1.diff()

    def mask_blocks(self) -> Tensor:
        """Returns which blocks have at least one slot, (V,) bool."""
        return self.count_inners() > 0

    def mask_block(self, block_id: Tensor) -> Tensor:
        """Returns which inner ids exist in a block, (largest + 1,) bool; empty if there is no slot."""
        if block_id >= self.num_blocks:
            return torch.zeros(0, dtype=torch.bool, device=self.keys_N.device)
        inners = unpack_slots(self.keys_N[self.starts_V1[block_id] : self.starts_V1[block_id + 1]])[1]
        size = int(inners[-1]) + 1 if len(inners) else 0
        mask = torch.zeros(size, dtype=torch.bool, device=inners.device)
        mask[inners] = True
        return mask

    def about_block(self, block_id: Tensor) -> AboutSlots:
        """Returns side information of a block's inner ids, as many as in `mask_block`; unknown for ids without a slot.

        Raises:
            ValueError: the set has no side information.
        """
        if self.about is None:
            raise ValueError(
                "output vectors take in category and place, and these slots were given without them"
            )
        size = len(self.mask_block(block_id))
        categories, lonlat = (values.new_zeros(size, *values.shape[1:]) for values in self.about)
        lonlat = lonlat + torch.nan
        if size:
            span = slice(int(self.starts_V1[block_id]), int(self.starts_V1[block_id + 1]))
            inners = unpack_slots(self.keys_N[span])[1]
            categories[inners], lonlat[inners] = self.about.categories_N[span], self.about.lonlat_N2[span]
        return AboutSlots(categories, lonlat)

    def contains(self, block_ids: Tensor, inner_ids: Tensor) -> Tensor:
        """Returns elementwise whether (block, inner) is in the set, (...) bool."""
        return self.find(block_ids, inner_ids)[1]

    def find(self, block_ids: Tensor, inner_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns elementwise the place of (block, inner) in the sorted set, and whether the set has it."""
        if len(self.keys_N) == 0:
            return torch.zeros_like(block_ids), torch.zeros_like(block_ids, dtype=torch.bool)
        key = pack_slots(block_ids.long(), inner_ids.long())
        place = torch.searchsorted(self.keys_N, key).clamp(max=len(self.keys_N) - 1)
        return place, self.keys_N[place] == key
