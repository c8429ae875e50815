"""Two processes train as one."""

import multiprocessing
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from models.config import TrainConfig
from models.training.trainer import train

CONFIG = TrainConfig(
    epochs=2, batch_size=5, learning_rate=0.05, warmup_steps=1, checkpoint_every=2, device="cpu"
)


class LineStage:
    """Fits y = 2 x; batches of five and of one row."""

    name = "line"

    def num_batches(self):
        return 3

    def train_batches(self, epoch, start):
        for number in range(start, 3):
            x = torch.randn(
                1 if number == 1 else 5, generator=torch.Generator().manual_seed(10 * epoch + number)
            )
            yield pa.table({"x": x.numpy()})

    def loss(self, model, rows):
        x = torch.tensor(rows["x"].to_pylist())[:, None]
        loss = (model(x) - 2 * x).square().sum()
        return loss, rows.num_rows, {"train/error": float(loss.detach())}

    def validate(self, model):
        return {"val/loss": float((model(torch.ones(1, 1)) - 2).abs())}


def train_line(folder: Path) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    train(LineStage(), model, CONFIG, folder, lambda metrics, step: None)
    return model


def train_in_group(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = train_line(Path(folder) / "two")
    save_file(model.state_dict(), f"{folder}/weights-{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=train_in_group, args=(1, str(tmp_path)))
    other.start()
    train_in_group(0, str(tmp_path))
    other.join()

    one = train_line(tmp_path / "one").state_dict()

    both = [load_file(tmp_path / f"weights-{rank}.safetensors") for rank in (0, 1)]
    assert_close(both[0], both[1], atol=0, rtol=0)
    assert_close(both[0], one, atol=1e-5, rtol=0)
    assert len(list((tmp_path / "two" / "checkpoints").glob("step-*"))) == 2  # written once, by the first
