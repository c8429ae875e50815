"""A slot (block, inner) as one int64, in the order of block and then inner id; for arrays and for tensors."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

INNER_BITS = 32
"""Low bits of a key, for the inner id. Checkpoints hold keys (`POIVectors.keys_R`), so this must not change."""
Ids = TypeVar("Ids", Tensor, NDArray[np.int64])


def pack_slots(block_ids: Ids, inner_ids: Ids) -> Ids:
    """Returns the key of each slot; both int64, of one shape."""
    return (block_ids << INNER_BITS) | inner_ids


def unpack_slots(keys: Ids) -> tuple[Ids, Ids]:
    """Returns block and inner ids of keys."""
    return keys >> INNER_BITS, keys & ((1 << INNER_BITS) - 1)
