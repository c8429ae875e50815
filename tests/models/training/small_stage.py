"""A stage of one linear map, for tests of the training loop."""

import math
from collections.abc import Iterator

import pyarrow as pa
import torch
from torch import nn

from models.config import TrainConfig

NUM_BATCHES = 6


CONFIG = TrainConfig(
    epochs=3, batch_size=4, learning_rate=0.05, warmup_steps=2, checkpoint_every=1, patience=9, device="cpu"
)


class TinyStage:
    """Fits y = 2 x through a layer with dropout; one row may be poisoned."""

    name = "tiny"

    def __init__(self, *, poison: int | None = None, val_losses: list[float] | None = None) -> None:
        self.poison, self.val_losses = poison, val_losses

    def num_batches(self) -> int:
        return NUM_BATCHES

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        for number in range(start, NUM_BATCHES):
            x = torch.randn(4, generator=torch.Generator().manual_seed(100 * epoch + number))
            if self.poison == number:
                x[1] = math.nan
            yield pa.table({"x": x.numpy()})

    def loss(self, model: nn.Module, rows: pa.Table) -> tuple[torch.Tensor, int, dict[str, float]]:
        x = torch.tensor(rows.column("x").to_pylist())[:, None]
        loss = (model(x) - 2 * x).square().sum()
        return loss, len(x), {"train/error": loss.item()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        if self.val_losses:
            return {"val/loss": self.val_losses.pop(0)}
        return {"val/loss": (model(torch.ones(1, 1)) - 2).abs().item()}


def make_model(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(1, 16), nn.Dropout(dropout), nn.Linear(16, 1))


def ignore(metrics: object, step: int) -> None:
    pass


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
