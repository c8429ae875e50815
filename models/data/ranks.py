"""The rank of a target in a full ranking, with ties."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.arrays import BoolArray, Float64Array, IntArray


@dataclass(frozen=True)
class Ranks:
    """Position of every row's target in its full ranking.

    Attributes:
        num_higher: POIs with a strictly higher score than the target.
        num_equal: POIs with the target's score, the target itself included; at least 1.
    """

    num_higher: IntArray
    num_equal: IntArray

    @property
    def expected(self) -> Float64Array:
        """Mean rank over all orders of the tied POIs; 1 is best."""
        return 1.0 + self.num_higher + (self.num_equal - 1) / 2.0

    def __len__(self) -> int:
        return len(self.num_higher)

    def take(self, rows: NDArray[np.int64] | BoolArray) -> "Ranks":
        """Returns the ranks of some of the rows."""
        return Ranks(self.num_higher[rows], self.num_equal[rows])

    @staticmethod
    def join(parts: Iterable["Ranks"]) -> "Ranks":
        """Returns the rows of all parts, in order."""
        listed = [*parts, Ranks(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        return Ranks(
            np.concatenate([part.num_higher for part in listed]),
            np.concatenate([part.num_equal for part in listed]),
        )
