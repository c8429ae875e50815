"""What a training stage tells the loop, and what the loop tells of a training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import pyarrow as pa
from torch import Tensor, nn

Log = Callable[[Mapping[str, float], int], None]
Taught = TypeVar("Taught", bound=nn.Module, contravariant=True)
"""The model that a stage trains."""


class Stage(Protocol[Taught]):
    """What a stage tells the loop."""

    name: str

    def num_batches(self) -> int:
        """Returns the batches of an epoch, `batch_size` rows each."""
        ...

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on; a function of its arguments alone."""
        ...

    def loss(self, model: Taught, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed loss, the number of targets it is summed over, and further sums to be logged."""
        ...

    def validate(self, model: Taught) -> dict[str, float]:
        """Returns metrics; `val/loss` decides, lower is better. None at all = there is nothing to validate on."""
        ...


@runtime_checkable
class ComparingStage(Protocol[Taught]):
    """A stage whose loss compares rows of a batch with each other: a share of the batch alone has another loss."""

    def loss_of_share(
        self, model: Taught, rows: pa.Table, own: slice
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Returns what `loss` of the whole batch would, but summed over the rows of `own` only."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """How a training went.

    Attributes:
        steps: optimiser steps done.
        best_value: lowest validation loss; None = there were no validation rows.
        best_step: its step, or the last one; the model has these weights.
        validations: metrics of every validation, with their step.
        seconds: spent, earlier sittings included.
        is_resumed: did it go on from a checkpoint.
    """

    steps: int
    best_value: float | None
    best_step: int
    validations: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    is_resumed: bool = False
