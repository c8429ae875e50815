"""Several processes train as one: each takes its share of every batch, gradients and counts are summed.

The processes are those of `torch.distributed` (torchrun, Spark's TorchDistributor): whoever starts them initialises the
process group, gloo on CPUs. Every process holds the whole model and reads the same batches in the same order, so that
the result is that of one process to rounding, as long as dropout is off; with dropout each draws its own masks, and a
resume is exact for one process only. The first process writes the checkpoints, where all can read them.
"""

from collections.abc import Sequence

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn


def process_rank() -> int:
    """Returns the number of this process; 0 = the one that writes checkpoints, or there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def num_processes() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_share(rows: pa.Table) -> pa.Table:
    """Returns this process's rows of a batch: stretches as even as can be, maybe none."""
    first, stop = (rows.num_rows * (process_rank() + more) // num_processes() for more in (0, 1))
    return rows.slice(first, stop - first)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sums the gradients of all processes, in place; a parameter that a process did not use counts 0 there."""
    if num_processes() == 1:
        return
    used = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    dist.all_reduce(used)
    for parameter, count in zip(parameters, used.tolist(), strict=True):
        if count:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient)
            parameter.grad = gradient


def sum_over_processes(*numbers: float) -> list[float]:
    """Returns each number summed over all processes, in float64."""
    if num_processes() == 1:
        return list(numbers)
    summed = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.tolist()


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if num_processes() > 1:
        dist.barrier()
