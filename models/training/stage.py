"""The interface between a training stage and the loop, and the result of a training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import pyarrow as pa
from torch import Tensor, nn

Log = Callable[[Mapping[str, float], int], None]
Taught = TypeVar("Taught", bound=nn.Module, contravariant=True)
"""The model that a stage trains."""


class Stage(Protocol[Taught]):
    """Batches, loss and validation of a stage."""

    name: str

    def num_batches(self) -> int:
        """Returns the number of batches of an epoch, `batch_size` rows each."""
        ...

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on; the result depends on the arguments alone."""
        ...

    def loss(self, model: Taught, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed loss, the number of its targets, and further sums to log."""
        ...

    def validate(self, model: Taught) -> dict[str, float]:
        """Returns metrics, `val/loss` among them; empty = there are no validation rows."""
        ...


@runtime_checkable
class ComparingStage(Protocol[Taught]):
    """A stage whose loss compares rows of a batch, so that a share of the batch cannot be computed alone."""

    def loss_of_share(
        self, model: Taught, rows: pa.Table, own: slice
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the `loss` of the whole batch, summed over the rows of `own` only."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """The result of a training.

    Attributes:
        steps: optimiser steps done.
        best_value: lowest value of the criterion (`TrainConfig.criterion`); None = there were no validation rows.
        best_step: step of that value, or the last step; the model has its weights.
        validations: metrics of every validation, with their step.
        seconds: training time, including the time before a resume.
        is_resumed: True = the training resumed from a checkpoint.
    """

    steps: int
    best_value: float | None
    best_step: int
    validations: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    is_resumed: bool = False
